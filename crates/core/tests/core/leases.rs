//! The life cycle of leases, step by step.

use crate::scene::*;
use egret_core::check::check_plan;
use egret_core::condition::ConditionType;
use egret_core::model::*;
use std::net::IpAddr;

const E: &str = "192.168.122.222";

fn lease_of<'a>(scene: &'a Scene, node: &str) -> Option<&'a Lease> {
    let record = scene.snapshot.addresses.get(&ip(E))?;
    record
        .leases
        .iter()
        .find(|lease| lease.node == node_name(node))
}

fn state_of(scene: &Scene, node: &str) -> Option<LeaseState> {
    lease_of(scene, node).map(|lease| lease.state)
}

fn remove_pod(scene: &mut Scene, name: &str) -> Pod {
    let key = ("default".to_owned(), name.to_owned());
    let pod = scene.snapshot.pods.remove(&key).unwrap();
    std::sync::Arc::unwrap_or_clone(pod)
}

#[test]
fn a_lease_is_granted_acknowledged_drained_rested_and_forgotten() {
    let mut scene = kep_scene();
    scene.control();
    assert_eq!(state_of(&scene, "worker1"), Some(LeaseState::Granted));
    scene.run_agents();
    scene.control();
    assert_eq!(state_of(&scene, "worker1"), Some(LeaseState::Active));
    let before = lease_of(&scene, "worker1").unwrap().clone();

    remove_pod(&mut scene, "a1");
    scene.busy.insert((node_name("worker1"), ip(E)));
    scene.settle();
    let draining = lease_of(&scene, "worker1").unwrap();
    assert_eq!(
        (draining.state, &draining.ranges),
        (LeaseState::Draining, &before.ranges)
    );
    assert_eq!(draining.epoch, before.epoch, "the tables did not change");
    assert!(draining.withdrawn > Some(before.epoch));
    assert!(
        scene.snapshot.node_records[&node_name("worker1")]
            .grants
            .is_empty()
    );
    let steered = scene.outcome("gateway1").state.gateway.unwrap().addresses[&ip(E)]
        .blocks
        .len();
    assert_eq!(steered, 32, "connections that exist still find their way");

    scene.busy.clear();
    scene.run_agents();
    scene.control();
    let resting = lease_of(&scene, "worker1").unwrap().clone();
    assert_eq!(resting.state, LeaseState::HoldDown);
    assert!(resting.epoch > before.epoch);
    let steered = scene.outcome("gateway1").state.gateway.unwrap().addresses[&ip(E)]
        .blocks
        .len();
    assert_eq!(steered, 16);

    scene.now += 119;
    let plan = scene.control();
    assert_eq!(plan.next_change_secs, Some(scene.now + 1));
    assert_eq!(state_of(&scene, "worker1"), Some(LeaseState::HoldDown));
    scene.now += 1;
    scene.control();
    assert_eq!(state_of(&scene, "worker1"), None);
    assert_eq!(state_of(&scene, "worker2"), Some(LeaseState::Active));
}

#[test]
fn a_pod_that_comes_back_finds_the_same_ports() {
    let mut scene = kep_scene();
    scene.settle();
    let before = lease_of(&scene, "worker1").unwrap().clone();
    let pod = remove_pod(&mut scene, "a1");
    scene.busy.insert((node_name("worker1"), ip(E)));
    scene.settle();
    scene
        .snapshot
        .pods
        .insert(("default".into(), "a1".into()), pod);
    scene.settle();
    let after = lease_of(&scene, "worker1").unwrap();
    assert_eq!(
        (after.state, after.epoch, &after.ranges),
        (LeaseState::Active, before.epoch, &before.ranges)
    );
}

#[test]
fn without_a_free_block_nobody_is_hurt_and_it_is_told() {
    let mut scene = kep_scene();
    scene.settle();
    let record = scene.snapshot.addresses.get_mut(&ip(E)).unwrap();
    let kept = record.leases.clone();
    // Every other block is in hold-down.
    let free = |block: &u16| {
        !kept
            .iter()
            .flat_map(|l| &l.ranges)
            .any(|r| r.first / 64 <= *block && *block <= r.last / 64)
    };
    let ranges = (16..1024u16)
        .filter(free)
        .map(|block| PortRange {
            first: block * 64,
            last: block * 64 + 63,
        })
        .collect();
    record.leases.push(Lease {
        node: node_name("old"),
        ranges,
        epoch: 1,
        withdrawn: None,
        state: LeaseState::HoldDown,
        since_secs: scene.now,
    });
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    let plan = scene.settle();
    let policy = plan.policies.values().next().unwrap();
    assert!(
        policy
            .conditions
            .iter()
            .any(|c| c.kind == ConditionType::PortsExhausted && c.status)
    );
    assert!(!policy.ready);
    assert_eq!(
        plan.address_status[&ip(E)].exhausted,
        [node_name("worker3")].into()
    );
    assert_eq!(plan.address_status[&ip(E)].ports_free, 0);
    assert_eq!(state_of(&scene, "worker1"), Some(LeaseState::Active));
    scene.now += 120;
    let plan = scene.settle();
    assert!(
        plan.policies.values().all(|p| p.ready),
        "free again, granted"
    );
}

