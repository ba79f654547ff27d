//! Egress policies, gateways and pools, as the planner sees them.

use super::cluster::{LabelSelector, NodeName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// The kinds of object that findings and reasons name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs)]
pub enum Kind {
    ClusterEgress,
    Egress,
    EgressGateway,
    EgressPool,
    EgressAddress,
    EgressNode,
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    /// `StaticEgressIP` of `staticegressips.nirmata.io` (a front-end: named here, known to nothing in this crate).
    NirmataStaticEgressIP,
    /// `StaticEgressIP` of `staticegressips.io` (front-end).
    StaticEgressIP,
    /// `Egress` of `egress.mapper.com` (front-end).
    MapperEgress,
    /// `Vip` of `egress.mapper.com` (front-end).
    MapperVip,
    /// `EgressMapper` of `egress.mapper.com` (front-end).
    MapperSettings,
    /// `IPPool` of Calico (a network plugin: named here, known to nothing in this crate).
    CalicoIPPool,
    /// `CiliumNode` (network plugin).
    CiliumNode,
    /// `CiliumPodIPPool` (network plugin).
    CiliumPodIPPool,
    /// `Subnet` of Kube-OVN (network plugin).
    KubeOvnSubnet,
    /// `Network` of `config.openshift.io` (network plugin).
    OpenShiftNetwork,
    /// `NodeNetworkConfig` of Azure (network plugin).
    AzureNodeNetworkConfig,
    /// A file that could not be read as any object; the name is its path.
    File,
}

/// One object, as a person names it: `Egress default/my-app`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ObjectRef {
    /// Kind of the object.
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// An object without a namespace.
    pub fn of_cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: String::new(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{:?} {}", self.kind, self.name)
        } else {
            write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Something wrong with an object: which, where, what it says and what would be right. Never stops other objects (P9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// The object to mend.
    pub object: ObjectRef,
    /// Path of the field, for example `spec.destinations[0].cidr`.
    pub field: String,
    /// What the field says now.
    pub value: String,
    /// What would be right, as a sentence.
    pub remedy: String,
}

/// Name of an `EgressGateway`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayName(pub String);

/// Name of an `EgressPool`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolName(pub String);

/// Which namespaces something reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespaces {
    /// Every namespace.
    All,
    /// These.
    Names(BTreeSet<String>),
    /// Those whose labels match.
    Labels(LabelSelector),
}

/// What pods can belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum WorkloadKind {
    /// The pod of that name itself.
    Pod,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    ReplicationController,
    Job,
}

impl WorkloadKind {
    /// Every kind.
    pub const ALL: [WorkloadKind; 7] = [
        WorkloadKind::Pod,
        WorkloadKind::Deployment,
        WorkloadKind::ReplicaSet,
        WorkloadKind::StatefulSet,
        WorkloadKind::DaemonSet,
        WorkloadKind::ReplicationController,
        WorkloadKind::Job,
    ];
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which pods a policy selects (design section 5: the model has every arm from the start).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// Pods by labels. An empty selector selects every pod of the namespaces.
    Labels {
        /// Namespaces whose pods are looked at.
        namespaces: Namespaces,
        /// Labels of the pods.
        pods: LabelSelector,
        /// Labels of the pods' nodes (`ClusterEgress.spec.nodeSelector`).
        nodes: Option<LabelSelector>,
    },
    /// Pods behind a Service of this namespace.
    Service {
        /// Namespace of the Service.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Pods of a workload (front-ends).
    Workload {
        /// Namespace of the workload.
        namespace: String,
        /// One of [`WorkloadKind::ALL`], by its name.
        kind: WorkloadKind,
        /// Its name.
        name: String,
    },
    /// Pods by their addresses (front-ends).
    Addresses(Vec<IpNet>),
}

/// Which egress address a policy uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressRequest {
    /// These; a pod is paired to one per family (RFC 4787 REQ-2).
    Fixed(Vec<IpAddr>),
    /// One per family out of this pool, chosen by the controller.
    Pool(PoolName),
}

/// A protocol that a destination's `ports` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

/// One entry of a destination's `ports`. For `Icmp` the range is always 0..=65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMatch {
    /// Protocol.
    pub protocol: Protocol,
    /// First port, inclusive.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
}

/// Where to: a prefix without its exceptions, on all protocols and ports or on some.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Destination {
    /// Prefix, host bits cleared.
    pub cidr: IpNet,
    /// Prefixes inside `cidr` that are not meant.
    pub except: Vec<IpNet>,
    /// Empty: every protocol and port.
    pub ports: Vec<PortMatch>,
}

/// What happens to selected traffic while its address cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenUnavailable {
    /// It is dropped (the default).
    Drop,
    /// It leaves with the node's address, if the pool consents.
    NodeAddress,
}

