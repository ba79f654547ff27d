//! Desired state of one node's kernel.

use super::ids::{GroupNumber, ProfileId, TargetId, TrafficKeyId, TunnelIndex};
use super::podmap::PodMap;
use crate::model::{AnnounceMode, PortRange, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything Egret wants in one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The tunnel device.
    pub tunnel: Tunnel,
    /// Nodes that may send us tunnel packets, and to which ours are untracked.
    pub peers: BTreeMap<TunnelIndex, Peer>,
    /// Every node address of the cluster: a pod's forwarded UDP to the tunnel port of one of them is dropped.
    pub node_addresses: BTreeSet<IpAddr>,
    /// What a worker needs.
    pub worker: WorkerState,
    /// What a gateway needs; `None` on pure workers.
    pub gateway: Option<GatewayState>,
}

/// The tunnel device `egret0` of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Own index.
    pub index: TunnelIndex,
    /// Own underlay address.
    pub underlay: IpAddr,
    /// MTU inside the tunnel, bytes.
    pub mtu: u32,
    /// Devices that peers' packets may come by, besides those that the routes to them lead to: several devices in one
    /// network answer for each other's addresses, and one alone is in the routes.
    #[serde(default)]
    pub devices: BTreeSet<String>,
}

/// Another node of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Name, for people.
    pub node: String,
    /// Underlay address.
    pub underlay: IpAddr,
    /// It is a gateway: a next hop of ours may lead to it.
    pub gateway: bool,
}

/// The worker's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Destinations that are never egress traffic.
    pub never: BTreeSet<IpNet>,
    /// Addresses of this node's pods: our tables throw them back to the main table.
    pub throw: BTreeSet<IpNet>,
    /// Gateway groups that targets use.
    pub groups: BTreeMap<GroupNumber, Group>,
    /// What selected traffic becomes.
    pub targets: BTreeMap<TargetId, Target>,
    /// Neighbours of gateways that selected traffic is for. Their numbers are none of `groups`.
    #[serde(default)]
    pub next_hops: BTreeMap<GroupNumber, NextHop>,
    /// Destinations, compiled.
    pub profiles: BTreeMap<ProfileId, Profile>,
    /// Local pod addresses (guard, classification): one element each.
    pub pods: PodMap,
    /// Index of the device that leads to a pod's address, where it has one of its own: the address counts as the pod's
    /// only on packets that come from there.
    pub devices: BTreeMap<IpAddr, u32>,
    /// Every egress address of the cluster: guard (b) drops them on any other device.
    pub egress_addresses: BTreeSet<IpAddr>,
    /// Devices at which what selected pods send past the stack is taken back into it. Empty: nothing is.
    pub lift: BTreeSet<String>,
    /// How pods' packets leave is not known: uplink programs that are attached stay, and drop what they see, although
    /// `lift` is empty.
    #[serde(default)]
    pub keep_uplinks: bool,
    /// New flows to outside from addresses that are nobody's are dropped; `None`: they leave as the network plugin has
    /// it.
    pub unknown: Option<UnknownPods>,
    /// Packets of our own that measure the way; `None`: there is none to measure.
    #[serde(default)]
    pub canary: Option<CanaryState>,
}

/// What the kernel must have for canaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryState {
    /// Index of the device at whose ingress they appear.
    pub device: u32,
    /// Where they come from, one address of each family that has a path.
    pub sources: BTreeSet<IpAddr>,
    /// Destinations of those that nobody turns round: the guard takes them out once they have passed it.
    #[serde(default)]
    pub end_here: BTreeSet<IpAddr>,
}

/// Addresses whose pods the API has not shown yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownPods {
    /// Where this node's pods have their addresses. Never empty.
    pub cidrs: BTreeSet<IpNet>,
    /// Those of them that pods have, selected or not.
    pub known: BTreeSet<IpAddr>,
}

/// How a group's packets leave this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Group {
    /// Through the tunnel, over these gateways (never empty, never ourselves).
    Tunnel(BTreeSet<TunnelIndex>),
    /// Out by this node's own external device: this node is a gateway of the group and its link is up.
    Local {
        /// Name of the external device.
        device: String,
    },
    /// Nowhere yet: no gateway of it has ever been known. The guard drops.
    Nowhere,
}

