//! `EgressPool`: addresses, and who may use them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::QuotaSpec;

/// Egress addresses, and the namespaces that may use them. An address inside any pool may be used only by that
/// pool's namespaces, also where a policy names the address itself.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "egret.dev",
    version = "v1alpha1",
    kind = "EgressPool",
    plural = "egresspools",
    shortname = "egrpool",
    category = "egret",
    status = "PoolStatus",
    derive = "PartialEq",
    doc = "Egress addresses, and the namespaces that may use them.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Total", type_ = "string", json_path = ".status.total"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.used"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.cidrs) && size(self.cidrs) > 0) || (has(self.ranges) && size(self.ranges) > 0)")
    .message("say which addresses: cidrs, ranges or both"))]
pub struct EgressPoolSpec {
    /// Prefixes whose addresses, the first and the last too, are in the pool; host bits must be zero.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 250), inner(length(min = 4, max = 49)))]
    pub cidrs: Vec<String>,
    /// Ranges of addresses that are in the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 250))]
    pub ranges: Vec<AddressRangeSpec>,
    /// Name of the EgressGateway that serves these addresses. Absent: the default one, or the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub gateway: Option<String>,
    /// Which namespaces may use the pool.
    pub namespaces: PoolNamespaces,
    /// Consents to `whenUnavailable: NodeAddress` for policies that use it.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub allow_node_address: bool,
    /// Most connections of pods that leave by addresses of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaSpec>,
}

/// An inclusive range of addresses of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressRangeSpec {
    /// First address.
    #[schemars(length(min = 2, max = 45))]
    pub start: String,
    /// Last address.
    #[schemars(length(min = 2, max = 45))]
    pub end: String,
}

/// Which namespaces may use a pool: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.all) && self.all, has(self.names), has(self.selector)].exists_one(x, x)")
    .message("say which namespaces: exactly one of all: true, names and selector"))]
pub struct PoolNamespaces {
    /// Every namespace.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub all: bool,
    /// These namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Option<Vec<String>>,
    /// Namespaces with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// What became of a pool.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Addresses in the pool, as a decimal number (an IPv6 prefix has more than an integer holds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<String>,
    /// Addresses in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<i64>,
    /// Accepted, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
