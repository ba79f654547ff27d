//! Leases of nodes that vanish, grow, shrink and disagree with the records (design section 7, R1 to R5).

use crate::scene::*;
use egret_core::check::check_plan;
use egret_core::condition::{Condition, ConditionType};
use egret_core::model::*;
use egret_core::node::node_state;
use egret_core::plan::{ClusterPlan, PlanTime, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const E: &str = "192.168.122.222";

fn leases_of(scene: &Scene, node: &str) -> Vec<Lease> {
    let record = &scene.snapshot.addresses[&ip(E)];
    let mine = record.leases.iter().filter(|l| l.node.0 == node);
    mine.cloned().collect()
}

fn states_of(scene: &Scene, node: &str) -> Vec<LeaseState> {
    leases_of(scene, node).iter().map(|l| l.state).collect()
}

fn ports(ranges: &[PortRange]) -> u32 {
    let sizes = ranges.iter().map(|r| u32::from(r.last - r.first) + 1);
    sizes.sum()
}

/// Ports in which the node may open flows.
fn usable(scene: &Scene, node: &str) -> u32 {
    let leases = leases_of(scene, node);
    let usable = leases.iter().filter(|lease| lease.state.is_usable());
    usable.map(|lease| ports(&lease.ranges)).sum()
}

fn record<'s>(scene: &'s mut Scene, node: &str) -> &'s mut NodeRecord {
    let records = &mut scene.snapshot.node_records;
    records.get_mut(&node_name(node)).unwrap()
}

fn remove_pod(scene: &mut Scene, name: &str) {
    let key = ("default".to_owned(), name.to_owned());
    assert!(scene.snapshot.pods.remove(&key).is_some());
}

fn remove_node(scene: &mut Scene, name: &str) -> Node {
    let name = node_name(name);
    scene.snapshot.pods.retain(|_, pod| pod.node != name);
    let node = scene.snapshot.nodes.remove(&name).unwrap();
    std::sync::Arc::unwrap_or_clone(node)
}

/// Plans, lets the checker look, and writes.
fn control(scene: &mut Scene) -> ClusterPlan {
    let planned = scene.plan();
    assert_eq!(check_plan(&scene.snapshot, &planned, scene.time()), []);
    scene.control()
}

/// The same with all agents, until nothing changes.
fn settle(scene: &mut Scene) -> ClusterPlan {
    for _ in 0..40 {
        let before = scene.snapshot.clone();
        let planned = control(scene);
        scene.run_agents();
        if scene.snapshot == before {
            return planned;
        }
    }
    panic!("controller and agents never come to rest");
}

/// No two nodes may open flows in one block.
fn assert_disjoint(scene: &Scene) {
    let mut owners: BTreeMap<(IpAddr, u16), &NodeName> = BTreeMap::new();
    for (node, outcome) in &scene.applied {
        for target in outcome.state.worker.targets.values() {
            let ranges = target.ranges.iter();
            for block in ranges.flat_map(|range| range.first / 64..=range.last / 64) {
                let other = owners.insert((target.address, block), node);
                assert!(
                    other.is_none_or(|o| o == node),
                    "{block}: {other:?} and {node}"
                );
            }
        }
    }
}

#[test]
fn a_vanished_node_gives_its_ports_back_after_grace_fence_and_hold_down() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let free = scene.plan().address_status[&ip(E)].ports_free;
    remove_node(&mut scene, "worker1");
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Vanished]);
    let steered = |scene: &Scene| {
        let gateway = scene.outcome("gateway1").state.gateway.unwrap();
        gateway.addresses[&ip(E)].blocks.len()
    };
    assert_eq!(
        steered(&scene),
        32,
        "its flows go on in case that it comes back"
    );
    scene.now += 60;
    // One gateway is dead: it may come back with its old table.
    scene.dead.insert(node_name("gateway2"));
    control(&mut scene);
    scene.run_agents();
    control(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    assert_eq!(steered(&scene), 16, "gateways drop what it sends");
    scene.now += 10_000;
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    // Its Node goes, so it carries nothing any more.
    remove_node(&mut scene, "gateway2");
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    scene.now += 119;
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    scene.now += 1;
    let planned = settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), []);
    assert!(!planned.node_records.contains_key(&node_name("worker1")));
    assert_eq!(planned.address_status[&ip(E)].ports_free, free + 1024);
}

