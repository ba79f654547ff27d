//! Addresses that agents found to be in use: refused, skipped, kept where allocated before, and reported.

use crate::planning::{has, named, only, with};
use crate::pools::pooled;
use crate::scene::*;
use egret_core::check::{check_node, check_plan};
use egret_core::condition::{Condition, ConditionType, Reason};
use egret_core::machines::answering_nodes;
use egret_core::model::*;
use egret_core::node::Presence;
use egret_core::plan::PolicyPlan;
use std::collections::BTreeSet;

fn record<'a>(scene: &'a mut Scene, node: &str) -> &'a mut NodeRecord {
    scene
        .snapshot
        .node_records
        .get_mut(&node_name(node))
        .unwrap()
}

fn condition(policy: &PolicyPlan, kind: ConditionType) -> Option<&Condition> {
    policy.conditions.iter().find(|one| one.kind == kind)
}

/// A scene whose agents report a network with a router, a VIP on worker2, and one on gateway2's external device.
fn surrounded(policies: Vec<Policy>) -> Scene {
    let mut scene = with(Vec::new());
    scene.settle();
    let found = record(&mut scene, "worker2");
    found.node_addresses = ["192.0.2.66/26", "2001:db8::66/64", "198.51.100.7/31"]
        .map(|text| text.parse().unwrap())
        .into();
    found.routers = [ip("192.0.2.65"), ip("2001:db8::1")].into();
    let held: ipnet::IpNet = "192.0.2.70/32".parse().unwrap();
    let found = record(&mut scene, "gateway2");
    found.node_addresses = [held].into();
    found.external_addresses = [held].into();
    scene.snapshot.policies = policies.into();
    scene
}

#[test]
fn what_is_somebodys_is_refused_with_the_reason() {
    for (address, reason, text) in [
        (
            "192.0.2.65",
            Reason::AddressInCluster,
            "it is a router of Node worker2",
        ),
        (
            "2001:db8::1",
            Reason::AddressInCluster,
            "it is a router of Node worker2",
        ),
        (
            "192.0.2.66",
            Reason::AddressInCluster,
            "Node worker2 has this address on a device",
        ),
        (
            "192.0.2.64",
            Reason::AddressInvalid,
            "the network address of 192.0.2.64/26",
        ),
        (
            "192.0.2.127",
            Reason::AddressInvalid,
            "the broadcast address of 192.0.2.64/26",
        ),
        (
            "2001:db8::",
            Reason::AddressInvalid,
            "the subnet-router anycast address of 2001:db8::/64",
        ),
        ("240.0.0.1", Reason::AddressInvalid, "no host can use this"),
        (
            "255.255.255.255",
            Reason::AddressInvalid,
            "no host can use this",
        ),
    ] {
        let mut scene = surrounded(vec![egress("default", "a", &[address])]);
        let plan = scene.settle();
        let policy = only(&plan);
        let refusal = policy
            .refusal
            .as_ref()
            .unwrap_or_else(|| panic!("{address} is given"));
        assert_eq!(refusal.reason, reason, "{address}");
        assert!(refusal.message.contains(text), "{}", refusal.message);
        let finding = plan.findings.first().unwrap();
        assert_eq!(
            (finding.field.as_str(), finding.value.as_str()),
            ("spec.ip", address)
        );
        assert!(plan.addresses.is_empty());
        let state = scene.outcome("worker1").state.worker;
        assert!(
            !state.egress_addresses.contains(&ip(address)),
            "the guard drops {address}"
        );
        assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
    }
}

#[test]
fn what_is_beside_it_is_given_also_what_a_gateway_holds_and_ends_of_links_between_two() {
    for address in [
        "192.0.2.67",
        "192.0.2.70",
        "2001:db8::2",
        "198.51.100.6",
        "192.0.2.128",
    ] {
        let mut scene = surrounded(vec![egress("default", "a", &[address])]);
        let plan = scene.settle();
        let policy = only(&plan);
        assert!(policy.ready, "{address}: {:?}", policy.refusal);
        assert!(!has(policy, ConditionType::AddressConflict));
        assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
    }
}

#[test]
fn pools_skip_what_is_somebodys() {
    let mut scene = surrounded(vec![pooled("a"), pooled("b"), pooled("c"), pooled("d")]);
    let mut whole = pool("pool", "192.0.2.64", "192.0.2.127");
    whole.ranges.push((ip("2001:db8::"), ip("2001:db8::ffff")));
    scene.snapshot.pools.insert(whole.name.clone(), whole);
    let plan = scene.settle();
    for (name, v4, v6) in [
        ("a", "192.0.2.67", "2001:db8::2"),
        ("b", "192.0.2.68", "2001:db8::3"),
        ("c", "192.0.2.69", "2001:db8::4"),
        // A gateway holds 192.0.2.70.
        ("d", "192.0.2.71", "2001:db8::5"),
    ] {
        assert_eq!(named(&plan, name).addresses, [ip(v4), ip(v6)]);
    }
    assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
}

