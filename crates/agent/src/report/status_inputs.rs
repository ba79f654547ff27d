//! What this node's status and conditions are made from.

use super::gateway_report::GatewayReport;
use crate::observe::facts::Links;
use crate::observe::surroundings::Routers;
use egret_core::machines::Destination;
use egret_core::model::{NodeRecord, Snapshot};
use egret_core::node::{ForeignMark, NodeOutcome};
use egret_core::obstacle::Obstacle;
use egret_datapath::worker::driver::RefusedProtocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the agent finds at its node and only reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalFindings {
    /// What pods tried lately by protocols without ports.
    pub(crate) refused: BTreeSet<RefusedProtocol>,
    /// Policy routing rules of others that look at bits of our mark.
    pub(crate) foreign_marks: BTreeSet<ForeignMark>,
}

/// What this node's status is made from.
pub(crate) struct StatusInputs<'a> {
    /// This node's record, as read last.
    pub(crate) record: &'a NodeRecord,
    /// The objects.
    pub(crate) snapshot: &'a Snapshot,
    /// What the kernel contains; `None`: nothing is reported as programmed.
    pub(crate) outcome: Option<&'a NodeOutcome>,
    /// The gateway role.
    pub(crate) gateway: &'a GatewayReport,
    /// Devices and addresses of this node.
    pub(crate) links: Option<&'a Links>,
    /// Routers around it.
    pub(crate) routers: &'a Routers,
    /// Source ports in use, by egress address.
    pub(crate) ports: &'a BTreeMap<IpAddr, u32>,
    /// Destinations towards which a lease is used up.
    pub(crate) full: &'a BTreeSet<Destination>,
    /// What was found at this node and only reported.
    pub(crate) findings: &'a LocalFindings,
    /// Why the last round was not carried out.
    pub(crate) last_error: Option<&'a str>,
    /// What of others' firewalls refuses our packets.
    pub(crate) obstacles: &'a [Obstacle],
}
