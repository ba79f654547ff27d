//! Records that Egret writes: `EgressAddress` (leases of an address) and `EgressNode`; and the snapshot of all objects.

use super::cluster::{Namespace, Node, NodeName, Pod, Service};
use super::gateway::Gateway;
use super::held_by::HeldBy;
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

/// Inclusive range of source ports (or ICMP echo ids) made of whole port blocks: `first` and `last + 1` are multiples
/// of 64.
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

/// State of a lease in its life cycle (`reference/nat-behaviour.md` R1 to R4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LeaseState {
    /// Written; some gateways may not have it yet.
    Granted,
    /// Every live gateway has it.
    Active,
    /// The worker must open no new flow in it; existing flows end. It ends when the worker says so about this epoch.
    Draining,
    /// The worker's Node object is gone, for less than `NODE_GONE_SECS`: its flows go on, in case that it comes back.
    Vanished,
    /// The worker's Node object stays gone: gateways take the ranges out of their steering tables, which fences the
    /// worker. It ends when every gateway that can carry traffic has this epoch.
    Fenced,
    /// Used by no worker; leased again after `since` plus hold-down.
    HoldDown,
}

impl LeaseState {
    /// The worker may open flows in the ranges.
    pub fn is_usable(self) -> bool {
        matches!(self, LeaseState::Granted | LeaseState::Active)
    }

    /// Gateways steer the ranges to the worker: it may have flows in them.
    pub fn is_steered(self) -> bool {
        self.is_usable() || matches!(self, LeaseState::Draining | LeaseState::Vanished)
    }
}

/// Ports of one address that one worker may use. A worker may have several leases of one address. Ranges of leases of one
/// address are disjoint, whatever their states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Lease {
    /// The worker.
    pub node: NodeName,
    /// Its ranges, sorted, disjoint.
    pub ranges: Vec<PortRange>,
    /// Incremented with every change of any lease in the cluster: the first steering version that includes this lease.
    pub epoch: u64,
    /// Epoch at which it was withdrawn from its worker, while it drains: the worker's statement about an earlier one does
    /// not concern it.
    #[serde(default)]
    pub withdrawn: Option<u64>,
    /// State in its life cycle.
    pub state: LeaseState,
    /// Seconds since the epoch at which the leader of [`AddressRecord::term`] first saw it in this state.
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
    /// Highest epoch that its leases ever had.
    pub epoch: u64,
    /// Term of the leader that counts the times of this record. Another leader counts them from its own start: clocks of
    /// two machines are never compared.
    #[serde(default)]
    pub term: u64,
    /// Leases may be missing here, because a backup was restored, or because this record was deleted together with others.
    /// Nothing is granted for a hold-down.
    #[serde(default)]
    pub restored: Option<Restored>,
    /// The leases, sorted by worker and ranges.
    pub leases: Vec<Lease>,
    /// Version of the object in the store, for compare-and-swap.
    pub resource_version: u64,
}

/// A record that may lack leases, since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restored {
    /// First epoch after that. Nodes that acknowledge it have said what they hold.
    pub epoch: u64,
    /// Seconds since the epoch at which the leader of [`AddressRecord::term`] noticed it.
    pub since_secs: i64,
}

impl AddressRecord {
    /// A record without leases that is not in the store yet.
    pub fn new(address: IpAddr, gateway: GatewayName) -> Self {
        Self {
            address,
            gateway,
            epoch: 0,
            term: 0,
            restored: None,
            leases: Vec::new(),
            resource_version: 0,
        }
    }
}

/// A lease, as the worker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Grant {
    /// The address.
    pub address: IpAddr,
    /// Gateway group.
    pub gateway: GatewayName,
    /// Granted port ranges.
    pub ranges: Vec<PortRange>,
    /// Steering version that a gateway must have before these ranges may be used.
    pub epoch: u64,
}

