//! Plans and node states of small clusters.

use crate::scene::*;
use egret_core::model::*;
use egret_core::node::{Group, Verdict};

fn kep_scene() -> Scene {
    let mut scene = Scene::new(3, 3);
    scene.add_policy(egress("default", "my-app", &["192.168.122.222"]));
    scene.add_pod("a1", "worker1", 10, &[("app", "MyApp")]);
    scene.add_pod("b1", "worker1", 11, &[("app", "Other")]);
    scene.add_pod("a2", "worker2", 10, &[("app", "MyApp")]);
    scene
}

#[test]
fn the_kep_manifest_becomes_ready_with_leases_of_its_workers() {
    let mut scene = kep_scene();
    let plan = scene.settle();
    assert_eq!(plan.findings, []);
    let policy = plan.policies.values().next().unwrap();
    assert!(policy.ready, "{:?}", policy.conditions);
    assert_eq!((policy.selected, policy.programmed), (2, 2));
    let record = &plan.addresses[&ip("192.168.122.222")];
    let holders: Vec<&str> = record.leases.iter().map(|l| l.node.0.as_str()).collect();
    assert_eq!(holders, ["worker1", "worker2"]);
    for lease in &record.leases {
        assert_eq!(lease.state, LeaseState::Active);
        let ports: u32 = lease
            .ranges
            .iter()
            .map(|r| u32::from(r.last - r.first) + 1)
            .sum();
        assert_eq!((ports, lease.ranges.len()), (1024, 4));
    }
    let worker = scene.outcome("worker1").state.worker;
    let pods: Vec<_> = worker.pods.keys().copied().collect();
    assert_eq!(pods, [ip("10.244.1.10"), ip("fd00:244:1::10")]);
    let profile = &worker.profiles[&worker.pods[&ip("10.244.1.10")]];
    assert_eq!(profile.boxes.len(), 2, "{profile:?}");
    let Verdict::Target(target) = profile.boxes[0].verdict else {
        panic!("{profile:?}")
    };
    assert_eq!(worker.targets[&target].ranges, record.leases[0].ranges);
    assert_eq!(profile.boxes[1].verdict, Verdict::FamilyNotCovered);
    let Group::Tunnel(members) = &worker.groups[&worker.targets[&target].group] else {
        panic!()
    };
    assert_eq!(members.len(), 3);
    let gateway = scene.outcome("gateway1").state.gateway.unwrap();
    assert_eq!(gateway.addresses[&ip("192.168.122.222")].blocks.len(), 32);
    assert_eq!(gateway.version, record.epoch);
}
