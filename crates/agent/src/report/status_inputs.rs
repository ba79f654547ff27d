//! Inputs of this node's status and conditions.

use super::gateway_report::GatewayReport;
use crate::observe::facts::Links;
use crate::observe::surroundings::Routers;
use egret_core::machines::{Destination, LeaseReport};
use egret_core::model::{NodeRecord, Snapshot};
use egret_core::node::{ForeignMark, NodeOutcome};
use egret_core::obstacle::Obstacle;
use egret_datapath::worker::driver::{OverQuota, RefusedProtocol};
use std::collections::BTreeSet;

/// Local findings that are only reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalFindings {
    /// Traffic that pods tried lately with protocols without ports.
    pub(crate) refused: BTreeSet<RefusedProtocol>,
    /// Packets that IPVS would have sent past the gateways were dropped lately.
    pub(crate) ipvs_dropped: bool,
    /// Connections of pods that were refused lately because of a quota.
    pub(crate) over_quota: OverQuota,
    /// Quotas apply that the kernel cannot enforce.
    pub(crate) ignores_quotas: bool,
    /// Foreign policy routing rules that match bits of our mark.
    pub(crate) foreign_marks: BTreeSet<ForeignMark>,
}

/// Inputs of this node's status.
pub(crate) struct StatusInputs<'a> {
    /// This node's record, as read last.
    pub(crate) record: &'a NodeRecord,
    /// The objects.
    pub(crate) snapshot: &'a Snapshot,
    /// Kernel content; `None`: nothing is reported as programmed.
    pub(crate) outcome: Option<&'a NodeOutcome>,
    /// The gateway role.
    pub(crate) gateway: &'a GatewayReport,
    /// Devices and addresses of this node.
    pub(crate) links: Option<&'a Links>,
    /// Routers around this node.
    pub(crate) routers: &'a Routers,
    /// The leases.
    pub(crate) leases: &'a LeaseReport,
    /// Destinations towards which a lease is exhausted.
    pub(crate) full: &'a BTreeSet<Destination>,
    /// Local findings that are only reported.
    pub(crate) findings: &'a LocalFindings,
    /// Error of the last round.
    pub(crate) last_error: Option<&'a str>,
    /// Rules of foreign firewalls that refuse our packets.
    pub(crate) obstacles: &'a [Obstacle],
}
