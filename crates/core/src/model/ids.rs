//! Names of objects.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kinds of object that findings and reasons name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// `StaticEgressIP` of `staticegressips.nirmata.io` (a front-end: only named here, not interpreted by this crate).
    NirmataStaticEgressIP,
    /// `StaticEgressIP` of `staticegressips.io` (front-end).
    StaticEgressIP,
    /// `Egress` of `egress.mapper.com` (front-end).
    MapperEgress,
    /// `Vip` of `egress.mapper.com` (front-end).
    MapperVip,
    /// `EgressMapper` of `egress.mapper.com` (front-end).
    MapperSettings,
    /// `IPPool` of Calico (a network plugin: only named here, not interpreted by this crate).
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

/// Reference to one object, displayed as `Egress default/my-app`.
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

/// Name of an `EgressGateway`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayName(pub String);

/// Name of an `EgressPool`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolName(pub String);
