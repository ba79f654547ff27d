//! `EgressNode`: what controller and agent of one node tell each other.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DatapathName;

/// One node, as Egret sees it: the controller writes the spec, the node's agent the status.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "egret.dev",
    version = "v1alpha1",
    kind = "EgressNode",
    plural = "egressnodes",
    shortname = "egrnode",
    category = "egret",
    status = "NodeStatus",
    derive = "PartialEq",
    doc = "One node, as Egret sees it. Spec by the controller, status by the node's agent.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Index", type_ = "integer", json_path = ".spec.tunnelIndex"),
    printcolumn(
        name = "Underlay",
        type_ = "string",
        json_path = ".status.underlayAddresses"
    ),
    printcolumn(name = "Datapath", type_ = "string", json_path = ".status.datapath"),
    printcolumn(name = "Fenced", type_ = "string", json_path = ".spec.fenced.reason"),
    printcolumn(
        name = "Version",
        type_ = "integer",
        json_path = ".status.steeringVersion"
    ),
    printcolumn(
        name = "Announcing",
        type_ = "string",
        json_path = ".status.announcing",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.tunnelIndex == oldSelf.tunnelIndex")
    .message("the tunnel index of a node never changes: other nodes send tunnel packets by it"))]
pub struct EgressNodeSpec {
    /// Number of the node inside the tunnel; unique, never changed.
    #[schemars(range(min = 1, max = 65533))]
    pub tunnel_index: i32,
    /// What this node's pods may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<NodeGrant>,
    /// Withdrawn source ports: this node opens no flow in them, and the flows that it has go on. It ends flows in all others
    /// that it does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<NodeGrant>,
    /// Source ports that this node has given up and that nobody may have yet. The controller reads them if an EgressAddress
    /// was deleted; agents do not use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resting: Vec<NodeGrant>,
    /// Set while an operator says by `egret fence` that this node sends nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<NodeFence>,
    /// Epoch of grants and draining: the agent acknowledges it once its kernel has them, withdrawals included.
    #[serde(default, skip_serializing_if = "crate::is_zero_i64")]
    #[schemars(range(min = 0))]
    pub grants_epoch: i64,
    /// Prefixes and addresses of pods of the whole cluster that no Node names; in the objects of some gateway nodes, for
    /// every node to read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_prefixes: Vec<String>,
    /// Addresses on devices of all nodes that no Node names; in the same objects, for every node to read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_addresses: Vec<String>,
}

/// Why nothing is leased to a node, and why it is no gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeFence {
    /// What the annotation egret.dev/fence of the Node says.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// When the controller first saw it.
    pub since: Time,
}

/// Source ports of one address that a node may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeGrant {
    /// The egress address.
    #[schemars(length(min = 2, max = 45), regex(pattern = crate::ADDRESS))]
    pub address: String,
    /// Name of the EgressGateway that serves it.
    pub gateway: String,
    /// Source ports, inclusive, for example "1024-1279"; whole blocks of 64.
    #[schemars(inner(regex(pattern = crate::PORTS)))]
    pub ranges: Vec<String>,
    /// The steering version that a gateway must have before these ports may be used.
    #[schemars(range(min = 0))]
    pub epoch: i64,
}

