//! Statuses of the plan, in the form in which the source writes them, and whether one says what another says.

use egret_core::condition::Condition;
use egret_core::numbers::{STATUS_GATEWAYS_MAX, STATUS_USERS_MAX};
use egret_core::plan::{ClusterPlan, GatewayPlan, PolicyPlan};
use egret_objects::{
    AddressStatus, Condition as Written, GatewayMember, GatewayStatus, PolicyStatus, PoolStatus,
};
use std::collections::BTreeSet;

fn conditions(all: &[Condition]) -> Vec<Written> {
    all.iter().map(Written::from).collect()
}

pub(super) fn policy(plan: &PolicyPlan) -> PolicyStatus {
    PolicyStatus {
        observed_generation: plan.generation,
        addresses: [&plan.addresses[..], &plan.reserved_addresses].concat(),
        crowded: plan.crowded.clone(),
        selected: plan.selected,
        programmed: plan.programmed,
        conditions: conditions(&plan.conditions),
    }
}

/// Status of a gateway. Its nodes count as live while their agents report; only agents, which probe, know whether
/// packets pass.
pub(super) fn gateway(plan: &GatewayPlan) -> GatewayStatus {
    let member = |node: &egret_core::plan::GatewayNode| GatewayMember {
        node: node.node.clone(),
        live: node.running,
        steering_version: node.version,
        datapath: node.datapath.clone(),
    };
    GatewayStatus {
        observed_generation: plan.generation,
        gateways: plan
            .nodes
            .iter()
            .take(STATUS_GATEWAYS_MAX)
            .map(member)
            .collect(),
        conditions: conditions(&plan.conditions),
    }
}

pub(super) fn pool(plan: &egret_core::plan::PoolPlan) -> PoolStatus {
    PoolStatus {
        observed_generation: plan.generation,
        total: plan.total,
        used: plan.used,
        conditions: conditions(&plan.conditions),
    }
}

pub(super) fn address(
    cluster: &ClusterPlan,
    status: &egret_core::plan::AddressSummary,
) -> AddressStatus {
    debug_assert!(
        status
            .users
            .iter()
            .all(|user| cluster.policies.contains_key(user))
    );
    AddressStatus {
        announcer: status.announcer.clone(),
        users: status
            .users
            .iter()
            .take(STATUS_USERS_MAX)
            .map(user)
            .collect(),
        ports_leased: status.ports_leased,
        ports_free: status.ports_free,
        conditions: conditions(&status.conditions),
    }
}

fn user(object: &egret_core::model::ObjectRef) -> String {
    match object.namespace.is_empty() {
        true => format!("{:?}//{}", object.kind, object.name),
        false => format!("{:?}/{}/{}", object.kind, object.namespace, object.name),
    }
}

pub(super) fn same_gateway(before: &GatewayStatus, wanted: &GatewayStatus) -> bool {
    before.gateways == wanted.gateways
        && before.observed_generation == wanted.observed_generation
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

pub(super) fn same_pool(before: &PoolStatus, wanted: &PoolStatus) -> bool {
    (before.total, before.used, before.observed_generation)
        == (wanted.total, wanted.used, wanted.observed_generation)
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

pub(super) fn same_policy(before: &PolicyStatus, wanted: &PolicyStatus) -> bool {
    let numbers = |s: &PolicyStatus| (s.observed_generation, s.selected, s.programmed);
    numbers(before) == numbers(wanted)
        && before.addresses == wanted.addresses
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

pub(super) fn same_address(before: &AddressStatus, wanted: &AddressStatus) -> bool {
    let ports = |s: &AddressStatus| (s.ports_leased, s.ports_free);
    (&before.announcer, &before.users) == (&wanted.announcer, &wanted.users)
        && ports(before) == ports(wanted)
        && timeless(&before.conditions) == timeless(&wanted.conditions)
}

fn timeless(conditions: &[Written]) -> BTreeSet<(String, bool, String, String)> {
    let parts = |c: &Written| {
        let holds = c.status == egret_objects::ConditionStatus::True;
        (c.kind.clone(), holds, c.reason.clone(), c.message.clone())
    };
    conditions.iter().map(parts).collect()
}
