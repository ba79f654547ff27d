//! Carries a plan out: every write is compare-and-swap, and what is the same already is not written.

use crate::status;
use egret_core::model::{GatewayName, NodeName, NodeRecord, ObjectRef, PoolName, Snapshot};
use egret_core::plan::NodeRecordSpec;
use egret_core::plan::planner::{Planner, Touched};
use egret_objects::{
    AddressStatus, Condition, GatewayStatus, PolicyStatus, PoolStatus, Source, SourceError, View,
    front_end,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Statuses are written for this long, or for as long as reading and planning took, before the objects are looked at
/// again: a pod that needs a lease does not wait for the statuses of hundreds of policies.
const STATUSES: Duration = Duration::from_millis(20);

/// How far writing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Everything is as planned.
    All {
        /// When planning again is due although nothing changed.
        next_change_secs: Option<i64>,
    },
    /// Leases and grants are as planned; there are more statuses to write.
    Unfinished,
    /// Somebody else wrote first: what was planned is stale.
    PlanAgain,
}

/// Writes what differs from what is there. What the view says of an object is compared only if its plan was touched or
/// the view says something else than the one before: the rest was found as planned then.
#[derive(Default)]
pub(super) struct Writer {
    /// The view before, without those statuses that were written since; none at first.
    before: Option<View>,
    /// What has to be compared still.
    owed: Owed,
    /// Statuses of objects of front-ends that were written.
    foreign: front_end::Written,
}

/// One round of writing.
pub(super) struct Round<'a> {
    /// What is planned, and for what.
    pub planner: &'a Planner,
    /// What the update may have changed.
    pub touched: &'a Touched,
    /// Seconds since the epoch.
    pub now_secs: i64,
    /// When the round began.
    pub started: Instant,
}

impl Writer {
    /// Writes in the order that the plan asks for: an address has its policy before it has a record, a gateway never sees
    /// a newer lease while an older one is missing, and no worker sees a grant that is not written down. `view` is without
    /// its snapshot, which the planner has.
    pub(super) fn write(
        &mut self,
        source: &mut dyn Source,
        view: View,
        round: &Round<'_>,
    ) -> Result<Written, SourceError> {
        let before = self.before.as_ref().filter(|_| !round.touched.all);
        self.owed.add(before, &view, round);
        self.before = Some(view.clone());
        match self.attempt(source, view, round) {
            Ok(written) => Ok(written),
            Err(SourceError::Conflict { object, .. } | SourceError::NotFound { object }) => {
                tracing::debug!(object, "written by another meanwhile: planning again");
                Ok(Written::PlanAgain)
            }
            Err(error) => Err(error),
        }
    }

    fn attempt(
        &mut self,
        source: &mut dyn Source,
        view: View,
        round: &Round<'_>,
    ) -> Result<Written, SourceError> {
        let (cluster, snapshot) = (round.planner.plan(), round.planner.snapshot());
        self.assignments(source, round)?;
        for address in &cluster.address_writes {
            let record = &cluster.addresses[address];
            source.write_address(record)?;
            tracing::info!(%address, epoch = record.epoch, leases = record.leases.len(), "address written");
        }
        for node in &cluster.node_writes {
            let record = merged(snapshot, node, &cluster.node_records[node]);
            source.write_node_spec(&record)?;
            tracing::info!(%node, grants = record.grants.len(), "node written");
        }
        let until = Instant::now() + STATUSES.max(round.started.elapsed());
        if !self.statuses(source, &view, round, until)? {
            return Ok(Written::Unfinished);
        }
        front_ends(source, &view, &mut self.foreign, round)?;
        for address in &cluster.address_deletions {
            let record = snapshot.addresses.get(address);
            let version = record.map_or(0, |r| r.resource_version);
            source.delete_address(*address, version)?;
            tracing::info!(%address, "address deleted");
        }
        for node in &cluster.node_deletions {
            source.delete_node(node)?;
            tracing::info!(%node, "node deleted");
        }
        Ok(Written::All {
            next_change_secs: cluster.next_change_secs,
        })
    }

