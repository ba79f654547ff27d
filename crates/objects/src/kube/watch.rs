//! Target of one watch.

use egret_core::model::Kind;

/// Label of the `EgressNode`s of gateways, so that workers need not watch those of other workers.
pub const GATEWAY_LABEL: &str = "egret.dev/gateway";

/// Selection of pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pods {
    All,
    OfNode(String),
}

/// Selection of `EgressNode`s.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Records {
    All,
    One(String),
    OfGateways,
}

/// Selection of Services and EndpointSlices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    All,
    /// Namespace and name.
    One(String, String),
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watch {
    Egresses,
    ClusterEgresses,
    Gateways,
    Pools,
    Namespaces,
    Nodes,
    ServiceCidrs,
    Pods(Pods),
    Records(Records),
    Addresses,
    Services(Which),
    /// Services with external addresses, of load balancers or `externalIPs`: those are no egress addresses.
    Balancers,
    Slices(Which),
    /// Objects of a kind of a front-end.
    Foreign(Kind),
    /// Objects of a kind of a network plugin.
    Plugin(Kind),
}

impl Watch {
    /// Kind of the watched objects.
    pub fn kind(&self) -> Kind {
        match self {
            Watch::Egresses => Kind::Egress,
            Watch::ClusterEgresses => Kind::ClusterEgress,
            Watch::Gateways => Kind::EgressGateway,
            Watch::Pools => Kind::EgressPool,
            Watch::Namespaces => Kind::Namespace,
            Watch::Nodes => Kind::Node,
            Watch::Pods(_) => Kind::Pod,
            Watch::Records(_) => Kind::EgressNode,
            Watch::Addresses => Kind::EgressAddress,
            Watch::Services(_) | Watch::Balancers | Watch::ServiceCidrs => Kind::Service,
            Watch::Slices(_) => Kind::EndpointSlice,
            Watch::Foreign(kind) | Watch::Plugin(kind) => *kind,
        }
    }

    /// Whether this answer means that the API server does not have the kind: ServiceCIDRs came with 1.33, and kinds of
    /// front-ends exist only where their systems were installed. `code` is the HTTP status.
    pub fn may_be_absent(&self, code: u16) -> bool {
        match self {
            Watch::ServiceCidrs | Watch::Foreign(_) => code == 404,
            // Egret may also lack the right to read kinds of others.
            Watch::Plugin(_) => matches!(code, 403 | 404),
            _ => false,
        }
    }
}

/// The Service whose endpoints are the API servers.
pub(super) fn api_server() -> Which {
    Which::One("default".to_owned(), "kubernetes".to_owned())
}
