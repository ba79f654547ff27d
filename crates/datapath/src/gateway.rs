//! The gateway's data path: loads the two eBPF programs of `bpf/`, fills their tables, reads their counters.
//!
//! ```text
//! GatewayState --apply--> maps: workers, owners, steering, (version last)
//!                           ^ pinned: traffic survives the agent, the next one adopts them
//!  external device --external_in--+--egress_in-- egret0
//! ```
//!
//! It decides nothing. `bpf/gateway.bpf.c` and `docs/datapath.md` say what each program does.

pub mod abi;
pub mod backend;
pub(crate) mod counters;
mod external_routes;
mod heard;
mod maps;
pub mod netdev;
pub(crate) mod programs;
mod successor;
mod traffic;

pub use backend::{BackendChoice, BackendError, GatewayBackend};
pub use counters::{COUNTERS, Counter};
pub use heard::Heard;
pub use programs::{Attachment, OBJECT, object_hash};
pub use traffic::{Carried, Flow};

use crate::presence::l2::SolicitedNodes;
use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use egret_core::node::{GatewayState, TunnelIndex};
use maps::Tables;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use successor::Successor;
use thiserror::Error;

/// Facts about the node that the programs need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Index of the tunnel device `egret0`.
    pub tunnel_ifindex: u32,
    /// Index of the external device: an Ethernet device, possibly the node's only one.
    pub external_ifindex: u32,
    /// Own tunnel index.
    pub own_index: TunnelIndex,
    /// Largest IP packet inside the tunnel, bytes.
    pub tunnel_mtu: u32,
    /// MAC address of the external device, which ARP and ND answers contain.
    pub external_mac: [u8; 6],
    /// Source of ICMP errors. `None`: the egress address itself towards outside, and no errors towards pods.
    pub external_v4: Option<Ipv4Addr>,
    /// Source of ICMPv6 errors, likewise.
    pub external_v6: Option<Ipv6Addr>,
}

/// Error of setting up or changing the gateway's data path.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The pin directory is not on a BPF file system.
    #[error("{} is not on a BPF file system (mount -t bpf bpf /sys/fs/bpf)", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// No device has this index.
    #[error("there is no network device with index {ifindex}")]
    NoDevice {
        /// The index.
        ifindex: u32,
    },
    /// The kernel rejected the programs or maps.
    #[error("loading the eBPF programs")]
    Load {
        /// Error of the verifier or the kernel.
        #[source]
        source: Box<EbpfError>,
    },
    /// A program cannot be attached.
    #[error("attaching {program} to {device}")]
    Attach {
        /// Program.
        program: &'static str,
        /// Device.
        device: String,
        /// Error of the kernel.
        #[source]
        source: Box<ProgramError>,
    },
    /// A pin could not be made, read or removed.
    #[error("pin {}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: std::io::Error,
    },
    /// A pin of our name is not ours.
    #[error("{} is not a link of a program of ours; remove it", path.display())]
    ForeignPin {
        /// The pin.
        path: PathBuf,
    },
    /// A map could not be read or written.
    #[error("eBPF map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// Error of the kernel.
        #[source]
        source: Box<MapError>,
    },
}

impl GatewayError {
    pub(crate) fn load(error: impl Into<EbpfError>) -> Self {
        Self::Load {
            source: Box::new(error.into()),
        }
    }

    fn attach(program: &'static str, device: &str, error: impl Into<ProgramError>) -> Self {
        Self::Attach {
            program,
            device: device.to_owned(),
            source: Box::new(error.into()),
        }
    }

    pub(crate) fn map(map: &'static str, error: MapError) -> Self {
        Self::Map {
            map,
            source: Box::new(error),
        }
    }

    fn pin(path: &Path, error: PinError) -> Self {
        Self::Pin {
            path: path.to_owned(),
            source: std::io::Error::other(error),
        }
    }
}

/// Directory of our pins: `<pin directory>/gateway/`, and one beside it for pins that are not a gateway's.
#[derive(Clone, Debug)]
pub(crate) struct Pins(pub(crate) PathBuf);

impl Pins {
    fn new(pin_dir: &Path) -> Self {
        Self(pin_dir.join("gateway"))
    }

