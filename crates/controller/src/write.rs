//! Applies a plan. Every write is compare-and-swap, and unchanged objects are not written. A refused write delays no
//! other object ([`Backoff`]), only writes that depend on it.

use crate::backoff::{Backoff, Outcome, Write};
use crate::pace::Pace;
use crate::status;
use egret_core::model::{GatewayName, Grant, NodeName, NodeRecord, ObjectRef, PoolName, Snapshot};
use egret_core::plan::NodeRecordSpec;
use egret_core::plan::planner::{Planner, Touched};
use egret_objects::{Notice, Source, SourceError, View, front_end};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Time limit for writing statuses, unless reading and planning took longer, before objects are read again: a pod that
/// needs a lease does not wait for the statuses of hundreds of policies.
const STATUSES: Duration = Duration::from_millis(20);

/// Progress of one round of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Everything is written, except waiting writes.
    All {
        /// Seconds since the epoch at which planning again is due although nothing changed.
        next_change_secs: Option<i64>,
        /// Time at which a refused write is tried again.
        retry: Option<Instant>,
    },
    /// Leases and grants are written; some statuses are not.
    Unfinished,
    /// Another writer was first: the plan is stale.
    PlanAgain,
}

/// Writes differences between plan and objects. An object's status is compared only if its plan was touched or the view
/// differs from the previous one; the others were equal then.
#[derive(Default)]
pub(super) struct Writer {
    /// The previous view, without statuses that were written since; `None` at first.
    before: Option<View>,
    /// Objects that must still be compared.
    pending: PendingWrites,
    /// Written statuses of front-ends' objects.
    foreign: front_end::Written,
    /// Refused writes.
    pub(super) backoff: Backoff,
    /// Recent writes of statuses.
    pace: Pace,
}

/// One round of writing.
pub(super) struct Round<'a> {
    /// The plan and its snapshot.
    pub planner: &'a Planner,
    /// Objects that the update may have changed.
    pub touched: &'a Touched,
    /// Seconds since the epoch.
    pub now_secs: i64,
    /// Time at which the round began.
    pub started: Instant,
}

impl Writer {
    /// Writes in the order that the plan requires: an address has its policy before it has a record, a gateway never
    /// sees a newer lease while an older one is missing, and no worker sees a grant without its record. `view` is
    /// without its snapshot, which the planner has.
    pub(super) fn write(
        &mut self,
        source: &mut dyn Source,
        view: View,
        round: &Round<'_>,
    ) -> Result<Written, SourceError> {
        let before = self.before.as_ref().filter(|_| !round.touched.all);
        self.pending.add(before, &view, round);
        self.before = Some(view.clone());
        self.backoff.begin();
        self.pace.begin(Instant::now());
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
        let mut waiting = self.assignments(source, round)?;
        for address in &cluster.address_writes {
            if waiting.contains(address) {
                continue;
            }
            let record = &cluster.addresses[address];
            let write = Write::Address(*address);
            match self
                .backoff
                .attempt(&write, || source.write_address(record))?
            {
                Outcome::Written(_) => {
                    let (epoch, leases) = (record.epoch, record.leases.len());
                    tracing::info!(%address, epoch, leases, "address written");
                }
                Outcome::Waits => drop(waiting.insert(*address)),
            }
        }
        for node in &cluster.node_writes {
            let spec = &cluster.node_records[node];
            let Some(record) = merged(snapshot, node, spec, &waiting) else {
                continue;
            };
            let write = Write::Node(node.clone());
            let written = self
                .backoff
                .attempt(&write, || source.write_node_spec(&record))?;
            if let Outcome::Written(_) = written {
                tracing::info!(%node, grants = record.grants.len(), "node written");
            }
        }
        // Workers find gateways by their label, so labels come first; other notices can wait.
        let labels = |notice: &Notice| matches!(notice, Notice::GatewayLabel(..));
        let (labels, findings) = source.notices().into_iter().partition(labels);
        self.notices(source, labels, round, None)?;
        let until = Instant::now() + STATUSES.max(round.started.elapsed());
        if !self.statuses(source, &view, round, until)?
            || !self.notices(source, findings, round, Some(until))?
        {
            return Ok(Written::Unfinished);
        }
        self.front_ends(source, &view, round)?;
        self.deletions(source, round, &waiting)?;
        self.backoff.complete()?;
        Ok(Written::All {
            next_change_secs: cluster.next_change_secs,
            retry: self
                .backoff
                .next()
                .into_iter()
                .chain(self.pace.next())
                .min(),
        })
    }

