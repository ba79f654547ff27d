//! Leases of nodes that vanish and come back, grow and shrink (design section 7, R1 to R5).

use crate::lease_scene::*;
use crate::scene::*;
use egret_core::check::check_plan;
use egret_core::condition::{Condition, ConditionType};
use egret_core::machines::answering_nodes;
use egret_core::model::*;
use egret_core::node::node_state;
use egret_core::plan::{ClusterPlan, PlanTime, plan};
use std::collections::BTreeMap;

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

fn fence(scene: &mut Scene, name: &str, reason: Option<&str>) {
    let node = scene.snapshot.nodes.get_mut(&node_name(name)).unwrap();
    node.maintenance.fence = reason.map(str::to_owned);
}

#[test]
fn a_fenced_worker_loses_its_ports_without_grace_and_comes_back_like_a_new_one() {
    let mut scene = kep_scene();
    settle(&mut scene);
    // Its agent is dead: what it reported last stays in its record.
    scene.dead.insert(node_name("worker1"));
    fence(&mut scene, "worker1", Some("its board is broken"));
    let planned = control(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    let spec = &planned.node_records[&node_name("worker1")];
    assert_eq!((spec.grants.len(), spec.draining.len()), (0, 0));
    let fenced = spec.fenced.clone().unwrap();
    assert_eq!(fenced.reason, "its board is broken");
    assert_eq!(fenced.since_secs, scene.now);
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    scene.now += 120;
    let planned = settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), []);
    let spec = &planned.node_records[&node_name("worker1")];
    assert_eq!(
        spec.fenced,
        Some(fenced),
        "since the first plan that saw it"
    );
    assert!(
        planned.address_status[&ip(E)].exhausted.is_empty(),
        "its pods ask for nothing"
    );
    // Its agent lives after all: it uses nothing.
    scene.dead.clear();
    settle(&mut scene);
    let state = &scene.outcome("worker1").state.worker;
    assert!(
        state
            .targets
            .values()
            .all(|target| target.ranges.is_empty())
    );
    fence(&mut scene, "worker1", None);
    let planned = settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Active]);
    assert_eq!(planned.node_records[&node_name("worker1")].fenced, None);
    assert_disjoint(&scene);
}

#[test]
fn a_fenced_gateway_is_not_waited_for_and_is_no_gateway_for_anybody() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.dead.insert(node_name("gateway2"));
    remove_node(&mut scene, "worker1");
    control(&mut scene);
    scene.now += 60;
    settle(&mut scene);
    scene.now += 10_000;
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    fence(&mut scene, "gateway2", Some("no power"));
    settle(&mut scene);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::HoldDown]);
    let index = scene.snapshot.node_records[&node_name("gateway2")].tunnel_index;
    let state = scene.outcome("worker2").state;
    assert!(!state.peers.contains_key(&index), "no next hop");
    // It lives after all.
    scene.dead.clear();
    assert_eq!(scene.outcome("gateway2").state.gateway, None);
    let inputs = scene.outcome("gateway1").state.gateway.unwrap();
    let live = scene.gateway_nodes();
    let (me, local) = (node_name("gateway1"), Default::default());
    let answering = answering_nodes(&scene.snapshot, &inputs, (&me, &local), &live);
    assert!(!answering[&ip(E)].contains(&node_name("gateway2")));
    // Unfenced, it counts again.
    fence(&mut scene, "gateway2", None);
    settle(&mut scene);
    assert!(scene.outcome("gateway2").state.gateway.is_some());
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
    assert_eq!(back[0].ranges, before[0].ranges);
    assert!(back[0].state.is_usable());
    assert!(
        back[0].epoch > before[0].epoch,
        "a gateway that knew no address of the node has steered nothing to it"
    );
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
