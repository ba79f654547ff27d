//! What Egret itself wrote down: `EgressAddress` (who may use which ports) and `EgressNode`, and the snapshot of it all.

use super::cluster::{Namespace, Node, NodeName, Pod, Service};
use super::gateway::Gateway;
use super::ids::{GatewayName, PoolName};
use super::link::{AddressClaim, MacAddress};
use super::policy::Policy;
use super::pool::Pool;
use super::settings::Settings;
use super::shared_map::{List, SharedMap};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Inclusive range of source ports (or ICMP echo ids); first is a multiple of 64, last is one less than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Where a lease is in its life (`reference/nat-behaviour.md` R1 to R4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LeaseState {
    /// Written; gateways may not all know it yet.
    Granted,
    /// Every live gateway has it.
    Active,
    /// The worker must stop using it; flows that exist end.
    Draining,
    /// Nobody's; rests until `since` plus hold-down.
    HoldDown,
}

/// What one worker may use of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Lease {
    /// The worker.
    pub node: NodeName,
    /// Its ranges, sorted, disjoint.
    pub ranges: Vec<PortRange>,
    /// Raised with every change of any lease in the cluster: the steering version that includes it.
    pub epoch: u64,
    /// Where it is in its life.
    pub state: LeaseState,
    /// Seconds since the epoch at which it came into this state.
    pub since_secs: i64,
}

/// An `EgressAddress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AddressRecord {
    /// The address.
    pub address: IpAddr,
    /// The gateway group that serves it.
    pub gateway: GatewayName,
    /// The highest epoch of its leases, ever.
    pub epoch: u64,
    /// The leases, at most one that is Granted or Active per worker.
    pub leases: Vec<Lease>,
    /// For compare-and-swap: the store's version of this object.
    pub resource_version: u64,
}

/// One grant, as the worker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Grant {
    /// The address.
    pub address: IpAddr,
    /// Gateway group.
    pub gateway: GatewayName,
    /// Ranges.
    pub ranges: Vec<PortRange>,
    /// The steering version a gateway must have before these ranges may be used.
    pub epoch: u64,
}

/// How many pods of a policy an agent has programmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// The policy.
    pub policy: super::ObjectRef,
    /// The generation that is programmed.
    pub generation: i64,
    /// Pods of it that are programmed and can use their lease.
    pub pods: u32,
}

/// An `EgressNode`: what controller and agent of one node tell each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeName,
    /// 1..=`TUNNEL_INDEX_MAX`, unique, never changed.
    pub tunnel_index: u16,
    /// Grants, written by the controller.
    pub grants: Vec<Grant>,
    /// Addresses of pods that no Node names, of the whole cluster; written by the controller, into the records of
    /// `POD_PREFIX_RECORDS` gateway nodes.
    #[serde(default)]
    pub pod_prefixes: BTreeSet<IpNet>,
    /// Underlay addresses that the agent found; empty until it ran.
    pub underlay_addresses: Vec<IpAddr>,
    /// Addresses of the external device with their prefix, on gateways; not link-local ones.
    pub external_addresses: BTreeSet<IpNet>,
    /// Neighbours that this gateway carries packets to, of those that policies name as next hop.
    #[serde(default)]
    pub next_hops: BTreeSet<IpAddr>,
    /// Its external device has carrier, and by its own measurement no way out: other gateways judge by it whether they do
    /// better. Whether it serves is what probes say.
    #[serde(default)]
    pub uplink_lost: bool,
    /// Highest epoch such that the agent's gateway has applied every lease up to it (0 on pure workers).
    pub steering_version: u64,
    /// Addresses that this node announces.
    pub announcing: BTreeSet<IpAddr>,
    /// Source ports in use by address; an address stays listed until the worker has drained it.
    pub demand: BTreeMap<IpAddr, u32>,
    /// Destinations towards which every leased port of an address is in use, by address; none is left out.
    pub full_destinations: BTreeMap<IpAddr, u32>,
    /// What the agent has programmed.
    pub programmed: Vec<Programmed>,
    /// `ebpf` or `nftables`, on gateways that have one.
    pub datapath: Option<String>,
    /// What its kernel and agent can do.
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    /// Addresses of the node's devices with their prefix: not link-local ones, not those of pods or of the tunnel.
    #[serde(default)]
    pub node_addresses: BTreeSet<IpNet>,
    /// Routers around the node that are no nodes of the cluster: next hops of its routes, and neighbours that say so.
    #[serde(default)]
    pub routers: BTreeSet<IpAddr>,
    /// Hardware address of the external device, on gateways: what they announce is not another machine's.
    #[serde(default)]
    pub external_mac: Option<MacAddress>,
    /// Egress addresses that another machine answers for, as this gateway hears on its external segment.
    #[serde(default)]
    pub conflicts: BTreeMap<IpAddr, AddressClaim>,
    /// For compare-and-swap.
    pub resource_version: u64,
}

