//! The controller's decision: leases of addresses and ports, and all statuses.
//!
//! `plan` is a function of the snapshot and of the time. Earlier decisions are in the snapshot (records of addresses
//! and nodes, `Policy::assigned`) and stay as they are as long as they can.

mod allocate;
mod conditions;
mod counted;
mod crowding;
mod demand;
mod device_addresses;
mod epoch_memory;
mod lease;
mod nodes;
mod planned_grants;
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

/// Desired objects of the cluster. Write in this order, each with compare-and-swap, and plan again after the first
/// refusal: statuses of policies with [`PolicyPlan::given_anew`], address records as in `address_writes`, node records,
/// the other policy statuses, then deletions. A grant must be written in its address record before its worker can see
/// it. An address from a pool must have no record before its policy's status lists it: the next plan would take it for
/// another policy's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterPlan {
    /// Findings about any object.
    pub findings: BTreeSet<Finding>,
    /// Plan of every policy.
    #[serde(with = "crate::pairs")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<(ObjectRef, PolicyPlan)>"))]
    pub policies: BTreeMap<ObjectRef, PolicyPlan>,
    /// Plan of every gateway group.
    pub gateways: BTreeMap<GatewayName, GatewayPlan>,
    /// Plan of every pool.
    pub pools: BTreeMap<PoolName, PoolPlan>,
    /// Every address record that must exist, complete (`resource_version` is that of the snapshot, 0 for new ones).
    pub addresses: BTreeMap<IpAddr, AddressRecord>,
    /// Status of every address.
    pub address_status: BTreeMap<IpAddr, AddressSummary>,
    /// Records of `addresses` that differ from the snapshot, in the order in which they must be written: a gateway's
    /// steering version is the highest epoch that it has seen.
    pub address_writes: Vec<IpAddr>,
    /// Address records to delete.
    pub address_deletions: Vec<IpAddr>,
    /// Every node record that must exist: the part that the controller writes.
    pub node_records: BTreeMap<NodeName, NodeRecordSpec>,
    /// Records of `node_records` that differ from the snapshot.
    pub node_writes: Vec<NodeName>,
    /// Records of removed nodes without any lease.
    pub node_deletions: Vec<NodeName>,
    /// Reasons of all of the above, one line each, sorted by subject.
    pub reasons: BTreeSet<PlanReason>,
    /// Seconds since the epoch at which time alone changes the plan, without any change of an object.
    pub next_change_secs: Option<i64>,
}

/// Reason of one decision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlanReason {
    /// The object or address that the reason is about.
    pub subject: String,
    /// The reason, as a sentence.
    pub text: String,
}

/// Plan of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyPlan {
    /// Generation of the policy that was planned.
    pub generation: i64,
    /// Reason for refusing it, if it is refused. Traffic of its pods to its destinations is then dropped, as
    /// `whenUnavailable` says.
    pub refusal: Option<Refusal>,
    /// Addresses of the policy: `status.addresses`. For pools, agents and the next plan read them from there.
    pub addresses: Vec<IpAddr>,
    /// Addresses from its pool that stay reserved while the policy is refused. `status.addresses` lists them meanwhile.
    pub reserved_addresses: Vec<IpAddr>,
    /// Addresses that new pods avoid: `status.crowded`, and the next [`Policy::crowded`]. Empty for a policy that has one
    /// address of each family.
    pub crowded: Vec<IpAddr>,
    /// Some addresses are from a pool, and `Policy::assigned` does not list them yet.
    pub given_anew: bool,
    /// Gateway of the policy, if it exists.
    pub gateway: Option<GatewayName>,
    /// Selected pods by node, those without an address included.
    pub pods: BTreeMap<NodeName, u32>,
    /// Sum of `pods`.
    pub selected: u32,
    /// Pods that agents have programmed at this generation.
    pub programmed: u32,
    /// Policies that win over this one for some destination of some pod.
    pub overlapped_by: BTreeSet<ObjectRef>,
    /// Number of selected pods for which other policies win for every destination.
    pub shadowed: u32,
    /// Whether it has addresses of (IPv4, IPv6).
    pub families: (bool, bool),
    /// Every selected pod that has an address leaves by the egress address.
    pub ready: bool,
    /// All conditions; one that is not here must be removed.
    pub conditions: Vec<Condition>,
}

/// Plan of one gateway group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayPlan {
    /// Generation of the gateway that was planned.
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
    /// Its agent has reported. The controller does not probe: only agents know whether packets pass.
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
    /// Next hops named by policies that it forwards to.
    pub next_hops: BTreeSet<IpAddr>,
}

