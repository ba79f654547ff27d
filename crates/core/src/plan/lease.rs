//! The life cycle of leases (design section 7, `reference/nat-behaviour.md` R1 to R5).
//!
//! ```text
//!   (pod bound) -> Granted -> Active -> Draining -> HoldDown -> (gone)
//!                     ^          ^         |
//!                     +----------+---------+  a pod is back
//! ```
//!
//! Steering tables contain Granted, Active and Draining leases: exactly the blocks that a worker may have connections
//! in. Every change of a steering table gets a new epoch from one counter for the whole cluster, one per record and
//! plan.

mod blocks;
mod sanity;

use super::demand::{Demand, DemandByAddress};
use super::{PlanReason, PlanTime, unreadable};
use crate::model::*;
use crate::resolve::gateway_nodes;
use blocks::Blocks;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) struct PlannedLeases {
    pub records: BTreeMap<IpAddr, AddressRecord>,
    pub deletions: Vec<IpAddr>,
    pub exhausted: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    pub next_change_secs: Option<i64>,
}

/// Inputs that all addresses share.
pub(super) struct Cluster<'a> {
    pub snapshot: &'a Snapshot,
    pub time: PlanTime,
    /// Highest epoch of the cluster.
    pub epoch: u64,
    /// Per gateway group: the epoch that every gateway of the group has reached.
    pub reported: &'a BTreeMap<GatewayName, u64>,
}

impl Cluster<'_> {
    fn hold_down_secs(&self) -> i64 {
        hold_down_secs(&self.snapshot.settings)
    }
}

fn hold_down_secs(settings: &Settings) -> i64 {
    i64::try_from(settings.hold_down_secs).unwrap_or(i64::MAX)
}

/// Plan of one address.
pub(super) struct PlannedAddress {
    pub record: AddressRecord,
    /// Its steering table changed, so it took an epoch.
    pub steering_changed: bool,
    /// Workers that need a lease and got none because no block was free.
    pub exhausted: BTreeSet<NodeName>,
    pub reasons: Vec<PlanReason>,
    pub findings: BTreeSet<Finding>,
}

/// Plans one address. Addresses that take an epoch must be planned in their order.
pub(super) fn plan_address(
    cluster: &mut Cluster<'_>,
    address: IpAddr,
    demand: Option<&Demand<'_>>,
) -> PlannedAddress {
    if let Some(kept) = unreadable_address(cluster.snapshot, address) {
        return kept;
    }
    let mut findings = BTreeSet::new();
    let mut work = AddressWork::start(cluster, address, demand, &mut findings);
    work.age(cluster, demand);
    work.grant(cluster, demand);
    work.number(cluster);
    PlannedAddress {
        record: work.record,
        steering_changed: work.steering_changed,
        exhausted: work.exhausted,
        reasons: work.reasons,
        findings,
    }
}

/// The plan of an address whose record cannot be read: the record unchanged. It is unknown which of its blocks are
/// free.
fn unreadable_address(snapshot: &Snapshot, address: IpAddr) -> Option<PlannedAddress> {
    if !snapshot.unreadable.addresses.contains(&address) {
        return None;
    }
    let record = snapshot.addresses.get(&address)?.clone();
    let text =
        "its record cannot be read: it stays as it is, and no node gets ports of it".to_owned();
    Some(PlannedAddress {
        reasons: vec![PlanReason {
            subject: address.to_string(),
            text,
        }],
        record,
        steering_changed: false,
        exhausted: BTreeSet::new(),
        findings: BTreeSet::new(),
    })
}

/// Highest epoch that is accepted from a node's report. Higher ones would exhaust the counter, and no correct agent
/// reports them.
const EPOCH_BELIEVED_MAX: u64 = u64::MAX / 2;

