//! The six kinds of `egret.dev/v1alpha1`, as Kubernetes sees them: structs and schemas.
//! No behaviour: `objects` turns these into `egret_core::model`, and nothing else reads them.
//!
//! ```text
//!  Egress, ClusterEgress   which pods, to where, by which address      written by people
//!  EgressGateway, EgressPool   by which nodes, out of which addresses  written by people
//!  EgressAddress   who may use which ports of an address               written by the controller
//!  EgressNode      grants of one node; what its agent sees             written by controller and agent
//! ```
//!
//! Doc comments on fields become `kubectl explain` text, so they are written for operators.
#![forbid(unsafe_code)]
// Every printcolumn(type_ = "string") of one kind is a "duplicate" to this lint.
#![allow(clippy::duplicated_attributes)]

mod address;
mod gateway;
mod node;
mod policy;
mod pool;

pub use address::*;
pub use gateway::*;
pub use node::*;
pub use policy::*;
pub use pool::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::CustomResourceExt;

/// API group of every kind here.
pub const GROUP: &str = "egret.dev";
/// `apiVersion` of every kind here.
pub const API_VERSION: &str = "egret.dev/v1alpha1";

/// Shape of an address in what Egret itself writes; whether it is one, its reader says.
const ADDRESS: &str = "^[0-9a-fA-F:.]+$";
/// Shape of an address with its prefix length.
const PREFIX: &str = "^[0-9a-fA-F:.]+/[0-9]{1,3}$";
/// Shape of a range of ports; that it is of whole blocks, its reader says.
const PORTS: &str = "^[0-9]{4,5}-[0-9]{4,5}$";

/// The definitions of all six kinds, in the order in which people meet them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        Egress::crd(),
        ClusterEgress::crd(),
        EgressGateway::crd(),
        EgressPool::crd(),
        EgressAddress::crd(),
        EgressNode::crd(),
    ]
}

/// Serde default for counts that are mostly zero.
fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// The same for numbers of 64 bits.
fn is_zero_i64(value: &i64) -> bool {
    *value == 0
}

/// Serde default for switches that are off unless asked for.
fn is_false(value: &bool) -> bool {
    !*value
}
