//! `Egress` and `ClusterEgress`: which pods, to which destinations, by which address.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Defines the spec of a kind of policy: the columns of `kubectl get`, the kind's own fields, then those that every kind
/// of policy has. The fields are in the struct itself, so that definitions, validation rules and reports of unknown
/// fields know no second level.
macro_rules! policy_spec {
    (
        $(#[$($attribute:tt)*])*
        pub struct $name:ident {
            $($own:tt)*
        }
    ) => {
        $(#[$($attribute)*])*
        #[kube(
            printcolumn(
                name = "Ready",
                type_ = "string",
                json_path = ".status.conditions[?(@.type==\"Ready\")].status"
            ),
            printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses"),
            printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods.selected"),
            printcolumn(
                name = "Programmed",
                type_ = "integer",
                json_path = ".status.pods.programmed"
            ),
            printcolumn(
                name = "Reason",
                type_ = "string",
                json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
            ),
            printcolumn(
                name = "Gateway",
                type_ = "string",
                json_path = ".spec.gateway",
                priority = 1
            ),
            printcolumn(
                name = "Age",
                type_ = "date",
                json_path = ".metadata.creationTimestamp"
            )
        )]
        pub struct $name {
            $($own)*
            /// Pods by a label selector with expressions.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub pod_selector: Option<LabelSelector>,
            /// The egress address, IPv4 or IPv6. Exactly one of ip, ips and pool.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 2, max = 45))]
            pub ip: Option<String>,
            /// Several egress addresses; a pod is paired to one of each family and keeps it. New pods avoid one that is nearly full.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 1, max = 64), inner(length(min = 2, max = 45)))]
            #[x_kube(merge_strategy = ListMerge::Set)]
            pub ips: Option<Vec<String>>,
            /// Name of an EgressPool that one address of each of its families is taken from.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 1, max = 253))]
            pub pool: Option<String>,
            /// Where to. Absent: everything outside the cluster.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 1, max = 1000))]
            pub destinations: Option<Vec<DestinationSpec>>,
            /// Name of the EgressGateway. Absent: the one marked default, or the only one.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 1, max = 253))]
            pub gateway: Option<String>,
            /// Where policies overlap, the higher priority wins; then the longer destination prefix, then the older policy.
            #[serde(default)]
            pub priority: i32,
            /// What happens to selected traffic while its address cannot be used.
            #[serde(default)]
            pub when_unavailable: WhenUnavailable,
        }

        impl $name {
            /// The fields that every kind of policy has.
            pub fn shared(&self) -> SharedPolicySpec<'_> {
                SharedPolicySpec {
                    pod_selector: &self.pod_selector,
                    ip: &self.ip,
                    ips: &self.ips,
                    pool: &self.pool,
                    destinations: &self.destinations,
                    gateway: &self.gateway,
                    priority: self.priority,
                    when_unavailable: self.when_unavailable,
                }
            }
        }
    };
}

/// The fields of a policy's spec that every kind of policy has, for readers that do not care which kind it is.
#[derive(Clone, Copy, Debug)]
pub struct SharedPolicySpec<'a> {
    /// `podSelector`.
    pub pod_selector: &'a Option<LabelSelector>,
    /// `ip`.
    pub ip: &'a Option<String>,
    /// `ips`.
    pub ips: &'a Option<Vec<String>>,
    /// `pool`.
    pub pool: &'a Option<String>,
    /// `destinations`.
    pub destinations: &'a Option<Vec<DestinationSpec>>,
    /// `gateway`.
    pub gateway: &'a Option<String>,
    /// `priority`.
    pub priority: i32,
    /// `whenUnavailable`.
    pub when_unavailable: WhenUnavailable,
}

