//! Marks of others, and the numbers of gateway groups.

use crate::scene::*;
use egret_core::model::*;
use egret_core::node::{ForeignMark, NodeFacts, node_state};

#[test]
fn group_numbers_that_routing_rules_of_others_ask_for_are_not_used() {
    let mut scene = kep_scene();
    scene.settle();
    let node = NodeName("worker1".into());
    let numbers = |marks: &[(u32, u32)]| {
        let marks = marks.iter().map(|(mark, mask)| ForeignMark {
            priority: 300,
            mark: *mark,
            mask: *mask,
        });
        let facts = NodeFacts {
            foreign_marks: marks.collect(),
            ..scene.facts(&node)
        };
        let outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
        outcome
            .state
            .worker
            .groups
            .keys()
            .copied()
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers(&[]), [1]);
    // Tailscale's, Calico's, and one bit for the number that becomes 3 while others' marks are routed.
    assert_eq!(numbers(&[(0x0001_0000, 0x00ff_0000)]), [2]);
    assert_eq!(numbers(&[(0x0001_0000, 0x0001_0000)]), [2]);
    assert_eq!(
        numbers(&[(0x0001_0000, 0x00ff_0000), (0x0082_0000, 0x00ff_0000)]),
        [3]
    );
    assert_eq!(
        numbers(&[(0x0000_4000, 0x0000_4000)]),
        [1],
        "none of our bits"
    );
    // Where others' rules match every number, one is used nevertheless; the condition reports it.
    assert_eq!(
        numbers(&[(0, 0x0080_0000), (0x0080_0000, 0x0080_0000)]),
        [1]
    );
}