/// Usage of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolPlan {
    /// Generation of the pool that was planned.
    pub generation: i64,
    /// Number of its addresses, saturating.
    pub total: u128,
    /// Number of its addresses that have a record.
    pub used: u64,
    /// All conditions.
    pub conditions: Vec<Condition>,
}

/// How much of an address's ports workers have and need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Crowding {
    /// Less than [`crate::numbers::CROWDED_LEAVE_PERCENT`].
    #[default]
    Roomy,
    /// Between the two limits: policies that avoid the address go on with it, others do not begin.
    Filling,
    /// [`crate::numbers::CROWDED_ENTER_PERCENT`] or more, or a worker got no port.
    Crowded,
}

/// Status of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "PlannedAddressStatus"))]
pub struct AddressSummary {
    /// Gateway node that reports announcing the address. If several do, because one is dead or a takeover is under way:
    /// the last in the order of announcers.
    pub announcer: Option<NodeName>,
    /// Policies that use it.
    pub users: Vec<ObjectRef>,
    /// Ports leased in any state but hold-down.
    pub ports_leased: u32,
    /// Ports that could be leased now.
    pub ports_free: u32,
    /// Address conflict: the gateway that observes another machine answering for the address, and that machine.
    pub conflict: Option<(NodeName, AddressClaim)>,
    /// Workers that need a lease and got none because no block was free.
    pub exhausted: BTreeSet<NodeName>,
    /// How much of it workers have and need.
    pub crowding: Crowding,
    /// All conditions.
    pub conditions: Vec<Condition>,
}

/// Fields of a node record that the controller writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeRecordSpec {
    /// Number of the node in the tunnel; never changed.
    pub tunnel_index: u16,
    /// Grants, sorted by address and ranges.
    pub grants: Vec<Grant>,
    /// See [`NodeRecord::draining`]; sorted likewise.
    pub draining: Vec<Grant>,
    /// See [`NodeRecord::resting`]; sorted likewise.
    pub resting: Vec<Grant>,
    /// See [`NodeRecord::fenced`].
    pub fenced: Option<Fenced>,
    /// See [`NodeRecord::grants_epoch`]; never lower than before.
    pub grants_epoch: u64,
    /// See [`NodeRecord::pod_prefixes`].
    #[cfg_attr(feature = "schema", schemars(with = "BTreeSet<String>"))]
    pub pod_prefixes: BTreeSet<IpNet>,
    /// See [`NodeRecord::device_addresses`].
    #[cfg_attr(feature = "schema", schemars(with = "BTreeSet<String>"))]
    pub device_addresses: BTreeSet<IpNet>,
}

/// Time of planning, as the leader counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanTime {
    /// Seconds since the Unix epoch at the start of the term, plus the seconds that have passed since by a monotonic clock:
    /// steps of the wall clock do not shorten or lengthen hold-downs.
    pub now_secs: i64,
    /// The leader's term; another number for each leader and each of its terms. Times that another term counted are
    /// counted anew.
    pub term: u64,
}

impl PlanTime {
    /// The time of a plan that nobody leads, for example of `egret plan`.
    pub fn of_no_term(now_secs: i64) -> Self {
        PlanTime { now_secs, term: 0 }
    }
}

/// Plans the cluster.
pub fn plan(snapshot: &Snapshot, time: PlanTime) -> ClusterPlan {
    let mut reasons: Vec<PlanReason> = Vec::new();
    let allocation = allocate::allocate(snapshot, &snapshot.pods, &mut reasons);
    let (resolved, mut findings) = resolve(snapshot, &allocation.assigned, &snapshot.pods);
    findings.extend(allocation.findings);
    let selected = select(snapshot, &resolved, snapshot.pods.values());
    let demand = demand::demand(snapshot, &resolved, &selected);
    let leases = lease::plan_leases(snapshot, &demand, time, &mut reasons, &mut findings);
    let told = pod_prefixes::Told::of(snapshot, &pod_prefixes::uncovered(snapshot));
    let mut nodes = nodes::plan_nodes(
        snapshot,
        &leases.records,
        &leases.least_epochs,
        (leases.believed_max, time.now_secs),
        &mut reasons,
        &mut findings,
    );
    let device_addresses = device_addresses::all(snapshot);
    let devices = device_addresses::Told::of(snapshot, device_addresses.iter());
    let carriers = nodes.carry(snapshot, &told, &devices);
    findings.extend(devices.finding(&carriers));
    let left_out = told.missing(!carriers.is_empty());
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