#[test]
fn a_node_that_comes_back_within_the_grace_keeps_everything_and_later_nothing() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let before = leases_of(&scene, "worker1");
    let pods = scene.snapshot.pods.clone();
    let node = remove_node(&mut scene, "worker1");
    settle(&mut scene);
    scene.now += 59;
    settle(&mut scene);
    scene.snapshot.nodes.insert(node.name.clone(), node.clone());
    scene.snapshot.pods = pods.clone();
    control(&mut scene);
    let back = leases_of(&scene, "worker1");
    assert_eq!(
        (&back[0].ranges, back[0].epoch),
        (&before[0].ranges, before[0].epoch)
    );
    assert!(back[0].state.is_usable(), "gateways steer it all the time");
    settle(&mut scene);

    remove_node(&mut scene, "worker1");
    settle(&mut scene);
    scene.now += 60;
    settle(&mut scene);
    // Back with its old kernel: it has told nobody that it holds nothing.
    scene.snapshot.nodes.insert(node.name.clone(), node);
    scene.snapshot.pods = pods;
    control(&mut scene);
    let after = leases_of(&scene, "worker1");
    let usable: Vec<&Lease> = after.iter().filter(|l| l.state.is_usable()).collect();
    assert_eq!(usable.len(), 1, "{after:?}");
    assert_ne!(
        usable[0].ranges, before[0].ranges,
        "other ports than those that were fenced"
    );
    scene.now += 120;
    control(&mut scene);
    let resting = leases_of(&scene, "worker1");
    let resting = resting.iter().find(|l| l.ranges == before[0].ranges);
    assert_eq!(
        resting.map(|l| l.state),
        Some(LeaseState::HoldDown),
        "it still says that it holds them"
    );
    settle(&mut scene);
    assert_disjoint(&scene);
    scene.now += 120;
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Active]);
}

#[test]
fn nodes_come_and_go_through_one_address_for_ever() {
    let mut scene = kep_scene();
    settle(&mut scene);
    for number in 0..300u32 {
        let name = format!("spot{number}");
        scene.add_node(&name, 50, "worker");
        scene.add_pod(&name, &name, 10, &[("app", "MyApp")]);
        let planned = control(&mut scene);
        let exhausted = &planned.address_status[&ip(E)].exhausted;
        assert!(exhausted.is_empty(), "node {number} is refused");
        scene.run_agents();
        control(&mut scene);
        assert!(usable(&scene, &name) >= 64, "node {number} has no ports");
        remove_node(&mut scene, &name);
        scene.applied.remove(&node_name(&name));
        scene.now += 5;
    }
    for _ in 0..3 {
        scene.now += 200;
        settle(&mut scene);
    }
    let leases = &scene.snapshot.addresses[&ip(E)].leases;
    assert!(
        leases
            .iter()
            .all(|l| scene.snapshot.nodes.contains_key(&l.node)),
        "{leases:?}"
    );
}

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
    settle(&mut scene);
    assert_disjoint(&scene);
    assert_eq!(scene.snapshot.addresses[&ip(E)].restored, None);
    let ready = scene.plan().policies.values().all(|p| p.ready);
    assert!(ready, "and then all goes on");
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

#[test]
fn first_grants_are_sized_by_the_workers_of_the_address() {
    let mut scene = kep_scene();
    for number in 0..250u32 {
        scene.add_node(&format!("other{number}"), 50, "worker");
    }
    settle(&mut scene);
    assert_eq!(
        (usable(&scene, "worker1"), usable(&scene, "worker2")),
        (1024, 1024)
    );
}

#[test]
fn a_worker_that_wants_more_gets_more_and_gives_it_back_when_it_is_idle() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let first = leases_of(&scene, "worker1")[0].clone();
    record(&mut scene, "worker1")
        .wanted_ports
        .insert(ip(E), 16_384);
    settle(&mut scene);
    assert_eq!(usable(&scene, "worker1"), 16_384);
    assert!(leases_of(&scene, "worker1").contains(&Lease {
        state: LeaseState::Active,
        ..first.clone()
    }));
    assert_eq!(usable(&scene, "worker2"), 1024);
    let outcome = scene.outcome("worker1");
    let targets = outcome.state.worker.targets.values();
    assert_eq!(
        targets.map(|t| ports(&t.ranges)).max(),
        Some(16_384),
        "usable at once"
    );
    // A little less is no reason to give anything back, and neither is a restart of the controller.
    record(&mut scene, "worker1")
        .wanted_ports
        .insert(ip(E), 10_000);
    scene.term += 1;
    settle(&mut scene);
    assert_eq!(usable(&scene, "worker1"), 16_384);
    record(&mut scene, "worker1").wanted_ports.remove(&ip(E));
    settle(&mut scene);
    assert_eq!(usable(&scene, "worker1"), 1024);
    scene.now += 120;
    settle(&mut scene);
    assert_eq!(
        leases_of(&scene, "worker1").len(),
        1,
        "{:?}",
        leases_of(&scene, "worker1")
    );
}

