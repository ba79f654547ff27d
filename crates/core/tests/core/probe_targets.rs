//! Gateways that a node probes, with their timers.

use crate::scene::*;
use egret_core::model::*;
use egret_core::node::{ProbeTarget, probe_targets};
use std::collections::BTreeMap;

fn targets(scene: &Scene, node: &str) -> BTreeMap<NodeName, ProbeTarget> {
    probe_targets(&scene.snapshot, &scene.outcome(node).state)
}

fn timers(scene: &Scene, node: &str, target: &str) -> (u64, u32) {
    let target = targets(scene, node)[&node_name(target)];
    (target.interval_ms, target.failures)
}

#[test]
fn every_other_gateway_is_probed_and_no_worker() {
    let mut scene = kep_scene();
    scene.settle();
    let names = |node: &str| targets(&scene, node).into_keys().collect::<Vec<_>>();
    let gateways = ["gateway1", "gateway2", "gateway3"].map(node_name);
    assert_eq!(names("worker1"), gateways);
    assert_eq!(names("gateway2"), [&gateways[..1], &gateways[2..]].concat());
    let target = targets(&scene, "worker1")[&gateways[0]];
    let record = &scene.snapshot.node_records[&gateways[0]];
    assert_eq!(target.index, record.tunnel_index);
    assert_eq!(target.underlay, ip("192.168.122.101"));
}

#[test]
fn a_node_of_several_gateways_is_probed_with_the_shortest_interval_and_its_failures() {
    let mut scene = kep_scene();
    scene.settle();
    assert_eq!(timers(&scene, "worker1", "gateway1"), (50, 3));
    for (name, interval_ms, failures) in [("slow", 1_000, 1), ("quick", 20, 9)] {
        let gateway = Gateway {
            probe_interval_ms: interval_ms,
            probe_failures: failures,
            ..gateway(name)
        };
        scene
            .snapshot
            .gateways
            .insert(gateway.name.clone(), gateway);
    }
    assert_eq!(timers(&scene, "worker1", "gateway1"), (20, 9));
}

#[test]
fn a_node_that_no_gateway_selects_any_more_is_not_probed() {
    let mut scene = kep_scene();
    scene.settle();
    let state = scene.outcome("worker1").state;
    let node = scene
        .snapshot
        .nodes
        .get_mut(&node_name("gateway1"))
        .unwrap();
    node.labels.clear();
    let targets = probe_targets(&scene.snapshot, &state);
    assert!(!targets.contains_key(&node_name("gateway1")));
    assert_eq!(targets.len(), 2);
}
