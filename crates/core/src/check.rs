//! The independent checker: rules that every plan and every node state must satisfy, whoever made it. It uses the model
//! and the types of plans and states. It never calls `plan`, `node` or code that those share: where it needs the same
//! fact, it computes it again, in the simplest form.

mod audit;
mod cluster;
mod gateway;
mod leases;
mod next_hops;
mod node;
mod pod_addresses;
mod pods;
mod quotas;
mod ranges;
mod traffic_keys;
mod unreadable;

pub use audit::{LeaseAudit, audit_leases};
pub use cluster::check_plan;
pub use node::check_node;

use serde::{Deserialize, Serialize};
use std::fmt;

/// Violated rule. P and R numbers: design section 8, `nat-behaviour.md` section 12.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rule {
    /// P4, R1: a block belongs to two leases, in any state.
    BlockOwnedTwice,
    /// Ranges of a lease are not whole blocks within 1024-65535, not sorted, or they touch each other.
    RangeInvalid,
    /// A new flow may use a port that belongs to the holder of the address.
    PortReserved,
    /// A block that a node has by its own record is in no lease, or is granted to another node.
    ClaimIgnored,
    /// R3: a block got another worker or became free without draining and hold-down.
    ReleasedEarly,
    /// An epoch decreases, exceeds that of its record, or is used for two changes.
    EpochOrder,
    /// A steering table changes and its epoch does not.
    EpochMissing,
    /// A changed record is not written, or not in the order of epochs.
    WriteOrder,
    /// A record is deleted that is still needed, or stays without reason.
    Deletion,
    /// Grants of a node differ from its leases.
    GrantsDiffer,
    /// P9: a record that cannot be read, or something that depends on it, is changed.
    UnreadableTouched,
    /// A tunnel index is invalid, used twice or changed.
    TunnelIndex,
    /// P8: a policy has an address that its namespace may not use, or that the cluster uses itself.
    AddressNotAllowed,
    /// A quota is not the lowest one that applies, or counts other pods.
    QuotaWrong,
    /// A policy has an address that it did not request, or that belongs to another gateway.
    AddressWrong,
    /// A policy is reported ready and is not.
    ReadyTooEarly,
    /// A finding lacks object, field, value or remedy.
    FindingUnclear,
    /// Destination ranges of a profile overlap: the kernel refuses them.
    Overlap,
    /// A destination range is malformed.
    BoxMalformed,
    /// A reference leads to something that does not exist.
    Dangling,
    /// R2: a range is used that is not granted, or that a live gateway does not have.
    RangeNotUsable,
    /// A gateway group is empty, unknown, or leads to the node itself.
    GroupWrong,
    /// P2: a destination inside the cluster is missing in the never list.
    NeverIncomplete,
    /// P1, P2: a pod that a policy selects is missing, or one that none selects is there.
    PodWrong,
    /// P1: the guard lacks an egress address, or has a node's own address, which it would drop.
    GuardWrong,
    /// R1: a steering table differs from the leases.
    SteeringWrong,
    /// The steering version is higher or lower than the tables' contents.
    VersionWrong,
    /// More pods are reported as programmed than are usable.
    ProgrammedWrong,
    /// Traffic is counted under another policy or address than its own.
    AccountWrong,
}

/// One violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// The violated rule.
    pub rule: Rule,
    /// Object or value that violates it.
    pub subject: String,
    /// Description of the violation.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}: {}", self.rule, self.subject, self.text)
    }
}

/// Collector of violations.
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

    /// Adds a violation unless `holds`.
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
