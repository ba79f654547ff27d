//! Carries a plan out: every write is compare-and-swap, and what is the same already is not written.

use crate::status;
use egret_core::model::NodeRecord;
use egret_core::plan::{ClusterPlan, NodeRecordSpec};
use egret_objects::{Condition, Source, SourceError, View};
use std::collections::{BTreeMap, BTreeSet};

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

/// Writes in the order that the plan asks for: a gateway never sees a newer lease while an older one is missing, and
/// no worker sees a grant that is not written down.
pub(super) fn write(
    source: &mut dyn Source,
    view: &View,
    cluster: &ClusterPlan,
    now_secs: i64,
) -> Result<Written, SourceError> {
    match attempt(source, view, cluster, now_secs) {
        Ok(()) => Ok(Written::All {
            next_change_secs: cluster.next_change_secs,
        }),
        Err(SourceError::Conflict { object, .. } | SourceError::NotFound { object }) => {
            tracing::debug!(object, "written by another meanwhile: planning again");
            Ok(Written::PlanAgain)
        }
        Err(error) => Err(error),
    }
}

fn attempt(
    source: &mut dyn Source,
    view: &View,
    cluster: &ClusterPlan,
    now_secs: i64,
) -> Result<(), SourceError> {
    for address in &cluster.address_writes {
        let record = &cluster.addresses[address];
        source.write_address(record)?;
        tracing::info!(%address, epoch = record.epoch, leases = record.leases.len(), "address written");
    }
    for node in &cluster.node_writes {
        let record = merged(view, node, &cluster.node_records[node]);
        source.write_node_spec(&record)?;
        tracing::info!(%node, grants = record.grants.len(), "node written");
    }
    statuses(source, view, cluster, now_secs)?;
    for address in &cluster.address_deletions {
        let version = view
            .snapshot
            .addresses
            .get(address)
            .map_or(0, |r| r.resource_version);
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
fn merged(view: &View, node: &egret_core::model::NodeName, spec: &NodeRecordSpec) -> NodeRecord {
    let before = view.snapshot.node_records.get(node).cloned();
    let empty = || NodeRecord {
        node: node.clone(),
        tunnel_index: 0,
        grants: Vec::new(),
        underlay_addresses: Vec::new(),
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

fn statuses(
    source: &mut dyn Source,
    view: &View,
    cluster: &ClusterPlan,
    now_secs: i64,
) -> Result<(), SourceError> {
    for (object, plan) in &cluster.policies {
        let wanted = status::policy(plan);
        let same = view.policies.get(object).is_some_and(|before| {
            timeless(&before.conditions) == timeless(&wanted.conditions)
                && (
                    before.observed_generation,
                    before.selected,
                    before.programmed,
                ) == (
                    wanted.observed_generation,
                    wanted.selected,
                    wanted.programmed,
                )
                && before.addresses == wanted.addresses
        });
        if !same {
            source.write_policy_status(object, &wanted, now_secs)?;
        }
    }
    for (name, plan) in &cluster.gateways {
        let wanted = status::gateway(plan);
        let same = view.gateways.get(name).is_some_and(|before| {
            before.gateways == wanted.gateways
                && before.observed_generation == wanted.observed_generation
                && timeless(&before.conditions) == timeless(&wanted.conditions)
        });
        if !same {
            source.write_gateway_status(name, &wanted, now_secs)?;
        }
    }
    for (name, plan) in &cluster.pools {
        let wanted = status::pool(plan);
        let same = view.pools.get(name).is_some_and(|before| {
            (before.total, before.used, before.observed_generation)
                == (wanted.total, wanted.used, wanted.observed_generation)
                && timeless(&before.conditions) == timeless(&wanted.conditions)
        });
        if !same {
            source.write_pool_status(name, &wanted, now_secs)?;
        }
    }
    for (address, plan) in &cluster.address_status {
        let wanted = status::address(cluster, plan);
        let same = view.addresses.get(address).is_some_and(|before| {
            (&before.announcer, &before.users) == (&wanted.announcer, &wanted.users)
                && (before.ports_leased, before.ports_free)
                    == (wanted.ports_leased, wanted.ports_free)
                && timeless(&before.conditions) == timeless(&wanted.conditions)
        });
        if !same && cluster.addresses.contains_key(address) {
            source.write_address_status(*address, &wanted, now_secs)?;
        }
    }
    Ok(())
}

fn timeless(conditions: &[Condition]) -> BTreeSet<(String, bool, String, String)> {
    let parts = |c: &Condition| {
        let holds = c.status == egret_objects::ConditionStatus::True;
        (c.kind.clone(), holds, c.reason.clone(), c.message.clone())
    };
    conditions.iter().map(parts).collect()
}
