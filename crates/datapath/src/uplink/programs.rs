//! Loading the uplink programs and attaching them to every device that pods' packets can leave by.

use super::tables::PINNED;
use crate::gateway::programs::{
    Place, UPLINK_HANDLE, attach_filter, attach_link, detach_filter, detach_link, is_filtered,
    is_linked,
};
use crate::gateway::{Attachment, GatewayError, Pins};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use std::collections::BTreeSet;

/// The compiled programs.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/uplink.bpf.o"));

/// Prefixes of the names of links' pins; the index of the device follows.
const LINKS: [(&str, &str, TcAttachType); 2] = [
    ("uplink_in", "in_", TcAttachType::Ingress),
    ("uplink_out", "out_", TcAttachType::Egress),
];

/// Hash of [`OBJECT`].
pub(super) fn object_hash() -> u64 {
    env!("EGRET_UPLINK_OBJECT_HASH")
        .parse()
        .expect("build.rs writes a decimal number")
}

/// Both programs at a device: the one that remembers flows before the one that judges them.
fn places(ifindex: u32) -> [(Place, String); 2] {
    LINKS.map(|(program, prefix, direction)| {
        let place = Place {
            program,
            direction,
            handle: UPLINK_HANDLE,
            pin: "",
            ifindex,
        };
        (place, format!("{prefix}{ifindex}"))
    })
}

/// Creates or adopts the pinned maps, and loads the programs over them.
pub(super) fn load(pins: &Pins) -> Result<Ebpf, GatewayError> {
    let mut loader = EbpfLoader::new();
    // The programs need no relocation by kernel types (BTF), which take long to read.
    loader.btf(None);
    for (name, ..) in PINNED {
        loader.map_pin_path(name, pins.path(name));
    }
    let mut object = loader.load(OBJECT).map_err(GatewayError::load)?;
    for (_, program) in object.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().map_err(GatewayError::load)?;
        program.load().map_err(GatewayError::load)?;
    }
    Ok(object)
}

/// Whether both programs are at the device, before all others.
pub(super) fn attached(pins: &Pins, ifindex: u32, attachment: u8) -> bool {
    places(ifindex).iter().all(|(place, pin)| {
        if attachment == Attachment::Clsact as u8 {
            is_filtered(place)
        } else {
            is_linked(&pins.path(pin), place)
        }
    })
}

/// Attaches freshly loaded programs to a device, or replaces the attached ones.
pub(super) fn attach(
    pins: &Pins,
    ifindex: u32,
    attachment: Attachment,
) -> Result<(), GatewayError> {
    // A program can be at a device only once, also while one link replaces another: so it is loaded again.
    let mut object = load(pins)?;
    for (place, pin) in places(ifindex) {
        let program = object
            .program_mut(place.program)
            .expect("the object has both programs");
        let program: &mut SchedClassifier = program.try_into().map_err(GatewayError::load)?;
        match attachment {
            Attachment::Tcx => attach_link(program, &pins.path(&pin), place)?,
            Attachment::Clsact => attach_filter(program, place)?,
        }
    }
    if attachment == Attachment::Clsact {
        mark(pins, ifindex)?;
    }
    Ok(())
}

/// Detaches both programs from a device. Returns whether anything was there.
pub(super) fn detach(pins: &Pins, ifindex: u32, attachment: u8) -> Result<bool, GatewayError> {
    let mut found = false;
    for (place, pin) in places(ifindex) {
        let path = pins.path(&pin);
        found |= detach_link(&path).map_err(|source| GatewayError::Pin { path, source })?;
        if attachment == Attachment::Clsact as u8 {
            found |= detach_filter(&place);
        }
    }
    let path = pins.path(&format!("{MARK}{ifindex}"));
    match std::fs::remove_dir(&path) {
        Ok(()) => found = true,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(GatewayError::Pin { path, source }),
    }
    Ok(found)
}

/// Filters have no pins: an empty directory per device records them.
const MARK: &str = "filter_";

fn mark(pins: &Pins, ifindex: u32) -> Result<(), GatewayError> {
    let path = pins.path(&format!("{MARK}{ifindex}"));
    std::fs::create_dir_all(&path).map_err(|source| GatewayError::Pin { path, source })
}

/// Indexes of the devices that our programs were attached to; some may be gone.
pub(super) fn devices(pins: &Pins) -> BTreeSet<u32> {
    let names = std::fs::read_dir(&pins.0).into_iter().flatten().flatten();
    let prefixes = || LINKS.iter().map(|(_, prefix, _)| *prefix).chain([MARK]);
    let index = |name: String| {
        let mut rests = prefixes().filter_map(|prefix| name.strip_prefix(prefix));
        rests.find_map(|rest| rest.parse().ok())
    };
    names
        .filter_map(|entry| index(entry.file_name().to_string_lossy().into_owned()))
        .collect()
}
