//! Whether a gateway with carrier withdraws because no next hop of its external device answers. Workers then stop using
//! it and other gateways announce, as for a link without carrier.
//!
//! It withdraws only where other gateways do better. If the routers of all are gone, or do not answer requests,
//! withdrawing gains nothing (fail static). Each gateway measures for itself and reports the result in its
//! `EgressNode`. Since nothing waits for the API, several gateways take turns, in the order of their names: the last
//! one sees no other that serves.

use crate::model::NodeName;
use crate::numbers::UPLINK_TURN_MS;
use std::collections::BTreeSet;

/// The other gateways, as this one sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Gateways that answer probes.
    pub answering: BTreeSet<NodeName>,
    /// Every address has a gateway among them that serves it.
    pub serve: bool,
    /// All that answer report that their external network does not answer either.
    pub are_lost: bool,
}

/// The decision of one gateway node.
#[derive(Debug)]
pub struct Uplink {
    me: NodeName,
    leaves: bool,
    /// Time since which it would decide differently, and its waiting time.
    otherwise: Option<(u64, u64)>,
}

impl Uplink {
    /// The decision of this node.
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            leaves: false,
            otherwise: None,
        }
    }

    /// Decides again. `lost`: no next hop of a served family answers here.
    pub fn update(&mut self, lost: bool, others: &Others, now_ms: u64) {
        if !lost || others.are_lost {
            (self.leaves, self.otherwise) = (false, None);
            return;
        }
        if self.leaves == others.serve {
            self.otherwise = None;
            return;
        }
        let before = others.answering.iter().filter(|node| **node < self.me);
        let turn_ms = (before.count() as u64).saturating_mul(UPLINK_TURN_MS);
        let (since_ms, _) = *self.otherwise.get_or_insert((now_ms, turn_ms));
        self.otherwise = Some((since_ms, turn_ms));
        if now_ms >= since_ms.saturating_add(turn_ms) {
            (self.leaves, self.otherwise) = (others.serve, None);
        }
    }

    /// Whether other nodes must not count on this gateway.
    pub fn leaves(&self) -> bool {
        self.leaves
    }

    /// Latest time of the next call of [`Self::update`] although nothing has changed.
    pub fn next_deadline(&self) -> Option<u64> {
        let (since_ms, turn_ms) = self.otherwise?;
        Some(since_ms.saturating_add(turn_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn name(number: usize) -> NodeName {
        NodeName(format!("g{number}"))
    }

    /// Several gateways that see, one step late, which of them serve; with the API also which external networks do not
    /// answer.
    struct Group {
        machines: BTreeMap<usize, Uplink>,
        serving: BTreeSet<usize>,
        now_ms: u64,
    }

    impl Group {
        fn new(count: usize) -> Self {
            Group {
                machines: (0..count).map(|n| (n, Uplink::new(name(n)))).collect(),
                serving: (0..count).collect(),
                now_ms: 0,
            }
        }

        fn run(&mut self, ms: u64, lost: &BTreeSet<usize>, api: bool) {
            const STEP_MS: u64 = 50;
            for _ in 0..ms / STEP_MS {
                self.now_ms += STEP_MS;
                let numbers: BTreeSet<usize> = self.machines.keys().copied().collect();
                for (number, machine) in &mut self.machines {
                    let others = || numbers.iter().filter(|n| *n != number);
                    let seen = Others {
                        answering: others().map(|n| name(*n)).collect(),
                        serve: others().any(|n| self.serving.contains(n)),
                        are_lost: api && others().all(|n| lost.contains(n)),
                    };
                    machine.update(lost.contains(number), &seen, self.now_ms);
                }
                let serves = self.machines.iter().filter(|(_, m)| !m.leaves());
                self.serving = serves.map(|(n, _)| *n).collect();
            }
        }
    }

    #[test]
    fn the_only_gateway_stays() {
        let mut group = Group::new(1);
        group.run(10_000, &BTreeSet::from([0]), false);
        assert_eq!(group.serving, BTreeSet::from([0]));
    }

    #[test]
    fn one_that_has_no_way_out_leaves_and_comes_back() {
        let mut group = Group::new(3);
        group.run(3 * UPLINK_TURN_MS, &BTreeSet::from([2]), false);
        assert_eq!(group.serving, BTreeSet::from([0, 1]));
        group.run(100, &BTreeSet::new(), false);
        assert_eq!(group.serving, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn where_all_have_none_there_is_always_one_and_with_the_api_all_stay() {
        let all = BTreeSet::from([0, 1, 2, 3]);
        let mut group = Group::new(4);
        for _ in 0..200 {
            group.run(50, &all, false);
            assert!(!group.serving.is_empty());
        }
        assert_eq!(group.serving.len(), 1);
        group.run(100, &all, true);
        assert_eq!(group.serving, all);
    }

    proptest! {
        /// Property: whatever was lost before, in the end exactly the gateways whose external network answers serve; if
        /// there is none, at least one gateway serves.
        #[test]
        fn in_the_end_those_with_a_way_out_serve(
            history in prop::collection::vec(
                (prop::collection::btree_set(0usize..4, 0..5), any::<bool>(), 0u64..2_000), 1..6),
        ) {
            let mut group = Group::new(4);
            for (lost, api, ms) in &history {
                group.run(*ms, lost, *api);
            }
            let (lost, api, _) = history.last().unwrap();
            group.run(20 * UPLINK_TURN_MS, lost, *api);
            let good: BTreeSet<usize> = (0..4).filter(|n| !lost.contains(n)).collect();
            match good.is_empty() {
                false => prop_assert_eq!(&group.serving, &good),
                true => prop_assert!(!group.serving.is_empty()),
            }
        }
    }
}