impl NodeRecord {
    /// Of a node that nobody has said anything of.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            tunnel_index: 0,
            grants: Vec::new(),
            pod_prefixes: BTreeSet::new(),
            underlay_addresses: Vec::new(),
            external_addresses: BTreeSet::new(),
            next_hops: BTreeSet::new(),
            uplink_lost: false,
            steering_version: 0,
            announcing: BTreeSet::new(),
            demand: BTreeMap::new(),
            full_destinations: BTreeMap::new(),
            programmed: Vec::new(),
            datapath: None,
            capabilities: BTreeSet::new(),
            node_addresses: BTreeSet::new(),
            routers: BTreeSet::new(),
            external_mac: None,
            conflicts: BTreeMap::new(),
            resource_version: 0,
        }
    }
}

/// Records that are there and cannot be read. What they name is taken: the controller leaves them as they are, and plans
/// nothing anew in their place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Addresses of such `EgressAddress`es. [`Snapshot::addresses`] has them with those leases that can be read.
    pub addresses: BTreeSet<IpAddr>,
    /// Nodes of such `EgressNode`s, by their spec. [`Snapshot::node_records`] has them if their tunnel index can be read.
    pub nodes: BTreeSet<NodeName>,
    /// Nodes whose agents' report of the ports in use cannot be read: nobody knows what is drained there.
    pub demand: BTreeSet<NodeName>,
}

/// Everything, at one moment. Keys are names, so that order never depends on hashing. Copies share what is the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Settings of the installation.
    pub settings: Settings,
    /// Policies of every front-end.
    pub policies: List<Policy>,
    /// Gateways.
    pub gateways: BTreeMap<GatewayName, Gateway>,
    /// Pools.
    pub pools: BTreeMap<PoolName, Pool>,
    /// Nodes.
    pub nodes: SharedMap<NodeName, Node>,
    /// Namespaces by name.
    pub namespaces: SharedMap<String, Namespace>,
    /// Pods by (namespace, name).
    pub pods: SharedMap<(String, String), Pod>,
    /// Services by (namespace, name).
    pub services: SharedMap<(String, String), Service>,
    /// Endpoint addresses of `default/kubernetes`: never egress destinations.
    pub api_server: BTreeSet<IpAddr>,
    /// Prefixes that network plugins publish as those of pods, beside `Node::pod_cidrs`.
    #[serde(default)]
    pub pod_prefixes: BTreeSet<IpNet>,
    /// What the controller wrote down.
    pub addresses: SharedMap<IpAddr, AddressRecord>,
    /// What controller and agents wrote down.
    pub node_records: SharedMap<NodeName, NodeRecord>,
    /// What of both cannot be read.
    #[serde(default)]
    pub unreadable: Unreadable,
}

impl Snapshot {
    /// No objects.
    pub fn empty(settings: Settings) -> Self {
        Snapshot {
            settings,
            policies: List::default(),
            gateways: BTreeMap::new(),
            pools: BTreeMap::new(),
            nodes: SharedMap::new(),
            namespaces: SharedMap::new(),
            pods: SharedMap::new(),
            services: SharedMap::new(),
            api_server: BTreeSet::new(),
            pod_prefixes: BTreeSet::new(),
            addresses: SharedMap::new(),
            node_records: SharedMap::new(),
            unreadable: Unreadable::default(),
        }
    }
}
