//! Leases where records were deleted, edited or restored, reports are late or false, and clocks differ (the faults C1 to C6 and
//! E2 of the control plane).

use crate::lease_scene::*;
use crate::scene::*;
use egret_core::model::*;
use std::collections::{BTreeMap, BTreeSet};

/// C1: the agent's word about an earlier epoch says nothing about a grant that it has not seen.
#[test]
fn silence_about_a_grant_is_no_proof_that_it_is_unused() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    scene.control();
    // The worker applies its grant; its report is on the way.
    let worker = node_name("worker3");
    let said = scene.snapshot.node_records[&worker].clone();
    for gateway in ["gateway1", "gateway2", "gateway3"] {
        scene.run_agent(&node_name(gateway));
    }
    scene.run_agent(&worker);
    let reported = std::mem::replace(record(&mut scene, "worker3"), said);
    remove_pod(&mut scene, "a3");
    scene.control();
    scene.now += 1_000;
    scene.control();
    scene.control();
    assert_eq!(states_of(&scene, "worker3"), [LeaseState::Draining]);
    // The late report is about the grant, not about the withdrawal.
    let late = record(&mut scene, "worker3");
    (late.held, late.acknowledged) = (reported.held, reported.acknowledged);
    scene.control();
    assert_eq!(states_of(&scene, "worker3"), [LeaseState::Draining]);
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker3"), [LeaseState::HoldDown]);
}

/// C2: what nodes have counts as taken, whatever became of the record.
#[test]
fn a_deleted_record_gives_no_port_in_use_to_anybody_else() {
    let mut scene = Scene::new(40, 3);
    scene.add_policy(egress("default", "my-app", &[E]));
    for number in 1..=30 {
        scene.add_pod(
            &format!("a{number}"),
            &format!("worker{number}"),
            10,
            &[("app", "MyApp")],
        );
        settle(&mut scene);
    }
    let before: BTreeMap<NodeName, Vec<PortRange>> = scene.snapshot.addresses[&ip(E)]
        .leases
        .iter()
        .map(|lease| (lease.node.clone(), lease.ranges.clone()))
        .collect();
    let epoch = scene.snapshot.addresses[&ip(E)].epoch;
    scene.snapshot.addresses.remove(&ip(E));
    for number in 31..=40 {
        scene.add_pod(
            &format!("a{number}"),
            &format!("worker{number}"),
            10,
            &[("app", "MyApp")],
        );
    }
    control(&mut scene);
    let record = &scene.snapshot.addresses[&ip(E)];
    assert!(record.epoch > epoch);
    let blocks = |ranges: &[PortRange]| -> BTreeSet<u16> {
        ranges
            .iter()
            .flat_map(|r| r.first / 64..=r.last / 64)
            .collect()
    };
    for (node, ranges) in &before {
        let mine = record.leases.iter().filter(|lease| lease.node == *node);
        let mine: Vec<PortRange> = mine.flat_map(|lease| lease.ranges.clone()).collect();
        assert_eq!(blocks(&mine), blocks(ranges), "{node}");
    }
    assert_eq!(record.leases.len(), 40);
    settle(&mut scene);
    assert_disjoint(&scene);
}

/// R3: which ports rest is written twice, so that nobody gets them early, whoever leads.
#[test]
fn a_deleted_record_does_not_forget_which_ports_rest() {
    let mut scene = kep_scene();
    settle(&mut scene);
    remove_pod(&mut scene, "a1");
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    let rested = leases_of(&scene, "worker1")[0].ranges.clone();
    scene.now += 60;
    scene.term += 1;
    scene.snapshot.addresses.remove(&ip(E));
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    control(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    let others = ["worker2", "worker3"].map(|node| usable(&scene, node));
    assert_eq!(others, [1024, 1024], "what is free is granted at once");
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    let now = &leases_of(&scene, "worker1")[0].ranges;
    assert_eq!(PortBlocks::of(now), PortBlocks::of(&rested));
    scene.now += 119;
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    scene.now += 1;
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), []);
    let record = &scene.snapshot.node_records[&node_name("worker1")];
    assert_eq!(record.resting, []);
}