/// A fence that the controller has carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Fenced {
    /// The operator's reason.
    pub reason: String,
    /// Seconds since the epoch at which a leader first saw it; for people only.
    pub since_secs: i64,
}

/// Number of pods of a policy that an agent has programmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// The policy.
    pub policy: super::ObjectRef,
    /// Generation of the policy that is programmed.
    pub generation: i64,
    /// Programmed pods that can use their lease.
    pub pods: u32,
}

/// A pod that is paired to another address of its policy than the hash selects ([`crate::node::PodPairings`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairedPod {
    /// The policy.
    pub policy: super::ObjectRef,
    /// The pod's uid.
    pub pod: String,
    /// The address; one of the policy's.
    pub address: IpAddr,
}

/// An `EgressNode`: grants from the controller, reports from the node's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeName,
    /// Number of the node in the tunnel: 1..=`TUNNEL_INDEX_MAX`, unique, never changed.
    pub tunnel_index: u16,
    /// Grants, written by the controller; several per address where the worker needed more.
    pub grants: Vec<Grant>,
    /// Withdrawn ranges in which this node may still have flows, and open none. It ends flows in ranges of egress
    /// addresses that are neither here nor in `grants`.
    #[serde(default)]
    pub draining: Vec<Grant>,
    /// Ranges of this node that rest or whose node is fenced. Agents do not use them. They are here for the controller alone:
    /// a deleted `EgressAddress` must not forget which ports rest.
    #[serde(default)]
    pub resting: Vec<Grant>,
    /// Set while an operator says that the node sends nothing any more.
    #[serde(default)]
    pub fenced: Option<Fenced>,
    /// Epoch of `grants` and `draining`: the highest epoch of any grant or withdrawal in them. The agent acknowledges it.
    #[serde(default)]
    pub grants_epoch: u64,
    /// Pod addresses of the whole cluster that no Node names. The controller writes them into the records of
    /// `POD_PREFIX_RECORDS` gateway nodes.
    #[serde(default)]
    pub pod_prefixes: BTreeSet<IpNet>,
    /// Addresses of devices of all nodes that no Node names. The controller writes them into the same records.
    #[serde(default)]
    pub device_addresses: BTreeSet<IpNet>,
    /// Underlay addresses that the agent found; empty before its first report.
    pub underlay_addresses: Vec<IpAddr>,
    /// Addresses of the external device with their prefix, on gateways; not link-local ones.
    pub external_addresses: BTreeSet<IpNet>,
    /// Next hops named by policies that this gateway forwards to.
    #[serde(default)]
    pub next_hops: BTreeSet<IpAddr>,
    /// The external device has carrier, and nothing behind it answers this gateway. Other gateways compare it with
    /// their own measurement. Liveness of the gateway is decided by probes alone.
    #[serde(default)]
    pub uplink_lost: bool,
    /// Highest epoch such that the agent's gateway has applied every lease up to it (0 on pure workers).
    pub steering_version: u64,
    /// Addresses of which this gateway has loaded a newer table than the store has a record, with the table's epoch.
    #[serde(default)]
    pub newer_tables: BTreeMap<IpAddr, u64>,
    /// Addresses that this node announces.
    pub announcing: BTreeSet<IpAddr>,
    /// The highest `grants_epoch` that the agent has applied to its kernel; 0 before its first report. Only with it does
    /// the absence of ranges in `held` mean anything.
    #[serde(default)]
    pub acknowledged: u64,
    /// Ranges, by address, in which this node's kernel may open flows or has flows; sorted, disjoint.
    #[serde(default)]
    pub held: BTreeMap<IpAddr, Vec<PortRange>>,
    /// Source ports in use by address, rounded up so that small changes are not reported.
    pub demand: BTreeMap<IpAddr, u32>,
    /// Source ports that this node wants of each address, where its demand has been measured; never fewer than it needs
    /// for its flows of the last minutes.
    #[serde(default)]
    pub wanted_ports: BTreeMap<IpAddr, u32>,
    /// Number of destinations towards which every leased port is in use, by address; complete.
    pub full_destinations: BTreeMap<IpAddr, u32>,
    /// Pods of this node that are paired to another address than the hash selects, until they end.
    #[serde(default)]
    pub paired: BTreeSet<PairedPod>,
    /// Policies that the agent has programmed.
    pub programmed: Vec<Programmed>,
    /// `ebpf` or `nftables`, on gateways with a data path.
    pub datapath: Option<String>,
    /// Capabilities of its kernel and agent.
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    /// Addresses of the node's devices with their prefix, without link-local ones and those of pods or the tunnel.
    #[serde(default)]
    pub node_addresses: BTreeSet<IpNet>,
    /// Routers around the node that are not nodes of the cluster: next hops of its routes, and neighbours marked as
    /// routers (`NTF_ROUTER`).
    #[serde(default)]
    pub routers: BTreeSet<IpAddr>,
    /// Hardware address of the external device, on gateways: its announcements are no conflict.
    #[serde(default)]
    pub external_mac: Option<MacAddress>,
    /// Egress addresses that another machine answers for, as this gateway observes on its external segment.
    #[serde(default)]
    pub conflicts: BTreeMap<IpAddr, AddressClaim>,
    /// Version of the object in the store, for compare-and-swap.
    pub resource_version: u64,
}

