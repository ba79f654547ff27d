//! The independent checker: what must hold of any plan and of any node state, whoever made it. It knows the model and the
//! shapes of plans and states and never calls `plan`, `node` or what those share; where it needs the same fact, it
//! works it out anew, plainly.

mod cluster;
mod leases;
mod next_hops;
mod node;
mod pod_addresses;
mod ranges;
mod traffic_keys;
mod unreadable;

pub use cluster::check_plan;
pub use node::check_node;

use serde::{Deserialize, Serialize};
use std::fmt;

/// What is broken. P and R numbers: design section 8, `nat-behaviour.md` section 12.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rule {
    /// P4, R1: a block belongs to two leases, in any state.
    BlockOwnedTwice,
    /// A lease has ranges that are no whole blocks out of 1024-65535, or unsorted or touching itself.
    RangeInvalid,
    /// A worker has two leases of one address that are Granted, Active or Draining.
    LeaseTwice,
    /// A lease in use changed its ranges.
    LeaseMoved,
    /// R3: a block changed hands or became free without having drained and rested.
    ReleasedEarly,
    /// An epoch runs backwards, exceeds that of its record, or is used for two changes.
    EpochOrder,
    /// A steering table changes and its epoch does not.
    EpochMissing,
    /// A changed record is not written, or not in the order of epochs.
    WriteOrder,
    /// A record goes that is still needed, or stays without reason.
    Deletion,
    /// Grants of a node are not its leases.
    GrantsDiffer,
    /// P9: a record that cannot be read is changed, or what depends on it is.
    UnreadableTouched,
    /// A tunnel index is invalid, used twice or changed.
    TunnelIndex,
    /// P8: a policy has an address that its namespace is not given, or that the cluster uses itself.
    AddressNotAllowed,
    /// A policy has an address that it did not ask for, or that belongs to another gateway.
    AddressWrong,
    /// A policy is called ready and is not.
    ReadyTooEarly,
    /// A finding lacks what a person needs.
    FindingUnclear,
    /// Boxes or ranges of a profile overlap: the kernel refuses them.
    Overlap,
    /// A box or range is malformed.
    BoxMalformed,
    /// Something is referred to and is not there.
    Dangling,
    /// R2: a range is used that is not granted, or that a live gateway does not know.
    RangeNotUsable,
    /// A gateway group is empty, unknown, or leads to the node itself.
    GroupWrong,
    /// P2: a destination inside the cluster is missing in the never list.
    NeverIncomplete,
    /// P1, P2: a pod that a policy selects is missing, or one that none selects is there.
    PodWrong,
    /// P1: an egress address that the guard does not know, or a node's own address that it would drop.
    GuardWrong,
    /// R1: a steering table is not what the leases say.
    SteeringWrong,
    /// The steering version claims more or less than the tables hold.
    VersionWrong,
    /// More pods are reported as programmed than are usable.
    ProgrammedWrong,
    /// Traffic is counted for another policy or address than whose it is.
    AccountWrong,
}

/// One thing that must not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// What breaks it.
    pub subject: String,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}: {}", self.rule, self.subject, self.text)
    }
}

/// Violations while they are collected.
#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, rule: Rule, subject: impl fmt::Display, text: impl Into<String>) {
        self.0.push(Violation {
            rule,
            subject: subject.to_string(),
            text: text.into(),
        });
    }

    /// Adds unless it holds.
    fn expect(&mut self, holds: bool, rule: Rule, subject: impl fmt::Display, text: &str) {
        if !holds {
            self.add(rule, subject, text);
        }
    }

    fn sorted(mut self) -> Vec<Violation> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}
