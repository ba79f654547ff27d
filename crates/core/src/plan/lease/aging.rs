//! Moves the leases of an address along their life cycle.

use super::{AddressWork, Cluster};
use crate::model::*;
use crate::numbers::NODE_GONE_SECS;
use crate::plan::demand::Demand;
use crate::plan::unreadable;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A change of a lease.
struct Next {
    state: LeaseState,
    why: &'static str,
    /// It takes an epoch, which node or gateways have to acknowledge.
    renumber: bool,
}

impl Next {
    fn at_once(state: LeaseState, why: &'static str) -> Option<Self> {
        Some(Next {
            state,
            why,
            renumber: false,
        })
    }

    fn numbered(state: LeaseState, why: &'static str) -> Option<Self> {
        Some(Next {
            state,
            why,
            renumber: true,
        })
    }
}

impl AddressWork {
    /// Advances the existing leases.
    pub(super) fn age(&mut self, cluster: &Cluster<'_>, demand: Option<&Demand<'_>>) {
        let (now_secs, hold_down_secs) = (self.now_secs, cluster.hold_down_secs());
        let before = self.leases.len();
        self.leases.retain(|work| {
            let lease = &work.lease;
            lease.state != LeaseState::HoldDown
                || now_secs < lease.since_secs.saturating_add(hold_down_secs)
        });
        if self.leases.len() != before {
            self.say("ranges that have rested long enough are free again".to_owned());
        }
        let without = self.without_usable(demand);
        for number in 0..self.leases.len() {
            let Some(next) = self.next(cluster, demand, &without, number) else {
                continue;
            };
            let work = &mut self.leases[number];
            let was_steered = work.lease.state.is_steered();
            work.lease.state = next.state;
            work.lease.since_secs = now_secs;
            let is_steered = next.state.is_steered();
            work.renumber |= next.renumber;
            self.steering_changed |= was_steered != is_steered;
            let (node, state, why) = (&self.leases[number].lease.node, next.state, next.why);
            let text = format!("lease of {node} is {state:?}: {why}");
            self.say(text);
        }
    }

    /// Workers with a selected pod and without a range in which it may open flows.
    fn without_usable(&self, demand: Option<&Demand<'_>>) -> BTreeSet<NodeName> {
        let workers = demand.into_iter().flat_map(|demand| &demand.workers);
        let mut without: BTreeSet<NodeName> = workers.map(|node| (*node).clone()).collect();
        for work in self
            .leases
            .iter()
            .filter(|work| work.lease.state.is_usable())
        {
            without.remove(&work.lease.node);
        }
        without
    }

    /// The next state of a lease, if it changes. `without`: see [`Self::without_usable`].
    fn next(
        &self,
        cluster: &Cluster<'_>,
        demand: Option<&Demand<'_>>,
        without: &BTreeSet<NodeName>,
        number: usize,
    ) -> Option<Next> {
        let work = &self.leases[number];
        let lease = &work.lease;
        let is_needed = demand.is_some_and(|demand| demand.workers.contains(&lease.node));
        let is_here = cluster.snapshot.nodes.contains_key(&lease.node);
        let lasted = |secs: i64| self.now_secs >= lease.since_secs.saturating_add(secs);
        match lease.state {
            LeaseState::Granted | LeaseState::Active | LeaseState::Draining if !is_here => {
                Next::at_once(LeaseState::Vanished, "its Node object is gone")
            }
            LeaseState::Granted if is_needed => self
                .every_gateway_has(cluster, number)
                .then(|| Next::at_once(LeaseState::Active, "every gateway has it"))?,
            LeaseState::Granted | LeaseState::Active if !is_needed => {
                Next::numbered(LeaseState::Draining, "no selected pod is left on the node")
            }
            LeaseState::Draining if without.contains(&lease.node) => {
                Next::numbered(LeaseState::Granted, "a selected pod is back")
            }
            LeaseState::Draining => drained(cluster.snapshot, lease, self.record.address)
                .then(|| Next::numbered(LeaseState::HoldDown, "its last connection has ended"))?,
            LeaseState::Vanished if is_here && without.contains(&lease.node) => {
                Next::numbered(LeaseState::Granted, "the node is back")
            }
            LeaseState::Vanished if is_here => {
                Next::numbered(LeaseState::Draining, "the node is back")
            }
            LeaseState::Vanished if lasted(NODE_GONE_SECS) => Next::numbered(
                LeaseState::Fenced,
                "its Node object stays gone: gateways steer nothing to it any more",
            ),
            LeaseState::Fenced if self.nobody_steers(cluster, number) => Next::at_once(
                LeaseState::HoldDown,
                "no gateway steers to the node any more",
            ),
            _ => None,
        }
    }

    /// Whether every gateway of the group has the lease.
    fn every_gateway_has(&self, cluster: &Cluster<'_>, number: usize) -> bool {
        let reported = cluster.reported.get(&self.record.gateway);
        !self.leases[number].renumber
            && reported.is_some_and(|epoch| *epoch >= self.leases[number].lease.epoch)
    }

    /// Whether every gateway of the group has taken the ranges of a fenced lease out of its table. A gateway counts until
    /// its Node object is gone: a dead one may come back with its old table.
    fn nobody_steers(&self, cluster: &Cluster<'_>, number: usize) -> bool {
        let is_empty = !cluster.reported.contains_key(&self.record.gateway);
        !self.leases[number].renumber && (is_empty || self.every_gateway_has(cluster, number))
    }
}

/// Whether the worker has seen that this lease was withdrawn and has no connection left in it, by its own statement about
/// that withdrawal. Silence is no proof.
fn drained(snapshot: &Snapshot, lease: &Lease, address: IpAddr) -> bool {
    if unreadable::demand_is_unknown(snapshot, &lease.node) || lease.epoch == 0 {
        return false;
    }
    let record = snapshot.node_records.get(&lease.node);
    record.is_some_and(|record| is_drained(record, lease, address))
}

/// The same as [`drained`], from the worker's record.
fn is_drained(record: &NodeRecord, lease: &Lease, address: IpAddr) -> bool {
    let granted = record
        .grants
        .iter()
        .filter(|grant| grant.address == address);
    let granted = granted.flat_map(|grant| &grant.ranges);
    let held = record.held.get(&address).into_iter().flatten();
    let mut used = granted.chain(held);
    record.acknowledged >= lease.epoch
        && !used.any(|used| {
            let mut ranges = lease.ranges.iter();
            ranges.any(|range| used.first <= range.last && range.first <= used.last)
        })
}
