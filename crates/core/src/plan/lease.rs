//! The life cycle of leases (design section 7, `reference/nat-behaviour.md` R1 to R5).
//!
//! ```text
//!   (pod bound) -> Granted -> Active -> Draining -> HoldDown -> (gone)
//!                     ^                  |   |          ^
//!                     +-- a pod is back -+   |          |
//!                     |                      v          |
//!        Node is back +--------------- Vanished -> Fenced <- (from any state before, if an operator fences the node)
//! ```
//!
//! - `aging` moves leases along these arrows;
//! - `claims` finds blocks that nodes have and the record does not know: they count as taken;
//! - `sizing` grants first and further leases, and withdraws what is idle or scarce.
//!
//! Steering tables contain Granted, Active, Draining and Vanished leases: exactly the blocks that a worker may have
//! connections in. Every grant, withdrawal and change of a steering table gets a new epoch from one counter for the whole
//! cluster, one per record and plan.

mod aging;
mod blocks;
mod claims;
mod epochs;
mod restore;
mod sanity;
mod sizing;
mod unused;

pub(super) use claims::{Claims, Concerns};
pub(super) use epochs::{Epochs, Reports, has_unknown_tables};
pub(super) use sizing::needed_blocks;
pub(super) use unused::{Fate, fate, is_empty};

use super::demand::{Demand, DemandByAddress};
use super::epoch_memory::{self, LeastEpochs};
use super::{PlanReason, PlanTime};
use crate::model::*;
use crate::numbers::NODE_GONE_SECS;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) struct PlannedLeases {
    pub records: BTreeMap<IpAddr, AddressRecord>,
    pub deletions: Vec<IpAddr>,
    pub exhausted: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    pub next_change_secs: Option<i64>,
    /// Highest epoch that nodes may report.
    pub believed_max: u64,
    /// Epochs of node records.
    pub least_epochs: LeastEpochs,
}

/// Inputs that all addresses share.
pub(super) struct Cluster<'a> {
    pub snapshot: &'a Snapshot,
    pub time: PlanTime,
    /// Highest epoch of the cluster.
    pub epoch: u64,
    /// Nodes whose record has gone back.
    pub ahead: &'a [NodeName],
    /// What nodes have.
    pub claims: &'a Claims,
    /// What gateways have reported.
    pub reports: &'a Reports,
    /// Nothing was ever granted, as far as any record says.
    pub is_fresh: bool,
    /// Result of [`Self::without_record`], once it was asked for.
    pub without_record: OnceCell<Option<NodeName>>,
}

impl Cluster<'_> {
    /// The first node of a cluster that is in use that has no record. New nodes have none until the first plan after they
    /// came.
    fn without_record(&self) -> Option<&NodeName> {
        let (nodes, records) = (&self.snapshot.nodes, &self.snapshot.node_records);
        let unreadable = &self.snapshot.unreadable.nodes;
        let find = || {
            let mut nodes = nodes.keys();
            let lacks =
                |node: &&NodeName| !records.contains_key(*node) && !unreadable.contains(*node);
            nodes.find(lacks).cloned()
        };
        match self.is_fresh {
            true => None,
            false => self.without_record.get_or_init(find).as_ref(),
        }
    }

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
    let unfenced = demand.and_then(|demand| without_fenced(cluster.snapshot, demand));
    let demand = unfenced.as_ref().or(demand);
    let mut findings = BTreeSet::new();
    let mut work = AddressWork::start(cluster, address, demand, &mut findings);
    work.adopt(cluster, &mut findings);
    work.notice_restore(cluster);
    work.age(cluster, demand);
    work.find_unknown_tables(cluster, &mut findings);
    work.size(cluster, demand);
    work.number(cluster);
    PlannedAddress {
        record: work.record,
        steering_changed: work.steering_changed,
        exhausted: work.exhausted,
        reasons: work.reasons,
        findings,
    }
}

/// The demand without fenced workers, if there are some.
fn without_fenced<'a>(snapshot: &Snapshot, demand: &Demand<'a>) -> Option<Demand<'a>> {
    let fenced = |node: &&&NodeName| is_fenced(snapshot, node);
    demand.workers.iter().any(|node| fenced(&node)).then(|| {
        let workers = demand.workers.iter();
        Demand {
            gateway: demand.gateway,
            workers: workers.filter(|node| !fenced(node)).copied().collect(),
            users: demand.users.clone(),
        }
    })
}

/// An operator says that the node sends nothing any more.
fn is_fenced(snapshot: &Snapshot, node: &NodeName) -> bool {
    let node = snapshot.nodes.get(node);
    node.is_some_and(|node| node.maintenance.fence.is_some())
}

