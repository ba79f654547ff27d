//! Somebody deletes the `EgressNode` of a gateway whose program goes on to forward while its agent does not run, or the
//! records of a node and an address more than once: nobody can ask for what is lost.

use crate::lease_scene::*;
use crate::scene::*;
use egret_core::model::*;

fn fence(scene: &mut Scene, name: &str) {
    let name = node_name(name);
    let mut node = scene.snapshot.nodes[&name].clone();
    node.maintenance.fence = Some("it is off".into());
    scene.snapshot.nodes.insert(name, node);
}

/// All agents run but those of `dead` nodes, four rounds in each minute.
fn pass(scene: &mut Scene, minutes: i64) {
    for _ in 0..minutes {
        for _ in 0..4 {
            control(scene);
            scene.run_agents();
        }
        scene.now += 60;
    }
}

/// P4: the old worker may still reach such a gateway, which lets it through.
#[test]
fn ports_of_a_gone_node_wait_for_a_gateway_without_a_report() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.dead.insert(node_name("gateway1"));
    scene.dead.insert(node_name("worker1"));
    scene.snapshot.node_records.remove(&node_name("gateway1"));
    remove_node(&mut scene, "worker1");
    pass(&mut scene, 60);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    let plan = control(&mut scene);
    let found = plan.findings.iter();
    let mut found = found.filter(|finding| finding.object.name == "gateway1");
    let finding = found.next().expect("what is waited for is named");
    assert!(finding.remedy.contains("fence"), "{finding:?}");
    fence(&mut scene, "gateway1");
    pass(&mut scene, 4);
    assert_eq!(states_of(&scene, "worker1"), []);
}

#[test]
fn ports_of_a_gone_node_wait_no_longer_once_the_agent_reports() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.dead.insert(node_name("gateway1"));
    scene.snapshot.node_records.remove(&node_name("gateway1"));
    remove_node(&mut scene, "worker1");
    pass(&mut scene, 10);
    assert_eq!(states_of(&scene, "worker1"), [LeaseState::Fenced]);
    scene.dead.clear();
    pass(&mut scene, 4);
    assert_eq!(states_of(&scene, "worker1"), []);
}

/// A gateway that was there before the first lease, and never had an agent, has no tables.
#[test]
fn a_gateway_that_never_had_an_agent_keeps_no_ports() {
    let mut scene = Scene::new(3, 3);
    scene.dead.insert(node_name("gateway1"));
    control(&mut scene);
    scene.add_policy(egress("default", "my-app", &[E]));
    scene.add_pod("a1", "worker1", 10, &[("app", "MyApp")]);
    scene.add_pod("a2", "worker2", 10, &[("app", "MyApp")]);
    pass(&mut scene, 1);
    remove_node(&mut scene, "worker1");
    pass(&mut scene, 6);
    assert_eq!(states_of(&scene, "worker1"), []);
}

/// R2: a gateway with an old table would claim leases of an epoch that is used twice.
#[test]
fn no_epoch_is_used_twice_after_the_last_address_and_a_gateways_record_are_gone() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene.snapshot.policies = Vec::new().into();
    for _ in 0..4 {
        settle(&mut scene);
        scene.now += 120;
    }
    assert!(scene.snapshot.addresses.is_empty(), "nobody uses it");
    let versions = scene.snapshot.node_records.values();
    let reached = versions.map(|record| record.steering_version).max();
    for gateway in ["gateway1", "gateway2", "gateway3"] {
        // Its agent does not run, so it does not report the epoch again.
        scene.dead.insert(node_name(gateway));
        let name = node_name(gateway);
        scene.snapshot.node_records.remove(&name);
        control(&mut scene);
    }
    scene.add_policy(egress("default", "my-app", &[E]));
    control(&mut scene);
    let epoch = scene.snapshot.addresses[&ip(E)].epoch;
    assert!(
        Some(epoch) > reached,
        "{epoch} was used before: {reached:?}"
    );
}

/// P4: the worker's agent reports nothing at all, and the mark of the forgotten record is deleted too.
#[test]
fn a_record_that_is_deleted_once_more_gives_nothing_away() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let had = PortBlocks::of(&leases_of(&scene, "worker1")[0].ranges);
    scene.dead.insert(node_name("worker1"));
    scene.snapshot.addresses.remove(&ip(E));
    scene.snapshot.node_records.remove(&node_name("worker1"));
    control(&mut scene);
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    for _ in 0..3 {
        scene.snapshot.addresses.remove(&ip(E));
        for _ in 0..4 {
            control(&mut scene);
            scene.run_agents();
        }
        let others = leases_of(&scene, "worker3");
        assert_eq!(others, [], "the ports of worker1 may be any");
        let mine = leases_of(&scene, "worker1");
        let mine = PortBlocks::of(mine.iter().flat_map(|lease| &lease.ranges));
        assert!(had.difference(&mine).is_empty());
        scene.now += 10;
    }
    scene.now += 120;
    settle(&mut scene);
    assert!(usable(&scene, "worker3") > 0, "they have rested");
}