    /// Directory of maps that are filled beside those of another version.
    fn next(pin_dir: &Path) -> Self {
        Self(pin_dir.join("gateway_next"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn create(&self) -> Result<(), GatewayError> {
        let error = |source| GatewayError::Pin {
            path: self.0.clone(),
            source,
        };
        std::fs::create_dir_all(&self.0).map_err(error)?;
        let kind = nix::sys::statfs::statfs(&self.0).map_err(|errno| error(errno.into()))?;
        match kind.filesystem_type() {
            nix::sys::statfs::BPF_FS_MAGIC => Ok(()),
            _ => Err(GatewayError::NotBpffs {
                path: self.0.clone(),
            }),
        }
    }
}

/// The gateway's data path of one node. Dropping it changes nothing in the kernel.
pub struct GatewayDriver {
    tables: Tables,
    /// Programs that take over from another version at the next [`GatewayDriver::apply`].
    successor: Option<Successor>,
}

impl std::fmt::Debug for GatewayDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayDriver")
            .field("config", self.tables.config())
            .finish_non_exhaustive()
    }
}

impl GatewayDriver {
    /// Loads the programs and attaches them, or adopts those of a previous run.
    ///
    /// Pinned tables keep their content. Pinned links stay untouched where they hold programs of this very object;
    /// otherwise the program is replaced in place, between two packets. Tables of another shape (an older or newer
    /// version of Egret) cannot be adopted: that version goes on forwarding until [`GatewayDriver::apply`] has filled
    /// new ones.
    ///
    /// # Errors
    /// [`GatewayError`]: not a BPF file system, a missing device, or a refusal by the kernel.
    pub fn open(pin_dir: &Path, config: &GatewayConfig) -> Result<Self, GatewayError> {
        match Self::open_with(pin_dir, config, Attachment::supported()) {
            // The kernel has tcx, but something (a policy, a sandbox) refuses it.
            Err(GatewayError::Attach { source, .. })
                if Attachment::supported() == Attachment::Tcx =>
            {
                tracing::warn!(error = %source, "tcx is refused; trying clsact");
                Self::open_with(pin_dir, config, Attachment::Clsact)
            }
            opened => opened,
        }
    }

    /// [`Self::open`] with a fixed kind of attachment, whatever the kernel supports (for tests).
    ///
    /// # Errors
    /// As [`GatewayDriver::open`].
    #[doc(hidden)]
    pub fn open_with(
        pin_dir: &Path,
        config: &GatewayConfig,
        attachment: Attachment,
    ) -> Result<Self, GatewayError> {
        let pins = Pins::new(pin_dir);
        pins.create()?;
        // An agent may have died before or in its takeover.
        successor::clear(&Pins::next(pin_dir))?;
        if !maps::pinned_in_our_shape(&pins) {
            if let Some((successor, mut tables)) = Successor::prepare(pin_dir, config, attachment)?
            {
                tables.set_config(node_config(config, tables.config()))?;
                tracing::info!(directory = %pin_dir.display(), "another version forwards until the new tables are filled");
                return Ok(Self {
                    tables,
                    successor: Some(successor),
                });
            }
            if Self::remove(pin_dir)? {
                tracing::warn!(directory = %pin_dir.display(), "tables of another version; made anew");
            }
            pins.create()?;
        }
        if maps::pinned_in_our_shape(&pins) {
            let mut tables = Tables::open(&pins)?;
            let same = tables.config().object_hash == object_hash();
            if same
                && attachment == Attachment::Tcx
                && programs::attached(&pins, config, attachment as u8)
            {
                tables.set_config(node_config(config, tables.config()))?;
                return Ok(Self {
                    tables,
                    successor: None,
                });
            }
        }
        let mut object = programs::load(&pins)?;
        let mut tables = Tables::open(&pins)?;
        tables.set_config(node_config(config, tables.config()))?;
        programs::attach(&mut object, &pins, config, attachment)?;
        let mut driver = Self {
            tables,
            successor: None,
        };
        driver.note_attached(attachment)?;
        Ok(driver)
    }

    /// Records in the tables which programs are attached, and how.
    fn note_attached(&mut self, attachment: Attachment) -> Result<(), GatewayError> {
        let hash = object_hash();
        self.tables.set_config(abi::Config {
            object_hash: hash,
            attachment: attachment as u8,
            ..*self.tables.config()
        })?;
        tracing::info!(?attachment, object_hash = hash, "gateway programs attached");
        Ok(())
    }

    /// Brings the tables to the desired state: workers, then steering, then removals, the version last, so that a
    /// reported version is never ahead of the tables. `own` is this node: packets for its own blocks go up the stack.
    ///
    /// `state.workers` must contain every node that sends to this one through the tunnel, gateways too: other nodes'
    /// probes and packets are dropped.
    ///
    /// Returns the addresses that this node announces now and did not before; the caller sends
    /// [`crate::presence::l2::gratuitous`] for them.
    ///
    /// After [`GatewayDriver::open`] beside another version, this takes over from it.
    ///
    /// # Errors
    /// [`GatewayError`]; changes made so far stay, and the next call continues from there.
    pub fn apply(
        &mut self,
        state: &GatewayState,
        own: TunnelIndex,
    ) -> Result<Vec<IpAddr>, GatewayError> {
        let announced = self.tables.apply(state, own)?;
        if let Some(successor) = &mut self.successor {
            successor.take_over()?;
            let attachment = successor.attachment();
            self.successor = None;
            self.note_attached(attachment)?;
        }
        Ok(announced)
    }