    /// Writes down which policy has which address out of a pool, before anything hangs on it: from then on the policy
    /// keeps it, wherever writing ends. Objects of front-ends name their addresses themselves.
    fn assignments(
        &mut self,
        source: &mut dyn Source,
        round: &Round<'_>,
    ) -> Result<(), SourceError> {
        let policies = &round.planner.plan().policies;
        let is_new = |object: &&ObjectRef| policies.get(object).is_some_and(|p| p.given_anew);
        let new: Vec<ObjectRef> = self.owed.policies.iter().filter(is_new).cloned().collect();
        let before = self.before.as_mut().expect("set when writing began");
        for object in new {
            let plan = &policies[&object];
            source.write_policy_status(&object, &status::policy(plan), round.now_secs)?;
            tracing::info!(policy = %object, addresses = ?plan.addresses, "addresses given");
            before.policies.remove(&object);
            self.owed.policies.remove(&object);
        }
        Ok(())
    }

    /// Compares what is owed with what is there and writes what differs; whether there was time for all of it. What was
    /// written is taken out of the view before, so that it is compared with what comes of it.
    fn statuses(
        &mut self,
        source: &mut dyn Source,
        view: &View,
        round: &Round<'_>,
        until: Instant,
    ) -> Result<bool, SourceError> {
        self.few(source, view, round)?;
        let (cluster, now_secs) = (round.planner.plan(), round.now_secs);
        let before = self.before.as_mut().expect("set when writing began");
        while let Some(object) = self.owed.policies.first() {
            // Objects of front-ends say it in their own form.
            let foreign = view.front_ends.origins.contains_key(object);
            if let Some(plan) = cluster.policies.get(object).filter(|_| !foreign) {
                let wanted = status::policy(plan);
                let there = view.policies.get(object);
                if !there.is_some_and(|there| same_policy(there, &wanted)) {
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                    source.write_policy_status(object, &wanted, now_secs)?;
                    before.policies.remove(object);
                }
            }
            self.owed.policies.pop_first();
        }
        while let Some(address) = self.owed.addresses.first() {
            if let Some(plan) = cluster.address_status.get(address) {
                let wanted = status::address(cluster, plan);
                let there = view.addresses.get(address);
                if !there.is_some_and(|there| same_address(there, &wanted)) {
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                    source.write_address_status(*address, &wanted, now_secs)?;
                    before.addresses.remove(address);
                }
            }
            self.owed.addresses.pop_first();
        }
        Ok(true)
    }

    /// The same for kinds of which there are few.
    fn few(
        &mut self,
        source: &mut dyn Source,
        view: &View,
        round: &Round<'_>,
    ) -> Result<(), SourceError> {
        let (cluster, now_secs) = (round.planner.plan(), round.now_secs);
        let before = self.before.as_mut().expect("set when writing began");
        while let Some(name) = self.owed.gateways.first() {
            if let Some(plan) = cluster.gateways.get(name) {
                let wanted = status::gateway(plan);
                let there = view.gateways.get(name);
                if !there.is_some_and(|there| same_gateway(there, &wanted)) {
                    source.write_gateway_status(name, &wanted, now_secs)?;
                    before.gateways.remove(name);
                }
            }
            self.owed.gateways.pop_first();
        }
        while let Some(name) = self.owed.pools.first() {
            if let Some(plan) = cluster.pools.get(name) {
                let wanted = status::pool(plan);
                let there = view.pools.get(name);
                if !there.is_some_and(|there| same_pool(there, &wanted)) {
                    source.write_pool_status(name, &wanted, now_secs)?;
                    before.pools.remove(name);
                }
            }
            self.owed.pools.pop_first();
        }
        Ok(())
    }
}

/// Objects whose status has to be compared with their plan.
#[derive(Default)]
struct Owed {
    policies: BTreeSet<ObjectRef>,
    gateways: BTreeSet<GatewayName>,
    pools: BTreeSet<PoolName>,
    addresses: BTreeSet<IpAddr>,
}