impl NodeRecord {
    /// An empty record, as for a node without any report or grant.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            tunnel_index: 0,
            grants: Vec::new(),
            draining: Vec::new(),
            resting: Vec::new(),
            fenced: None,
            grants_epoch: 0,
            pod_prefixes: BTreeSet::new(),
            device_addresses: BTreeSet::new(),
            underlay_addresses: Vec::new(),
            external_addresses: BTreeSet::new(),
            next_hops: BTreeSet::new(),
            uplink_lost: false,
            steering_version: 0,
            newer_tables: BTreeMap::new(),
            announcing: BTreeSet::new(),
            acknowledged: 0,
            held: BTreeMap::new(),
            demand: BTreeMap::new(),
            wanted_ports: BTreeMap::new(),
            full_destinations: BTreeMap::new(),
            paired: BTreeSet::new(),
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

/// Records that exist and cannot be read. Addresses and indexes in them count as taken: the controller does not change
/// the records and does not replace them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Addresses of unreadable `EgressAddress`es. [`Snapshot::addresses`] contains them with those leases that can be
    /// read.
    pub addresses: BTreeSet<IpAddr>,
    /// Nodes of unreadable `EgressNode`s, by their spec. [`Snapshot::node_records`] contains them if their tunnel index
    /// can be read.
    pub nodes: BTreeSet<NodeName>,
    /// Nodes whose report of ports in use cannot be read: it is unknown whether their leases are drained.
    pub demand: BTreeSet<NodeName>,
}

/// All validated objects at one moment. Keys are names, so that order never depends on hashing. Copies share equal
/// values.
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
    /// Pod prefixes that network plugins publish, beside `Node::pod_cidrs`.
    #[serde(default)]
    pub pod_prefixes: BTreeSet<IpNet>,
    /// Egress addresses that a Node or Service of the cluster has itself, by a front-end that permits it.
    #[serde(default)]
    pub held_by: BTreeMap<IpAddr, HeldBy>,
    /// Address records, written by the controller.
    pub addresses: SharedMap<IpAddr, AddressRecord>,
    /// Node records, written by controller and agents.
    pub node_records: SharedMap<NodeName, NodeRecord>,
    /// Records of both kinds that cannot be read.
    #[serde(default)]
    pub unreadable: Unreadable,
}

impl Snapshot {
    /// A snapshot without objects.
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
            held_by: BTreeMap::new(),
            addresses: SharedMap::new(),
            node_records: SharedMap::new(),
            unreadable: Unreadable::default(),
        }
    }
}
