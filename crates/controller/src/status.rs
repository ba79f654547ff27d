//! Statuses of the plan, in the form in which the source writes them.

use egret_core::condition::Condition;
use egret_core::numbers::{STATUS_GATEWAYS_MAX, STATUS_USERS_MAX};
use egret_core::plan::{ClusterPlan, GatewayPlan, PolicyPlan};
use egret_objects::{
    AddressStatus, Condition as Written, GatewayMember, GatewayStatus, PolicyStatus, PoolStatus,
};

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
