//! Reinjection, for pods whose network plugin sends their packets past the host stack. At the uplinks, packets of flows
//! that pods open are taken back into the stack, and flows that others open towards pods are remembered.
//!
//! ```text
//!  pod --plugin's program--> uplink --uplink_out--> egret-lift --> prerouting, SNAT, guard, egret0 as for any packet
//!  outside ----------------> uplink --uplink_in---> (only remembers who opens flows towards pods)
//! ```
//!
//! It decides nothing: `egret_core::node::WorkerState::reinject` names the devices. `bpf/uplink.bpf.c` and
//! `docs/datapath.md` say what each program does.

pub mod abi;
mod counters;
mod look;
mod programs;
mod routes;
mod tables;

pub use counters::COUNTERS;
pub use look::{Delivered, LookError, Looker, Towards};
pub use programs::OBJECT;

use crate::drift::{Drift, DriftReport};
use crate::gateway::{Attachment, GatewayError, Pins};
use egret_core::node::WorkerState;
use egret_core::numbers::{REINJECT_ADDRESS, REINJECT_DEVICE, REINJECT_PEER};
use egret_kernel::netlink::{NetlinkError, NetlinkSocket};
use egret_kernel::veth::{VethEnd, VethError, VethPair};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tables::{Desired, Tables};
use thiserror::Error;

/// The reinject device and its peer, which carries nothing.
const REINJECT: VethPair = VethPair {
    name: REINJECT_DEVICE,
    peer: REINJECT_PEER,
    alias: "egret: what pods send past the stack comes in here",
    address: REINJECT_ADDRESS,
    macs: None,
};

/// Error of reinjecting pods' packets.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// Programs, maps or pins.
    #[error(transparent)]
    Bpf(#[from] GatewayError),
    /// The reinject device.
    #[error(transparent)]
    Device(#[from] VethError),
    /// netlink is not available.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The uplink programs of one node. Dropping it changes nothing in the kernel.
pub struct UplinkDriver {
    pins: Pins,
    socket: NetlinkSocket,
    device: VethEnd,
    tables: Tables,
    attachment: Attachment,
    /// Indexes of the devices that the programs are attached to.
    uplinks: BTreeSet<u32>,
}

impl UplinkDriver {
    /// Makes the reinject device and the maps, or adopts those of a previous run. Attaches nothing yet.
    ///
    /// # Errors
    /// [`UplinkError`]: not a BPF file system, or a refusal by the kernel.
    pub fn open(pin_dir: &Path) -> Result<Self, UplinkError> {
        Self::open_with(pin_dir, Attachment::supported())
    }

    /// [`Self::open`] with a fixed kind of attachment, whatever the kernel supports.
    ///
    /// # Errors
    /// As [`UplinkDriver::open`].
    pub fn open_with(pin_dir: &Path, attachment: Attachment) -> Result<Self, UplinkError> {
        let pins = pins(pin_dir);
        pins.create()?;
        if !tables::pinned_in_our_shape(&pins) {
            set_aside(&pins)?;
            pins.create()?;
            programs::load(&pins)?;
        }
        let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
        let device = REINJECT.ensure(&mut socket)?;
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

    /// Adds the state's missing entries to the tables. Call it before the ruleset changes: a reinjected packet that the
    /// ruleset does not select yet passes unchanged.
    ///
    /// # Errors
    /// [`UplinkError`]; the next call continues from there.
    pub fn prepare(&mut self, worker: &WorkerState) -> Result<(), UplinkError> {
        Ok(self.tables.grow(&Desired::of(worker))?)
    }

    /// Attaches the programs to the state's uplinks, detaches them from all others, and removes obsolete entries from
    /// the tables. Call it after the ruleset has changed.
    ///
    /// # Errors
    /// [`UplinkError`]; the next call continues from there.
    pub fn settle(&mut self, worker: &WorkerState) -> Result<(), UplinkError> {
        let index = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).ok();
        let wanted: BTreeSet<u32> = worker.reinject.iter().filter_map(index).collect();
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
        // Filters of another version were replaced in place; old links are removed now that ours are before them.
        remove_room(&aside(&self.pins), Some(Attachment::Tcx as u8))?;
        Ok(self.tables.shrink(&Desired::of(worker))?)
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), UplinkError> {
        let done = programs::attach(&self.pins, ifindex, self.attachment);
        if let (Err(GatewayError::Attach { source, .. }), Attachment::Tcx) =
            (&done, self.attachment)
        {
            // The kernel has tcx, but something (a policy, a sandbox) refuses it.
            tracing::warn!(error = %source, "tcx is refused; trying clsact");
            self.attachment = Attachment::Clsact;
            programs::attach(&self.pins, ifindex, self.attachment)?;
        } else {
            done?;
        }
        tracing::info!(ifindex, attachment = ?self.attachment, "uplink programs attached");
        Ok(())
    }

    /// Detects drift; `deep` compares the tables too. Drift of the device needs a new [`Self::open`]; [`Self::prepare`]
    /// and [`Self::settle`] repair the rest.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn verify(&mut self, deep: bool) -> Result<DriftReport, UplinkError> {
        let mut drift = DriftReport::new();
        if !REINJECT.is_intact(&mut self.socket, &self.device)? {
            let what = format!("{REINJECT_DEVICE} is gone or was changed");
            drift.insert(Drift::Device, what);
        }
        let noted = self.tables.config().attachment;
        let there =
            |ifindex: &&u32| !exists(**ifindex) || programs::attached(&self.pins, **ifindex, noted);
        if !tables::pinned_in_our_shape(&self.pins) {
            let what = "a pinned map of the uplinks is gone or another";
            drift.insert(Drift::Programs, what.to_owned());
        } else if let Some(ifindex) = self.uplinks.iter().find(|ifindex| !there(ifindex)) {
            let what = format!(
                "a program at the uplink with index {ifindex} is not attached, or not before those of others"
            );
            drift.insert(Drift::Programs, what);
        } else if deep && !self.tables.reread()? {
            let what = "an entry of the uplinks' tables was changed";
            drift.insert(Drift::Tables, what.to_owned());
        }
        Ok(drift)
    }

    /// Packets by outcome, since the maps were made.
    ///
    /// # Errors
    /// [`UplinkError::Bpf`].
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, UplinkError> {
        Ok(self.tables.counters()?)
    }

    /// Removes everything: programs, links, maps, directories, the reinject device. Returns whether there was anything.
    ///
    /// On kernels before 6.6 the `clsact` qdisc stays, which other programs may use.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn remove(pin_dir: &Path) -> Result<bool, UplinkError> {
        let found = remove_programs(pin_dir)?;
        // Without programs nothing is reinjected, so the device is removed last.
        let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
        Ok(REINJECT.delete(&mut socket)? || found)
    }
}