    /// The first program or pin that is missing or misplaced, as text for people.
    pub fn detached(&self, pin_dir: &Path, config: &GatewayConfig) -> Option<String> {
        if self.successor.is_some() {
            return None;
        }
        let pins = Pins::new(pin_dir);
        if !maps::pinned_in_our_shape(&pins) {
            return Some("a pinned map is gone or another".to_owned());
        }
        let attachment = self.tables.config().attachment;
        let program = programs::detached(&pins, config, attachment)?;
        Some(format!(
            "{program} is not attached, or not before the programs of others, or its pin is gone"
        ))
    }

    /// Compares the tables in the kernel with what was written: all entries where `deep`, or where there are few
    /// addresses; otherwise the next few. Returns the first changed entry, as text for people. The next
    /// [`GatewayDriver::apply`] repairs it.
    ///
    /// # Errors
    /// [`GatewayError::Map`].
    pub fn verify_tables(&mut self, deep: bool) -> Result<Option<String>, GatewayError> {
        match deep || self.tables.are_few() {
            true => self.tables.reread(),
            false => self.tables.reread_some(),
        }
    }

    /// Steering version that probes report.
    pub fn version(&self) -> u64 {
        self.tables.config().steering_version
    }

    /// Addresses in the steering table; after [`GatewayDriver::open`] those of a previous run.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.tables.addresses()
    }

    /// Addresses that this node answers ARP and ND for.
    pub fn announcing(&self) -> BTreeSet<IpAddr> {
        self.tables.announcing()
    }

    /// Packets by outcome, since the maps were made.
    ///
    /// # Errors
    /// [`GatewayError::Map`].
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, GatewayError> {
        self.tables.counters()
    }

    /// Traffic and drops by egress address, since each is steered here.
    ///
    /// # Errors
    /// [`GatewayError::Map`].
    pub fn traffic(&self) -> Result<BTreeMap<IpAddr, Carried>, GatewayError> {
        self.tables.traffic()
    }

    /// Removes everything: programs from their devices, links, maps, directories (the pin directory itself if it is
    /// empty then). Returns whether there was anything.
    ///
    /// On kernels before 6.6 the `clsact` qdisc stays, which other programs may use.
    ///
    /// # Errors
    /// [`GatewayError::Pin`].
    pub fn remove(pin_dir: &Path) -> Result<bool, GatewayError> {
        successor::clear(&Pins::next(pin_dir))?;
        let pins = Pins::new(pin_dir);
        if !pins.0.exists() {
            return Ok(false);
        }
        let tables = Tables::open(&pins).ok();
        if let Some(tables) = &tables {
            leave_groups(tables);
        }
        let config = tables.map(|tables| *tables.config()).unwrap_or_default();
        let detached = programs::detach(&pins, &config)?;
        let had_maps = std::fs::read_dir(&pins.0).is_ok_and(|mut maps| maps.next().is_some());
        successor::clear(&pins)?;
        // Others may have pins beside ours; then the directory is not empty and stays.
        let _not_empty = std::fs::remove_dir(pin_dir);
        Ok(detached || had_maps)
    }
}

/// Leaves the multicast groups of every address in the tables: their link-layer entries outlive the agent.
fn leave_groups(tables: &Tables) {
    leave_groups_of(tables.config().external_ifindex, &tables.addresses());
}

fn leave_groups_of(ifindex: u32, addresses: &BTreeSet<IpAddr>) {
    // A removed device took its entries along.
    let Ok(device) = nix::net::if_::if_indextoname(ifindex) else {
        return;
    };
    let mut solicited = SolicitedNodes::new(ifindex, &device.to_string_lossy());
    solicited.adopt(addresses);
    for error in solicited.set(&BTreeSet::new()).err().unwrap_or_default() {
        tracing::warn!(%error, "a solicited-node group stays joined");
    }
}

/// Builds the programs' configuration; version and hash stay as they are.
fn node_config(config: &GatewayConfig, old: &abi::Config) -> abi::Config {
    let v4 = config.external_v4.map(|v4| abi::address(IpAddr::V4(v4)));
    let v6 = config.external_v6.map(|v6| abi::address(IpAddr::V6(v6)));
    abi::Config {
        external_ifindex: config.external_ifindex,
        tunnel_ifindex: config.tunnel_ifindex,
        tunnel_mtu: config.tunnel_mtu,
        own_index: config.own_index,
        external_mac: config.external_mac,
        tunnel_mac: egret_wire::tunnel_mac(config.own_index),
        external_v4: v4.unwrap_or_default(),
        external_v6: v6.unwrap_or_default(),
        ..*old
    }
}