    /// Deletes unneeded records.
    fn deletions(
        &mut self,
        source: &mut dyn Source,
        round: &Round<'_>,
        waiting: &BTreeSet<IpAddr>,
    ) -> Result<(), SourceError> {
        let (cluster, snapshot) = (round.planner.plan(), round.planner.snapshot());
        for address in &cluster.address_deletions {
            let Some(record) = snapshot.addresses.get(address) else {
                continue;
            };
            // The plan relies on epochs of records that are not written now: the record with the highest epoch must
            // stay meanwhile.
            let mut others = snapshot.addresses.values();
            if !waiting.is_empty() && !others.any(|other| other.epoch > record.epoch) {
                continue;
            }
            let write = Write::DeleteAddress(*address);
            let version = record.resource_version;
            let deleting = || source.delete_address(*address, version);
            if let Outcome::Written(()) = self.backoff.attempt(&write, deleting)? {
                tracing::info!(%address, "address deleted");
            }
        }
        for node in &cluster.node_deletions {
            let write = Write::DeleteNode(node.clone());
            let deleting = || source.delete_node(node);
            if let Outcome::Written(()) = self.backoff.attempt(&write, deleting)? {
                tracing::info!(%node, "node deleted");
            }
        }
        Ok(())
    }

    /// Writes newly allocated pool addresses into the statuses of their policies, before anything depends on them: from
    /// then on the policy keeps its address, even if writing ends here. Front-ends' objects name their addresses
    /// themselves. Returns the addresses that must have no record yet, because their status could not be written.
    fn assignments(
        &mut self,
        source: &mut dyn Source,
        round: &Round<'_>,
    ) -> Result<BTreeSet<IpAddr>, SourceError> {
        let (policies, snapshot) = (&round.planner.plan().policies, round.planner.snapshot());
        let is_new = |object: &&ObjectRef| policies.get(object).is_some_and(|p| p.given_anew);
        let new: Vec<ObjectRef> = self
            .pending
            .policies
            .iter()
            .filter(is_new)
            .cloned()
            .collect();
        let before = self.before.as_mut().expect("set when writing began");
        let mut waiting = BTreeSet::new();
        for object in new {
            let plan = &policies[&object];
            let status = status::policy(plan);
            let write = Write::Policy(object.clone());
            let writing = || source.write_policy_status(&object, &status, round.now_secs);
            if self.backoff.attempt(&write, writing)? == Outcome::Waits {
                let new = plan.addresses.iter();
                waiting.extend(new.filter(|address| !snapshot.addresses.contains_key(address)));
                continue;
            }
            tracing::info!(policy = %object, addresses = ?plan.addresses, "addresses given");
            before.policies.remove(&object);
            self.pending.policies.remove(&object);
        }
        Ok(waiting)
    }

    /// Writes the source's own notices about objects; returns whether time sufficed.
    fn notices(
        &mut self,
        source: &mut dyn Source,
        notices: Vec<Notice>,
        round: &Round<'_>,
        until: Option<Instant>,
    ) -> Result<bool, SourceError> {
        let mut written = false;
        for notice in notices {
            if written && until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            let write = Write::Notice(notice.clone());
            let writing = || source.write_notice(&notice, round.now_secs);
            written |= self.backoff.attempt(&write, writing)? == Outcome::Written(true);
        }
        Ok(true)
    }

