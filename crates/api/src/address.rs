//! `EgressAddress`: who may use which source ports of one address. Written by the controller.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One egress address and the leases on its source ports. The controller writes it; nobody else should.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "egret.dev",
    version = "v1alpha1",
    kind = "EgressAddress",
    plural = "egressaddresses",
    shortname = "egraddr",
    category = "egret",
    status = "AddressStatus",
    derive = "PartialEq",
    doc = "One egress address and the leases on its source ports. Written by Egret's controller.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(name = "Announcer", type_ = "string", json_path = ".status.announcer"),
    printcolumn(name = "Leased", type_ = "integer", json_path = ".status.portsLeased"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.portsFree"),
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        json_path = ".spec.epoch",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.address == oldSelf.address")
    .message("the address of an EgressAddress never changes: leases on its ports depend on it"))]
#[x_kube(validation = Rule::new("self.epoch >= oldSelf.epoch")
    .message("the epoch never goes back: gateways would take old leases for new ones"))]
pub struct EgressAddressSpec {
    /// The address.
    #[schemars(length(min = 2, max = 45), regex(pattern = crate::ADDRESS))]
    pub address: String,
    /// Name of the EgressGateway that serves it.
    #[schemars(length(min = 1, max = 253))]
    pub gateway: String,
    /// The highest epoch that any lease of it ever had.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Term of the leader that counts the times of the leases.
    #[serde(default, skip_serializing_if = "crate::is_zero_i64")]
    #[schemars(range(min = 0))]
    pub term: i64,
    /// Set while nothing is granted because leases may be missing here: a backup was restored, or records were deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<AddressRestored>,
    /// Who may use which ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<AddressLease>,
}

/// Records that were restored from a backup or deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressRestored {
    /// The first epoch after that. Nodes that acknowledge it have said which ports they hold.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// When the controller noticed it.
    pub since: Time,
}

/// What one worker may use of an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressLease {
    /// The worker.
    pub node: String,
    /// Source ports, inclusive, for example "1024-1279"; whole blocks of 64.
    #[schemars(inner(regex(pattern = crate::PORTS)))]
    pub ranges: Vec<String>,
    /// The steering version that a gateway must have before these ports may be used.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Epoch at which it was withdrawn from the worker, while it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub withdrawn_epoch: Option<i64>,
    /// Where the lease is in its life.
    pub state: LeaseStateName,
    /// When it came into this state.
    pub since: Time,
}

/// Where a lease is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LeaseStateName {
    /// Written; gateways may not all know it yet.
    Granted,
    /// Every live gateway has it.
    Active,
    /// The worker must stop using it; flows that exist end.
    Draining,
    /// The worker's Node is gone, lately; its flows go on in case that it comes back.
    Vanished,
    /// The worker's Node stays gone; gateways take the ports out of their tables.
    Fenced,
    /// Nobody's; rests until another worker may have it.
    HoldDown,
}

/// What became of an address.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    /// The gateway that answers for it on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announcer: Option<String>,
    /// The policies that use it, as kind/namespace/name (ClusterEgress: kind/name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Source ports that workers hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_leased: Option<i32>,
    /// Source ports that a worker could still get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_free: Option<i32>,
    /// Ready, PortsExhausted, Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The address of an `EgressAddress` by its name; `None` if no address has such a name.
pub fn address_of_object_name(name: &str) -> Option<IpAddr> {
    let address: IpAddr = match (name.strip_prefix("v4-"), name.strip_prefix("v6-")) {
        (Some(octets), _) => octets.replace('-', ".").parse().ok()?,
        (_, Some(groups)) => groups.replace('-', ":").parse().ok()?,
        (None, None) => return None,
    };
    (address_object_name(address) == name).then_some(address)
}

/// Name of the `EgressAddress` of an address: `v4-192-168-122-222`, or `v6-` and eight groups of four hex digits.
pub fn address_object_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("v4-{a}-{b}-{c}-{d}")
        }
        IpAddr::V6(v6) => v6
            .segments()
            .iter()
            .fold(String::from("v6"), |name, group| {
                format!("{name}-{group:04x}")
            }),
    }
}
