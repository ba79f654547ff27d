//! Status, both directions. Reading is tolerant: unreadable parts count as absent, since only Egret writes them.

use super::lease::{api_number, capabilities, datapath_name, datapath_text, time};
use crate::status::{
    AddressStatus, Condition, ConditionStatus, GatewayMember, GatewayStatus, NodeReport,
    PolicyStatus, PoolStatus, cut,
};
use egret_api as api;
use egret_core::model::NodeName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::net::IpAddr;

/// Conditions of the API.
pub fn conditions(all: &[meta::Condition]) -> Vec<Condition> {
    all.iter()
        .map(|one| Condition {
            kind: one.type_.clone(),
            status: match one.status.as_str() {
                "True" => ConditionStatus::True,
                "False" => ConditionStatus::False,
                _ => ConditionStatus::Unknown,
            },
            reason: one.reason.clone(),
            message: one.message.clone(),
            since_secs: one.last_transition_time.0.as_second(),
        })
        .collect()
}

/// Conditions for the API; `generation` is the generation that they apply to, 0 if unknown.
pub fn api_conditions(all: &[Condition], generation: i64) -> Vec<meta::Condition> {
    all.iter()
        .map(|one| meta::Condition {
            type_: one.kind.clone(),
            status: format!("{:?}", one.status),
            reason: one.reason.clone(),
            message: cut(&one.message),
            observed_generation: known(generation),
            last_transition_time: time(one.since_secs),
        })
        .collect()
}

fn known(generation: i64) -> Option<i64> {
    (generation > 0).then_some(generation)
}

fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn api_count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Status of a policy.
pub fn policy_status(status: &api::PolicyStatus) -> PolicyStatus {
    let pods = status.pods.unwrap_or_default();
    PolicyStatus {
        observed_generation: status.observed_generation.unwrap_or(0),
        addresses: status
            .addresses
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect(),
        crowded: status
            .crowded
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect(),
        selected: count(pods.selected),
        programmed: count(pods.programmed),
        conditions: conditions(&status.conditions),
    }
}

/// Status of a policy, for the API.
pub fn api_policy_status(status: &PolicyStatus) -> api::PolicyStatus {
    api::PolicyStatus {
        observed_generation: known(status.observed_generation),
        addresses: status.addresses.iter().map(IpAddr::to_string).collect(),
        crowded: status.crowded.iter().map(IpAddr::to_string).collect(),
        pods: Some(api::PodCounts {
            selected: api_count(status.selected),
            programmed: api_count(status.programmed),
        }),
        conditions: api_conditions(&status.conditions, status.observed_generation),
    }
}

/// Status of a gateway.
pub fn gateway_status(status: &api::GatewayStatus) -> GatewayStatus {
    GatewayStatus {
        observed_generation: status.observed_generation.unwrap_or(0),
        gateways: status
            .gateways
            .iter()
            .map(|member| GatewayMember {
                node: NodeName(member.node.clone()),
                live: member.live,
                steering_version: u64::try_from(member.steering_version).unwrap_or(0),
                datapath: member.datapath.map(|name| datapath_text(name).to_owned()),
            })
            .collect(),
        conditions: conditions(&status.conditions),
    }
}

/// Status of a gateway, for the API.
pub fn api_gateway_status(status: &GatewayStatus) -> api::GatewayStatus {
    api::GatewayStatus {
        observed_generation: known(status.observed_generation),
        gateways: status
            .gateways
            .iter()
            .map(|member| api::GatewayMember {
                node: member.node.0.clone(),
                live: member.live,
                steering_version: api_number(member.steering_version),
                datapath: member.datapath.as_deref().and_then(datapath_name),
            })
            .collect(),
        conditions: api_conditions(&status.conditions, status.observed_generation),
    }
}

/// Status of a pool.
pub fn pool_status(status: &api::PoolStatus) -> PoolStatus {
    PoolStatus {
        observed_generation: status.observed_generation.unwrap_or(0),
        total: status
            .total
            .as_deref()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        used: status
            .used
            .and_then(|used| u64::try_from(used).ok())
            .unwrap_or(0),
        conditions: conditions(&status.conditions),
    }
}

/// Status of a pool, for the API.
pub fn api_pool_status(status: &PoolStatus) -> api::PoolStatus {
    api::PoolStatus {
        observed_generation: known(status.observed_generation),
        total: Some(status.total.to_string()),
        used: Some(api_number(status.used)),
        conditions: api_conditions(&status.conditions, status.observed_generation),
    }
}

/// Status of an address.
pub fn address_status(status: &api::AddressStatus) -> AddressStatus {
    AddressStatus {
        announcer: status.announcer.clone().map(NodeName),
        users: status.users.clone(),
        ports_leased: count(status.ports_leased.unwrap_or(0)),
        ports_free: count(status.ports_free.unwrap_or(0)),
        conditions: conditions(&status.conditions),
    }
}

/// Status of an address, for the API.
pub fn api_address_status(status: &AddressStatus) -> api::AddressStatus {
    api::AddressStatus {
        announcer: status.announcer.as_ref().map(|node| node.0.clone()),
        users: status.users.clone(),
        ports_leased: Some(api_count(status.ports_leased)),
        ports_free: Some(api_count(status.ports_free)),
        conditions: api_conditions(&status.conditions, 0),
    }
}

/// The part of an agent's report that is not in its record.
pub fn node_report(status: &api::NodeStatus) -> NodeReport {
    NodeReport {
        tunnel_mac: status.tunnel_mac.clone(),
        external_interface: status.external_interface.clone(),
        capabilities: capabilities(status).to_vec(),
        conditions: conditions(&status.conditions),
    }
}
