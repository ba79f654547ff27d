//! Egress policies.

use super::cluster::LabelSelector;
use super::ids::{GatewayName, ObjectRef, PoolName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

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

/// Which pods a policy selects.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenUnavailable {
    /// It is dropped.
    #[default]
    Drop,
    /// It leaves with the node's address, if the pool consents.
    NodeAddress,
}

/// Where the source address is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Translation {
    /// At the pod's node, inside leased port ranges.
    #[default]
    Leased,
    /// To no address of ours: packets go to this neighbour of the gateways, with the source that the gateway's kernel
    /// selects for reaching it. `addresses` is empty then.
    None {
        /// The neighbour.
        next_hop: IpAddr,
    },
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
            destinations: None,
            gateway: None,
            when_unavailable: WhenUnavailable::default(),
            translation: Translation::default(),
        }
    }

    /// Where its packets go instead of leaving with an egress address.
    pub fn next_hop(&self) -> Option<IpAddr> {
        match self.translation {
            Translation::None { next_hop } => Some(next_hop),
            Translation::Leased => None,
        }
    }
}
