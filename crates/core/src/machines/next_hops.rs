//! Which next hops of the external device answer, as seen by questions of ARP and ND: a link may have carrier while
//! nothing behind the switch is there.
//!
//! Only questions count, never time alone: read the answers that have arrived before calling `handle_deadline`.

use crate::numbers::{UPLINK_ASK_FIRST_MS, UPLINK_ASK_MS, UPLINK_FAILURES};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Debug, Default)]
struct Hop {
    answers: Option<bool>,
    /// Questions asked since the last answer.
    missed: u32,
    next_ms: u64,
}

/// A question to one next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The next hop.
    pub address: IpAddr,
    /// It has answered the last question: it can be asked at the hardware address that it had (RFC 1122 2.3.2.1).
    pub is_known: bool,
}

/// The next hops of one node.
#[derive(Debug, Default)]
pub struct NextHopProbes {
    hops: BTreeMap<IpAddr, Hop>,
    questions: Vec<Question>,
}

impl NextHopProbes {
    /// Sets whom to ask. Those that stay keep their state; new ones are asked at once.
    pub fn set(&mut self, hops: &BTreeSet<IpAddr>, now_ms: u64) {
        self.hops.retain(|address, _| hops.contains(address));
        for address in hops {
            self.hops.entry(*address).or_insert(Hop {
                next_ms: now_ms,
                ..Hop::default()
            });
        }
    }

    /// This address has answered.
    pub fn answered(&mut self, address: IpAddr) {
        if let Some(hop) = self.hops.get_mut(&address) {
            hop.answers = Some(true);
            hop.missed = 0;
        }
    }

    /// This node could not ask (its link was down): what was not answered until now counts for nothing.
    pub fn resume(&mut self, now_ms: u64) {
        for hop in self.hops.values_mut() {
            *hop = Hop {
                next_ms: now_ms,
                ..Hop::default()
            };
        }
    }

    /// Asks what is due and counts what is lost.
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

    /// When to call `handle_deadline` next.
    pub fn next_deadline(&self) -> Option<u64> {
        self.hops.values().map(|hop| hop.next_ms).min()
    }

    /// What is to be asked.
    pub fn drain(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    /// Next hops that do not answer. One that nobody has asked often enough yet is none of them.
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

    /// Asks for so long; the router answers each question or none. The time when it was first silent.
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
