//! Pods whose network plugin takes their packets past the stack: what they send in flows of their own is lifted into it
//! at the devices that it would leave the node by, and what others send to them is remembered there.
//!
//! ```text
//!  pod --plugin's program--> uplink --uplink_out--> egret-lift --> prerouting, SNAT, guard, egret0 as for any packet
//!  outside ----------------> uplink --uplink_in---> (only remembered: who opens flows towards pods)
//! ```
//!
//! Nothing is decided here: `egret_core::node::WorkerState::lift` says where. What each program does is told in
//! `bpf/uplink.bpf.c` and `docs/datapath.md`.

mod abi;
mod counters;
mod device;
mod look;
mod programs;
mod tables;

pub use counters::COUNTERS;
pub use device::DeviceError;
pub use look::{LookError, Looker};
pub use programs::OBJECT;

use crate::damage::Damage;
use crate::gateway::programs::supported;
use crate::gateway::{Attachment, GatewayError, Pins};
use crate::netlink::{NetlinkError, NetlinkSocket};
use device::LiftDevice;
use egret_core::node::WorkerState;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use tables::{Tables, Wanted};
use thiserror::Error;

/// Why pods' packets cannot be lifted.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// Programs, maps or pins.
    #[error(transparent)]
    Bpf(#[from] GatewayError),
    /// The lift device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The uplink programs of one node. Dropping it changes nothing in the kernel.
pub struct UplinkDriver {
    pins: Pins,
    socket: NetlinkSocket,
    device: LiftDevice,
    tables: Tables,
    attachment: Attachment,
    /// Devices that the programs are at.
    uplinks: BTreeSet<u32>,
}

impl UplinkDriver {
    /// Makes the lift device and the maps, or adopts what a previous run left. Attaches nothing yet.
    ///
    /// # Errors
    /// [`UplinkError`]: not a BPF file system, or a refusal by the kernel.
    pub fn open(pin_dir: &Path) -> Result<Self, UplinkError> {
        Self::open_with(pin_dir, supported())
    }

    /// The same, attached in the given way whatever the kernel has.
    ///
    /// # Errors
    /// As [`UplinkDriver::open`].
    pub fn open_with(pin_dir: &Path, attachment: Attachment) -> Result<Self, UplinkError> {
        let pins = pins(pin_dir);
        pins.create()?;
        if !tables::pinned_in_our_shape(&pins) {
            if remove_programs(pin_dir)? {
                tracing::warn!(directory = %pins.0.display(), "uplink tables of another version; made anew");
            }
            pins.create()?;
            programs::load(&pins)?;
        }
        let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
        let device = device::ensure(&mut socket)?;
        let mut tables = Tables::open(&pins)?;
        tables.set_config(abi::Config::of(device.index, device.mac, tables.config()))?;
        let uplinks = programs::devices(&pins);
        let attachment = match tables.config().attachment {
            noted if noted == Attachment::Clsact as u8 => Attachment::Clsact,
            _ => attachment,
        };
        Ok(Self {
            pins,
            socket,
            device,
            tables,
            attachment,
            uplinks,
        })
    }

    /// Adds to the tables what the state asks for. Call it before the ruleset is changed: what is lifted and not yet
    /// selected there is left alone.
    ///
    /// # Errors
    /// [`UplinkError`]; the next call goes on from there.
    pub fn prepare(&mut self, worker: &WorkerState) -> Result<(), UplinkError> {
        Ok(self.tables.grow(&Wanted::of(worker))?)
    }

    /// Attaches the programs to the uplinks of the state, takes them off all others, and removes from the tables what is
    /// not asked for. Call it after the ruleset was changed.
    ///
    /// # Errors
    /// [`UplinkError`]; the next call goes on from there.
    pub fn settle(&mut self, worker: &WorkerState) -> Result<(), UplinkError> {
        let index = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).ok();
        let wanted: BTreeSet<u32> = worker.lift.iter().filter_map(index).collect();
        let same_object = self.tables.config().object_hash == programs::object_hash();
        for ifindex in &wanted {
            let noted = self.tables.config().attachment;
            if !(same_object && programs::attached(&self.pins, *ifindex, noted)) {
                self.attach(*ifindex)?;
            }
            self.uplinks.insert(*ifindex);
        }
        self.tables.set_config(abi::Config {
            object_hash: programs::object_hash(),
            attachment: self.attachment as u8,
            ..*self.tables.config()
        })?;
        let gone: Vec<u32> = self.uplinks.difference(&wanted).copied().collect();
        for ifindex in gone {
            programs::detach(&self.pins, ifindex, self.attachment as u8)?;
            self.uplinks.remove(&ifindex);
        }
        Ok(self.tables.shrink(&Wanted::of(worker))?)
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), UplinkError> {
        let done = programs::attach(&self.pins, ifindex, self.attachment);
        if let (Err(GatewayError::Attach { source, .. }), Attachment::Tcx) =
            (&done, self.attachment)
        {
            // The kernel is new enough for tcx, but something (a policy, a sandbox) refuses it.
            tracing::warn!(error = %source, "tcx is refused; trying clsact");
            self.attachment = Attachment::Clsact;
            programs::attach(&self.pins, ifindex, self.attachment)?;
        } else {
            done?;
        }
        tracing::info!(ifindex, attachment = ?self.attachment, "uplink programs attached");
        Ok(())
    }

    /// What others have done; `deep` compares the tables too. Any damage to the device needs [`Self::open`] anew, the
    /// rest is mended by [`Self::prepare`] and [`Self::settle`].
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn verify(&mut self, deep: bool) -> Result<BTreeSet<Damage>, UplinkError> {
        let mut damage = BTreeSet::new();
        if !device::is_intact(&mut self.socket, &self.device)? {
            damage.insert(Damage::Device);
        }
        let noted = self.tables.config().attachment;
        let there =
            |ifindex: &&u32| !exists(**ifindex) || programs::attached(&self.pins, **ifindex, noted);
        if !tables::pinned_in_our_shape(&self.pins) || !self.uplinks.iter().all(|i| there(&i)) {
            damage.insert(Damage::Programs);
        } else if deep && !self.tables.reread()? {
            damage.insert(Damage::Tables);
        }
        Ok(damage)
    }

    /// Packets by what became of them, since the maps were made.
    ///
    /// # Errors
    /// [`UplinkError::Bpf`].
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, UplinkError> {
        Ok(self.tables.counters()?)
    }

    /// Takes everything away: programs, links, maps, directories, the lift device. Whether there was anything.
    ///
    /// On kernels before 6.6 the `clsact` qdisc stays, which other programs may use.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn remove(pin_dir: &Path) -> Result<bool, UplinkError> {
        let found = remove_programs(pin_dir)?;
        // Without programs nothing is lifted, so the device goes last.
        let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
        Ok(device::delete(&mut socket)? || found)
    }
}

fn pins(pin_dir: &Path) -> Pins {
    Pins(pin_dir.join("uplink"))
}

fn exists(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

fn remove_programs(pin_dir: &Path) -> Result<bool, UplinkError> {
    let pins = pins(pin_dir);
    if !pins.0.exists() {
        return Ok(false);
    }
    // Where the note cannot be read both kinds are looked for.
    let attachment = Tables::open(&pins).map_or(Attachment::Clsact as u8, |tables| {
        tables.config().attachment
    });
    let mut found = false;
    for ifindex in programs::devices(&pins) {
        found |= programs::detach(&pins, ifindex, attachment)?;
    }
    for (name, ..) in tables::PINNED {
        let path = pins.path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => found = true,
            Err(source) if source.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(GatewayError::Pin { path, source }.into()),
        }
    }
    let path = pins.0.clone();
    std::fs::remove_dir(&path).map_err(|source| GatewayError::Pin { path, source })?;
    // Others may have pins beside ours; then it is not empty and stays.
    let _not_empty = std::fs::remove_dir(pin_dir);
    Ok(found)
}