pub(super) fn plan_leases(
    snapshot: &Snapshot,
    demand: &DemandByAddress<'_>,
    time: PlanTime,
    reasons: &mut Vec<PlanReason>,
    findings: &mut BTreeSet<Finding>,
) -> PlannedLeases {
    let reported = reported_epochs(snapshot);
    let mut cluster = Cluster {
        snapshot,
        time,
        epoch: highest_epoch(snapshot),
        reported: &reported,
    };
    let mut result = PlannedLeases {
        records: BTreeMap::new(),
        deletions: Vec::new(),
        exhausted: BTreeMap::new(),
        next_change_secs: None,
    };
    let addresses: BTreeSet<IpAddr> = snapshot
        .addresses
        .keys()
        .chain(demand.keys())
        .copied()
        .collect();
    for address in addresses {
        let mut planned = plan_address(&mut cluster, address, demand.get(&address));
        reasons.append(&mut planned.reasons);
        findings.append(&mut planned.findings);
        if !planned.exhausted.is_empty() {
            result.exhausted.insert(address, planned.exhausted);
        }
        result.records.insert(address, planned.record);
    }
    delete_unused(&cluster, demand, &mut result);
    let dues = result.records.values();
    result.next_change_secs = dues.filter_map(|r| due(snapshot, r)).min();
    result
}

/// Highest epoch that occurs anywhere: in records, in grants that may outlive their record, and in gateways' reports.
fn highest_epoch(snapshot: &Snapshot) -> u64 {
    let records = snapshot.addresses.values().map(record_epoch);
    let nodes = snapshot.node_records.values().map(node_epoch);
    records.chain(nodes).max().unwrap_or(0)
}

/// Highest epoch in an address record.
pub(super) fn record_epoch(record: &AddressRecord) -> u64 {
    let leases = record.leases.iter().map(|lease| lease.epoch);
    leases.fold(record.epoch, u64::max)
}

/// Highest accepted epoch in a node record.
pub(super) fn node_epoch(record: &NodeRecord) -> u64 {
    let grants = record.grants.iter().map(|grant| grant.epoch);
    let all = grants.chain(std::iter::once(record.steering_version));
    all.filter(|epoch| *epoch <= EPOCH_BELIEVED_MAX)
        .max()
        .unwrap_or(0)
}

/// Changed records in the order of their epochs. Records in which only the state of a lease changed keep their epoch
/// and may be written at any time: they come first.
pub(super) fn write_order(snapshot: &Snapshot, leases: &PlannedLeases) -> Vec<IpAddr> {
    let mut changed: Vec<&AddressRecord> = leases
        .records
        .values()
        .filter(|record| snapshot.addresses.get(&record.address) != Some(record))
        .collect();
    changed.sort_by_key(|record| (record.epoch, record.address));
    changed.into_iter().map(|record| record.address).collect()
}

/// One address while it is planned.
struct AddressWork {
    record: AddressRecord,
    /// The steering table changes; the leases at these positions get the new epoch.
    steering_changed: bool,
    renumber: BTreeSet<usize>,
    exhausted: BTreeSet<NodeName>,
    reasons: Vec<PlanReason>,
}

impl AddressWork {
    fn start(
        cluster: &Cluster<'_>,
        address: IpAddr,
        demand: Option<&Demand<'_>>,
        findings: &mut BTreeSet<Finding>,
    ) -> Self {
        let known = cluster.snapshot.addresses.get(&address);
        let mut work = Self {
            steering_changed: known.is_none(),
            record: known.cloned().unwrap_or_else(|| {
                // Only addresses in demand have no record yet.
                let gateway = demand.map(|demand| demand.gateway.name.clone());
                AddressRecord::new(address, gateway.unwrap_or(GatewayName(String::new())))
            }),
            renumber: BTreeSet::new(),
            exhausted: BTreeSet::new(),
            reasons: Vec::new(),
        };
        if sanity::mend(&mut work.record, findings) {
            work.steering_changed = true;
        }
        if let Some(demand) = demand
            && work.record.gateway != demand.gateway.name
        {
            work.say(format!(
                "gateway changes from {} to {}",
                work.record.gateway.0, demand.gateway.name.0
            ));
            work.record.gateway = demand.gateway.name.clone();
            work.steering_changed = true;
            for (i, lease) in work.record.leases.iter_mut().enumerate() {
                if lease.state == LeaseState::Active {
                    lease.state = LeaseState::Granted;
                    lease.since_secs = cluster.time.now_secs;
                }
                if lease.state != LeaseState::HoldDown {
                    work.renumber.insert(i);
                }
            }
        }
        work
    }

    fn say(&mut self, text: String) {
        self.reasons.push(PlanReason {
            subject: self.record.address.to_string(),
            text,
        });
    }

