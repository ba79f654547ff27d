//! Reachability of the external device's next hops, measured by ARP and ND requests: a link may have carrier although
//! nothing behind the switch is reachable.
//!
//! Only requests count, never time alone: process arrived answers before calling `handle_deadline`.

use crate::numbers::{UPLINK_ASK_FIRST_MS, UPLINK_ASK_MS, UPLINK_FAILURES};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Debug, Default)]
struct Hop {
    answers: Option<bool>,
    /// Number of requests since the last answer.
    missed: u32,
    next_ms: u64,
}

/// An ARP or ND request for one next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The next hop.
    pub address: IpAddr,
    /// It answered the last request, so the next one can be sent to its known hardware address (RFC 1122 2.3.2.1).
    pub is_known: bool,
}

/// Probes of one node's next hops.
#[derive(Debug, Default)]
pub struct NextHopProbes {
    hops: BTreeMap<IpAddr, Hop>,
    questions: Vec<Question>,
}

impl NextHopProbes {
    /// Sets the next hops to probe. Remaining ones keep their state; new ones are probed at once.
    pub fn set(&mut self, hops: &BTreeSet<IpAddr>, now_ms: u64) {
        self.hops.retain(|address, _| hops.contains(address));
        for address in hops {
            self.hops.entry(*address).or_insert(Hop {
                next_ms: now_ms,
                ..Hop::default()
            });
        }
    }

    /// Records an answer of this address.
    pub fn answered(&mut self, address: IpAddr) {
        if let Some(hop) = self.hops.get_mut(&address) {
            hop.answers = Some(true);
            hop.missed = 0;
        }
    }

    /// Resumes after this node could not send (its link was down): unanswered requests are discarded.
    pub fn resume(&mut self, now_ms: u64) {
        for hop in self.hops.values_mut() {
            *hop = Hop {
                next_ms: now_ms,
                ..Hop::default()
            };
        }
    }

    /// Sends due requests and counts unanswered ones.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        for (address, hop) in &mut self.hops {
            if now_ms < hop.next_ms {
                continue;
            }
            if hop.missed >= UPLINK_FAILURES {
                hop.answers = Some(false);
            }
            self.questions.push(Question {
                address: *address,
                is_known: hop.answers == Some(true) && hop.missed == 0,
            });
            hop.missed = hop.missed.saturating_add(1);
            let wait_ms = match hop.answers {
                None => UPLINK_ASK_FIRST_MS,
                Some(_) => UPLINK_ASK_MS,
            };
            hop.next_ms = now_ms.saturating_add(wait_ms);
        }
    }

    /// Latest time of the next call of `handle_deadline`.
    pub fn next_deadline(&self) -> Option<u64> {
        self.hops.values().map(|hop| hop.next_ms).min()
    }

    /// Pending requests.
    pub fn drain(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    /// Next hops that do not answer. A next hop with too few requests is not among them.
    pub fn silent(&self) -> BTreeSet<IpAddr> {
        let silent = self
            .hops
            .iter()
            .filter(|(_, hop)| hop.answers == Some(false));
        silent.map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: [u8; 4] = [192, 0, 2, 1];

    /// Runs for this time; the router answers each request or none. Returns when the next hop first counted as silent.
    fn run(probes: &mut NextHopProbes, ms: std::ops::Range<u64>, answers: bool) -> Option<u64> {
        let mut silent = None;
        for now_ms in ms {
            probes.handle_deadline(now_ms);
            for question in probes.drain().iter().filter(|_| answers) {
                probes.answered(question.address);
            }
            if !probes.silent().is_empty() {
                silent.get_or_insert(now_ms);
            }
        }
        silent
    }

    #[test]
    fn a_next_hop_is_silent_after_three_questions_and_back_with_one_answer() {
        let mut probes = NextHopProbes::default();
        probes.set(&BTreeSet::from([ROUTER.into()]), 0);
        assert_eq!(run(&mut probes, 0..10_000, true), None);
        let silent = run(&mut probes, 10_000..20_000, false).unwrap() - 10_000;
        let three = u64::from(UPLINK_FAILURES) * UPLINK_ASK_MS;
        assert!(
            (three..=three + UPLINK_ASK_MS).contains(&silent),
            "{silent}"
        );
        probes.answered(ROUTER.into());
        assert!(probes.silent().is_empty());
    }

    #[test]
    fn one_that_was_never_there_is_known_before_a_new_gateway_counts() {
        let mut probes = NextHopProbes::default();
        probes.set(&BTreeSet::from([ROUTER.into()]), 0);
        let silent = run(&mut probes, 0..10_000, false).unwrap();
        assert!(silent < crate::numbers::ENTRANCE_MS, "{silent}");
    }

    #[test]
    fn it_is_asked_by_broadcast_as_soon_as_it_misses_one_and_a_link_that_was_down_says_nothing() {
        let mut probes = NextHopProbes::default();
        probes.set(&BTreeSet::from([ROUTER.into()]), 0);
        run(&mut probes, 0..1_000, true);
        for is_known in [true, false] {
            probes.handle_deadline(probes.next_deadline().unwrap());
            assert_eq!(probes.drain()[0].is_known, is_known);
        }
        run(&mut probes, 2_001..9_000, false);
        assert!(!probes.silent().is_empty());
        probes.resume(9_000);
        assert!(probes.silent().is_empty());
        assert_eq!(probes.next_deadline(), Some(9_000));
    }
}