/// Where the source address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Translation {
    /// At the pod's node, inside leased port ranges.
    Leased,
    /// At the node that holds the address (`classic`; not built yet: the planner refuses it with a finding).
    AtHolder,
    /// To no address of ours: packets go to this neighbour of the gateways, with the source that the gateway's kernel
    /// selects for reaching it. `addresses` is empty then.
    None {
        /// The neighbour.
        next_hop: IpAddr,
    },
}

/// Who answers for the egress address on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// Egret.
    Ours,
    /// Something else, named (not built yet: refused with a finding).
    HeldBy(String),
}

/// An egress policy: `Egress`, `ClusterEgress` or what a front-end made of its own object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The object it came from. `Kind::ClusterEgress` comes before `Kind::Egress` unless `overridable`.
    pub object: ObjectRef,
    /// Its uid.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Seconds since the epoch at which it was created: older wins.
    pub created_secs: i64,
    /// `ClusterEgress` only: an `Egress` may win over it.
    pub overridable: bool,
    /// Higher wins.
    pub priority: i32,
    /// Pods.
    pub selection: Selection,
    /// Address.
    pub addresses: AddressRequest,
    /// What the controller gave it out of its pool before (`status.addresses`): it keeps that, and agents, which see
    /// no records of other nodes, learn it here. Not looked at where `addresses` is `Fixed`.
    #[serde(default)]
    pub assigned: Vec<IpAddr>,
    /// Destinations; `None` is everything outside the cluster.
    pub destinations: Option<Vec<Destination>>,
    /// Gateway; `None` is the default one or the only one.
    pub gateway: Option<GatewayName>,
    /// What to do while the address cannot be used.
    pub when_unavailable: WhenUnavailable,
    /// Where translation happens.
    pub translation: Translation,
    /// Who answers for the address.
    pub presence: Presence,
}

impl Policy {
    /// Where its packets go instead of leaving with an egress address.
    pub fn next_hop(&self) -> Option<IpAddr> {
        match self.translation {
            Translation::None { next_hop } => Some(next_hop),
            Translation::Leased | Translation::AtHolder => None,
        }
    }
}

/// How an egress address is made known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum AnnounceMode {
    L2,
    Bgp,
    Static,
    Azure,
}

/// Which gateways send for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outbound {
    /// Any live one.
    AnyGateway,
    /// Only the announcer (clouds and source guards tie an address to a port).
    Announcer,
}

/// An `EgressGateway`: a group of gateway nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Its name.
    pub name: GatewayName,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Policies that name no gateway use it.
    pub default: bool,
    /// Only policies that name it use it: it was made for objects of an earlier system, beside what people wrote.
    pub by_name_only: bool,
    /// Which nodes are gateways.
    pub nodes: LabelSelector,
    /// `None` is `auto`: the device of the node's default route.
    pub external_interface: Option<String>,
    /// How addresses are made known.
    pub announce: AnnounceMode,
    /// Which gateways send.
    pub outbound: Outbound,
    /// Upper limit for the tunnel's MTU in bytes, if any.
    pub mtu: Option<u32>,
    /// WireGuard under the tunnel was asked for (not built yet: finding).
    pub wireguard: bool,
    /// Milliseconds between probes.
    pub probe_interval_ms: u64,
    /// Probes without answer until a gateway counts as dead.
    pub probe_failures: u32,
    /// First grant in ports, at most.
    pub initial_ports: u16,
    /// Workers to expect, for the size of first grants; `None`: as many as there are nodes.
    pub expected_workers: Option<u32>,
}

/// An `EgressPool`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Inclusive address ranges, each of one family.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Gateway of its addresses.
    pub gateway: Option<GatewayName>,
    /// Who may use it.
    pub namespaces: Namespaces,
    /// Consents to `whenUnavailable: NodeAddress`.
    pub allow_node_address: bool,
}

/// Whether addresses outside every pool may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum UnpooledAddresses {
    Allow,
    Deny,
}

/// Settings of the installation that planning depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Addresses in no pool.
    pub unpooled_addresses: UnpooledAddresses,
    /// Destinations that are never egress traffic, beside those found by themselves.
    pub never_destinations: Vec<IpNet>,
    /// Service address ranges of the cluster, as far as they are known.
    pub service_cidrs: Vec<IpNet>,
    /// Seconds a released range rests.
    pub hold_down_secs: u64,
}

/// Which gateways of a group a flow may leave by (P3: any of them can take any packet).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupKey {
    /// The `EgressGateway`.
    pub gateway: GatewayName,
    /// `Outbound::Announcer`: the one node that sends.
    pub only: Option<NodeName>,
    /// The neighbour of these gateways that its packets go to; `None`: they leave with an egress address.
    #[serde(default)]
    pub next_hop: Option<IpAddr>,
}
