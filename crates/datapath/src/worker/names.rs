//! Names of sets and chains. Names of profiles and targets contain the id, so that an edit leaves the others' names.

use egret_core::node::{GroupNumber, ProfileId, TargetId, TrafficKeyId};
use egret_kernel::nft::rule::Family;

/// Run-time sets of outer tuples whose late packets are dropped, for IPv4 and IPv6.
pub const LATE_SETS: [&str; 2] = ["late4", "late6"];
/// Run-time sets of pods' tuples whose further packets are reset, for IPv4 and IPv6.
pub const ENDED_SETS: [&str; 2] = ["ended4", "ended6"];

/// Run-time sets of destinations towards which a lease is used up (egress address, destination, protocol, port), for
/// IPv4 and IPv6.
pub const FULL_SETS: [&str; 2] = ["full4", "full6"];

/// Run-time sets of packets refused because their protocol has no ports (source, destination, protocol), for IPv4 and
/// IPv6; packets fill them.
pub const PORTLESS_SETS: [&str; 2] = ["refused4", "refused6"];

/// Run-time sets of connections refused because of a quota (source, destination, protocol), for IPv4 and IPv6; packets
/// fill them.
pub(super) const POD_QUOTA_SETS: [&str; 2] = ["over_pod_quota4", "over_pod_quota6"];
/// The same of quotas of namespaces.
pub(super) const NAMESPACE_QUOTA_SETS: [&str; 2] =
    ["over_namespace_quota4", "over_namespace_quota6"];

/// Sets of our group numbers, as marks, and of the values that stand for them in foreign marks.
pub(crate) const GROUP_SETS: [&str; 2] = ["groups", "groups_foreign"];

/// Sets of addresses of pods that have a device of their own, and of such an address with the device's index.
pub(super) const BOUND: &str = "bound";
pub(super) const BOUND_DEVICES: &str = "bound_devices";
/// Set of protocols whose ports (or echo ids) are translated.
pub(super) const TRANSPORT: &str = "transport";
/// Verdict `goto` (`NFT_GOTO` of linux/netfilter/nf_tables.h).
pub(super) const GOTO: i32 = -4;
/// Verdict `jump` (`NFT_JUMP`).
pub(super) const JUMP: i32 = -3;

/// The three chains that look up a packet's profile and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Classify,
    Nat,
    Guard,
}

pub(super) const STAGES: [Stage; 3] = [Stage::Classify, Stage::Nat, Stage::Guard];

impl Stage {
    pub(super) fn word(self) -> &'static str {
        match self {
            Stage::Classify => "classify",
            Stage::Nat => "nat",
            Stage::Guard => "guard",
        }
    }

    /// Map: pod address -> profile chain.
    pub(super) fn pods(self, family: Family) -> String {
        family.named(&format!("{}_pods", self.word()))
    }

    pub(super) fn profile(self, family: Family, id: ProfileId) -> String {
        format!("{}{}_{:016x}", self.word(), family.digit(), id.0)
    }

    /// Map: destination range -> target chain.
    pub(super) fn boxes(self, family: Family, id: ProfileId) -> String {
        format!("{}{}_to_{:016x}", self.word(), family.digit(), id.0)
    }

    /// Map: destination -> refusal of protocols without ports.
    pub(super) fn portless(self, family: Family, id: ProfileId) -> String {
        format!("{}{}_portless_{:016x}", self.word(), family.digit(), id.0)
    }

    pub(super) fn target(self, id: TargetId) -> String {
        format!("{}_target_{:016x}", self.word(), id.0)
    }

    pub(super) fn next_hop(self, number: GroupNumber) -> String {
        format!("{}_next_hop_{number}", self.word())
    }

    /// Chain that refuses packets for a reason unrelated to a target.
    pub(super) fn refusal(self, reason: &str) -> String {
        format!("{}_{reason}", self.word())
    }
}

/// Counter of packets that leave for a traffic key.
pub(super) fn sent(account: TrafficKeyId) -> String {
    format!("{SENT}{:016x}", account.0)
}

/// Counter of connections that a traffic key opens.
pub(super) fn opened(account: TrafficKeyId) -> String {
    format!("{OPENED}{:016x}", account.0)
}

pub(super) const SENT: &str = "sent_";
pub(super) const OPENED: &str = "opened_";
