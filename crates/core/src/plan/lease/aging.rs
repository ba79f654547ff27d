//! Moves the leases of an address along their life cycle.

use super::{AddressWork, Cluster, is_fenced, is_here};
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
    takes: Epoch,
}

/// What takes the plan's epoch by a change of a lease.
#[derive(PartialEq, Eq)]
enum Epoch {
    /// Nothing: nobody has to acknowledge the change.
    Nothing,
    /// The withdrawal: the worker has to acknowledge it.
    Withdrawal,
    /// The lease: gateways have to acknowledge it.
    Lease,
}

fn next(state: LeaseState, takes: Epoch, why: &'static str) -> Option<Next> {
    Some(Next { state, why, takes })
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
            work.renumber |= next.takes == Epoch::Lease;
            work.withdraw |= next.takes == Epoch::Withdrawal;
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
        let is_here = is_here(cluster.snapshot, &lease.node);
        let is_fenced = is_fenced(cluster.snapshot, &lease.node);
        let lacks_ports = without.contains(&lease.node);
        let lasted = |secs: i64| self.now_secs >= lease.since_secs.saturating_add(secs);
        let is_known = self.every_gateway_has(cluster, number);
        // Gateways steer it all the time, so that its worker may go on at once.
        let again = if is_known {
            LeaseState::Active
        } else {
            LeaseState::Granted
        };
        match lease.state {
            steered if steered.is_steered() && is_fenced => {
                let why = "an operator has fenced its node: gateways steer nothing to it any more";
                next(LeaseState::Fenced, Epoch::Lease, why)
            }
            LeaseState::Granted | LeaseState::Active | LeaseState::Draining if !is_here => next(
                LeaseState::Vanished,
                Epoch::Nothing,
                "its Node object is gone",
            ),
            LeaseState::Granted if is_needed && is_known => {
                next(LeaseState::Active, Epoch::Nothing, "every gateway has it")
            }
            LeaseState::Granted | LeaseState::Active if !is_needed => {
                let why = "no selected pod is left on the node";
                next(LeaseState::Draining, Epoch::Withdrawal, why)
            }
            LeaseState::Draining if lacks_ports && !self.is_reserved(cluster, lease) => {
                next(again, Epoch::Nothing, "a selected pod is back")
            }
            LeaseState::Draining if drained(cluster.snapshot, lease, self.record.address) => {
                let why = "its last connection has ended";
                next(LeaseState::HoldDown, Epoch::Lease, why)
            }
            // Gateways may have had no address for a node without Node object, and steered nothing to it.
            LeaseState::Vanished if is_here && lacks_ports => {
                next(LeaseState::Granted, Epoch::Lease, "the node is back")
            }
            LeaseState::Vanished if is_here => {
                next(LeaseState::Draining, Epoch::Withdrawal, "the node is back")
            }
            LeaseState::Vanished if lasted(NODE_GONE_SECS) => {
                let why = "its Node object stays gone: gateways steer nothing to it any more";
                next(LeaseState::Fenced, Epoch::Lease, why)
            }
            LeaseState::Fenced if self.nobody_steers(cluster, number) => {
                let why = "no gateway steers to the node any more";
                next(LeaseState::HoldDown, Epoch::Nothing, why)
            }
            _ => None,
        }
    }

    /// Whether the holder of the address has some of the lease's ports.
    fn is_reserved(&self, cluster: &Cluster<'_>, lease: &Lease) -> bool {
        let reserved = cluster.snapshot.reserved(self.record.address);
        !PortBlocks::of(&lease.ranges)
            .intersection(&reserved)
            .is_empty()
    }

    /// Whether every gateway of the group has the lease.
    fn every_gateway_has(&self, cluster: &Cluster<'_>, number: usize) -> bool {
        let reported = cluster.reports.epoch(&self.record.gateway);
        !self.leases[number].renumber
            && reported.is_some_and(|epoch| epoch >= self.leases[number].lease.epoch)
    }

    /// Whether every gateway of the group has taken the ranges of a fenced lease out of its table. A gateway counts until
    /// its Node object is gone or fenced: a dead one may come back with its old table, and one whose record was deleted
    /// may still forward by it.
    fn nobody_steers(&self, cluster: &Cluster<'_>, number: usize) -> bool {
        let gateway = &self.record.gateway;
        let is_empty = cluster.reports.epoch(gateway).is_none();
        cluster.reports.unknown(gateway).is_none()
            && !self.leases[number].renumber
            && (is_empty || self.every_gateway_has(cluster, number))
    }

    /// Names a gateway whose unknown tables keep ports from being free.
    pub(super) fn find_unknown_tables(
        &self,
        cluster: &Cluster<'_>,
        findings: &mut BTreeSet<Finding>,
    ) {
        let mut leases = self.leases.iter();
        let unknown = cluster.reports.unknown(&self.record.gateway);
        let Some(node) =
            unknown.filter(|_| leases.any(|work| work.lease.state == LeaseState::Fenced))
        else {
            return;
        };
        findings.insert(Finding {
            object: ObjectRef::of_cluster(Kind::EgressNode, &node.0),
            field: "status.steeringVersion".into(),
            value: format!("none, while ports of {} wait", self.record.address),
            remedy: "no agent has reported which ports this gateway steers, and ports of nodes that are gone wait for it: \
                     start the agent there, take the gateway's label off the Node, or fence it if the machine is off"
                .into(),
        });
    }
}

/// Whether the worker has seen that this lease was withdrawn and has no connection left in it, by its own statement about
/// that withdrawal. Silence is no proof.
fn drained(snapshot: &Snapshot, lease: &Lease, address: IpAddr) -> bool {
    let Some(record) = snapshot.node_records.get(&lease.node) else {
        return false;
    };
    let granted = record
        .grants
        .iter()
        .filter(|grant| grant.address == address);
    let granted = granted.flat_map(|grant| &grant.ranges);
    let held = record.held.get(&address).into_iter().flatten();
    let mut used = granted.chain(held);
    let withdrawn = lease.withdrawn.unwrap_or(u64::MAX);
    record.acknowledged >= withdrawn
        && !unreadable::demand_is_unknown(snapshot, &lease.node)
        && !used.any(|used| {
            let mut ranges = lease.ranges.iter();
            ranges.any(|range| used.first <= range.last && range.first <= used.last)
        })
}
