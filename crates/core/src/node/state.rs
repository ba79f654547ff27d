//! Desired state of one node's kernel.

use super::ids::{GroupNumber, NamespaceId, ProfileId, TargetId, TrafficKeyId, TunnelIndex};
use super::podmap::PodMap;
use crate::model::{AddressPorts, AnnounceMode, PortRange, Protocol, Quotas};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Complete desired state of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The tunnel device.
    pub tunnel: Tunnel,
    /// Nodes that may send tunnel packets to this node; tunnel packets to them are not tracked.
    pub peers: BTreeMap<TunnelIndex, Peer>,
    /// Every node address of the cluster: a pod's forwarded UDP to the tunnel port of one of them is dropped.
    pub node_addresses: BTreeSet<IpAddr>,
    /// State of the worker role.
    pub worker: WorkerState,
    /// State of the gateway role; `None` on pure workers.
    pub gateway: Option<GatewayState>,
}

/// The tunnel device `egret0` of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Tunnel index of this node.
    pub index: TunnelIndex,
    /// Underlay address of this node.
    pub underlay: IpAddr,
    /// MTU inside the tunnel, bytes.
    pub mtu: u32,
    /// Devices that peers' packets may arrive by, besides those of the routes to them: several devices in one network
    /// answer for each other's addresses, and only one of them is in the routes.
    #[serde(default)]
    pub devices: BTreeSet<String>,
}

impl Tunnel {
    /// A tunnel whose packets arrive by the devices of the routes to peers alone.
    pub fn new(index: TunnelIndex, underlay: IpAddr, mtu: u32) -> Self {
        Self {
            index,
            underlay,
            mtu,
            devices: BTreeSet::new(),
        }
    }
}

/// Another node of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Name of the node, for messages.
    pub node: String,
    /// Underlay address.
    pub underlay: IpAddr,
    /// The node is a gateway, so a next hop may lead to it.
    pub gateway: bool,
}

impl Peer {
    /// A peer that is no gateway.
    pub fn new(node: impl Into<String>, underlay: IpAddr) -> Self {
        Self {
            node: node.into(),
            underlay,
            gateway: false,
        }
    }
}

/// State of the worker role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Destinations that are never egress traffic.
    pub never: BTreeSet<IpNet>,
    /// Addresses of this node's pods: `throw` routes in our tables send them to the main table.
    pub throw: BTreeSet<IpNet>,
    /// Gateway groups that targets use.
    pub groups: BTreeMap<GroupNumber, Group>,
    /// Targets of verdicts, by id.
    pub targets: BTreeMap<TargetId, Target>,
    /// Next hops that policies name. Their numbers are distinct from those of `groups`.
    #[serde(default)]
    pub next_hops: BTreeMap<GroupNumber, NextHop>,
    /// Compiled destinations of each profile.
    pub profiles: BTreeMap<ProfileId, Profile>,
    /// Local pod addresses for guard and classification: one element each.
    pub pods: PodMap,
    /// Namespace of the pod of each address in `pods`; empty where no target has a quota for namespaces.
    #[serde(default)]
    pub namespaces: BTreeMap<IpAddr, NamespaceId>,
    /// Index of the device of a pod's address, where it has a device of its own. The address counts as the pod's only
    /// on packets that arrive by this device.
    pub devices: BTreeMap<IpAddr, u32>,
    /// Every egress address of the cluster: guard (b) drops them on any other device.
    pub egress_addresses: BTreeSet<IpAddr>,
    /// Uplinks at which packets of selected pods that bypass the stack are reinjected; empty: none.
    pub reinject: BTreeSet<String>,
    /// It is unknown how pods' packets leave. Attached uplink programs stay and drop the packets that they match,
    /// although `reinject` is empty.
    #[serde(default)]
    pub keep_uplinks: bool,
    /// New flows to outside from addresses of unknown pods are dropped; `None`: they leave as the network plugin routes
    /// them.
    pub unknown: Option<UnknownPods>,
    /// Blocks, by egress address, in which this node may have flows; flows in others are ended. `None`: unknown.
    #[serde(default)]
    pub flow_ports: Option<AddressPorts>,
    /// Canaries of this node; `None`: no path to measure.
    #[serde(default)]
    pub canary: Option<CanaryState>,
}

