//! Nodes, namespaces, pods and Services, with the fields that egress needs.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Name of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// One requirement of a label selector (Kubernetes API conventions, `matchExpressions`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requirement {
    /// Key has one of the values.
    In(String, BTreeSet<String>),
    /// Key has none of the values, or is absent.
    NotIn(String, BTreeSet<String>),
    /// Key is present.
    Exists(String),
    /// Key is absent.
    DoesNotExist(String),
}

/// A label selector; without requirements it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelSelector(pub Vec<Requirement>);

impl LabelSelector {
    /// Whether these labels meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }
}

/// A Kubernetes node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its labels.
    pub labels: Labels,
    /// InternalIP addresses in their order (the first is the underlay address), then the others.
    pub addresses: Vec<IpAddr>,
    /// Pod prefixes of the Node object; empty where the network plugin manages addresses itself.
    pub pod_cidrs: Vec<IpNet>,
    /// Maintenance that an operator asks for.
    #[serde(default)]
    pub maintenance: Maintenance,
}

/// Maintenance of a node, as its Node object asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// A gateway hands over its addresses and its traffic, and then carries nothing. Pods of the node are not concerned.
    pub drain: Option<DrainCause>,
    /// An operator says that the machine sends nothing any more, and why: annotation `egret.dev/fence`.
    pub fence: Option<String>,
}

/// Why a node is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainCause {
    /// `egret drain`: annotation `egret.dev/drain`.
    Requested,
    /// `kubectl cordon` or `kubectl drain`: `spec.unschedulable`.
    Cordoned,
    /// The Node object has a deletion timestamp.
    Deleted,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// Controller of a pod: the owner reference with `controller: true`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its kind, for example `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A pod that is bound to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Controller of the pod, if it has one.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// The node that runs it.
    pub node: NodeName,
    /// Pod addresses; empty until the CNI has assigned some.
    pub addresses: Vec<IpAddr>,
    /// The pod uses the node's network: never selected.
    pub host_network: bool,
    /// The pod has ended (phase Succeeded or Failed): its addresses are no longer its own.
    pub finished: bool,
}

impl Pod {
    /// Addresses that belong to this pod alone; empty if it uses its node's network or has ended.
    pub fn own_addresses(&self) -> &[IpAddr] {
        match self.host_network || self.finished {
            true => &[],
            false => &self.addresses,
        }
    }
}

/// A Service, with the fields that `serviceName` needs to find its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cluster addresses: never egress destinations.
    pub cluster_addresses: Vec<IpAddr>,
    /// External addresses of the Service (`status.loadBalancer`, `spec.externalIPs`): cannot be egress addresses.
    pub balancer_addresses: Vec<IpAddr>,
    /// Its pod selector; `None` for a Service without one.
    pub selector: Option<Labels>,
    /// Addresses of its endpoints (EndpointSlices).
    pub endpoints: BTreeSet<IpAddr>,
}
