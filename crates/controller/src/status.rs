//! The plan's words about objects, in the form in which the source writes them.

use egret_core::model::GatewayName;
use egret_core::plan::{ClusterPlan, Condition, GatewayPlan, PolicyPlan};
use egret_objects::{
    AddressStatus, Condition as Written, ConditionStatus, GatewayMember, GatewayStatus,
    PolicyStatus, PoolStatus,
};

pub(super) fn policy(plan: &PolicyPlan) -> PolicyStatus {
    PolicyStatus {
        observed_generation: plan.generation,
        addresses: plan.addresses.clone(),
        selected: plan.selected,
        programmed: plan.programmed,
        conditions: plan.conditions.iter().map(condition).collect(),
    }
}

fn condition(condition: &Condition) -> Written {
    let status = match condition.status {
        true => ConditionStatus::True,
        false => ConditionStatus::False,
    };
    let kind = format!("{:?}", condition.kind);
    Written::new(&kind, status, &condition.reason, condition.message.clone())
}

/// A gateway counts as live in its object's status while its agent has reported; whether packets pass is known to the
/// agents that probe it.
pub(super) fn gateway(plan: &GatewayPlan) -> GatewayStatus {
    let member = |node: &egret_core::plan::GatewayNode| GatewayMember {
        node: node.node.clone(),
        live: node.running,
        steering_version: node.version,
        datapath: node.datapath.clone(),
    };
    GatewayStatus {
        observed_generation: 0,
        gateways: plan.nodes.iter().map(member).collect(),
        conditions: Vec::new(),
    }
}

pub(super) fn pool(plan: &egret_core::plan::PoolPlan) -> PoolStatus {
    let (total, used) = (plan.total, plan.used);
    PoolStatus {
        observed_generation: 0,
        total,
        used,
        conditions: Vec::new(),
    }
}

pub(super) fn address(
    cluster: &ClusterPlan,
    status: &egret_core::plan::AddressStatus,
    gateway: Option<&GatewayName>,
) -> AddressStatus {
    let mut conditions = Vec::new();
    if !status.exhausted.is_empty() {
        let nodes: Vec<&str> = status
            .exhausted
            .iter()
            .map(|node| node.0.as_str())
            .collect();
        let message = format!(
            "no free port block for {}: use more addresses, or lower leases.initialPorts of {}",
            nodes.join(", "),
            gateway.map_or("its gateway", |gateway| gateway.0.as_str()),
        );
        conditions.push(Written::new(
            "PortsExhausted",
            ConditionStatus::True,
            "NoFreeBlock",
            message,
        ));
    }
    debug_assert!(
        status
            .users
            .iter()
            .all(|user| cluster.policies.contains_key(user))
    );
    AddressStatus {
        announcer: status.announcer.clone(),
        users: status.users.iter().map(user).collect(),
        ports_leased: status.ports_leased,
        ports_free: status.ports_free,
        conditions,
    }
}

fn user(object: &egret_core::model::ObjectRef) -> String {
    match object.namespace.is_empty() {
        true => format!("{:?}//{}", object.kind, object.name),
        false => format!("{:?}/{}/{}", object.kind, object.namespace, object.name),
    }
}
