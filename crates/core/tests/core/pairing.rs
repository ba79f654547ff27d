//! Which of several addresses a pod uses: new pods avoid one that is nearly full, and pods that run never move.

use crate::scene::*;
use egret_core::check::check_plan;
use egret_core::model::*;
use egret_core::node::{NodeOutcome, PodPairings, Verdict};
use egret_core::plan::ClusterPlan;
use egret_core::plan::planner::Planner;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const ALL: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];

/// The IPv4 address that each pod of the node leaves by, by the pod's own address.
fn used(outcome: &NodeOutcome) -> BTreeMap<IpAddr, IpAddr> {
    let worker = &outcome.state.worker;
    let pods = worker.pods.iter().filter(|(pod, _)| pod.is_ipv4());
    let address =
        |(pod, profile): (&IpAddr, &egret_core::node::ProfileId)| -> Option<(IpAddr, IpAddr)> {
            let first = worker.profiles[profile].ranges.first()?;
            let Verdict::Target(id) = first.verdict else {
                return None;
            };
            Some((*pod, worker.targets[&id].address))
        };
    pods.filter_map(address).collect()
}

fn scene(addresses: &[&str]) -> Scene {
    let mut scene = Scene::new(2, 2);
    scene.add_policy(egress("default", "p", addresses));
    for number in 10..30 {
        add(&mut scene, number);
    }
    scene
}

fn add(scene: &mut Scene, number: u8) {
    scene.add_pod(
        &format!("pod{number}"),
        "worker1",
        number,
        &[("app", "MyApp")],
    );
}

fn settle(scene: &mut Scene) -> ClusterPlan {
    let planned = scene.settle();
    assert_eq!(check_plan(&scene.snapshot, &planned, scene.time()), []);
    planned
}

fn wants(scene: &mut Scene, node: &str, address: &str, ports: u32) {
    let record = scene.snapshot.node_records.get_mut(&node_name(node));
    record.unwrap().wanted_ports.insert(ip(address), ports);
}

fn crowded(planned: &ClusterPlan) -> Vec<IpAddr> {
    planned.policies.values().next().unwrap().crowded.clone()
}

fn numbered(address: &IpAddr) -> u8 {
    let IpAddr::V4(address) = address else {
        panic!()
    };
    address.octets()[3]
}

#[test]
fn new_pods_of_a_nearly_full_address_use_others_and_running_ones_stay() {
    let mut scene = scene(&ALL[..2]);
    assert!(crowded(&settle(&mut scene)).is_empty());
    let before = used(&scene.outcome("worker1"));
    let on_first = before.values().filter(|a| **a == ip(ALL[0])).count();
    assert!((3..18).contains(&on_first), "{before:?}");

    wants(&mut scene, "worker1", ALL[0], 64_512);
    settle(&mut scene);
    assert_eq!(crowded(&settle(&mut scene)), [ip(ALL[0])]);
    assert_eq!(
        used(&scene.outcome("worker1")),
        before,
        "pods that run stay"
    );
    for number in 30..50 {
        add(&mut scene, number);
    }
    settle(&mut scene);
    let after = used(&scene.outcome("worker1"));
    for (pod, address) in &after {
        match before.get(pod) {
            Some(known) => assert_eq!(address, known, "{pod}"),
            None => assert_eq!(*address, ip(ALL[1]), "{pod}"),
        }
    }
    let record = &scene.snapshot.node_records[&node_name("worker1")];
    assert!(
        !record.paired.is_empty(),
        "the node reports what differs from the hash"
    );

    // There is room again: nobody moves, and new pods are spread by hash.
    wants(&mut scene, "worker1", ALL[0], 64);
    for _ in 0..3 {
        settle(&mut scene);
        scene.now += 121;
    }
    assert!(crowded(&settle(&mut scene)).is_empty());
    assert_eq!(used(&scene.outcome("worker1")), after);
    for number in 50..70 {
        add(&mut scene, number);
    }
    settle(&mut scene);
    let last = used(&scene.outcome("worker1"));
    let new = last.iter().filter(|(pod, _)| numbered(pod) >= 50);
    assert!(new.clone().any(|(_, address)| *address == ip(ALL[0])));
    assert!(new.clone().any(|(_, address)| *address == ip(ALL[1])));
}

