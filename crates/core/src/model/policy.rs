//! Egress policies.

use super::cluster::LabelSelector;
use super::ids::{GatewayName, ObjectRef, PoolName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// A set of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespaces {
    /// Every namespace.
    All,
    /// Namespaces with these names.
    Names(BTreeSet<String>),
    /// Namespaces whose labels match.
    Labels(LabelSelector),
}

/// Kinds of workload that `Selection::Workload` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum WorkloadKind {
    /// A single pod, by its name.
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

/// Pods that a policy selects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// Pods by labels. An empty selector selects every pod of the namespaces.
    Labels {
        /// Namespaces of the pods.
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
        /// Kind of the workload, one of [`WorkloadKind::ALL`].
        kind: WorkloadKind,
        /// Its name.
        name: String,
    },
    /// Pods by their addresses (front-ends).
    Addresses(Vec<IpNet>),
}

/// Egress address that a policy requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressRequest {
    /// These addresses; a pod is paired to one per family (RFC 4787 REQ-2).
    Fixed(Vec<IpAddr>),
    /// One per family from this pool, chosen by the controller.
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

/// A destination: a prefix without its exceptions, on all protocols and ports or on some.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Destination {
    /// Prefix, host bits cleared.
    pub cidr: IpNet,
    /// Prefixes inside `cidr` that are excluded.
    pub except: Vec<IpNet>,
    /// Empty: every protocol and port.
    pub ports: Vec<PortMatch>,
}

/// Handling of selected traffic while its egress address cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenUnavailable {
    /// The traffic is dropped.
    #[default]
    Drop,
    /// The traffic leaves with the node's address, if the pool consents.
    NodeAddress,
}

/// Place where the source address is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Translation {
    /// At the pod's node, inside leased port ranges.
    #[default]
    Leased,
    /// No translation by Egret: packets go to this next hop on the gateways' network, with the source that the
    /// gateway's kernel selects for it. `addresses` is empty then.
    None {
        /// The next hop.
        next_hop: IpAddr,
    },
}

/// An egress policy: `Egress`, `ClusterEgress`, or translated from an earlier system's object by a front-end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The object that the policy was read from. `Kind::ClusterEgress` ranks before `Kind::Egress` unless
    /// `overridable`.
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
    /// Selected pods.
    pub selection: Selection,
    /// Requested egress address.
    pub addresses: AddressRequest,
    /// Addresses that the controller allocated from the pool (`status.addresses`). The controller reuses them. Agents,
    /// which see no records of other nodes, read them here. Ignored where `addresses` is `Fixed`.
    #[serde(default)]
    pub assigned: Vec<IpAddr>,
    /// Addresses of the policy that are nearly full (`status.crowded`): new pods are paired to others. Agents, which see no
    /// records of other nodes, read them here.
    #[serde(default)]
    pub crowded: BTreeSet<IpAddr>,
    /// Destinations; `None`: everything outside the cluster.
    pub destinations: Option<Vec<Destination>>,
    /// Gateway; `None`: the default one, or the only one.
    pub gateway: Option<GatewayName>,
    /// Handling of traffic while the address cannot be used.
    pub when_unavailable: WhenUnavailable,
    /// Where translation happens.
    pub translation: Translation,
}

impl Policy {
    /// A policy with the defaults of the API in every other field: no uid, generation 0, created at the epoch.
    pub fn new(object: ObjectRef, selection: Selection, addresses: AddressRequest) -> Self {
        Self {
            object,
            uid: String::new(),
            generation: 0,
            created_secs: 0,
            overridable: false,
            priority: 0,
            selection,
            addresses,
            assigned: Vec::new(),
            crowded: BTreeSet::new(),
            destinations: None,
            gateway: None,
            when_unavailable: WhenUnavailable::default(),
            translation: Translation::default(),
        }
    }

    /// Next hop of the policy's packets, if they do not leave with an egress address.
    pub fn next_hop(&self) -> Option<IpAddr> {
        match self.translation {
            Translation::None { next_hop } => Some(next_hop),
            Translation::Leased => None,
        }
    }
}