/// Agents report after they have started, possibly later than the controller.
#[test]
fn what_was_given_before_it_was_known_stays_and_is_told() {
    let mut scene = with(vec![
        egress("default", "fixed", &["192.0.2.9"]),
        pooled("pooled"),
    ]);
    let small = pool("pool", "192.0.2.1", "192.0.2.2");
    scene.snapshot.pools.insert(small.name.clone(), small);
    scene.settle();
    record(&mut scene, "worker2").routers = [ip("192.0.2.1"), ip("192.0.2.9")].into();
    let plan = scene.settle();
    for (name, address) in [("fixed", "192.0.2.9"), ("pooled", "192.0.2.1")] {
        let policy = named(&plan, name);
        assert_eq!(
            (policy.addresses.as_slice(), policy.ready),
            (&[ip(address)][..], true)
        );
        let told = condition(policy, ConditionType::AddressConflict).unwrap();
        assert_eq!(told.reason, Reason::AddressInCluster);
        assert_eq!(
            told.message,
            format!("{address}: it is a router of Node worker2")
        );
    }
    // A new policy is refused.
    scene.add_policy(egress("default", "late", &["192.0.2.9"]));
    let plan = scene.settle();
    assert!(named(&plan, "late").refusal.is_some());
    // As long as the agent has not reported again, the addresses do not count as free.
    record(&mut scene, "worker2").routers.clear();
    let plan = scene.settle();
    assert!(!has(named(&plan, "fixed"), ConditionType::AddressConflict));
    assert_eq!(named(&plan, "late").addresses, [ip("192.0.2.9")]);
    assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
}

/// Issue 13, case 10.
#[test]
fn addresses_of_every_nodes_devices_are_no_egress_destinations() {
    let mut scene = surrounded(vec![egress("default", "a", &["192.0.2.99"])]);
    scene.settle();
    for node in ["worker1", "worker2", "gateway1"] {
        let outcome = scene.outcome(node);
        let never = &outcome.state.worker.never;
        for address in ["192.0.2.66", "192.0.2.70", "2001:db8::66"] {
            let address = ip(address);
            assert!(
                never.iter().any(|net| net.contains(&address)),
                "{address} at {node}"
            );
        }
        assert!(!never.iter().any(|net| net.contains(&ip("192.0.2.67"))));
        let facts = scene.facts(&node_name(node));
        assert_eq!(
            check_node(&scene.snapshot, &facts, &node_name(node), &outcome),
            []
        );
    }
}

#[test]
fn another_machine_with_an_address_is_told_as_the_announcer_hears_it() {
    let mut scene = kep_scene();
    scene.settle();
    let address = ip("192.168.122.222");
    let claim = AddressClaim {
        mac: MacAddress([2, 0, 0, 0, 0, 0x99]),
        since_secs: 0,
    };
    record(&mut scene, "gateway1").conflicts = [(address, claim)].into();
    let plan = scene.plan();
    let text = "02:00:00:00:00:99 since 1970-01-01T00:00:00Z answers for 192.168.122.222 on the external segment of gateway1";
    let policy = only(&plan);
    let told = condition(policy, ConditionType::AddressConflict).unwrap();
    assert_eq!(
        (told.reason, told.message.as_str()),
        (Reason::ForeignMachine, text)
    );
    assert!(!policy.ready);
    assert_eq!(policy.addresses, [address], "it is not taken away");
    let status = &plan.address_status[&address];
    let told = status
        .conditions
        .iter()
        .find(|one| one.kind == ConditionType::AddressConflict);
    assert_eq!(told.unwrap().message, text);
    // Another gateway announces it and observes no conflict: the report of a dead one is outdated.
    record(&mut scene, "gateway2").announcing = [address].into();
    let plan = scene.plan();
    assert!(only(&plan).ready);
    assert_eq!(plan.address_status[&address].conflict, None);
}

/// Issue 13, case 23.
#[test]
fn nobody_answers_for_what_routers_lead_to() {
    let mut scene = kep_scene();
    scene
        .snapshot
        .gateways
        .values_mut()
        .next()
        .unwrap()
        .announce = AnnounceMode::Static;
    scene.settle();
    let address = ip("192.168.122.222");
    let me = node_name("gateway1");
    // Left over from a time when it was announced.
    scene.facts.get_mut(&me).unwrap().announcing = [address].into();
    let outcome = scene.outcome("gateway1");
    let steering = &outcome.state.gateway.as_ref().unwrap().addresses[&address];
    assert_eq!(
        (steering.presence, steering.announce),
        (Presence::Routed, false)
    );
    assert!(!steering.blocks.is_empty());
    let facts = scene.facts(&me);
    assert_eq!(check_node(&scene.snapshot, &facts, &me, &outcome), []);
    let state = outcome.state.gateway.unwrap();
    let local = BTreeSet::new();
    // Candidates are determined nevertheless: a new gateway observes its join delay.
    let answering = answering_nodes(
        &scene.snapshot,
        &state,
        (&me, &local),
        &scene.gateway_nodes(),
    );
    assert_eq!(answering[&address], scene.gateway_nodes());
    let plan = scene.plan();
    assert!(only(&plan).ready);
    let ready = &plan.address_status[&address].conditions[0];
    assert_eq!(
        (ready.kind, ready.status, ready.reason),
        (ConditionType::Ready, true, Reason::Routed)
    );
}