policy_spec! {
    /// Pods of this namespace that leave the cluster with a fixed source address.
    #[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[kube(
        group = "egret.dev",
        version = "v1alpha1",
        kind = "Egress",
        plural = "egresses",
        shortname = "egr",
        category = "egret",
        namespaced,
        status = "PolicyStatus",
        derive = "PartialEq",
        doc = "Pods of this namespace that leave the cluster with a fixed source address.",
    )]
    #[serde(rename_all = "camelCase")]
    #[x_kube(validation = Rule::new("[has(self.selector), has(self.podSelector), has(self.serviceName)].exists_one(x, x)")
        .message("say which pods: exactly one of selector, podSelector and serviceName"))]
    #[x_kube(validation = Rule::new("[has(self.ip), has(self.ips), has(self.pool)].exists_one(x, x)")
        .message("say which address: exactly one of ip, ips and pool"))]
    pub struct EgressSpec {
        /// Pods by their labels: each label must be there with this value. `{}` selects every pod of the namespace.
        /// Exactly one of selector, podSelector and serviceName.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub selector: Option<BTreeMap<String, String>>,
        /// Pods behind the Service of this name in this namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(min = 1, max = 63))]
        pub service_name: Option<String>,
    }
}

policy_spec! {
    /// Pods of many namespaces that leave the cluster with a fixed source address. Comes before every Egress unless
    /// `overridable`.
    #[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[kube(
        group = "egret.dev",
        version = "v1alpha1",
        kind = "ClusterEgress",
        plural = "clusteregresses",
        shortname = "cegr",
        category = "egret",
        status = "PolicyStatus",
        derive = "PartialEq",
        doc = "Pods of many namespaces that leave the cluster with a fixed source address. Comes before every Egress unless `overridable`.",
    )]
    #[serde(rename_all = "camelCase")]
    #[x_kube(validation = Rule::new("[has(self.selector), has(self.podSelector)].exists_one(x, x)")
        .message("say which pods: exactly one of selector and podSelector"))]
    #[x_kube(validation = Rule::new("[has(self.ip), has(self.ips), has(self.pool)].exists_one(x, x)")
        .message("say which address: exactly one of ip, ips and pool"))]
    pub struct ClusterEgressSpec {
        /// Namespaces by their labels. Absent or `{}`: every namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub namespace_selector: Option<LabelSelector>,
        /// Only pods on nodes with these labels. Absent: on every node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub node_selector: Option<LabelSelector>,
        /// Pods by their labels: each label must be there with this value. `{}` selects every pod.
        /// Exactly one of selector and podSelector.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub selector: Option<BTreeMap<String, String>>,
        /// An Egress may win over this policy.
        #[serde(default, skip_serializing_if = "crate::is_false")]
        pub overridable: bool,
    }
}

/// Where to: a prefix without its exceptions, on all protocols and ports or on some.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationSpec {
    /// Prefix, for example 203.0.113.0/24; host bits must be zero.
    #[schemars(length(min = 4, max = 49))]
    pub cidr: String,
    /// Prefixes inside cidr that are not meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 250), inner(length(min = 4, max = 49)))]
    pub except: Vec<String>,
    /// Protocols and ports. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50))]
    pub ports: Option<Vec<PortSpec>>,
}

/// A protocol, with one port, a range of ports, or all.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.protocol != 'ICMP' || (!has(self.port) && !has(self.endPort))")
    .message("ICMP has no ports: leave out port and endPort"))]
#[x_kube(validation = Rule::new("!has(self.endPort) || has(self.port)")
    .message("endPort needs port, the first port of the range"))]
#[x_kube(validation = Rule::new("!has(self.endPort) || !has(self.port) || self.endPort >= self.port")
    .message("endPort must not be lower than port"))]
pub struct PortSpec {
    /// TCP, UDP, SCTP or ICMP (which means ICMPv6 for IPv6 destinations).
    #[serde(default)]
    pub protocol: ProtocolName,
    /// Destination port, or the first of a range. Absent: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Last port of the range, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum ProtocolName {
    #[default]
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

/// What happens to selected traffic while its address cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnavailable {
    /// It is dropped.
    #[default]
    Drop,
    /// It leaves with the node's address, if the pool consents.
    NodeAddress,
}

/// What became of a policy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The egress addresses in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Those of them of which at least 80 % of the ports are needed. New pods use the others, pods that run keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crowded: Vec<String>,
    /// How many pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
    /// Accepted, Allocated, Ready; PortsExhausted, FamilyNotCovered, Overlapped, Degraded, AddressConflict where they arise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How many pods a policy reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Pods that the policy selects.
    pub selected: i32,
    /// Those of them whose node has programmed it.
    pub programmed: i32,
}
