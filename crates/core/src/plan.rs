//! The controller's half: who may use which address and which ports, and what to tell people about it.
//!
//! `plan` is a function of the snapshot and of the time. What was planned before is in the snapshot (records of
//! addresses and nodes, `Policy::assigned`), and stays as it is as long as it can.

mod allocate;
mod conditions;
mod demand;
mod lease;
mod nodes;
pub mod planner;
mod pod_prefixes;
mod status;
mod unreadable;
mod uplinks;

use crate::condition::Condition;
pub use crate::resolve::Refusal;

use crate::model::*;
use crate::resolve::{resolve, select};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the cluster must look like. Write in this order, each with compare-and-swap, and plan again after the first
/// refusal: statuses of policies with [`PolicyPlan::given_anew`], address records as in `address_writes`, node records,
/// the other policy statuses, then deletions. A grant must never be seen by its worker without being written down in its
/// address record, and an address out of a pool must have no record before its policy says that it has it: the next plan
/// would take it for another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterPlan {
    /// Everything wrong with any object.
    pub findings: BTreeSet<Finding>,
    /// Every policy.
    #[serde(with = "crate::pairs")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<(ObjectRef, PolicyPlan)>"))]
    pub policies: BTreeMap<ObjectRef, PolicyPlan>,
    /// Every gateway.
    pub gateways: BTreeMap<GatewayName, GatewayPlan>,
    /// Every pool.
    pub pools: BTreeMap<PoolName, PoolPlan>,
    /// Every address record that must exist, whole (`resource_version` is that of the snapshot, 0 for new ones).
    pub addresses: BTreeMap<IpAddr, AddressRecord>,
    /// What is told about each of them.
    pub address_status: BTreeMap<IpAddr, AddressSummary>,
    /// Those of `addresses` that differ from the snapshot, in the order in which they must be written: a gateway's
    /// steering version is the highest epoch that it has seen.
    pub address_writes: Vec<IpAddr>,
    /// Records that must go.
    pub address_deletions: Vec<IpAddr>,
    /// Every node record that must exist: the part that the controller writes.
    pub node_records: BTreeMap<NodeName, NodeRecordSpec>,
    /// Those of `node_records` that differ from the snapshot.
    pub node_writes: Vec<NodeName>,
    /// Records of nodes that are gone and have no lease any more.
    pub node_deletions: Vec<NodeName>,
    /// One line for everything above: why it is so. Sorted by subject.
    pub reasons: BTreeSet<PlanReason>,
    /// Seconds since the epoch at which planning again would change something although no object changed.
    pub next_change_secs: Option<i64>,
}

/// Why something is as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlanReason {
    /// What: an object or an address.
    pub subject: String,
    /// Why, as a sentence.
    pub text: String,
}

/// What becomes of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyPlan {
    /// Generation that this speaks of.
    pub generation: i64,
    /// Why it is refused, if it is. Traffic of its pods to its destinations is then dropped, as `whenUnavailable` says.
    pub refusal: Option<Refusal>,
    /// Its addresses: `status.addresses`, which for pools is also what agents and the next plan go by.
    pub addresses: Vec<IpAddr>,
    /// Addresses out of its pool that stay reserved for it while it is refused. `status.addresses` lists them meanwhile.
    pub reserved_addresses: Vec<IpAddr>,
    /// Some of them are out of a pool, and `Policy::assigned` does not say so yet.
    pub given_anew: bool,
    /// Its gateway, if there is one.
    pub gateway: Option<GatewayName>,
    /// Selected pods by node, those without an address yet too.
    pub pods: BTreeMap<NodeName, u32>,
    /// Sum of `pods`.
    pub selected: u32,
    /// Pods that agents have programmed at this generation.
    pub programmed: u32,
    /// Policies that win over this one on some destination of some pod.
    pub overlapped_by: BTreeSet<ObjectRef>,
    /// Selected pods for which other policies win on every destination.
    pub shadowed: u32,
    /// Whether it has addresses of (IPv4, IPv6).
    pub families: (bool, bool),
    /// Every selected pod that has an address leaves by the egress address.
    pub ready: bool,
    /// All conditions; one that is not here must be removed.
    pub conditions: Vec<Condition>,
}

/// What is known about one gateway group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayPlan {
    /// Generation that this speaks of.
    pub generation: i64,
    /// Its nodes, by name.
    pub nodes: Vec<GatewayNode>,
    /// All conditions.
    pub conditions: Vec<Condition>,
}