/// Kernel state that canaries need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryState {
    /// Index of the device at whose ingress canaries are injected.
    pub device: u32,
    /// Source addresses of canaries, one per family that has a path.
    pub sources: BTreeSet<IpAddr>,
    /// Destinations of canaries that no gateway returns: the guard consumes them after they have passed it.
    #[serde(default)]
    pub end_here: BTreeSet<IpAddr>,
}

/// Addresses whose pods the API has not shown yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownPods {
    /// Prefixes of this node's pods. Never empty.
    pub cidrs: BTreeSet<IpNet>,
    /// Addresses in them that known pods have, selected or not.
    pub known: BTreeSet<IpAddr>,
}

/// Route of a group's packets out of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Group {
    /// Through the tunnel, over these gateways (never empty, never this node).
    Tunnel(BTreeSet<TunnelIndex>),
    /// By this node's own external device: this node is a gateway of the group and its link is up.
    Local {
        /// Name of the external device.
        device: String,
    },
    /// No route: no gateway of the group has answered yet. The guard drops.
    Nowhere,
}

/// Target of selected traffic: an egress address, and a group to leave by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The egress address.
    pub address: IpAddr,
    /// The group.
    pub group: GroupNumber,
    /// Ranges that may be used now: granted, and in the steering table of every live gateway. Empty: new flows are
    /// dropped and counted.
    pub ranges: Vec<PortRange>,
    /// Traffic key that its packets are counted under.
    pub traffic_key: TrafficKeyId,
    /// Quotas of the pods that use it.
    #[serde(default)]
    pub quotas: Quotas,
}

impl Target {
    /// Whether canaries use it and no policy does: its ports are some of those of another target.
    pub fn is_of_canaries(&self) -> bool {
        self.traffic_key == TrafficKeyId::CANARY
    }
}

impl WorkerState {
    /// Source ports that new flows of pods may use, by egress address.
    pub fn leased_ports(&self) -> BTreeMap<IpAddr, Vec<PortRange>> {
        let mut ports: BTreeMap<IpAddr, BTreeSet<PortRange>> = BTreeMap::new();
        for target in self.targets.values().filter(|one| !one.is_of_canaries()) {
            let of_address = ports.entry(target.address).or_default();
            of_address.extend(target.ranges.iter().copied());
        }
        let listed = ports.into_iter();
        let listed = listed.map(|(address, ranges)| (address, ranges.into_iter().collect()));
        listed.collect()
    }
}

/// A next hop, and how selected traffic reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Address of the next hop.
    pub address: IpAddr,
    /// VXLAN network identifier that identifies the next hop at gateways.
    pub network_identifier: u32,
    /// Route to the next hop.
    pub route: NextHopRoute,
}

impl NextHop {
    /// Whether the next hop can be reached now.
    pub fn is_reachable(&self) -> bool {
        self.route != NextHopRoute::Nowhere
    }
}

/// Route to a next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopRoute {
    /// Through the tunnel, over these gateways (never empty, never this node), with the pod's own source.
    Tunnel(BTreeSet<TunnelIndex>),
    /// This node is a gateway and is attached to the next hop's network: with the node's source, for own pods and for
    /// packets from the tunnel.
    Attached(Attachment),
    /// No gateway that is attached to its network answers.
    Nowhere,
}

/// How a gateway's own kernel reaches a next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the device.
    pub device: String,
    /// Index of the device; a recreated device has another one.
    pub index: u32,
    /// The source that the kernel selects.
    pub source: IpAddr,
}

/// The destinations of one profile and of both families: disjoint ranges, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Ranges of addresses, with protocol and ports.
    pub ranges: Vec<DestinationRange>,
    /// Destinations for which protocols without ports (GRE, ESP, ...) are refused, because they are selected and cannot
    /// be translated. Disjoint, sorted.
    pub portless: Vec<(IpAddr, IpAddr)>,
}