/// What selected traffic becomes: an egress address, and a group to leave by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The egress address.
    pub address: IpAddr,
    /// The group.
    pub group: GroupNumber,
    /// Ranges that may be used now: granted, and in the steering table of every live gateway. Empty: new flows are
    /// dropped and counted.
    pub ranges: Vec<PortRange>,
    /// Where its traffic is counted.
    pub traffic_key: TrafficKeyId,
}

/// A neighbour of gateways, and the way of selected traffic to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// The neighbour.
    pub address: IpAddr,
    /// VXLAN network identifier that tells a gateway which neighbour is meant.
    pub network_identifier: u32,
    /// The way there.
    pub way: NextHopWay,
}

impl NextHop {
    /// Whether anything gets there now.
    pub fn is_reachable(&self) -> bool {
        self.way != NextHopWay::Nowhere
    }
}

/// The way to a neighbour of gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopWay {
    /// Through the tunnel, over these gateways (never empty, never ourselves), with the pod's own source.
    Tunnel(BTreeSet<TunnelIndex>),
    /// This node is a gateway and has it on a network of its own: with the node's source, for own pods and for what
    /// comes through the tunnel.
    Attached(Attachment),
    /// No gateway that has it answers.
    Nowhere,
}

/// How a gateway's own kernel reaches a neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the device.
    pub device: String,
    /// Its index: a device that was made anew is another.
    pub index: u32,
    /// The source that the kernel selects.
    pub source: IpAddr,
}

/// The destinations of one profile and of both families: disjoint ranges, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Ranges of addresses, with protocol and ports.
    pub ranges: Vec<DestinationRange>,
    /// Destinations on which protocols without ports (GRE, ESP, ...) are refused, because they are selected and
    /// cannot be served. Disjoint, sorted.
    pub portless: Vec<(IpAddr, IpAddr)>,
}

impl Profile {
    /// Refuses everything that it would send with an egress address.
    pub(super) fn refuse(&mut self) {
        for one in &mut self.ranges {
            one.verdict = Verdict::Unavailable;
        }
    }
}

/// Destinations of one range of addresses and ports. Bounds are inclusive, addresses of one family.
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
    /// What happens to it.
    pub verdict: Verdict,
}

/// What happens to a selected packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// It gets this target.
    Target(TargetId),
    /// It goes to the next hop of this number.
    NextHop(GroupNumber),
    /// Its policy has no address of this family: rejected, administratively prohibited (`FamilyNotCovered`).
    FamilyNotCovered,
    /// Its policy has no usable address now and `whenUnavailable` is `Drop`.
    Unavailable,
}

/// The gateway's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayState {
    /// Name of the external device.
    pub external_device: String,
    /// The addresses that this node's groups serve.
    pub addresses: BTreeMap<IpAddr, Steering>,
    /// The nodes that blocks can belong to, this one included.
    pub workers: BTreeMap<TunnelIndex, IpAddr>,
    /// Numbers of the next hops that this node has on a network of its own, by VXLAN network identifier.
    #[serde(default)]
    pub next_hops: BTreeMap<u32, GroupNumber>,
    /// The steering version that `addresses` amounts to.
    pub version: u64,
}

/// The steering table of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// Block number (port >> 6, 16..=1023) to worker.
    pub blocks: BTreeMap<u16, TunnelIndex>,
    /// How the address is made known outside.
    #[serde(default)]
    pub presence: Presence,
    /// This node makes the address known now; never where routers lead to it by themselves.
    pub announce: bool,
}

/// How an egress address is made known to the network outside, so that packets for it find a gateway (decision 110).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Presence {
    /// On the segment: one gateway at a time answers ARP and ND for it and announces it.
    #[default]
    L2,
    /// Routers lead to the gateways: nobody answers for it, and nothing is said of it on the segment.
    Routed,
}

impl Presence {
    /// Every value.
    pub const ALL: [Presence; 2] = [Presence::L2, Presence::Routed];

    /// The value that an `announce.mode` asks for.
    pub fn of(mode: AnnounceMode) -> Self {
        match mode {
            AnnounceMode::L2 => Presence::L2,
            AnnounceMode::Static | AnnounceMode::Bgp | AnnounceMode::Azure => Presence::Routed,
        }
    }
}
