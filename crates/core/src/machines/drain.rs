//! Drain of one gateway: others announce its addresses, then workers leave it, then nothing arrives any more.
//!
//! ```text
//!   asked --> handing over --others announce all, or DRAIN_HANDOVER_MS--> leaving: version 0, workers leave
//!                                                                         --DRAIN_QUIET_MS without a packet--> empty
//! ```
//!
//! It forwards in both directions all the time: a packet that still arrives is never lost. While no other gateway does
//! better it serves as if nobody had asked.

use crate::condition::Reason;
use crate::numbers::{DRAIN_HANDOVER_MS, DRAIN_QUIET_MS};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainPhase {
    /// No other gateway serves: it goes on.
    Refused,
    /// Others are to announce its addresses.
    HandingOver,
    /// Workers and neighbours leave it; packets still arrive.
    Leaving,
    /// Nothing arrives any more.
    Empty,
}

/// What a gateway says about its drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// How far it is.
    pub phase: DrainPhase,
    /// Addresses that it still answers for.
    pub announcing: BTreeSet<IpAddr>,
    /// Served addresses that no other gateway could take over.
    pub alone_for: BTreeSet<IpAddr>,
}

/// Addresses that a message names; the others are counted.
const NAMED_MAX: usize = 5;

impl DrainReport {
    /// Reason of the condition `Draining`.
    pub fn reason(&self) -> Reason {
        match self.phase {
            DrainPhase::Refused => Reason::DrainRefused,
            DrainPhase::HandingOver => Reason::HandingOver,
            DrainPhase::Leaving => Reason::PacketsArrive,
            DrainPhase::Empty => Reason::Drained,
        }
    }

    /// What is so, and what is left.
    pub fn text(&self) -> String {
        match self.phase {
            DrainPhase::Refused => format!(
                "no other gateway that is not drained serves {}: this one goes on",
                named(&self.alone_for)
            ),
            DrainPhase::HandingOver if self.announcing.is_empty() => {
                "workers are about to leave it".to_owned()
            }
            DrainPhase::HandingOver => format!(
                "no other gateway is seen to announce {} yet: this one answers until then",
                named(&self.announcing)
            ),
            DrainPhase::Leaving => format!(
                "it announces nothing, and packets still arrive or have arrived within {} s: it forwards them",
                DRAIN_QUIET_MS / 1_000
            ),
            DrainPhase::Empty => "it carries nothing: the machine may be stopped".to_owned(),
        }
    }
}

fn named(addresses: &BTreeSet<IpAddr>) -> String {
    let some = addresses.iter().take(NAMED_MAX).map(IpAddr::to_string);
    let some: Vec<String> = some.collect();
    match addresses.len().saturating_sub(NAMED_MAX) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

/// The drain of one gateway node.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    asked: bool,
    /// Time since which others could take over.
    since_ms: Option<u64>,
    left: bool,
    /// Number of packets that arrived, and the time at which it was last seen to differ.
    packets: Option<(u64, u64)>,
}

impl Drain {
    /// Decides again. `asked`: the node is to be drained. `others`: other gateways serve every address of this one, and
    /// are not drained themselves. `handed_over`: this node announces nothing any more.
    pub fn update(&mut self, asked: bool, others: bool, handed_over: bool, now_ms: u64) {
        if !asked || !others {
            *self = Self {
                asked,
                ..Self::default()
            };
            return;
        }
        self.asked = true;
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        self.left |= handed_over || now_ms >= since_ms.saturating_add(DRAIN_HANDOVER_MS);
    }

    /// Records the number of packets that this gateway has forwarded so far, from any start.
    pub fn counted(&mut self, packets: u64, now_ms: u64) {
        match self.packets {
            Some((before, _)) if before == packets && self.left => {}
            _ => self.packets = Some((packets, now_ms)),
        }
    }

    /// Whether workers are to leave: probes are answered with version 0.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// How far it is; `None`: nobody has asked.
    pub fn phase(&self, handed_over: bool, now_ms: u64) -> Option<DrainPhase> {
        if !self.asked {
            return None;
        }
        if self.since_ms.is_none() {
            return Some(DrainPhase::Refused);
        }
        if !handed_over || !self.left {
            return Some(DrainPhase::HandingOver);
        }
        let quiet = |(_, at): (u64, u64)| now_ms >= at.saturating_add(DRAIN_QUIET_MS);
        Some(match self.packets.is_some_and(quiet) {
            true => DrainPhase::Empty,
            false => DrainPhase::Leaving,
        })
    }

    /// Time of the next call of [`Self::update`] although nothing has changed.
    pub fn next_deadline(&self) -> Option<u64> {
        let since_ms = self.since_ms.filter(|_| !self.left)?;
        Some(since_ms.saturating_add(DRAIN_HANDOVER_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DrainPhase::{Empty, HandingOver, Leaving, Refused};

    #[test]
    fn workers_leave_after_others_announce_and_it_is_empty_after_a_quiet_time() {
        let mut drain = Drain::default();
        drain.update(false, true, false, 0);
        assert_eq!((drain.phase(false, 0), drain.has_left()), (None, false));
        drain.update(true, true, false, 1_000);
        assert_eq!(drain.phase(false, 1_000), Some(HandingOver));
        assert!(!drain.has_left());
        drain.counted(7, 1_000);
        drain.update(true, true, true, 1_500);
        assert!(drain.has_left());
        assert_eq!(drain.next_deadline(), None);
        // What was counted before workers left is no silence.
        drain.counted(9, 2_000);
        drain.counted(9, 4_999);
        assert_eq!(drain.phase(true, 4_999), Some(Leaving));
        assert_eq!(drain.phase(true, 5_000), Some(Empty));
        drain.counted(10, 6_000);
        assert_eq!(drain.phase(true, 6_000), Some(Leaving), "a late packet");
        drain.update(false, true, true, 7_000);
        assert_eq!((drain.phase(true, 7_000), drain.has_left()), (None, false));
    }

    #[test]
    fn while_no_other_serves_it_goes_on_and_it_comes_back_when_the_others_die() {
        let mut drain = Drain::default();
        drain.update(true, false, false, 0);
        assert_eq!(drain.phase(false, 0), Some(Refused));
        assert!(!drain.has_left());
        drain.update(true, true, true, 10);
        assert!(drain.has_left());
        drain.update(true, false, true, 20);
        assert!(!drain.has_left());
        assert_eq!(drain.phase(false, 20), Some(Refused));
    }

    #[test]
    fn workers_leave_in_the_end_although_nobody_is_heard_to_announce() {
        let mut drain = Drain::default();
        drain.update(true, true, false, 100);
        let late = drain.next_deadline().unwrap();
        assert_eq!(late, 100 + DRAIN_HANDOVER_MS);
        drain.update(true, true, false, late - 1);
        assert!(!drain.has_left());
        drain.update(true, true, false, late);
        assert!(drain.has_left());
        drain.counted(1, late);
        let phase = drain.phase(false, late + 2 * DRAIN_QUIET_MS);
        assert_eq!(phase, Some(HandingOver), "it still answers for addresses");
    }
}