    /// Compares pending objects and writes differences; returns whether time sufficed. Written objects are removed from
    /// the previous view, so that the result of the write is compared again.
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
        // Waiting writes stay pending.
        let mut last = None;
        while let Some(object) = after(&self.pending.policies, last.as_ref()) {
            last = Some(object.clone());
            // Front-ends' objects have a status of their own form.
            let foreign = view.front_ends.origins.contains_key(&object);
            if let Some(plan) = cluster.policies.get(&object).filter(|_| !foreign) {
                let wanted = status::policy(plan);
                let there = view.policies.get(&object);
                if !there.is_some_and(|there| status::same_policy(there, &wanted)) {
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                    let write = Write::Policy(object.clone());
                    let writing = || source.write_policy_status(&object, &wanted, now_secs);
                    if self.pace.attempt(&mut self.backoff, write, writing)? == Outcome::Waits {
                        continue;
                    }
                    before.policies.remove(&object);
                }
            }
            self.pending.policies.remove(&object);
        }
        let mut last = None;
        while let Some(address) = after(&self.pending.addresses, last.as_ref()) {
            last = Some(address);
            if let Some(plan) = cluster.address_status.get(&address) {
                let wanted = status::address(cluster, plan);
                let there = view.addresses.get(&address);
                if !there.is_some_and(|there| status::same_address(there, &wanted)) {
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                    let write = Write::AddressStatus(address);
                    let writing = || source.write_address_status(address, &wanted, now_secs);
                    if self.pace.attempt(&mut self.backoff, write, writing)? == Outcome::Waits {
                        continue;
                    }
                    before.addresses.remove(&address);
                }
            }
            self.pending.addresses.remove(&address);
        }
        Ok(true)
    }

    /// The same for kinds with few objects.
    fn few(
        &mut self,
        source: &mut dyn Source,
        view: &View,
        round: &Round<'_>,
    ) -> Result<(), SourceError> {
        let (cluster, now_secs) = (round.planner.plan(), round.now_secs);
        let before = self.before.as_mut().expect("set when writing began");
        let mut last = None;
        while let Some(name) = after(&self.pending.gateways, last.as_ref()) {
            last = Some(name.clone());
            if let Some(plan) = cluster.gateways.get(&name) {
                let wanted = status::gateway(plan);
                let there = view.gateways.get(&name);
                if !there.is_some_and(|there| status::same_gateway(there, &wanted)) {
                    let write = Write::Gateway(name.clone());
                    let writing = || source.write_gateway_status(&name, &wanted, now_secs);
                    if self.pace.attempt(&mut self.backoff, write, writing)? == Outcome::Waits {
                        continue;
                    }
                    before.gateways.remove(&name);
                }
            }
            self.pending.gateways.remove(&name);
        }
        let mut last = None;
        while let Some(name) = after(&self.pending.pools, last.as_ref()) {
            last = Some(name.clone());
            if let Some(plan) = cluster.pools.get(&name) {
                let wanted = status::pool(plan);
                let there = view.pools.get(&name);
                if !there.is_some_and(|there| status::same_pool(there, &wanted)) {
                    let write = Write::Pool(name.clone());
                    let writing = || source.write_pool_status(&name, &wanted, now_secs);
                    if self.pace.attempt(&mut self.backoff, write, writing)? == Outcome::Waits {
                        continue;
                    }
                    before.pools.remove(&name);
                }
            }
            self.pending.pools.remove(&name);
        }
        Ok(())
    }

    /// Writes the statuses of front-ends' objects. All of them are compared each time: there are few, and a status
    /// depends on several plans.
    fn front_ends(
        &mut self,
        source: &mut dyn Source,
        view: &View,
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
        self.foreign.keep(&view.front_ends);
        for (name, object) in &view.front_ends.objects {
            let wanted = front_end::status(&view.front_ends, name, &told, round.now_secs);
            let due = |wanted: &_| self.foreign.is_due(name, &object.status, wanted);
            let Some(wanted) = wanted.filter(due) else {
                continue;
            };
            let before = self.foreign.last(name).unwrap_or(&object.status);
            let write = Write::FrontEnd(name.clone());
            let writing = || source.write_front_end_status(name, before, &wanted);
            if let Outcome::Written(_) = self.backoff.attempt(&write, writing)? {
                self.foreign.wrote(name, &wanted);
            }
        }
        Ok(())
    }
}

/// The first element of a set after another.
fn after<K: Ord + Clone>(set: &BTreeSet<K>, last: Option<&K>) -> Option<K> {
    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
    set.range((from, Bound::Unbounded)).next().cloned()
}

/// Objects whose status must be compared with their plan.
#[derive(Default)]
struct PendingWrites {
    policies: BTreeSet<ObjectRef>,
    gateways: BTreeSet<GatewayName>,
    pools: BTreeSet<PoolName>,
    addresses: BTreeSet<IpAddr>,
}

impl PendingWrites {
    /// Adds objects that the plan touched or that differ from the previous view; all objects if there is no previous
    /// view.
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
        // Kinds with few objects.
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

/// The record to write: the agent's part unchanged, the controller's part as planned. Grants of waiting addresses stay
/// as the node has them: no worker may see a grant without its record. `None` if nothing changes.
fn merged(
    snapshot: &Snapshot,
    node: &NodeName,
    spec: &NodeRecordSpec,
    waiting: &BTreeSet<IpAddr>,
) -> Option<NodeRecord> {
    let known = snapshot.node_records.get(node);
    let merge = |planned: &[Grant], before: &[Grant]| {
        let waits = |grant: &&Grant| waiting.contains(&grant.address);
        let planned = planned.iter().filter(|grant| !waits(grant));
        let before = before.iter().filter(waits);
        let mut grants: Vec<Grant> = planned.chain(before).cloned().collect();
        grants.sort_by(|a, b| (a.address, &a.ranges).cmp(&(b.address, &b.ranges)));
        grants
    };
    let new = NodeRecord::new(node.clone());
    let before = known.unwrap_or(&new);
    let record = NodeRecord {
        tunnel_index: spec.tunnel_index,
        grants: merge(&spec.grants, &before.grants),
        draining: merge(&spec.draining, &before.draining),
        resting: merge(&spec.resting, &before.resting),
        fenced: spec.fenced.clone(),
        grants_epoch: spec.grants_epoch,
        pod_prefixes: spec.pod_prefixes.clone(),
        device_addresses: spec.device_addresses.clone(),
        ..before.clone()
    };
    (known != Some(&record)).then_some(record)
}
