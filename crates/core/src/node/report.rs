//! What a node must tell about itself: lines of its conditions.

use crate::canary::Lost;
use crate::condition::Reason;
use serde::{Deserialize, Serialize};

/// Kinds of lines of a node's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReportKind {
    /// No gateway of a group answers: the last ones are kept, the guard holds.
    FailStatic,
    /// No gateway of a group has ever answered.
    NoGateway,
    /// Traffic leaves by the node's address, as `whenUnavailable: NodeAddress` asks.
    NodeAddress,
    /// Gateways do not know this node's ranges yet.
    AwaitingGateways,
    /// A gateway node without an external device.
    NoExternalDevice,
    /// A gateway node does not have a next hop on any network of its own.
    NextHopNotAttached,
    /// Packets to a next hop cannot be followed here.
    NextHopPath,
    /// Gateways of this node ask for different external devices.
    ExternalDeviceConflict,
    /// A limit was reached.
    Limit,
    /// Two pods have one address.
    PodAddressConflict,
    /// Nothing says which addresses are pods', to other nodes or to this one.
    NoPodCidr,
    /// Canaries do not come back.
    PathBroken(Lost),
}

impl ReportKind {
    /// The reason of the node's condition that says so.
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
    /// What kind.
    pub kind: ReportKind,
    /// What about: a gateway, a policy, an address.
    pub subject: String,
    /// A sentence.
    pub text: String,
}