#[test]
fn a_small_change_changes_only_what_it_must() {
    let mut scene = kep_scene();
    scene.add_policy(egress("default", "second", &["192.0.2.9"]));
    scene.settle();
    let before = scene.snapshot.clone();
    scene.add_node("worker4", 4, "worker");
    scene.add_pod("a4", "worker4", 10, &[("app", "MyApp")]);
    scene.settle();
    for (address, old) in &before.addresses {
        let new = &scene.snapshot.addresses[address];
        for lease in &old.leases {
            assert!(new.leases.contains(lease), "{lease:?} changed");
        }
        assert_eq!(new.leases.len(), old.leases.len() + 1);
    }
    for (name, old) in &before.node_records {
        let new = &scene.snapshot.node_records[name];
        assert_eq!(
            (new.tunnel_index, &new.grants),
            (old.tunnel_index, &old.grants)
        );
    }
    let plan = scene.plan();
    assert_eq!(
        (plan.address_writes, plan.node_writes),
        (vec![], vec![]),
        "and then nothing"
    );
}

#[test]
fn the_epoch_counter_outlives_the_records() {
    let mut scene = kep_scene();
    scene.settle();
    let epoch = scene.snapshot.addresses[&ip(E)].epoch;
    // A gateway is down with an old table while the last policy is deleted.
    scene.snapshot.policies.clear();
    scene.control();
    let sleeper = node_name("gateway1");
    scene
        .snapshot
        .node_records
        .get_mut(&sleeper)
        .unwrap()
        .steering_version = epoch;
    for _ in 0..5 {
        let others: Vec<NodeName> = scene
            .snapshot
            .nodes
            .keys()
            .filter(|n| **n != sleeper)
            .cloned()
            .collect();
        others.iter().for_each(|node| scene.run_agent(node));
        scene.now += 200;
        scene.control();
    }
    let record = &scene.snapshot.addresses[&ip(E)];
    assert!(
        record.leases.is_empty() && record.epoch > epoch,
        "it carries the counter: {record:?}"
    );
    scene.settle();
    scene.settle();
    assert!(
        scene.snapshot.addresses.is_empty(),
        "every gateway has seen it: it goes"
    );
    scene.add_policy(egress("default", "new", &["192.0.2.9"]));
    let plan = scene.control();
    assert!(plan.addresses[&ip("192.0.2.9")].epoch >= 1);
}

#[test]
fn records_are_written_in_the_order_of_their_epochs() {
    let mut scene = kep_scene();
    for number in 1..20 {
        scene.add_policy(egress(
            "default",
            &format!("p{number}"),
            &[&format!("192.0.2.{number}")],
        ));
    }
    scene.settle();
    scene.snapshot.policies.retain(|p| p.object.name != "p3");
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    let plan = scene.plan();
    assert!(plan.address_writes.len() > 15);
    assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
    let epochs: Vec<u64> = plan
        .address_writes
        .iter()
        .map(|a| plan.addresses[a].epoch)
        .collect();
    assert!(epochs.is_sorted());
}

#[test]
fn another_gateway_for_an_address_renews_every_lease() {
    let mut scene = kep_scene();
    scene.snapshot.policies[0].gateway = Some(GatewayName("main".into()));
    let mut other = gateway("other");
    other.nodes = selector(&[("role", "worker")]);
    scene.snapshot.gateways.insert(other.name.clone(), other);
    scene.settle();
    let before = lease_of(&scene, "worker1").unwrap().clone();
    scene.snapshot.policies[0].gateway = Some(GatewayName("other".into()));
    scene.control();
    let after = lease_of(&scene, "worker1").unwrap();
    assert!(after.epoch > before.epoch && after.state == LeaseState::Granted);
    assert_eq!(after.ranges, before.ranges);
    let plan = scene.settle();
    assert!(plan.policies.values().all(|p| p.ready));
}

#[test]
fn a_tampered_record_is_mended_and_reported() {
    let mut scene = kep_scene();
    scene.settle();
    let record = scene.snapshot.addresses.get_mut(&ip(E)).unwrap();
    record.leases[1].ranges = record.leases[0].ranges.clone();
    record.leases[1].epoch += 0;
    let plan = scene.plan();
    assert_eq!(plan.findings.len(), 1, "{:?}", plan.findings);
    assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
    let _: &IpAddr = &plan.address_writes[0];
}
