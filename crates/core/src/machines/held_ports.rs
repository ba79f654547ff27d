//! Source ports that this node holds: reported before the kernel uses them, and until the last flow in them has ended.
//!
//! The controller takes withdrawn ranges for drained once this node has acknowledged the withdrawal and `held` lacks
//! them. So `held` must be a superset, at every moment and in every version that the store may contain, of
//!
//! - ranges in the kernel's NAT rules, and ranges that are about to be put there;
//! - ranges that have left the rules, until flows were counted [`DRAIN_SETTLE_MS`] later: a packet that is on its way
//!   through the stack may still get a port of them;
//! - blocks with a flow, by the last count.
//!
//! ```text
//!   granted --> wanted --> reported --> accepted by the store --> in the kernel
//!               (in `held` from here on)                          |
//!                                     counted without flow <-- left the kernel
//!                                     (no longer in `held`)
//! ```
//!
//! While the API is away, ranges in the kernel stay usable, and new ones wait.

use crate::model::{AddressPorts, Grant, NodeRecord, PortBlocks};
use crate::node::ports_of;
use crate::numbers::DRAIN_SETTLE_MS;
use std::collections::VecDeque;

/// Reports without answer that are remembered one by one.
const REPORTS_MAX: usize = 8;

/// Part of the node's status that the controller drains leases by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldReport {
    /// For [`NodeRecord::acknowledged`].
    pub acknowledged: u64,
    /// For [`NodeRecord::held`].
    pub held: AddressPorts,
}

/// Number of a report, in the order of sending.
pub type ReportNumber = u64;

/// Source ports that this node holds.
#[derive(Clone, Debug, Default)]
pub struct HeldPorts {
    /// In the kernel's NAT rules, or possibly.
    kernel: AddressPorts,
    /// Granted: in the kernel, or about to be.
    wanted: AddressPorts,
    /// Left the kernel at these times.
    leaving: VecDeque<(u64, AddressPorts)>,
    /// Blocks with flows, by the last count; `None` before the first.
    flows: Option<AddressPorts>,
    /// Epoch of the grants in the kernel.
    epoch: u64,
    /// What the record contained at the agent's start.
    adopted: Option<HeldReport>,
    /// Blocks in the last report that the store accepted.
    accepted: AddressPorts,
    /// Reports after it: the store may contain any of them.
    unanswered: VecDeque<(ReportNumber, AddressPorts)>,
    sent: ReportNumber,
}

impl HeldPorts {
    /// Takes over, once, what this node's record says at the start of the agent: the kernel still has its
    /// predecessor's rules.
    pub fn adopt(&mut self, record: &NodeRecord) {
        if self.adopted.is_some() {
            return;
        }
        let mut held = AddressPorts::from(record.held.clone());
        if record.acknowledged == 0 {
            // An agent of a version before `held` used every grant at once, and reported its address.
            let used = record.grants.iter();
            let used = used.filter(|grant| record.demand.contains_key(&grant.address));
            held = held.union(&ports_of(used));
        }
        self.kernel = held.clone();
        self.accepted = held.clone();
        self.adopted = Some(HeldReport {
            acknowledged: record.acknowledged,
            held,
        });
    }

    /// Sets the grants that are to be used, as [`super::GrantGate`] decided, and returns those that the kernel may
    /// have now: reported ones, and those that it has.
    pub fn admit(&mut self, grants: &[Grant]) -> Vec<Grant> {
        self.wanted = ports_of(grants.iter());
        let allowed = self.reported().union(&self.kernel);
        let admitted = grants.iter().filter_map(|grant| {
            let blocks = PortBlocks::of(&grant.ranges);
            let blocks = blocks.intersection(&allowed.of(grant.address));
            if blocks == PortBlocks::of(&grant.ranges) {
                return Some(grant.clone());
            }
            let ranges = blocks.ranges();
            (!ranges.is_empty()).then(|| Grant {
                ranges,
                ..grant.clone()
            })
        });
        admitted.collect()
    }

    /// Whether grants wait for a report of theirs to be accepted.
    pub fn is_waiting(&self) -> bool {
        let allowed = self.reported().union(&self.kernel);
        !allowed.contains(&self.wanted)
    }

    /// Records that the kernel's NAT rules are about to be replaced by ones with these blocks. If that fails, it may
    /// have either.
    pub fn applying(&mut self, blocks: &AddressPorts) {
        self.kernel = self.kernel.union(blocks);
    }

    /// Records that the kernel's NAT rules have exactly these blocks, and that grants and withdrawals up to this epoch
    /// are applied.
    pub fn applied(&mut self, blocks: AddressPorts, epoch: u64, now_ms: u64) {
        let left = self.kernel.difference(&blocks);
        if !left.is_empty() {
            self.leaving.push_back((now_ms, left));
        }
        self.kernel = blocks;
        self.epoch = self.epoch.max(epoch);
    }

    /// Records the blocks with flows in a complete dump of the kernel's flows that began at `began_ms`. Not to be called
    /// if the dump failed: the last count stays.
    pub fn counted(&mut self, blocks: AddressPorts, began_ms: u64) {
        self.flows = Some(blocks);
        self.leaving
            .retain(|(at_ms, _)| at_ms.saturating_add(DRAIN_SETTLE_MS) > began_ms);
    }

    /// Time of the next count that may end the holding of ranges which have left the kernel.
    pub fn count_at(&self) -> Option<u64> {
        let (at_ms, _) = self.leaving.front()?;
        Some(at_ms.saturating_add(DRAIN_SETTLE_MS))
    }

    /// What to report now. Until the first count it is at least what the predecessor reported: flows are unknown.
    pub fn report(&self) -> HeldReport {
        let mut held = self.kernel.union(&self.wanted);
        for (_, blocks) in &self.leaving {
            held = held.union(blocks);
        }
        match (&self.flows, &self.adopted) {
            (Some(flows), _) => HeldReport {
                acknowledged: self.epoch,
                held: held.union(flows),
            },
            (None, Some(adopted)) => HeldReport {
                acknowledged: adopted.acknowledged,
                held: held.union(&adopted.held),
            },
            (None, None) => HeldReport {
                acknowledged: 0,
                held,
            },
        }
    }

    /// Records that a report with these blocks is handed to the writer; it may be written from now on.
    pub fn sent(&mut self, held: AddressPorts) -> ReportNumber {
        self.sent += 1;
        self.unanswered.push_back((self.sent, held));
        if self.unanswered.len() > REPORTS_MAX
            && let Some((_, first)) = self.unanswered.pop_front()
            && let Some((_, second)) = self.unanswered.front_mut()
        {
            *second = second.intersection(&first);
        }
        self.sent
    }

    /// Records that the store has accepted the report of this number.
    pub fn accepted(&mut self, number: ReportNumber, held: AddressPorts) {
        self.accepted = held;
        self.unanswered.retain(|(sent, _)| *sent > number);
    }

    /// Records that the object of the report does not exist any more: nothing is reported.
    pub fn lost(&mut self) {
        self.accepted = AddressPorts::default();
        self.unanswered.clear();
    }

    /// Blocks that the store contains in any case: in the last accepted report, and in all after it.
    fn reported(&self) -> AddressPorts {
        let mut surely = self.accepted.clone();
        for (_, held) in &self.unanswered {
            surely = surely.intersection(held);
        }
        surely
    }
}

#[cfg(test)]
mod tests;
