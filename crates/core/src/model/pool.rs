//! Pools of egress addresses.

use super::ids::{GatewayName, PoolName};
use super::policy::Namespaces;
use super::quotas::Quotas;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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
    /// Namespaces that may use the pool.
    pub namespaces: Namespaces,
    /// Permits `whenUnavailable: NodeAddress`.
    pub allow_node_address: bool,
    /// Quotas of pods that leave by its addresses.
    #[serde(default)]
    pub quotas: Quotas,
}