    /// Advances the existing leases through their life cycle.
    fn age(&mut self, cluster: &Cluster<'_>, demand: Option<&Demand<'_>>) {
        let before = self.record.leases.len();
        let rests = |lease: &Lease| {
            lease.state != LeaseState::HoldDown
                || cluster.time.now_secs < lease.since_secs.saturating_add(cluster.hold_down_secs())
        };
        // Removing leases shifts positions, which is safe only before renumbering; leases in hold-down are never
        // renumbered.
        let kept: Vec<(bool, Lease)> = std::mem::take(&mut self.record.leases)
            .into_iter()
            .enumerate()
            .filter(|(_, lease)| rests(lease))
            .map(|(i, lease)| (self.renumber.contains(&i), lease))
            .collect();
        if kept.len() != before {
            self.say("ranges that have rested long enough are free again".to_owned());
        }
        self.renumber.clear();
        for (i, (renumber, lease)) in kept.into_iter().enumerate() {
            if renumber {
                self.renumber.insert(i);
            }
            self.record.leases.push(lease);
            let state = self.next_state(cluster, demand, i);
            let lease = &mut self.record.leases[i];
            if let Some((state, why)) = state {
                lease.state = state;
                lease.since_secs = cluster.time.now_secs;
                let text = format!("lease of {} is {state:?}: {why}", lease.node);
                if state == LeaseState::HoldDown {
                    self.steering_changed = true;
                    self.renumber.insert(i);
                }
                self.say(text);
            }
        }
    }

    /// Next state of a lease, if it changes.
    fn next_state(
        &mut self,
        cluster: &Cluster<'_>,
        demand: Option<&Demand<'_>>,
        position: usize,
    ) -> Option<(LeaseState, &'static str)> {
        let lease = &self.record.leases[position];
        let needed = demand.is_some_and(|w| w.workers.contains(&lease.node));
        let known = !self.renumber.contains(&position)
            && cluster
                .reported
                .get(&self.record.gateway)
                .is_some_and(|known| *known >= lease.epoch);
        match (lease.state, needed) {
            (LeaseState::Granted, true) if known => {
                Some((LeaseState::Active, "every gateway has it"))
            }
            (LeaseState::Draining, true) if known => {
                Some((LeaseState::Active, "a selected pod is back"))
            }
            (LeaseState::Draining, true) => Some((LeaseState::Granted, "a selected pod is back")),
            (LeaseState::Granted | LeaseState::Active, false) => {
                Some((LeaseState::Draining, "no selected pod is left on the node"))
            }
            (LeaseState::Draining, false) => {
                let node = lease.node.clone();
                if !cluster.snapshot.nodes.contains_key(&node) {
                    self.say(format!(
                        "lease of {node} stays Draining: the node is gone, and it cannot say that it uses the ports no more"
                    ));
                    return None;
                }
                drained(cluster.snapshot, &node, self.record.address)
                    .then_some((LeaseState::HoldDown, "its last connection has ended"))
            }
            _ => None,
        }
    }

    /// Grants a first lease to each worker that needs one.
    fn grant(&mut self, cluster: &Cluster<'_>, demand: Option<&Demand<'_>>) {
        let Some(demand) = demand else { return };
        let holders: BTreeSet<NodeName> = self
            .record
            .leases
            .iter()
            .filter(|lease| lease.state != LeaseState::HoldDown)
            .map(|lease| lease.node.clone())
            .collect();
        let missing: Vec<&NodeName> = demand
            .workers
            .iter()
            .copied()
            .filter(|node| !holders.contains(*node))
            .collect();
        if missing.is_empty() {
            return;
        }
        let mut blocks = Blocks::without(self.record.leases.iter().flat_map(|l| &l.ranges));
        let workers = u32::try_from(cluster.snapshot.nodes.len()).unwrap_or(u32::MAX);
        let expected = demand.gateway.expected_workers.unwrap_or(workers);
        let size = blocks::first_grant(demand.gateway.initial_ports, expected);
        for node in missing {
            let Some(ranges) = blocks.take(self.record.address, node, size) else {
                self.say(format!("no block is free for {node}"));
                self.exhausted.insert(node.clone());
                continue;
            };
            let ports: u32 = ranges.iter().map(|r| u32::from(r.last - r.first) + 1).sum();
            self.say(format!(
                "{ports} ports granted to {node}: a selected pod is bound to it"
            ));
            self.steering_changed = true;
            self.renumber.insert(self.record.leases.len());
            self.record.leases.push(Lease {
                node: node.clone(),
                ranges,
                epoch: 0,
                state: LeaseState::Granted,
                since_secs: cluster.time.now_secs,
            });
        }
    }

