//! `EgressGateway`: a group of nodes that send and receive for egress addresses.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A group of nodes that send and receive for egress addresses.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "egret.dev",
    version = "v1alpha1",
    kind = "EgressGateway",
    plural = "egressgateways",
    shortname = "egrgw",
    category = "egret",
    status = "GatewayStatus",
    derive = "PartialEq",
    doc = "A group of nodes that send and receive for egress addresses.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default"),
    printcolumn(
        name = "Live",
        type_ = "string",
        json_path = ".status.gateways[?(@.live==true)].node"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Announce",
        type_ = "string",
        json_path = ".spec.announce.mode",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewaySpec {
    /// Policies and pools that name no gateway use this one.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub default: bool,
    /// Which nodes are gateways of this group. `{}`: every node.
    pub node_selector: LabelSelector,
    /// Device that leads out of the cluster. `auto`: the device of the node's default route, unless only another device
    /// has one of the egress addresses in its networks.
    #[serde(default = "auto")]
    #[schemars(length(min = 1, max = 15))]
    pub external_interface: String,
    /// How egress addresses are made known to the network.
    #[serde(default)]
    pub announce: AnnounceSpec,
    /// Which gateways send. AnyGateway spreads the load; Announcer suits networks that tie an address to a port.
    #[serde(default)]
    pub outbound: OutboundName,
    /// The tunnel between workers and gateways.
    #[serde(default)]
    pub transport: TransportSpec,
    /// How quickly a dead gateway is noticed.
    #[serde(default)]
    pub probe: ProbeSpec,
    /// How source ports are handed out.
    #[serde(default)]
    pub leases: LeaseSpec,
    /// Nodes that announce single addresses, instead of those that Egret chooses. `egret move` writes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub announcers: Vec<AnnouncerSpec>,
}

/// The node that announces one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncerSpec {
    /// The egress address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// A node of the group. While it does not serve, or is drained, another one announces the address.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
}

fn auto() -> String {
    "auto".into()
}

/// How egress addresses are made known to the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnnounceSpec {
    /// L2: ARP and Neighbour Discovery. BGP: routes. Static: the network already knows. Azure: its API.
    #[serde(default)]
    pub mode: AnnounceModeName,
}

/// How egress addresses are made known to the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum AnnounceModeName {
    #[default]
    L2,
    #[serde(rename = "BGP")]
    Bgp,
    Static,
    Azure,
}

/// Which gateways send for an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutboundName {
    /// Any live one.
    #[default]
    AnyGateway,
    /// Only the one that announces it.
    Announcer,
}

/// The tunnel between workers and gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransportSpec {
    /// VXLAN, or WireGuard under it.
    #[serde(default, rename = "type")]
    pub type_: TransportName,
    /// Upper limit for the tunnel's MTU in bytes. Absent: what the nodes' own devices allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65535))]
    pub mtu: Option<i32>,
}

/// Kind of tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum TransportName {
    #[default]
    #[serde(rename = "VXLAN")]
    Vxlan,
    WireGuard,
}

/// How quickly a dead gateway is noticed: intervalMs times failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeSpec {
    /// Milliseconds between probes of one gateway.
    #[serde(default = "probe_interval_ms")]
    #[schemars(range(min = 10, max = 60000))]
    pub interval_ms: i32,
    /// Probes without answer after which a gateway counts as dead.
    #[serde(default = "probe_failures")]
    #[schemars(range(min = 1, max = 100))]
    pub failures: i32,
}

fn probe_interval_ms() -> i32 {
    50
}

fn probe_failures() -> i32 {
    3
}

impl Default for ProbeSpec {
    fn default() -> Self {
        Self {
            interval_ms: probe_interval_ms(),
            failures: probe_failures(),
        }
    }
}

/// How source ports are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaseSpec {
    /// Source ports of one address that a worker gets at first, at most; a multiple of 64.
    #[serde(default = "initial_ports")]
    #[schemars(range(min = 64, max = 32768), extend("multipleOf" = 64))]
    pub initial_ports: i32,
    /// Workers to expect: first grants leave room for twice as many. Absent: as many as there are nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65533))]
    pub expected_workers: Option<i32>,
    /// Most connections of pods that leave by this gateway's addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaSpec>,
}

/// The most connections to one destination (address, protocol and port) that pods of one node have at a time. Each needs a
/// source port of its own. TCP, UDP and SCTP; further connections are refused. Where an EgressGateway and an EgressPool both
/// have a quota, the lower one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSpec {
    /// Of one pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64512))]
    pub per_pod: Option<i32>,
    /// Of all pods of one namespace on one node together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64512))]
    pub per_namespace: Option<i32>,
}

fn initial_ports() -> i32 {
    1024
}

impl Default for LeaseSpec {
    fn default() -> Self {
        Self {
            initial_ports: initial_ports(),
            expected_workers: None,
            quota: None,
        }
    }
}

/// What became of a gateway group.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// The metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub gateways: Vec<GatewayMember>,
    /// Accepted, Ready, Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One gateway node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayMember {
    /// Name of the node.
    pub node: String,
    /// It answers probes.
    pub live: bool,
    /// The version of the steering tables that it has applied.
    pub steering_version: i64,
    /// What carries packets there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<DatapathName>,
}

/// What carries packets on a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatapathName {
    /// eBPF programs on the devices.
    Ebpf,
    /// nftables, where eBPF is not to be had: no ownership check of source ports.
    Nftables,
}
