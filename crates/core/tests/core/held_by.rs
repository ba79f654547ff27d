//! An egress address that a Node or Service has itself: its own ports are never leased.

use crate::lease_scene::*;
use crate::scene::*;
use egret_core::check::{Rule, check_plan};
use egret_core::model::*;
use egret_core::plan::planner::Planner;
use proptest::prelude::*;

fn holder(ephemeral: (u16, u16), service_ports: &[u16]) -> HeldBy {
    HeldBy {
        holder: ObjectRef::of_cluster(Kind::Node, "worker3"),
        ephemeral: Some(ephemeral),
        node_ports: Some((30_000, 32_767)),
        service_ports: service_ports.iter().copied().collect(),
    }
}

/// Usable blocks of the address.
fn usable_blocks(scene: &Scene) -> PortBlocks {
    let leases = scene.snapshot.addresses[&ip(E)].leases.iter();
    let usable = leases.filter(|lease| lease.state.is_usable());
    PortBlocks::of(usable.flat_map(|lease| &lease.ranges))
}

#[test]
fn ports_of_the_holder_are_taken_before_anything_is_granted() {
    let mut scene = kep_scene();
    let held = holder((32_768, 60_999), &[2049]);
    scene.snapshot.held_by.insert(ip(E), held.clone());
    settle(&mut scene);
    record(&mut scene, "worker1")
        .wanted_ports
        .insert(ip(E), 64_512);
    let planned = settle(&mut scene);
    assert!(usable(&scene, "worker1") > 20_000, "the rest is used");
    assert!(
        usable_blocks(&scene)
            .intersection(&held.reserved())
            .is_empty()
    );
    let status = &planned.address_status[&ip(E)];
    let all = 64_512 - held.reserved().ports();
    assert!(status.ports_leased + status.ports_free <= all, "{status:?}");
}

#[test]
fn ports_that_become_the_holders_are_withdrawn_and_drain_first() {
    let mut scene = kep_scene();
    settle(&mut scene);
    record(&mut scene, "worker1")
        .wanted_ports
        .insert(ip(E), 64_512);
    settle(&mut scene);
    scene.busy.insert((node_name("worker1"), ip(E)));
    let held = holder((32_768, 60_999), &[]);
    scene.snapshot.held_by.insert(ip(E), held.clone());
    settle(&mut scene);
    assert!(
        usable_blocks(&scene)
            .intersection(&held.reserved())
            .is_empty()
    );
    assert!(states_of(&scene, "worker1").contains(&LeaseState::Draining));
    assert!(usable(&scene, "worker1") > 20_000, "the others stay");
    // Its flows end; after the hold-down nothing of the holder's is leased again.
    scene.busy.clear();
    for _ in 0..3 {
        settle(&mut scene);
        scene.now += 121;
    }
    settle(&mut scene);
    assert!(
        usable_blocks(&scene)
            .intersection(&held.reserved())
            .is_empty()
    );
    assert!(!states_of(&scene, "worker1").contains(&LeaseState::Draining));
}

#[test]
fn an_address_whose_holder_needs_all_ports_is_leased_to_nobody_and_does_not_flap() {
    let mut scene = kep_scene();
    settle(&mut scene);
    scene
        .snapshot
        .held_by
        .insert(ip(E), holder((1024, 65_535), &[]));
    let planned = settle(&mut scene);
    assert!(usable_blocks(&scene).is_empty());
    assert!(!planned.address_status[&ip(E)].exhausted.is_empty());
}

#[test]
fn a_leased_port_of_the_holder_is_seen_by_the_checker() {
    let mut scene = kep_scene();
    settle(&mut scene);
    let planned = scene.plan();
    let first = planned.addresses[&ip(E)].leases[0].ranges[0].first;
    scene
        .snapshot
        .held_by
        .insert(ip(E), holder((1, 2), &[first + 5]));
    let found = check_plan(&scene.snapshot, &planned, scene.time());
    assert!(
        found.iter().any(|one| one.rule == Rule::PortReserved),
        "{found:?}"
    );
    assert_eq!(check_plan(&scene.snapshot, &scene.plan(), scene.time()), []);
}

#[test]
fn that_an_address_is_a_nodes_or_a_balancers_still_refuses_it() {
    let mut scene = kep_scene();
    let node = scene.snapshot.nodes.get_mut(&node_name("worker3")).unwrap();
    node.addresses.push(ip(E));
    scene
        .snapshot
        .held_by
        .insert(ip(E), holder((32_768, 60_999), &[]));
    let planned = scene.plan();
    assert!(
        planned
            .policies
            .values()
            .all(|policy| policy.refusal.is_some())
    );
}

proptest! {
    #![proptest_config(cases(48))]

    /// Property: for any holder and any demand, no lease in which flows may be opened has a port of the holder, and the
    /// incremental planner agrees.
    #[test]
    fn no_port_of_a_holder_is_ever_leased(
        steps in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), 0u32..64_513), 1..8),
    ) {
        let mut scene = kep_scene();
        settle(&mut scene);
        let mut planner = Planner::new(scene.snapshot.clone(), scene.time());
        for (first, last, port, wanted) in steps {
            scene.snapshot.held_by.insert(ip(E), holder((first, last), &[port]));
            record(&mut scene, "worker1").wanted_ports.insert(ip(E), wanted);
            scene.now += 61;
            planner.follow(scene.snapshot.clone(), scene.time());
            let planned = scene.plan();
            prop_assert_eq!(planner.plan(), &planned);
            prop_assert_eq!(check_plan(&scene.snapshot, &planned, scene.time()), []);
            scene.control();
            scene.run_agents();
        }
    }
}
