//! A gateway that answers and whose tables stay behind: left out as next hop and of the version of its group.

use crate::scene::*;
use egret_core::model::*;
use egret_core::node::*;
use egret_core::numbers::BLOCK_PORTS;
use std::collections::{BTreeMap, BTreeSet};

const E: &str = "192.168.122.222";

/// Outcome of worker1, which has one more range than the gateways that stay behind.
fn outcome(lagging: &[&str]) -> NodeOutcome {
    let mut scene = kep_scene();
    scene.settle();
    let worker = node_name("worker1");
    let mut facts = scene.facts(&worker);
    let old = *facts.versions.values().max().unwrap();
    facts.versions.insert(node_name("gateway1"), old + 1);
    let behind: BTreeSet<NodeName> = lagging.iter().map(|name| node_name(name)).collect();
    if !behind.is_empty() {
        facts.lagging = BTreeMap::from([(GatewayName("main".into()), behind)]);
    }
    let records = &mut scene.snapshot.node_records;
    let record = records.get_mut(&worker).unwrap();
    let grant = record.grants.iter().find(|grant| grant.address == ip(E));
    record.grants.push(Grant {
        ranges: vec![new_range()],
        epoch: old + 1,
        ..grant.unwrap().clone()
    });
    node_state(&scene.snapshot, &facts, &worker).unwrap()
}

fn new_range() -> PortRange {
    let first = 1023 * BLOCK_PORTS;
    PortRange {
        first,
        last: u16::MAX,
    }
}

/// Whether the new range is used, and the number of next hops.
fn used(outcome: &NodeOutcome) -> (bool, usize) {
    let worker = &outcome.state.worker;
    let mut targets = worker.targets.values();
    let target = targets.find(|target| target.address == ip(E)).unwrap();
    let Group::Tunnel(members) = &worker.groups[&target.group] else {
        panic!("a tunnel");
    };
    (target.ranges.contains(&new_range()), members.len())
}

#[test]
fn a_new_range_waits_for_every_gateway_that_counts_and_not_for_one_that_stays_behind() {
    assert_eq!(used(&outcome(&[])), (false, 3));
    assert_eq!(used(&outcome(&["gateway2"])), (false, 2));
    let left_out = outcome(&["gateway2", "gateway3"]);
    assert_eq!(used(&left_out), (true, 1));
    let behind = left_out.issues.iter();
    let behind = behind.filter(|report| report.text.contains("stay behind"));
    assert_eq!(behind.count(), 2);
}

#[test]
fn where_all_are_left_out_all_count() {
    let all = outcome(&["gateway1", "gateway2", "gateway3"]);
    assert_eq!(used(&all), (false, 3));
}
