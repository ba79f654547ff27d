//! Whether a gateway whose external device has carrier says that it has no way out, since no next hop answers there.
//! Then workers leave it and others announce, as for a link without carrier.
//!
//! It does so only where others do better: where the routers of all are gone, or do not answer such questions, nothing is
//! gained by leaving any (fail static). Each measures for itself, and what each finds is in its `EgressNode`; but nothing
//! waits for the API, so that several take turns, in the order of their names: the last one sees no other that serves.

use crate::model::NodeName;
use crate::numbers::UPLINK_TURN_MS;
use std::collections::BTreeSet;

/// The other gateways, as this one sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that answer probes.
    pub answering: BTreeSet<NodeName>,
    /// For every address there is one among them that serves it.
    pub serve: bool,
    /// All that answer say that they have no way out either.
    pub are_lost: bool,
}

/// The decision of one gateway node.
#[derive(Debug)]
pub struct Uplink {
    me: NodeName,
    leaves: bool,
    /// Since when it would decide otherwise, and in whose turn.
    otherwise: Option<(u64, u64)>,
}

impl Uplink {
    /// For this node.
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            leaves: false,
            otherwise: None,
        }
    }

    /// Decides anew. `lost`: no next hop of a family that is served answers here.
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

    /// Others must not count on this gateway.
    pub fn leaves(&self) -> bool {
        self.leaves
    }

    /// When to call [`Self::update`] next although nothing has changed.
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

    /// Some gateways that see of each other, a step late, who serves; with the API also who has no way out.
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
        /// Whatever was lost before: in the end those that have a way out serve, alone; where none has one, someone does.
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
