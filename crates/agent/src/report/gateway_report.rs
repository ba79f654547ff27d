//! Report of this node's gateway role.

use egret_core::condition::Reason;
use egret_core::machines::DrainReport;
use egret_core::model::{AddressClaim, MacAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The gateway role of this node as other nodes see it. Empty on a node that is no gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GatewayReport {
    /// `ebpf` or `nftables`, while a data path is attached.
    pub(crate) datapath: Option<String>,
    /// Features that this data path lacks, for people.
    pub(crate) limitations: Option<String>,
    /// Whether its tables have the planned content.
    pub(crate) loaded: bool,
    /// The steering version of its tables; 0 without an external link that counts.
    pub(crate) version: u64,
    /// Tables that are newer than the records in the store, with their epochs.
    pub(crate) newer_tables: BTreeMap<IpAddr, u64>,
    /// Egress addresses that this node announces.
    pub(crate) announcing: BTreeSet<IpAddr>,
    /// Hardware address of the external device, while a data path is attached.
    pub(crate) external_mac: Option<MacAddress>,
    /// Addresses of this node that other machines claim.
    pub(crate) claims: BTreeMap<IpAddr, AddressClaim>,
    /// Whether this node's own measurement finds no route out.
    pub(crate) uplink_lost: bool,
    /// Reasons why others may not count on this gateway.
    pub(crate) degraded: Vec<(Reason, String)>,
    /// How far its drain is; `None`: nobody asks for one.
    pub(crate) drain: Option<DrainReport>,
    /// Why there is no data path, or its tables are outdated.
    pub(crate) last_error: Option<String>,
}
