//! Issues that a node has: lines of its conditions.

use crate::canary::Lost;
use crate::condition::Reason;
use serde::{Deserialize, Serialize};

/// Kinds of issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IssueKind {
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

impl IssueKind {
    /// Reason of the node's condition for this kind.
    pub fn reason(self) -> Reason {
        match self {
            IssueKind::FailStatic => Reason::FailStatic,
            IssueKind::NoGateway => Reason::NoGateway,
            IssueKind::NodeAddress => Reason::NodeAddress,
            IssueKind::AwaitingGateways => Reason::AwaitingGateways,
            IssueKind::NoExternalDevice => Reason::NoExternalDevice,
            IssueKind::NextHopNotAttached => Reason::NextHopNotAttached,
            IssueKind::NextHopPath => Reason::NextHopPath,
            IssueKind::ExternalDeviceConflict => Reason::ExternalDeviceConflict,
            IssueKind::Limit => Reason::Limit,
            IssueKind::PodAddressConflict => Reason::PodAddressConflict,
            IssueKind::NoPodCidr => Reason::NoPodCidr,
            IssueKind::PathBroken(lost) => lost.reason(),
        }
    }
}

/// An issue of a node: one line of a condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeIssue {
    /// Its kind.
    pub kind: IssueKind,
    /// Subject: a gateway, a policy, an address.
    pub subject: String,
    /// A sentence.
    pub text: String,
}
