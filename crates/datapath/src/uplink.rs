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
use crate::gateway::programs::supported;
use crate::gateway::{Attachment, GatewayError, Pins};
use crate::netlink::{NetlinkError, NetlinkSocket};
use crate::veth::{VethEnd, VethError, VethPair};
use egret_core::node::WorkerState;
use egret_core::numbers::{LIFT_ADDRESS, LIFT_DEVICE, LIFT_PEER};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tables::{Desired, Tables};
use thiserror::Error;

/// The lift device and its other end, which carries nothing.
const LIFT: VethPair = VethPair {
    name: LIFT_DEVICE,
    peer: LIFT_PEER,
    alias: "egret: what pods send past the stack comes in here",
    address: LIFT_ADDRESS,
    macs: None,
};

/// Why pods' packets cannot be lifted.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// Programs, maps or pins.
    #[error(transparent)]
    Bpf(#[from] GatewayError),
    /// The lift device.
    #[error(transparent)]
    Device(#[from] VethError),
    /// No netlink.
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
            set_aside(&pins)?;
            pins.create()?;
            programs::load(&pins)?;
        }
        let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
        let device = LIFT.ensure(&mut socket)?;
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
        Ok(self.tables.grow(&Desired::of(worker))?)
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
        // Filters of another version were replaced in place; links go now that ours are before them.
        remove_room(&aside(&self.pins), Some(Attachment::Tcx as u8))?;
        Ok(self.tables.shrink(&Desired::of(worker))?)
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

    /// What others have done; `deep` compares the tables too. Any drift to the device needs [`Self::open`] anew, the
    /// rest is repaired by [`Self::prepare`] and [`Self::settle`].
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn verify(&mut self, deep: bool) -> Result<DriftReport, UplinkError> {
        let mut drift = DriftReport::new();
        if !LIFT.is_intact(&mut self.socket, &self.device)? {
            let what = format!("{LIFT_DEVICE} is gone or was changed");
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
        Ok(LIFT.delete(&mut socket)? || found)
    }
}

fn pins(pin_dir: &Path) -> Pins {
    Pins(pin_dir.join("uplink"))
}

fn exists(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

/// Where programs over tables of another version are kept until ours are attached: without them packets would leave
/// unseen meanwhile.
fn aside(pins: &Pins) -> Pins {
    Pins(pins.0.with_file_name("uplink_before"))
}

fn set_aside(pins: &Pins) -> Result<(), UplinkError> {
    let aside = aside(pins);
    // What was set aside before, by an agent that was stopped at this point, is still attached; this is as good.
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
    // Others may have pins beside ours; then it is not empty and stays.
    let _not_empty = std::fs::remove_dir(pin_dir);
    Ok(before || found)
}

/// Removes programs and pins of one directory. Where no kind of attachment is told or noted, both are looked for.
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