#[test]
fn an_address_is_avoided_from_80_percent_on_until_less_than_70_are_needed() {
    let mut scene = scene(&ALL[..2]);
    settle(&mut scene);
    let mut at = |blocks: u32| {
        wants(&mut scene, "worker1", ALL[0], blocks * 64);
        // What a node does not want any more rests before it is free; only needed ports count.
        for _ in 0..3 {
            settle(&mut scene);
            scene.now += 121;
        }
        !crowded(&settle(&mut scene)).is_empty()
    };
    assert!(!at(512));
    assert!(!at(790), "78 %");
    assert!(at(850), "84 %");
    assert!(at(750), "74 %: it stays so");
    assert!(!at(600), "60 %");
    assert!(!at(750), "74 %: it does not begin");
}

#[test]
fn agents_and_controllers_that_restart_know_where_pods_are() {
    let mut scene = scene(&ALL[..2]);
    settle(&mut scene);
    wants(&mut scene, "worker1", ALL[0], 64_512);
    settle(&mut scene);
    settle(&mut scene);
    for number in 30..50 {
        add(&mut scene, number);
    }
    settle(&mut scene);
    let before = used(&scene.outcome("worker1"));
    let name = node_name("worker1");
    let reported = scene.snapshot.node_records[&name].paired.clone();
    scene.facts.get_mut(&name).unwrap().pairings = PodPairings::adopt(reported);
    scene.term += 1;
    let planned = settle(&mut scene);
    assert_eq!(used(&scene.outcome("worker1")), before);
    for address in before.values() {
        let leases = &planned.addresses[address].leases;
        assert!(
            leases
                .iter()
                .any(|lease| lease.node == name && lease.state.is_usable())
        );
    }
    assert_eq!(
        Planner::new(scene.snapshot.clone(), scene.time()).plan(),
        &scene.plan()
    );
}

#[test]
fn an_address_that_is_added_moves_no_pod() {
    let mut scene = scene(&ALL[..1]);
    settle(&mut scene);
    let before = used(&scene.outcome("worker1"));
    for number in [2, 3] {
        let all = ALL[..number].iter().map(|address| ip(address)).collect();
        scene.snapshot.policies[0].addresses = AddressRequest::Fixed(all);
        settle(&mut scene);
        assert_eq!(used(&scene.outcome("worker1")), before);
    }
    for number in 30..60 {
        add(&mut scene, number);
    }
    settle(&mut scene);
    let after = used(&scene.outcome("worker1"));
    let of_new: BTreeSet<IpAddr> = after.values().copied().collect();
    assert_eq!(of_new.len(), 3, "new pods use all: {after:?}");
}

#[test]
fn a_node_has_ports_of_the_other_address_before_a_new_pod_needs_them() {
    let mut scene = Scene::new(2, 1);
    scene.add_policy(egress("default", "p", &ALL[..2]));
    add(&mut scene, 10);
    let planned = settle(&mut scene);
    let mine = used(&scene.outcome("worker1"))[&ip("10.244.1.10")];
    let other = ALL[..2].iter().map(|a| ip(a)).find(|a| *a != mine).unwrap();
    assert!(planned.addresses[&other].leases.is_empty());
    wants(&mut scene, "worker1", &mine.to_string(), 64_512);
    settle(&mut scene);
    let planned = settle(&mut scene);
    assert_eq!(planned.addresses[&other].leases.len(), 1);
    // A pod that the API has just shown leaves by ports that the node has already.
    let mut number = 11;
    loop {
        add(&mut scene, number);
        let outcome = scene.outcome("worker1");
        let address = ip(&format!("10.244.1.{number}"));
        assert_eq!(used(&outcome)[&address], other);
        assert!(outcome.state.worker.is_usable(address));
        number += 1;
        if number == 30 {
            break;
        }
    }
}