/// Whether the node may have flows: it has a Node object and is not fenced.
fn is_here(snapshot: &Snapshot, node: &NodeName) -> bool {
    let node = snapshot.nodes.get(node);
    node.is_some_and(|node| node.maintenance.fence.is_none())
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

pub(super) fn plan_leases(
    snapshot: &Snapshot,
    demand: &DemandByAddress<'_>,
    time: PlanTime,
    reasons: &mut Vec<PlanReason>,
    findings: &mut BTreeSet<Finding>,
) -> PlannedLeases {
    let reports = Reports::of(snapshot);
    let (epochs, claims) = (Epochs::of(snapshot), Claims::of(snapshot));
    let ahead: Vec<NodeName> = epochs.ahead().cloned().collect();
    findings.extend(epochs.unbelieved(snapshot));
    let mut cluster = Cluster {
        snapshot,
        time,
        epoch: epochs.highest(),
        ahead: &ahead,
        claims: &claims,
        reports: &reports,
        is_fresh: epochs.highest() == 0,
        without_record: OnceCell::new(),
    };
    let mut result = PlannedLeases {
        records: BTreeMap::new(),
        deletions: Vec::new(),
        exhausted: BTreeMap::new(),
        next_change_secs: None,
        believed_max: epochs.believed_max(),
        least_epochs: LeastEpochs {
            joined: epochs.highest(),
            keepers: epoch_memory::keepers(snapshot),
            ..LeastEpochs::default()
        },
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
    unused::delete(&cluster, demand, &mut result);
    let restored = result.records.values();
    let restored = restored.filter_map(|record| record.restored);
    let restored = restored.map(|restored| restored.epoch).max();
    result.least_epochs.restored = restored.unwrap_or(0);
    let dues = result.records.values();
    result.next_change_secs = dues.filter_map(|r| due(snapshot, r, time.now_secs)).min();
    result
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
    /// The record; its leases are in `leases`.
    record: AddressRecord,
    leases: Vec<LeaseWork>,
    /// Time at which leases that change their state now enter it.
    now_secs: i64,
    /// The steering table changes.
    steering_changed: bool,
    exhausted: BTreeSet<NodeName>,
    reasons: Vec<PlanReason>,
}

/// One lease while it is planned.
struct LeaseWork {
    lease: Lease,
    /// It gets the plan's epoch: gateways steer it from then on, or no longer.
    renumber: bool,
    /// It is withdrawn at the plan's epoch.
    withdraw: bool,
}

impl AddressWork {
    fn start(
        cluster: &Cluster<'_>,
        address: IpAddr,
        demand: Option<&Demand<'_>>,
        findings: &mut BTreeSet<Finding>,
    ) -> Self {
        let known = cluster.snapshot.addresses.get(&address);
        let mut record = known.cloned().unwrap_or_else(|| {
            // Only addresses in demand have no record yet.
            let gateway = demand.map(|demand| demand.gateway.name.clone());
            AddressRecord::new(address, gateway.unwrap_or(GatewayName(String::new())))
        });
        let mended = sanity::mend(&mut record, findings);
        let leases = std::mem::take(&mut record.leases);
        let mut work = Self {
            record,
            leases: leases
                .into_iter()
                .map(|lease| LeaseWork {
                    lease,
                    renumber: false,
                    withdraw: false,
                })
                .collect(),
            now_secs: cluster.time.now_secs,
            steering_changed: known.is_none() || mended,
            exhausted: BTreeSet::new(),
            reasons: Vec::new(),
        };
        work.count_anew(cluster.time);
        if let Some(demand) = demand
            && work.record.gateway != demand.gateway.name
        {
            work.change_gateway(&demand.gateway.name);
        }
        work
    }

    /// Counts the times of another term's leases from now on.
    fn count_anew(&mut self, time: PlanTime) {
        let timed = |work: &&mut LeaseWork| is_timed(work.lease.state);
        if self.record.term == time.term {
            return;
        }
        if let Some(restored) = &mut self.record.restored {
            restored.since_secs = time.now_secs;
            self.record.term = time.term;
        }
        for work in self.leases.iter_mut().filter(timed) {
            work.lease.since_secs = time.now_secs;
            self.record.term = time.term;
        }
    }

    fn change_gateway(&mut self, gateway: &GatewayName) {
        self.say(format!(
            "gateway changes from {} to {}",
            self.record.gateway.0, gateway.0
        ));
        self.record.gateway = gateway.clone();
        self.steering_changed = true;
        for work in &mut self.leases {
            if work.lease.state == LeaseState::Active {
                work.lease.state = LeaseState::Granted;
                work.lease.since_secs = self.now_secs;
            }
            // Gateways of the new group do not have the ranges yet, and those of the old one may still have them.
            work.renumber |= work.lease.state != LeaseState::HoldDown;
        }
    }

    fn say(&mut self, text: String) {
        self.reasons.push(PlanReason {
            subject: self.record.address.to_string(),
            text,
        });
    }

    /// Takes the next epoch if a lease or the steering table changed.
    fn number(&mut self, cluster: &mut Cluster<'_>) {
        let mut leases = self.leases.iter();
        if self.steering_changed || leases.any(|work| work.renumber || work.withdraw) {
            self.steering_changed = true;
            cluster.epoch = cluster.epoch.saturating_add(1);
            self.record.epoch = cluster.epoch;
            if let Some(restored) = &mut self.record.restored
                && restored.epoch == 0
            {
                restored.epoch = cluster.epoch;
            }
        }
        let epoch = self.record.epoch;
        let leases = std::mem::take(&mut self.leases).into_iter().map(|work| {
            let mut lease = work.lease;
            if work.renumber {
                lease.epoch = epoch;
            }
            lease.withdrawn = match lease.state {
                LeaseState::Draining if work.withdraw => Some(epoch),
                LeaseState::Draining => lease.withdrawn,
                _ => None,
            };
            lease
        });
        self.record.leases = leases.collect();
        self.record
            .leases
            .sort_by(|a, b| (&a.node, &a.ranges).cmp(&(&b.node, &b.ranges)));
        if cluster.snapshot.addresses.get(&self.record.address) != Some(&self.record) {
            self.record.term = cluster.time.term;
        }
    }
}

/// Whether a lease leaves this state by time.
fn is_timed(state: LeaseState) -> bool {
    matches!(state, LeaseState::Vanished | LeaseState::HoldDown)
}

/// Whether so few ports of an address are free that people should add addresses: at most a fifth.
pub(super) fn is_low(record: &AddressRecord) -> bool {
    let leases = record.leases.iter();
    let taken: usize = leases.map(|lease| blocks::blocks_in(&lease.ranges)).sum();
    let all = blocks::BLOCKS_END - blocks::BLOCK_FIRST;
    taken * 5 >= all * 4
}

/// Blocks that are leased and do not rest, if few are free: conditions of policies name them then.
pub(super) fn leased_if_low(record: &AddressRecord) -> Option<usize> {
    let leases = record.leases.iter();
    let leased = leases.filter(|lease| lease.state != LeaseState::HoldDown);
    is_low(record).then(|| leased.map(|lease| blocks::blocks_in(&lease.ranges)).sum())
}

/// Nodes whose acknowledgement may change the plan of an address: those with a withdrawn lease, and those that have so much
/// that they may give some back.
pub(super) fn awaits(snapshot: &Snapshot, record: &AddressRecord) -> BTreeSet<NodeName> {
    let gateway = snapshot.gateways.get(&record.gateway);
    let first = gateway.map_or(0, |gateway| blocks::in_blocks(gateway.initial_ports.into()));
    // Sorted by node.
    let by_node = record.leases.chunk_by(|a, b| a.node == b.node);
    let matters = |leases: &&[Lease]| {
        let usable = leases.iter().filter(|lease| lease.state.is_usable());
        let has: usize = usable.map(|lease| blocks::blocks_in(&lease.ranges)).sum();
        has >= 2 * first
            || leases
                .iter()
                .any(|lease| lease.state == LeaseState::Draining)
    };
    by_node
        .filter(matters)
        .map(|leases| leases[0].node.clone())
        .collect()
}

/// Seconds since the epoch at which time alone changes a record that was planned at `now_secs`.
pub(super) fn due(snapshot: &Snapshot, record: &AddressRecord, now_secs: i64) -> Option<i64> {
    if snapshot.unreadable.addresses.contains(&record.address) {
        return None;
    }
    let settings = &snapshot.settings;
    let ends = record.leases.iter().filter_map(|lease| {
        let lasts = match lease.state {
            LeaseState::HoldDown => hold_down_secs(settings),
            LeaseState::Vanished => NODE_GONE_SECS,
            _ => return None,
        };
        Some(lease.since_secs.saturating_add(lasts))
    });
    let restored = record.restored;
    let restored = restored.map(|restored| restore::until(restored, hold_down_secs(settings)));
    // Later than that, reports of nodes and gateways end it.
    let restored = restored.filter(|until| *until > now_secs);
    ends.chain(restored).min()
}