    /// Takes the next epoch if the steering table changed.
    fn number(&mut self, cluster: &mut Cluster<'_>) {
        if self.steering_changed {
            cluster.epoch = cluster.epoch.saturating_add(1);
            self.record.epoch = cluster.epoch;
            for i in std::mem::take(&mut self.renumber) {
                self.record.leases[i].epoch = cluster.epoch;
            }
        }
        self.record
            .leases
            .sort_by(|a, b| (&a.node, &a.ranges).cmp(&(&b.node, &b.ranges)));
    }
}

/// The epoch that every gateway of each group reports; no entry where no agent runs. The controller does not probe, so
/// a gateway counts from its agent's first report until its Node is removed. Workers do probe, and decide themselves
/// which ranges they may use.
fn reported_epochs(snapshot: &Snapshot) -> BTreeMap<GatewayName, u64> {
    let all = snapshot.gateways.values();
    all.filter_map(|gateway| {
        let nodes = gateway_nodes(gateway, &snapshot.nodes);
        let epoch = reported_epoch(nodes, &snapshot.node_records)?;
        Some((gateway.name.clone(), epoch))
    })
    .collect()
}

/// The epoch that all these gateways of one group have reached.
pub(super) fn reported_epoch<'n>(
    nodes: impl IntoIterator<Item = &'n NodeName>,
    records: &SharedMap<NodeName, NodeRecord>,
) -> Option<u64> {
    nodes
        .into_iter()
        .filter_map(|node| records.get(node))
        .filter(|record| !record.underlay_addresses.is_empty())
        .map(|record| record.steering_version)
        .min()
}

/// Whether the worker has seen that its grant was withdrawn and has no connection left in it.
fn drained(snapshot: &Snapshot, node: &NodeName, address: IpAddr) -> bool {
    if unreadable::demand_is_unknown(snapshot, node) {
        return false;
    }
    let record = snapshot.node_records.get(node);
    record.is_some_and(|record| is_drained(record, address))
}

/// The same as [`drained`], from the worker's record.
pub(super) fn is_drained(record: &NodeRecord, address: IpAddr) -> bool {
    !record.demand.contains_key(&address)
        && record.grants.iter().all(|grant| grant.address != address)
}

/// Deletes records without demand and without leases. The record with the highest epoch stays until another has a
/// higher one, or until every gateway has reported it: the counter must never decrease, or a gateway that was down
/// would seem to know leases that it has never seen.
fn delete_unused(cluster: &Cluster<'_>, demand: &DemandByAddress<'_>, result: &mut PlannedLeases) {
    let highest = result.records.values().map(|r| r.epoch).max().unwrap_or(0);
    let unused: Vec<IpAddr> = result
        .records
        .values()
        .filter(|r| r.leases.is_empty() && !demand.contains_key(&r.address))
        .filter(|r| !cluster.snapshot.unreadable.addresses.contains(&r.address))
        .filter(|r| may_go(r, highest, cluster.reported))
        .map(|r| r.address)
        .collect();
    for address in unused {
        result.records.remove(&address);
        if cluster.snapshot.addresses.contains_key(&address) {
            result.deletions.push(address);
        }
    }
}

/// Whether an unused record may be deleted. `highest`: the highest epoch of any planned record.
pub(super) fn may_go(
    record: &AddressRecord,
    highest: u64,
    reported: &BTreeMap<GatewayName, u64>,
) -> bool {
    record.epoch < highest || reported.values().all(|known| *known >= record.epoch)
}

/// Seconds since the epoch at which time alone changes a record.
pub(super) fn due(snapshot: &Snapshot, record: &AddressRecord) -> Option<i64> {
    if snapshot.unreadable.addresses.contains(&record.address) {
        return None;
    }
    let settings = &snapshot.settings;
    let leases = record.leases.iter();
    leases
        .filter(|lease| lease.state == LeaseState::HoldDown)
        .map(|lease| lease.since_secs.saturating_add(hold_down_secs(settings)))
        .min()
}