#[test]
fn one_worker_gets_nearly_the_whole_address_and_others_still_find_some() {
    let mut scene = kep_scene();
    settle(&mut scene);
    record(&mut scene, "worker1")
        .wanted_ports
        .insert(ip(E), 64_512);
    settle(&mut scene);
    assert!(
        usable(&scene, "worker1") > 60_000,
        "{}",
        usable(&scene, "worker1")
    );
    let planned = settle(&mut scene);
    let low =
        |conditions: &[Condition]| conditions.iter().any(|c| c.kind == ConditionType::PortsLow);
    assert!(low(&planned.address_status[&ip(E)].conditions));
    assert!(
        planned
            .policies
            .values()
            .all(|policy| low(&policy.conditions))
    );
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    // What is scarce comes back from the one that has more than its share.
    for _ in 0..3 {
        settle(&mut scene);
        scene.now += 121;
    }
    settle(&mut scene);
    assert!(usable(&scene, "worker3") >= 64);
    assert_disjoint(&scene);
}

/// Growth of a cluster: each worker that comes finds ports, up to one block each.
#[test]
fn three_hundred_workers_one_by_one_find_ports() {
    let mut scene = Scene::new(0, 1);
    scene.add_policy(egress("default", "my-app", &[E]));
    let mut refused = 0u32;
    for number in 0..300u32 {
        let name = format!("w{number}");
        scene.add_node(&name, 50, "worker");
        scene.add_pod(&name, &name, 10, &[("app", "MyApp")]);
        let planned = scene.control();
        refused += u32::try_from(planned.address_status[&ip(E)].exhausted.len()).unwrap();
        quick_agents(&mut scene, &planned);
        scene.now += 30;
    }
    for _ in 0..4 {
        let planned = scene.control();
        quick_agents(&mut scene, &planned);
        scene.now += 121;
    }
    let planned = control(&mut scene);
    assert!(planned.address_status[&ip(E)].exhausted.is_empty());
    assert_eq!(refused, 0, "refused for a while");
}

/// Agents that only acknowledge: hundreds of node states per step take long.
fn quick_agents(scene: &mut Scene, planned: &ClusterPlan) {
    let nodes: Vec<NodeName> = planned.node_writes.clone();
    for node in &nodes {
        let Some(record) = scene.snapshot.node_records.get_mut(node) else {
            continue;
        };
        record.underlay_addresses = vec![ip("192.168.122.50")];
        record.acknowledged = record.grants_epoch;
        record.held = BTreeMap::new();
        let grants = record.grants.clone();
        for grant in grants {
            record
                .held
                .entry(grant.address)
                .or_default()
                .extend(&grant.ranges);
        }
    }
    let epoch = scene
        .snapshot
        .addresses
        .values()
        .map(|r| r.epoch)
        .max()
        .unwrap();
    let gateway = scene
        .snapshot
        .node_records
        .get_mut(&node_name("gateway1"))
        .unwrap();
    gateway.underlay_addresses = vec![ip("192.168.122.101")];
    gateway.steering_version = epoch;
}

#[test]
fn a_plan_without_a_term_frees_nothing() {
    let mut scene = kep_scene();
    settle(&mut scene);
    remove_pod(&mut scene, "a1");
    settle(&mut scene);
    let time = PlanTime::of_no_term(scene.now + 10_000);
    let planned = plan(&scene.snapshot, time);
    assert_eq!(check_plan(&scene.snapshot, &planned, time), []);
    assert_eq!(planned.addresses[&ip(E)].leases.len(), 2);
    let node = node_name("worker2");
    assert!(node_state(&scene.snapshot, &scene.facts(&node), &node).is_ok());
}
