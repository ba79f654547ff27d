//! The fallback of a gateway without BPF: nftables rules of family `netdev` on the external device and on `egret0`.
//!
//! Like the eBPF programs it stores no connection: no conntrack, no NAT, no stack. Inward, (address, port range) gives
//! a worker's chain, which writes the tunnel's MAC addresses, sets the tunnel key and redirects to `egret0`. Outward,
//! the sender's tunnel MAC address must own the source port, and the packet goes to a neighbour of the external device.
//! ARP requests and neighbour solicitations are rewritten into their answers in place. The rules outlive the agent.
//!
//! [`LIMITATIONS`] lists what it lacks.

mod answers;
mod matches;
mod rules;
mod traffic;

use super::counters::COUNTERS;
use super::external_routes::external_routes;
use super::{Carried, GatewayConfig};
use egret_core::node::{GatewayState, TunnelIndex};
use egret_core::numbers::NFT_TABLE;
use egret_kernel::netlink::{NetlinkError, NetlinkSocket};
use egret_kernel::nft::{NftError, Nftables, TableFamily};
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use thiserror::Error;

/// Limitations compared with eBPF, for the condition `Degraded`.
pub const LIMITATIONS: &str = "who sends is taken from the tunnel MAC address alone, which a node can forge; later fragments \
    and packets whose ICMP error quotes options, extension headers or fragments are dropped; too big is not answered but \
    fragmented around the tunnel; the gateway is not seen by traceroute; no defence against duplicate address detection; \
    probes are answered by the agent; packets for the next hop of a policy, or for the \
    gateway itself, are not taken";

/// Error of setting up or changing the fallback.
#[derive(Debug, Error)]
pub enum NetdevError {
    /// No device has this index.
    #[error("there is no network device with index {ifindex}")]
    NoDevice {
        /// The index.
        ifindex: u32,
    },
    /// The kernel refused the table. Without `NF_TABLES_NETDEV`, `NFT_FWD_NETDEV` and `NFT_TUNNEL` there is no
    /// fallback.
    #[error("the gateway's nftables fallback")]
    Nft(#[from] NftError),
    /// Routes could not be read.
    #[error("routes over the external device")]
    Routes(#[from] NetlinkError),
}

/// The fallback on one node. Dropping it changes nothing in the kernel.
pub struct NetdevGateway {
    nft: Nftables,
    routes: NetlinkSocket,
    config: GatewayConfig,
    external: String,
    tunnel: String,
    version: u64,
    announcing: BTreeSet<IpAddr>,
}

impl NetdevGateway {
    /// Opens netlink. The table of a previous run stays until [`Self::apply`] replaces it, without a gap.
    ///
    /// # Errors
    /// [`NetdevError`]: a missing device, or no netlink.
    pub fn open(config: &GatewayConfig) -> Result<Self, NetdevError> {
        Ok(Self {
            nft: Nftables::open_family(NFT_TABLE, TableFamily::Netdev)?,
            routes: NetlinkSocket::open(libc::NETLINK_ROUTE)?,
            config: *config,
            external: device(config.external_ifindex)?,
            tunnel: device(config.tunnel_ifindex)?,
            version: 0,
            announcing: BTreeSet::new(),
        })
    }

    /// Brings the table to the desired state and to the current routes of the external device; the version counts once
    /// everything is applied. Returns the addresses that are announced now and were not before.
    ///
    /// # Errors
    /// [`NetdevError`]; the next call continues from there.
    pub fn apply(
        &mut self,
        state: &GatewayState,
        own: TunnelIndex,
    ) -> Result<Vec<IpAddr>, NetdevError> {
        let routes = external_routes(&mut self.routes, self.config.external_ifindex)?;
        let site = rules::Site {
            config: &self.config,
            external: &self.external,
            tunnel: &self.tunnel,
            tunnel_mac: egret_wire::tunnel_mac(own),
            own,
            routes: &routes,
        };
        let table = rules::table(&site, state);
        if !self.nft.is_intact()? {
            tracing::debug!("the whole netdev table was replaced");
        }
        self.nft.apply(&table)?;
        let announced = |(address, steering): (&IpAddr, &egret_core::node::Steering)| {
            steering.announce.then_some(*address)
        };
        let announcing: BTreeSet<IpAddr> = state.addresses.iter().filter_map(announced).collect();
        let new = announcing.difference(&self.announcing).copied().collect();
        self.announcing = announcing;
        self.version = state.version;
        Ok(new)
    }

    /// Steering version in the agent's answers to probes; 0 before [`Self::apply`].
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Addresses in the kernel's table; after [`Self::open`] those of a previous run.
    ///
    /// # Errors
    /// [`NetdevError::Nft`].
    pub fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, NetdevError> {
        steered(&mut self.nft)
    }

    /// The first drift of the table, as text for people; `deep` reads elements too. The next [`Self::apply`] repairs
    /// it.
    ///
    /// # Errors
    /// [`NetdevError::Nft`].
    pub fn verify(&mut self, deep: bool) -> Result<Option<String>, NetdevError> {
        if self.version == 0 {
            return Ok(None);
        }
        let elements = if deep { self.nft.verify_full()? } else { None };
        Ok(match elements {
            Some(what) => Some(what),
            None => self.nft.verify_quick()?,
        })
    }

    /// Packets by outcome, by the names of [`COUNTERS`].
    ///
    /// # Errors
    /// [`NetdevError::Nft`].
    pub fn counters(&mut self) -> Result<BTreeMap<&'static str, u64>, NetdevError> {
        let found = self.nft.counters()?;
        let known = |name: &'static str| Some((name, *found.get(name)?));
        Ok(COUNTERS
            .iter()
            .filter_map(|counter| known(counter.name))
            .collect())
    }

    /// Traffic by egress address; drops are not counted by address.
    ///
    /// # Errors
    /// [`NetdevError::Nft`].
    pub fn traffic(&mut self) -> Result<BTreeMap<IpAddr, Carried>, NetdevError> {
        Ok(traffic::read(&self.nft.counts()?))
    }

    /// Removes the table, if it is there, and leaves the multicast groups of its addresses.
    ///
    /// # Errors
    /// [`NetdevError::Nft`].
    pub fn remove() -> Result<bool, NetdevError> {
        let mut nft = Nftables::open_family(NFT_TABLE, TableFamily::Netdev)?;
        let device = nft.hook_device(rules::EXTERNAL_IN)?;
        if let Some(device) = device
            && let Ok(ifindex) = nix::net::if_::if_nametoindex(device.as_str())
        {
            super::leave_groups_of(ifindex, &steered(&mut nft)?);
        }
        Ok(nft.remove()?)
    }
}

fn steered(nft: &mut Nftables) -> Result<BTreeSet<IpAddr>, NetdevError> {
    let mut all = BTreeSet::new();
    for set in ["egress4", "egress6"] {
        all.extend(nft.addresses_in(set)?);
    }
    Ok(all)
}

fn device(ifindex: u32) -> Result<String, NetdevError> {
    match nix::net::if_::if_indextoname(ifindex) {
        Ok(name) => Ok(name.to_string_lossy().into_owned()),
        Err(_) => Err(NetdevError::NoDevice { ifindex }),
    }
}