/// What the agent of a node found and did.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Addresses that tunnel packets to this node are sent to, the preferred one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 2, max = 45), regex(pattern = crate::ADDRESS)))]
    pub underlay_addresses: Vec<String>,
    /// MAC address of its tunnel device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_mac: Option<String>,
    /// The device that leads out of the cluster, on gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_interface: Option<String>,
    /// Addresses of that device with their prefix length, those that others put there (keepalived) among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(max = 49), regex(pattern = crate::PREFIX)))]
    pub external_addresses: Vec<String>,
    /// Hardware address of that device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_mac: Option<String>,
    /// Addresses of the node's devices with their prefix length, without link-local ones and those of pods: never egress
    /// destinations, and no egress addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_addresses: Vec<String>,
    /// Routers around the node, as its routes and neighbours say: no egress addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<String>,
    /// Egress addresses that another machine answers for on the external segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<AddressConflict>,
    /// Routers that this gateway carries packets to, of those that objects of earlier systems name as next hop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 2, max = 45), regex(pattern = crate::ADDRESS)))]
    pub next_hops: Vec<String>,
    /// No next hop of that device answers, though it has carrier.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uplink_lost: bool,
    /// What this node's kernel and agent can do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Deprecated: the former name of capabilities. Read where capabilities is absent, never written, and gone in the
    /// next release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abilities: Vec<String>,
    /// What carries packets here, on gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<DatapathName>,
    /// Highest epoch such that every lease up to it is applied here; 0 on pure workers.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub steering_version: i64,
    /// Steering tables that this gateway has loaded from newer EgressAddresses than there are: a backup was restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newer_tables: Vec<NewerTable>,
    /// Egress addresses that this node answers for on the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 2, max = 45), regex(pattern = crate::ADDRESS)))]
    pub announcing: Vec<String>,
    /// The highest spec.grantsEpoch that this node's kernel has. A withdrawn range is drained once this reaches the epoch of
    /// its withdrawal and held no longer contains it.
    #[serde(default, skip_serializing_if = "crate::is_zero_i64")]
    #[schemars(range(min = 0))]
    pub acknowledged_epoch: i64,
    /// Source ports in which this node may open flows, or still has some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldPorts>,
    /// Source ports in use and wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub demand: Vec<PortDemand>,
    /// Pods that are paired to another address of their policy than the hash selects, because that one was nearly full or
    /// did not exist when they started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub paired: Vec<PairedPods>,
    /// What is programmed here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programmed: Vec<ProgrammedPolicy>,
    /// Ready, PortsExhausted, QuotaReached, Degraded, AddressConflict, ForwardBlocked, Unsupported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A steering table that is newer than the EgressAddress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewerTable {
    /// The egress address.
    #[schemars(length(min = 2, max = 45), regex(pattern = crate::ADDRESS))]
    pub address: String,
    /// Epoch of the EgressAddress that the table was made of.
    #[schemars(range(min = 0))]
    pub epoch: i64,
}

/// An egress address that another machine answers for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressConflict {
    /// The egress address.
    pub address: String,
    /// Hardware address of the machine.
    pub mac: String,
    /// When it was first heard.
    pub since: Time,
}

/// Source ports of one address that a node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldPorts {
    /// The egress address.
    #[schemars(length(min = 2, max = 45), regex(pattern = crate::ADDRESS))]
    pub address: String,
    /// Source ports, inclusive, for example "1024-1279"; whole blocks of 64.
    #[schemars(inner(regex(pattern = crate::PORTS)))]
    pub ranges: Vec<String>,
}

/// Source ports of one address in use on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortDemand {
    /// The egress address.
    #[schemars(length(min = 2, max = 45), regex(pattern = crate::ADDRESS))]
    pub address: String,
    /// Source ports in use, rounded up to whole blocks of 64.
    #[schemars(range(min = 0))]
    pub ports: i64,
    /// Source ports that the node wants, where it has measured its demand.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 64512))]
    pub wanted_ports: i32,
    /// Destinations towards which every leased port is in use: new flows to them are refused.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    pub full_destinations: i32,
}

/// Pods of a node that leave by one address of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PairedPods {
    /// The policy: "Egress/namespace/name" or "ClusterEgress/name".
    pub policy: String,
    /// The egress address.
    #[schemars(length(min = 2, max = 45), regex(pattern = crate::ADDRESS))]
    pub address: String,
    /// Uids of the pods.
    pub pods: Vec<String>,
}

/// How many pods of a policy a node has programmed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgrammedPolicy {
    /// The policy: "Egress/namespace/name" or "ClusterEgress/name".
    pub policy: String,
    /// The metadata.generation of it that is programmed.
    pub generation: i64,
    /// Pods of it here that are programmed and can use their lease.
    pub pods: i32,
}
