//! Groups of gateway nodes.

use super::cluster::{LabelSelector, Node, NodeName};
use super::ids::GatewayName;
use super::quotas::Quotas;
use crate::numbers;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How an egress address is made known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum AnnounceMode {
    #[default]
    L2,
    Bgp,
    Static,
    Azure,
}

/// Gateways of a group that send packets of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outbound {
    /// Any live gateway.
    #[default]
    AnyGateway,
    /// Only the announcer (clouds and source guards tie an address to a port).
    Announcer,
}

/// An `EgressGateway`: a group of gateway nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Its name.
    pub name: GatewayName,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Policies that name no gateway use it.
    pub default: bool,
    /// Used only by policies that name it: made from objects of an earlier system, not written by users.
    pub by_name_only: bool,
    /// Selector of the gateway nodes.
    pub nodes: LabelSelector,
    /// `None` is `auto`: the device of the node's default route.
    pub external_interface: Option<String>,
    /// How addresses are made known.
    pub announce: AnnounceMode,
    /// Which gateways send.
    pub outbound: Outbound,
    /// Upper limit for the tunnel's MTU in bytes, if any.
    pub mtu: Option<u32>,
    /// WireGuard under the tunnel is requested (not implemented: finding).
    pub wireguard: bool,
    /// Milliseconds between probes.
    pub probe_interval_ms: u64,
    /// Probes without answer until a gateway counts as dead.
    pub probe_failures: u32,
    /// First grant in ports, at most.
    pub initial_ports: u16,
    /// Expected number of workers, for the size of first grants; `None`: the number of nodes.
    pub expected_workers: Option<u32>,
    /// Nodes that announce these addresses while they serve, instead of the first in the order of announcers.
    #[serde(default)]
    pub announcers: BTreeMap<IpAddr, NodeName>,
    /// Quotas of pods that leave by its addresses.
    #[serde(default)]
    pub quotas: Quotas,
}

impl Gateway {
    /// A gateway with the defaults of the API in every other field, and generation 0.
    pub fn new(name: GatewayName, nodes: LabelSelector) -> Self {
        Self {
            name,
            generation: 0,
            default: false,
            by_name_only: false,
            nodes,
            external_interface: None,
            announce: AnnounceMode::default(),
            outbound: Outbound::default(),
            mtu: None,
            wireguard: false,
            probe_interval_ms: numbers::PROBE_INTERVAL_MS,
            probe_failures: numbers::PROBE_FAILURES,
            initial_ports: numbers::LEASE_PORTS_FIRST_MAX,
            expected_workers: None,
            announcers: BTreeMap::new(),
            quotas: Quotas::default(),
        }
    }

    /// Whether the node is one of this gateway's. A fenced node is no gateway for anybody, itself included.
    pub fn selects(&self, node: &Node) -> bool {
        node.maintenance.fence.is_none() && self.nodes.matches(&node.labels)
    }
}

/// Gateways of a group that a flow may leave by (P3: any of them can take any packet).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupKey {
    /// The `EgressGateway`.
    pub gateway: GatewayName,
    /// `Outbound::Announcer`: the one node that sends.
    pub only: Option<NodeName>,
    /// Next hop of the packets, on the gateways' network; `None`: packets leave with an egress address.
    #[serde(default)]
    pub next_hop: Option<IpAddr>,
}
