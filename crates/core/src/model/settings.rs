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
    /// Addresses in no pool.
    pub unpooled_addresses: UnpooledAddresses,
    /// Destinations that are never egress traffic, beside those found by themselves.
    pub never_destinations: Vec<IpNet>,
    /// Service address ranges of the cluster, as far as they are known.
    pub service_cidrs: Vec<IpNet>,
    /// Seconds a released range rests.
    pub hold_down_secs: u64,
}