/// P4: of an address and a worker whose records were deleted together, only the worker knows what it has.
#[test]
fn an_address_and_a_node_whose_records_are_deleted_together_give_nothing_away() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let worker = node_name("worker1");
    let has = scene.snapshot.node_records[&worker].clone();
    scene.snapshot.addresses.remove(&ip(E));
    scene.snapshot.node_records.remove(&worker);
    scene.term += 1;
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    // worker1 is cut off from the API.
    scene.dead.insert(worker.clone());
    let all_but_one = |scene: &mut Scene| {
        for _ in 0..6 {
            control(scene);
            scene.run_agents();
        }
    };
    all_but_one(&mut scene);
    assert!(scene.snapshot.addresses[&ip(E)].restored.is_some());
    assert_eq!(states_of(&scene, "worker2"), [LeaseState::Active]);
    let granted = |scene: &Scene| ["worker1", "worker3"].map(|node| usable(scene, node));
    assert_eq!(granted(&scene), [0, 0], "its ports may be any");
    // It is back, and says what it holds: that is its own again.
    scene.now += 60;
    let record = record(&mut scene, "worker1");
    (record.held, record.acknowledged) = (has.held, has.acknowledged);
    record.underlay_addresses = has.underlay_addresses;
    scene.dead.clear();
    settle(&mut scene);
    assert_eq!(granted(&scene), [1024, 0], "others' ports may rest");
    let now = &scene.snapshot.node_records[&worker].grants[0].ranges;
    assert_eq!(PortBlocks::of(now), PortBlocks::of(&has.grants[0].ranges));
    scene.now += 60;
    settle(&mut scene);
    assert_eq!(granted(&scene), [1024, 1024]);
    assert_disjoint(&scene);
}

/// A worker that stays silent has nothing only if every gateway drops what it sends.
#[test]
fn after_a_deletion_a_silent_node_is_waited_for_until_every_gateway_drops_what_it_sends() {
    let mut scene = kep_scene();
    settle(&mut scene);
    for node in ["worker1", "gateway2"] {
        scene.dead.insert(node_name(node));
    }
    scene.snapshot.addresses.remove(&ip(E));
    scene.snapshot.node_records.remove(&node_name("worker1"));
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    for _ in 0..5 {
        control(&mut scene);
        scene.run_agents();
        scene.now += 60;
    }
    assert_eq!(usable(&scene, "worker3"), 0, "gateway2 has its old table");
    scene.dead.remove(&node_name("gateway2"));
    let all_but_one = |scene: &mut Scene| {
        for _ in 0..3 {
            control(scene);
            scene.run_agents();
        }
    };
    all_but_one(&mut scene);
    assert_eq!(usable(&scene, "worker3"), 0, "the old ports rest");
    scene.now += 120;
    all_but_one(&mut scene);
    assert_eq!(usable(&scene, "worker3"), 1024);
}

#[test]
fn a_new_address_of_a_cluster_in_use_is_granted_at_once() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.add_policy(egress("default", "other", &["192.168.122.223"]));
    control(&mut scene);
    let record = &scene.snapshot.addresses[&ip("192.168.122.223")];
    assert_eq!(record.restored, None);
}

/// C3: a store that was restored from a backup.
#[test]
fn after_a_restored_backup_nobody_gets_what_another_uses_and_epochs_go_on() {
    let mut scene = Scene::new(40, 3);
    scene.add_policy(egress("default", "my-app", &[E]));
    for number in 1..=20 {
        scene.add_pod(
            &format!("a{number}"),
            &format!("worker{number}"),
            10,
            &[("app", "MyApp")],
        );
    }
    settle(&mut scene);
    let backup = scene.snapshot.clone();
    for number in 1..=20 {
        remove_pod(&mut scene, &format!("a{number}"));
        scene.add_pod(
            &format!("b{number}"),
            &format!("worker{}", number + 20),
            10,
            &[("app", "MyApp")],
        );
    }
    for _ in 0..4 {
        settle(&mut scene);
        scene.now += 130;
    }
    let used = scene.snapshot.clone();
    let epoch = used.addresses[&ip(E)].epoch;
    // Pods are real; records are those of the backup.
    scene.snapshot.addresses = backup.addresses.clone();
    scene.snapshot.node_records = backup.node_records;
    // Agents say what they hold, as soon as they see that their records went back.
    for (node, record) in &used.node_records {
        let now = scene.snapshot.node_records.get_mut(node).unwrap();
        (now.held, now.acknowledged) = (record.held.clone(), record.acknowledged);
        now.steering_version = record.steering_version;
    }
    control(&mut scene);
    let record = &scene.snapshot.addresses[&ip(E)];
    assert!(record.epoch > epoch, "{} after {epoch}", record.epoch);
    assert!(
        record.restored.is_some(),
        "nothing is granted until everybody has spoken"
    );
    assert!(
        record
            .leases
            .iter()
            .all(|l| l.epoch > epoch || l.state == LeaseState::HoldDown)
    );
    // Everybody has said what it holds; which ports rest, nobody knows.
    settle(&mut scene);
    scene.now += 119;
    settle(&mut scene);
    assert_disjoint(&scene);
    assert!(scene.snapshot.addresses[&ip(E)].restored.is_some());
    scene.now += 1;
    settle(&mut scene);
    assert_disjoint(&scene);
    assert_eq!(scene.snapshot.addresses[&ip(E)].restored, None);
    let ready = scene.plan().policies.values().all(|p| p.ready);
    assert!(ready, "and then all goes on");
}

