//! Status of objects as controller and agents report it, independent of the API's types.

use egret_core::model::NodeName;
use egret_core::numbers::CONDITION_MESSAGE_MAX_BYTES;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// One condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type: [`egret_core::condition::ConditionType`], or another system's.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Reason: [`egret_core::condition::Reason`], or another system's.
    pub reason: String,
    /// Message for people.
    pub message: String,
    /// Seconds since the epoch at which `status` last changed. Ignored when written.
    pub since_secs: i64,
}

impl From<&egret_core::condition::Condition> for Condition {
    /// Without a time: the source sets it.
    fn from(condition: &egret_core::condition::Condition) -> Self {
        Self {
            kind: condition.kind.to_string(),
            status: match condition.status {
                true => ConditionStatus::True,
                false => ConditionStatus::False,
            },
            reason: condition.reason.to_string(),
            message: cut(&condition.message),
            since_secs: 0,
        }
    }
}

/// A message, cut to the API's limit.
pub(crate) fn cut(message: &str) -> String {
    const END: &str = " …";
    if message.len() <= CONDITION_MESSAGE_MAX_BYTES {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(CONDITION_MESSAGE_MAX_BYTES - END.len());
    format!("{}{END}", &message[..end])
}

/// Status of an `Egress` or `ClusterEgress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation that the status describes.
    pub observed_generation: i64,
    /// The egress addresses in use.
    pub addresses: Vec<IpAddr>,
    /// Those of them that are nearly full, so that new pods use others.
    #[serde(default)]
    pub crowded: Vec<IpAddr>,
    /// Pods that the policy selects.
    pub selected: u32,
    /// Selected pods that are programmed.
    pub programmed: u32,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// Status of an `EgressGateway`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// The generation that the status describes; 0: unknown.
    pub observed_generation: i64,
    /// Gateway nodes.
    pub gateways: Vec<GatewayMember>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// One node of an `EgressGateway`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayMember {
    /// The node.
    pub node: NodeName,
    /// Whether it answers probes.
    pub live: bool,
    /// Steering version that it has applied.
    pub steering_version: u64,
    /// Data path: `ebpf` or `nftables`.
    pub datapath: Option<String>,
}

/// Status of an `EgressPool`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The generation that the status describes; 0: unknown.
    pub observed_generation: i64,
    /// Addresses in the pool.
    pub total: u128,
    /// Addresses in use.
    pub used: u64,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// Status of an `EgressAddress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    /// The gateway that announces it.
    pub announcer: Option<NodeName>,
    /// Policies that use it, as kind/namespace/name.
    pub users: Vec<String>,
    /// Source ports in leases.
    pub ports_leased: u32,
    /// Source ports that can still be leased.
    pub ports_free: u32,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// Report of an agent beside the fields of `NodeRecord`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// MAC address of the tunnel device.
    pub tunnel_mac: Option<String>,
    /// External device, on gateways.
    pub external_interface: Option<String>,
    /// Capabilities of the kernel and the agent.
    pub capabilities: Vec<String>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}