impl Profile {
    /// Refuses everything that the profile would send with an egress address.
    pub(super) fn refuse(&mut self) {
        for one in &mut self.ranges {
            one.verdict = Verdict::Unavailable;
        }
    }
}

/// One destination range: addresses, protocol and ports. Bounds are inclusive, addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DestinationRange {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
    /// `None`: TCP, UDP, SCTP and ICMP alike.
    pub protocol: Option<Protocol>,
    /// First destination port (0 where protocol is `None` or `Icmp`).
    pub port_first: u16,
    /// Last destination port (65535 where protocol is `None` or `Icmp`).
    pub port_last: u16,
    /// Verdict for matching packets.
    pub verdict: Verdict,
}

/// Handling of a selected packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// Translate to this target.
    Target(TargetId),
    /// Send to the next hop of this number.
    NextHop(GroupNumber),
    /// Its policy has no address of this family: rejected, administratively prohibited (`FamilyNotCovered`).
    FamilyNotCovered,
    /// Its policy has no usable address now and `whenUnavailable` is `Drop`.
    Unavailable,
}

/// State of the gateway role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayState {
    /// Name of the external device.
    pub external_device: String,
    /// Steering tables of the addresses that this node's groups serve.
    pub addresses: BTreeMap<IpAddr, Steering>,
    /// Underlay addresses of the nodes that blocks can belong to, this one included.
    pub workers: BTreeMap<TunnelIndex, IpAddr>,
    /// Numbers of the next hops on networks of this node, by VXLAN network identifier.
    #[serde(default)]
    pub next_hops: BTreeMap<u32, GroupNumber>,
    /// Other gateways of this node's groups.
    #[serde(default)]
    pub peers: GatewayPeers,
    /// Steering version of `addresses`.
    pub version: u64,
}

/// Gateways that share a group with this one. A packet from outside for a port that has no owner in this gateway's tables
/// goes to one of them, which may have a newer table, and never any further (decision 138).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayPeers {
    /// All of them: packets that they pass on are taken.
    pub members: BTreeSet<TunnelIndex>,
    /// Per group, by [`Steering::group`]: the one that gets such packets. It answers probes and does not lag.
    pub relays: BTreeMap<u16, TunnelIndex>,
}

/// The steering table of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// Block number (port >> 6, 16..=1023) to worker.
    pub blocks: BTreeMap<u16, TunnelIndex>,
    /// Number of its gateway group among this node's groups, from 1; 0: the node is no gateway of it.
    #[serde(default)]
    pub group: u16,
    /// How the address is made known outside.
    #[serde(default)]
    pub presence: Presence,
    /// This node announces the address now; always false for `Routed`.
    pub announce: bool,
}

/// How an egress address is made known to the network outside, so that packets for it find a gateway (decision 110).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Presence {
    /// On the segment: one gateway at a time answers ARP and ND for it and announces it.
    #[default]
    L2,
    /// By routes that lead to the gateways: nobody answers ARP or ND for it, and nothing is announced on the segment.
    Routed,
}

impl Presence {
    /// Every value.
    pub const ALL: [Presence; 2] = [Presence::L2, Presence::Routed];

    /// Whether the announcer answers ARP and ND for the address and announces it on the segment.
    pub fn is_on_segment(self) -> bool {
        match self {
            Presence::L2 => true,
            Presence::Routed => false,
        }
    }

    /// Whether one gateway at a time announces the address, as `core::machines::GatewayRole` decides.
    pub fn is_announced(self) -> bool {
        match self {
            Presence::L2 => true,
            Presence::Routed => false,
        }
    }

    /// The value that an `announce.mode` asks for.
    pub fn of(mode: AnnounceMode) -> Self {
        match mode {
            AnnounceMode::L2 => Presence::L2,
            AnnounceMode::Static | AnnounceMode::Bgp | AnnounceMode::Azure => Presence::Routed,
        }
    }
}