fn pins(pin_dir: &Path) -> Pins {
    Pins(pin_dir.join("uplink"))
}

fn exists(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

/// Directory for pins of programs over tables of another version until ours are attached: without them packets would
/// leave unchecked meanwhile.
fn aside(pins: &Pins) -> Pins {
    Pins(pins.0.with_file_name("uplink_before"))
}

fn set_aside(pins: &Pins) -> Result<(), UplinkError> {
    let aside = aside(pins);
    // Programs set aside earlier, by an agent that was stopped at this point, are still attached and serve as well.
    let found = !programs::devices(pins).is_empty();
    if aside.0.exists() || !found {
        remove_room(pins, None)?;
        return Ok(());
    }
    tracing::warn!(directory = %pins.0.display(), "uplink tables of another version; made anew");
    let path = pins.0.clone();
    let renamed = std::fs::rename(&pins.0, &aside.0);
    Ok(renamed.map_err(|source| GatewayError::Pin { path, source })?)
}

fn remove_programs(pin_dir: &Path) -> Result<bool, UplinkError> {
    let pins = pins(pin_dir);
    let before = remove_room(&aside(&pins), None)?;
    let found = remove_room(&pins, None)?;
    // Others may have pins beside ours; then the directory is not empty and stays.
    let _not_empty = std::fs::remove_dir(pin_dir);
    Ok(before || found)
}

/// Removes programs and pins of one directory. If the kind of attachment is neither given nor noted, tries both.
fn remove_room(pins: &Pins, attachment: Option<u8>) -> Result<bool, UplinkError> {
    if !pins.0.exists() {
        return Ok(false);
    }
    let noted = || Tables::open(pins).map(|tables| tables.config().attachment);
    let attachment = attachment.unwrap_or_else(|| noted().unwrap_or(Attachment::Clsact as u8));
    let mut found = false;
    for ifindex in programs::devices(pins) {
        found |= programs::detach(pins, ifindex, attachment)?;
    }
    let error = |path: &Path, source| GatewayError::Pin {
        path: path.to_owned(),
        source,
    };
    let entries = std::fs::read_dir(&pins.0).map_err(|source| error(&pins.0, source))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        std::fs::remove_file(&path).map_err(|source| error(&path, source))?;
        found = true;
    }
    std::fs::remove_dir(&pins.0).map_err(|source| error(&pins.0, source))?;
    Ok(found)
}