/// C3: the workers' records say nothing of it, for example because ports that rest have no grant.
#[test]
fn a_gateway_with_a_newer_table_shows_that_the_store_has_gone_back() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let before = scene.snapshot.addresses[&ip(E)].clone();
    let table = before.epoch + 1;
    record(&mut scene, "gateway1").steering_version = table;
    record(&mut scene, "worker3").newer_tables = [(ip(E), table)].into();
    control(&mut scene);
    let now = &scene.snapshot.addresses[&ip(E)];
    assert_eq!(
        (now.epoch, now.restored),
        (before.epoch, None),
        "no gateway of it"
    );
    record(&mut scene, "gateway1").newer_tables = [(ip(E), table)].into();
    control(&mut scene);
    let now = &scene.snapshot.addresses[&ip(E)];
    assert!(now.epoch > table, "so that the gateway takes it");
    assert!(now.leases.iter().all(|lease| lease.epoch == now.epoch));
    assert!(now.restored.is_some(), "it may lack leases");
}

/// C4: a record of a node that was deleted says nothing, until the node speaks again.
#[test]
fn a_node_record_that_is_made_anew_proves_nothing() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.busy.insert((node_name("worker1"), ip(E)));
    remove_pod(&mut scene, "a1");
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Draining]);
    scene.snapshot.node_records.remove(&node_name("worker1"));
    for _ in 0..3 {
        control(&mut scene);
        scene.now += 200;
    }
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Draining]);
    settle(&mut scene);
    assert_eq!(
        states_of(&scene, "worker1"),
        [LeaseState::Draining],
        "it has connections"
    );
    scene.busy.clear();
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    // Whoever holds a block that rests begins its rest again.
    scene.now += 100;
    let ranges = leases_of(&scene, "worker1")[0].ranges.clone();
    record(&mut scene, "worker1").held.insert(ip(E), ranges);
    control(&mut scene);
    assert_eq!(leases_of(&scene, "worker1")[0].since_secs, scene.now);
}

/// C5: times are counted by the leader that leads, never compared between clocks.
#[test]
fn a_leader_with_another_clock_counts_a_hold_down_anew() {
    for skew in [121, 86_400, -86_400] {
        let mut scene = kep_scene();
        settle(&mut scene);
        remove_pod(&mut scene, "a1");
        settle(&mut scene);
        scene.now += 60 + skew;
        scene.term += 1;
        settle(&mut scene);
        assert_eq!(
            states_of(&scene, "worker1"),
            [LeaseState::HoldDown],
            "skew {skew}"
        );
        scene.now += 119;
        settle(&mut scene);
        assert_eq!(
            states_of(&scene, "worker1"),
            [LeaseState::HoldDown],
            "skew {skew}"
        );
        scene.now += 1;
        settle(&mut scene);
        assert_eq!(states_of(&scene, "worker1"), [], "skew {skew}");
    }
}

/// C6: what a record loses by mending is not free.
#[test]
fn the_rest_of_a_tampered_lease_is_not_free() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let all = leases_of(&scene, "worker2")[0].ranges.clone();
    let taken = leases_of(&scene, "worker1")[0].ranges[0];
    let tampered = scene.snapshot.addresses.get_mut(&ip(E)).unwrap();
    tampered.leases[1].ranges[0] = taken;
    scene.control();
    let mine: Vec<PortRange> = leases_of(&scene, "worker2")
        .iter()
        .flat_map(|l| l.ranges.clone())
        .collect();
    for range in &all {
        let kept = mine
            .iter()
            .any(|r| r.first <= range.first && range.last <= r.last);
        assert!(kept, "{range} is free, and worker2 uses it: {mine:?}");
    }
}

/// E2: one node cannot wear the counter of epochs out.
#[test]
fn an_epoch_that_no_agent_can_know_is_not_believed() {
    let mut scene = kep_scene();
    settle(&mut scene);
    record(&mut scene, "worker1").steering_version = (1 << 63) - 1;
    record(&mut scene, "worker1").acknowledged = (1 << 63) - 1;
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    let planned = control(&mut scene);
    let found = planned
        .findings
        .iter()
        .filter(|f| f.object.name == "worker1");
    assert_eq!(found.count(), 2, "{:?}", planned.findings);
    let epoch = scene.snapshot.addresses[&ip(E)].epoch;
    assert!(epoch < 1_000, "{epoch}");
}
