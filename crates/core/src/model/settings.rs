//! Settings of the installation.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
    /// Whether addresses in no pool may be used.
    pub unpooled_addresses: UnpooledAddresses,
    /// Destinations that are never egress traffic, beside those that Egret finds itself.
    pub never_destinations: Vec<IpNet>,
    /// Service address ranges of the cluster, where known.
    pub service_cidrs: Vec<IpNet>,
    /// Hold-down in seconds: how long a released range is not leased again.
    pub hold_down_secs: u64,
}
