//! Programs that take over from those of another version of Egret, whose tables have another shape.
//!
//! ```text
//! open:   gateway/       pins of the other version; its programs forward by its tables
//!         gateway_next/  our maps, still empty; our programs are loaded over them, attached nowhere
//! apply:  our tables are filled, our programs replace the others in their links, our pins move to gateway/
//! ```
//!
//! So an upgrade loses no packet at a gateway, although no version can read the tables of another one.

use super::maps::{self, Tables};
use super::programs::{self, Attachment};
use super::{GatewayConfig, GatewayError, Pins};
use aya::Ebpf;
use std::io::ErrorKind;
use std::path::Path;

/// Loaded programs that are not attached yet.
pub(super) struct Successor {
    object: Ebpf,
    /// Pins of the other version, which ours replace.
    pins: Pins,
    /// Pins of our own maps.
    own: Pins,
    config: GatewayConfig,
    attachment: Attachment,
}

impl Successor {
    /// Loads our programs over maps of their own. `None`: nothing of another version forwards in these places. There are no
    /// maps of an earlier attempt.
    pub(super) fn prepare(
        pin_dir: &Path,
        config: &GatewayConfig,
        attachment: Attachment,
    ) -> Result<Option<(Self, Tables)>, GatewayError> {
        let pins = Pins::new(pin_dir);
        if !programs::attached(&pins, config, attachment as u8) {
            return Ok(None);
        }
        let own = Pins::next(pin_dir);
        own.create()?;
        let object = programs::load(&own)?;
        let tables = Tables::open(&own)?;
        let successor = Self {
            object,
            pins,
            own,
            config: *config,
            attachment,
        };
        Ok(Some((successor, tables)))
    }

    /// Replaces the programs and the pins of the other version. May be called again after an error.
    pub(super) fn take_over(&mut self) -> Result<(), GatewayError> {
        let (object, config) = (&mut self.object, &self.config);
        programs::attach(object, &self.pins, config, self.attachment)?;
        let links = programs::links(config);
        for path in entries(&self.pins)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let stays =
                name.is_some_and(|name| links.contains(&name) || maps::PINNED.contains(&name));
            if !stays {
                std::fs::remove_file(&path).map_err(|source| GatewayError::Pin { path, source })?;
            }
        }
        for name in maps::PINNED {
            let path = self.own.path(name);
            match std::fs::rename(&path, self.pins.path(name)) {
                Ok(()) => {}
                // An earlier call moved it.
                Err(source) if source.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(GatewayError::Pin { path, source }),
            }
        }
        clear(&self.own)
    }

    /// The kind of attachment.
    pub(super) fn attachment(&self) -> Attachment {
        self.attachment
    }
}

/// Removes a directory of pins with everything in it, if it is there.
pub(super) fn clear(pins: &Pins) -> Result<(), GatewayError> {
    if !pins.0.exists() {
        return Ok(());
    }
    for path in entries(pins)? {
        std::fs::remove_file(&path).map_err(|source| GatewayError::Pin { path, source })?;
    }
    std::fs::remove_dir(&pins.0).map_err(|source| GatewayError::Pin {
        path: pins.0.clone(),
        source,
    })
}

fn entries(pins: &Pins) -> Result<Vec<std::path::PathBuf>, GatewayError> {
    let error = |source| GatewayError::Pin {
        path: pins.0.clone(),
        source,
    };
    let entries = std::fs::read_dir(&pins.0).map_err(error)?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    paths.collect::<Result<_, _>>().map_err(error)
}
