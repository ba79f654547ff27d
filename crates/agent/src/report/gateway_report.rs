//! What is reported of this node's gateway role.

use egret_core::condition::Reason;
use egret_core::model::{AddressClaim, MacAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The gateway role of this node, as others are to know it. Empty on a node that is no gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GatewayReport {
    /// `ebpf` or `nftables`, while a data path is attached.
    pub(crate) datapath: Option<String>,
    /// What that data path does not do, for people.
    pub(crate) limitations: Option<String>,
    /// Its tables hold what this agent wanted.
    pub(crate) loaded: bool,
    /// The steering version of its tables; 0 without an external link that counts.
    pub(crate) version: u64,
    /// Egress addresses that this node answers for.
    pub(crate) announcing: BTreeSet<IpAddr>,
    /// Hardware address of the external device, while a data path is attached.
    pub(crate) external_mac: Option<MacAddress>,
    /// Machines that have addresses which this node would announce.
    pub(crate) claims: BTreeMap<IpAddr, AddressClaim>,
    /// There is no route out, by this node's own measurement.
    pub(crate) uplink_lost: bool,
    /// Why others may not count on this gateway.
    pub(crate) degraded: Vec<(Reason, String)>,
    /// Why there is no data path, or its tables are old.
    pub(crate) last_error: Option<String>,
}