impl Owed {
    /// What the plan touched, and that of which the view says something else than the one before; everything if there is
    /// none.
    fn add(&mut self, before: Option<&View>, view: &View, round: &Round<'_>) {
        let (cluster, touched) = (round.planner.plan(), round.touched);
        let Some(before) = before else {
            self.policies.extend(cluster.policies.keys().cloned());
            self.gateways.extend(cluster.gateways.keys().cloned());
            self.pools.extend(cluster.pools.keys().cloned());
            self.addresses.extend(cluster.address_status.keys());
            return;
        };
        self.policies.extend(touched.policies.iter().cloned());
        before.policies.differences(&view.policies, |object, _| {
            self.policies.insert(object.clone());
        });
        self.addresses.extend(&touched.addresses);
        before.addresses.differences(&view.addresses, |address, _| {
            self.addresses.insert(*address);
        });
        // Of these there are few.
        let gateways = cluster.gateways.keys();
        let gateways = gateways.filter(|name| {
            touched.gateways.contains(name) || before.gateways.get(name) != view.gateways.get(name)
        });
        self.gateways.extend(gateways.cloned());
        let pools = cluster.pools.keys();
        let pools =
            pools.filter(|name| touched.pools || before.pools.get(name) != view.pools.get(name));
        self.pools.extend(pools.cloned());
    }
}

/// The agent's part of a record as it is, the controller's as planned.
fn merged(snapshot: &Snapshot, node: &NodeName, spec: &NodeRecordSpec) -> NodeRecord {
    let before = snapshot.node_records.get(node).cloned();
    NodeRecord {
        tunnel_index: spec.tunnel_index,
        grants: spec.grants.clone(),
        ..before.unwrap_or_else(|| NodeRecord::new(node.clone()))
    }
}

/// What objects of front-ends say. All of them are compared each time: there are as many as people wrote, and what they
/// say comes from several plans.
fn front_ends(
    source: &mut dyn Source,
    view: &View,
    written: &mut front_end::Written,
    round: &Round<'_>,
) -> Result<(), SourceError> {
    let (cluster, snapshot) = (round.planner.plan(), round.planner.snapshot());
    let announcer = |address: IpAddr| {
        let told = cluster.address_status.get(&address)?;
        told.announcer.clone()
    };
    let gateways = |policy: &ObjectRef| {
        let plan = cluster.policies.get(policy);
        let gateway = plan.and_then(|plan| plan.gateway.as_ref());
        let gateway = gateway.and_then(|name| cluster.gateways.get(name));
        let nodes = gateway.map(|gateway| gateway.nodes.iter());
        let running = nodes.into_iter().flatten().filter(|node| node.running);
        running.map(|node| node.node.clone()).collect()
    };
    let told = front_end::Told {
        policy: &|policy| Some(status::policy(cluster.policies.get(policy)?)),
        announcer: &announcer,
        in_use: &|address| {
            let told = cluster.address_status.get(&address);
            told.is_some_and(|told| told.ports_leased > 0)
        },
        gateways: &gateways,
        nodes: &snapshot.nodes,
    };
    written.keep(&view.front_ends);
    for (name, object) in &view.front_ends.objects {
        let wanted = front_end::status(&view.front_ends, name, &told, round.now_secs);
        let Some(wanted) = wanted.filter(|wanted| written.is_due(name, &object.status, wanted))
        else {
            continue;
        };
        let before = written.last(name).unwrap_or(&object.status);
        source.write_front_end_status(name, before, &wanted)?;
        written.wrote(name, &wanted);
    }
    Ok(())
}

fn same_gateway(before: &GatewayStatus, wanted: &GatewayStatus) -> bool {
    before.gateways == wanted.gateways
        && before.observed_generation == wanted.observed_generation
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

fn same_pool(before: &PoolStatus, wanted: &PoolStatus) -> bool {
    (before.total, before.used, before.observed_generation)
        == (wanted.total, wanted.used, wanted.observed_generation)
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

fn same_policy(before: &PolicyStatus, wanted: &PolicyStatus) -> bool {
    let numbers = |s: &PolicyStatus| (s.observed_generation, s.selected, s.programmed);
    numbers(before) == numbers(wanted)
        && before.addresses == wanted.addresses
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

fn same_address(before: &AddressStatus, wanted: &AddressStatus) -> bool {
    let ports = |s: &AddressStatus| (s.ports_leased, s.ports_free);
    (&before.announcer, &before.users) == (&wanted.announcer, &wanted.users)
        && ports(before) == ports(wanted)
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

fn timeless(conditions: &[Condition]) -> BTreeSet<(String, bool, String, String)> {
    let parts = |c: &Condition| {
        let holds = c.status == egret_objects::ConditionStatus::True;
        (c.kind.clone(), holds, c.reason.clone(), c.message.clone())
    };
    conditions.iter().map(parts).collect()
}