#[test]
fn a_new_pod_avoids_an_address_that_is_full_on_its_node() {
    let mut scene = scene(&ALL[..2]);
    settle(&mut scene);
    let name = node_name("worker1");
    scene.facts.get_mut(&name).unwrap().full_addresses = [ip(ALL[1])].into();
    let before = used(&scene.outcome("worker1"));
    for number in 30..50 {
        add(&mut scene, number);
    }
    let after = used(&scene.outcome("worker1"));
    for (pod, address) in &after {
        assert_eq!(*address, before.get(pod).copied().unwrap_or(ip(ALL[0])));
    }
    // Where all are full, the hash selects.
    scene.facts.get_mut(&name).unwrap().full_addresses = [ip(ALL[0]), ip(ALL[1])].into();
    let both: BTreeSet<IpAddr> = used(&scene.outcome("worker1")).values().copied().collect();
    assert_eq!(both.len(), 2);
}

#[test]
fn an_agent_cannot_report_a_pod_to_an_address_of_another_policy() {
    let mut scene = scene(&ALL[..2]);
    scene.add_policy(egress("other", "q", &ALL[2..]));
    settle(&mut scene);
    let record = scene.snapshot.node_records.get_mut(&node_name("worker1"));
    record.unwrap().paired = (10..30)
        .map(|number| PairedPod {
            policy: scene.snapshot.policies[0].object.clone(),
            pod: format!("uid-pod{number}"),
            address: ip(ALL[2]),
        })
        .collect();
    assert!(scene.plan().addresses[&ip(ALL[2])].leases.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Remove(u8),
    Crowded(u8),
    Full(u8),
    Addresses(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (10u8..40).prop_map(Step::Add),
        2 => (10u8..40).prop_map(Step::Remove),
        2 => (0u8..8).prop_map(Step::Crowded),
        1 => (0u8..8).prop_map(Step::Full),
        2 => (1u8..8).prop_map(Step::Addresses),
        1 => Just(Step::Restart),
    ]
}

fn chosen(bits: u8) -> impl Iterator<Item = IpAddr> {
    let all = ALL.iter().enumerate();
    let chosen = all.filter(move |(number, _)| bits & 1 << number != 0);
    chosen.map(|(_, address)| ip(address))
}

proptest! {
    #![proptest_config(cases(64))]

    /// Property: a pod stays with its address for as long as that is one of its policy's, in any order of pods, full
    /// addresses, restarts of agents and added addresses; and a new pod never gets an avoided one while another has room.
    #[test]
    fn pods_stay_with_their_address(steps in prop::collection::vec(step(), 1..60)) {
        let mut scene = scene(&ALL[..2]);
        settle(&mut scene);
        let name = node_name("worker1");
        let mut before = used(&scene.outcome("worker1"));
        for step in steps {
            let mut restarted = false;
            match &step {
                Step::Add(number) => add(&mut scene, *number),
                Step::Remove(number) => {
                    let key = ("default".to_owned(), format!("pod{number}"));
                    scene.snapshot.pods.remove(&key);
                }
                Step::Crowded(bits) => scene.snapshot.policies[0].crowded = chosen(*bits).collect(),
                Step::Full(bits) => {
                    scene.facts.get_mut(&name).unwrap().full_addresses = chosen(*bits).collect();
                }
                Step::Addresses(bits) => {
                    scene.snapshot.policies[0].addresses = AddressRequest::Fixed(chosen(*bits).collect());
                }
                Step::Restart => {
                    let reported = scene.snapshot.node_records[&name].paired.clone();
                    scene.facts.get_mut(&name).unwrap().pairings = PodPairings::adopt(reported);
                    restarted = true;
                }
            }
            let avoided: BTreeSet<IpAddr> = scene.snapshot.policies[0]
                .crowded
                .union(&scene.facts[&name].full_addresses)
                .copied()
                .collect();
            scene.run_agents();
            let AddressRequest::Fixed(addresses) = &scene.snapshot.policies[0].addresses else {
                unreachable!()
            };
            let open = addresses.iter().any(|address| !avoided.contains(address));
            let now = used(&scene.outcome("worker1"));
            for (pod, address) in &now {
                match before.get(pod).filter(|known| addresses.contains(known)) {
                    Some(known) => prop_assert_eq!(address, known, "{:?}: {}", &step, pod),
                    None if restarted => {}
                    None => prop_assert!(!open || !avoided.contains(address), "{:?}: {}", &step, pod),
                }
            }
            before = now;
        }
    }
}
