//! Reports of a node about itself: lines of its conditions.

use crate::canary::Lost;
use crate::condition::Reason;
use serde::{Deserialize, Serialize};

/// Kinds of lines of a node's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReportKind {
    /// No gateway of a group answers: the last members stay, and nothing leaves by another route.
    FailStatic,
    /// No gateway of a group has ever answered.
    NoGateway,
    /// Traffic leaves by the node's address, as `whenUnavailable: NodeAddress` asks.
    NodeAddress,
    /// Gateways do not have this node's ranges in their steering tables yet.
    AwaitingGateways,
    /// A gateway node without an external device.
    NoExternalDevice,
    /// A gateway node is attached to no network of a next hop.
    NextHopNotAttached,
    /// Packets to a next hop cannot be tracked here.
    NextHopPath,
    /// The gateways that select this node name different external devices.
    ExternalDeviceConflict,
    /// A limit was reached.
    Limit,
    /// Two pods have one address.
    PodAddressConflict,
    /// Pod addresses are not known to other nodes, or not to this one.
    NoPodCidr,
    /// Canaries do not come back.
    PathBroken(Lost),
}

impl ReportKind {
    /// Reason of the node's condition for this kind.
    pub fn reason(self) -> Reason {
        match self {
            ReportKind::FailStatic => Reason::FailStatic,
            ReportKind::NoGateway => Reason::NoGateway,
            ReportKind::NodeAddress => Reason::NodeAddress,
            ReportKind::AwaitingGateways => Reason::AwaitingGateways,
            ReportKind::NoExternalDevice => Reason::NoExternalDevice,
            ReportKind::NextHopNotAttached => Reason::NextHopNotAttached,
            ReportKind::NextHopPath => Reason::NextHopPath,
            ReportKind::ExternalDeviceConflict => Reason::ExternalDeviceConflict,
            ReportKind::Limit => Reason::Limit,
            ReportKind::PodAddressConflict => Reason::PodAddressConflict,
            ReportKind::NoPodCidr => Reason::NoPodCidr,
            ReportKind::PathBroken(lost) => lost.reason(),
        }
    }
}

/// One line of a node's condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeReport {
    /// Kind of the line.
    pub kind: ReportKind,
    /// Subject: a gateway, a policy, an address.
    pub subject: String,
    /// A sentence.
    pub text: String,
}