/// One node of a gateway group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayNode {
    /// Its name.
    pub node: NodeName,
    /// Its agent has run there. The controller does not probe: whether packets pass is known to the agents.
    pub running: bool,
    /// Steering version that its agent reports.
    pub version: u64,
    /// `ebpf` or `nftables`.
    pub datapath: Option<String>,
    /// Addresses of its external device with their prefix.
    #[cfg_attr(feature = "schema", schemars(with = "BTreeSet<String>"))]
    pub external: BTreeSet<IpNet>,
    /// Nothing behind its external device answers.
    pub uplink_lost: bool,
    /// Neighbours that it carries packets to, of those that policies name as next hop.
    pub next_hops: BTreeSet<IpAddr>,
}

/// What is used of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolPlan {
    /// Generation that this speaks of.
    pub generation: i64,
    /// Addresses in it, saturating.
    pub total: u128,
    /// Of those, addresses with a record.
    pub used: u64,
    /// All conditions.
    pub conditions: Vec<Condition>,
}

/// What is told about an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "PlannedAddressStatus"))]
pub struct AddressSummary {
    /// The gateway node that reports that it announces it; of several, because one is dead or it moves just now, the last
    /// in the order of announcers.
    pub announcer: Option<NodeName>,
    /// Policies that use it.
    pub users: Vec<ObjectRef>,
    /// Ports leased in any state but hold-down.
    pub ports_leased: u32,
    /// Ports that could be leased now.
    pub ports_free: u32,
    /// Who else has it: a gateway that hears another machine answer for it, and that machine.
    pub conflict: Option<(NodeName, AddressClaim)>,
    /// Workers that need a lease and got none because no block was free.
    pub exhausted: BTreeSet<NodeName>,
    /// All conditions.
    pub conditions: Vec<Condition>,
}

/// What the controller writes into a node record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeRecordSpec {
    /// Number of the node in the tunnel; never changed.
    pub tunnel_index: u16,
    /// Grants, sorted by address.
    pub grants: Vec<Grant>,
    /// See [`NodeRecord::pod_prefixes`].
    #[cfg_attr(feature = "schema", schemars(with = "BTreeSet<String>"))]
    pub pod_prefixes: BTreeSet<IpNet>,
}

/// Plans the cluster. `now_secs`: seconds since the Unix epoch.
pub fn plan(snapshot: &Snapshot, now_secs: i64) -> ClusterPlan {
    let mut reasons: Vec<PlanReason> = Vec::new();
    let allocation = allocate::allocate(snapshot, &snapshot.pods, &mut reasons);
    let (resolved, mut findings) = resolve(snapshot, &allocation.assigned, &snapshot.pods);
    findings.extend(allocation.findings);
    let selected = select(snapshot, &resolved, snapshot.pods.values());
    let demand = demand::demand(snapshot, &resolved, &selected);
    let leases = lease::plan_leases(snapshot, &demand, now_secs, &mut reasons, &mut findings);
    let told = pod_prefixes::Told::of(snapshot, &pod_prefixes::uncovered(snapshot));
    let mut nodes = nodes::plan_nodes(snapshot, &leases.records, &mut reasons, &mut findings);
    let left_out = nodes.carry(snapshot, &told);
    let address_status = status::addresses(snapshot, &demand, &leases);
    let gateways = status::gateways(snapshot);
    let overlaps = demand::overlaps(&resolved, &selected);
    let records = snapshot.node_records.values();
    let inputs = conditions::Inputs {
        addresses: &address_status,
        gateways: &gateways,
        records: &snapshot.node_records,
        full: &records
            .flat_map(|record| record.full_destinations.keys().copied())
            .collect(),
        namespaces: &snapshot.namespaces,
        left_out,
    };
    let policies = conditions::policies(inputs, &resolved, &selected, &overlaps);
    for (object, policy) in &policies {
        reasons.extend(conditions::reasons(object, policy));
    }
    ClusterPlan {
        findings,
        policies,
        gateways,
        pools: status::pools(snapshot, &leases.records),
        address_writes: lease::write_order(snapshot, &leases),
        address_deletions: leases.deletions,
        addresses: leases.records,
        address_status,
        node_writes: nodes::writes(snapshot, &nodes.records),
        node_records: nodes.records,
        node_deletions: nodes.deletions,
        reasons: reasons.into_iter().collect(),
        next_change_secs: leases.next_change_secs,
    }
}
