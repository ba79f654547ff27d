//! What one watch watches.

use egret_core::model::Kind;

/// Label of the `EgressNode`s of gateways, so that workers need not watch those of other workers.
pub const GATEWAY_LABEL: &str = "egret.dev/gateway";

/// Which pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pods {
    All,
    OfNode(String),
}

/// Which `EgressNode`s.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Records {
    All,
    One(String),
    OfGateways,
}

/// Which Services and EndpointSlices.
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
    /// Services with addresses outside, of load balancers or `externalIPs`: those are no egress addresses.
    Balancers,
    Slices(Which),
    /// Objects of a kind of a front-end.
    Foreign(Kind),
    /// Objects of a kind of a network plugin.
    Plugin(Kind),
}

impl Watch {
    /// The kind of its objects, as they are named here.
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

    /// Whether the API server may lack it: ServiceCIDRs came with 1.33, and kinds of front-ends are those whose systems were
    /// never there. `code` is that of the answer.
    pub fn may_be_absent(&self, code: u16) -> bool {
        match self {
            Watch::ServiceCidrs | Watch::Foreign(_) => code == 404,
            // Nor need Egret be allowed to read what others made for themselves.
            Watch::Plugin(_) => matches!(code, 403 | 404),
            _ => false,
        }
    }
}

/// The Service whose endpoints are the API servers.
pub(super) fn api_server() -> Which {
    Which::One("default".to_owned(), "kubernetes".to_owned())
}
