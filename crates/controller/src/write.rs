//! Carries a plan out: every write is compare-and-swap, and what is the same already is not written.

use crate::status;
use egret_core::model::{NodeName, NodeRecord, ObjectRef, Snapshot};
use egret_core::plan::planner::{Planner, Touched};
use egret_core::plan::{ClusterPlan, NodeRecordSpec};
use egret_objects::{AddressStatus, Condition, PolicyStatus, Source, SourceError, View, front_end};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How far writing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Everything is as planned.
    All {
        /// When planning again is due although nothing changed.
        next_change_secs: Option<i64>,
    },
    /// Somebody else wrote first: what was planned is stale.
    PlanAgain,
}

/// Writes what differs from what is there. What the view says of an object is compared only if its plan was touched or
/// the view says something else than the one before: the rest was found as planned then.
#[derive(Default)]
pub(super) struct Writer {
    /// Statuses of the view before, all as planned, without those that were written then; none at first, and after
    /// anything was refused.
    before: Option<View>,
    /// Statuses of objects of front-ends that were written.
    foreign: front_end::Written,
}

impl Writer {
    /// Writes in the order that the plan asks for: a gateway never sees a newer lease while an older one is missing, and
    /// no worker sees a grant that is not written down. `view` is without its snapshot, which the planner has.
    pub(super) fn write(
        &mut self,
        source: &mut dyn Source,
        mut view: View,
        planner: &Planner,
        touched: &Touched,
        now_secs: i64,
    ) -> Result<Written, SourceError> {
        let before = self.before.take().filter(|_| !touched.all);
        let views = (before.as_ref(), &mut view);
        let foreign = &mut self.foreign;
        match attempt(source, views, foreign, planner, touched, now_secs) {
            Ok(()) => {
                self.before = Some(view);
                Ok(Written::All {
                    next_change_secs: planner.plan().next_change_secs,
                })
            }
            Err(SourceError::Conflict { object, .. } | SourceError::NotFound { object }) => {
                tracing::debug!(object, "written by another meanwhile: planning again");
                Ok(Written::PlanAgain)
            }
            Err(error) => Err(error),
        }
    }
}

fn attempt(
    source: &mut dyn Source,
    views: (Option<&View>, &mut View),
    foreign: &mut front_end::Written,
    planner: &Planner,
    touched: &Touched,
    now_secs: i64,
) -> Result<(), SourceError> {
    let (cluster, snapshot) = (planner.plan(), planner.snapshot());
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
    let (before, view) = views;
    statuses(source, (before, view), cluster, touched, now_secs)?;
    front_ends(source, view, foreign, planner, now_secs)?;
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
    Ok(())
}

/// The agent's part of a record as it is, the controller's as planned.
fn merged(snapshot: &Snapshot, node: &NodeName, spec: &NodeRecordSpec) -> NodeRecord {
    let before = snapshot.node_records.get(node).cloned();
    let empty = || NodeRecord {
        node: node.clone(),
        tunnel_index: 0,
        grants: Vec::new(),
        underlay_addresses: Vec::new(),
        external_addresses: BTreeSet::new(),
        steering_version: 0,
        announcing: BTreeSet::new(),
        demand: BTreeMap::new(),
        full_destinations: BTreeMap::new(),
        programmed: Vec::new(),
        datapath: None,
        resource_version: 0,
    };
    NodeRecord {
        tunnel_index: spec.tunnel_index,
        grants: spec.grants.clone(),
        ..before.unwrap_or_else(empty)
    }
}

/// Whether an object's status has to be compared with its plan.
fn look<K: Ord, V: PartialEq>(
    (before, now): (Option<&View>, &View),
    statuses: impl Fn(&View) -> &BTreeMap<K, V>,
    key: &K,
    touched: bool,
) -> bool {
    touched || before.is_none_or(|before| statuses(before).get(key) != statuses(now).get(key))
}

fn statuses(
    source: &mut dyn Source,
    (before, view): (Option<&View>, &mut View),
    cluster: &ClusterPlan,
    touched: &Touched,
    now_secs: i64,
) -> Result<(), SourceError> {
    for (object, plan) in &cluster.policies {
        if view.front_ends.origins.contains_key(object) {
            continue; // its object says it in its own form
        }
        let touched = touched.policies.contains(object);
        if look((before, view), |view| &view.policies, object, touched) {
            let wanted = status::policy(plan);
            let there = view.policies.get(object);
            if !there.is_some_and(|before| same_policy(before, &wanted)) {
                source.write_policy_status(object, &wanted, now_secs)?;
                view.policies.remove(object);
            }
        }
    }
    for (name, plan) in &cluster.gateways {
        let touched = touched.gateways.contains(name);
        if look((before, view), |view| &view.gateways, name, touched) {
            let wanted = status::gateway(plan);
            let same = view.gateways.get(name).is_some_and(|before| {
                before.gateways == wanted.gateways
                    && before.observed_generation == wanted.observed_generation
                    && timeless(&before.conditions) == timeless(&wanted.conditions)
            });
            if !same {
                source.write_gateway_status(name, &wanted, now_secs)?;
                view.gateways.remove(name);
            }
        }
    }
    for (name, plan) in &cluster.pools {
        if look((before, view), |view| &view.pools, name, touched.pools) {
            let wanted = status::pool(plan);
            let same = view.pools.get(name).is_some_and(|before| {
                (before.total, before.used, before.observed_generation)
                    == (wanted.total, wanted.used, wanted.observed_generation)
                    && timeless(&before.conditions) == timeless(&wanted.conditions)
            });
            if !same {
                source.write_pool_status(name, &wanted, now_secs)?;
                view.pools.remove(name);
            }
        }
    }
    for (address, plan) in &cluster.address_status {
        let touched = touched.addresses.contains(address);
        if look((before, view), |view| &view.addresses, address, touched) {
            let wanted = status::address(cluster, plan);
            let there = view.addresses.get(address);
            if !there.is_some_and(|before| same_address(before, &wanted)) {
                source.write_address_status(*address, &wanted, now_secs)?;
                view.addresses.remove(address);
            }
        }
    }
    Ok(())
}

/// What objects of front-ends say. All of them are compared each time: there are as many as people wrote, and what they
/// say comes from several plans.
fn front_ends(
    source: &mut dyn Source,
    view: &View,
    written: &mut front_end::Written,
    planner: &Planner,
    now_secs: i64,
) -> Result<(), SourceError> {
    let (cluster, snapshot) = (planner.plan(), planner.snapshot());
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
        let wanted = front_end::status(&view.front_ends, name, &told, now_secs);
        let Some(wanted) = wanted.filter(|wanted| written.is_due(name, &object.status, wanted))
        else {
            continue;
        };
        source.write_front_end_status(name, &wanted)?;
        written.wrote(name, &wanted);
    }
    Ok(())
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
