//! Addresses that agents found to be in use: refused, skipped, kept where allocated before, and reported.

use crate::planning::{has, named, only, with};
use crate::pools::pooled;
use crate::scene::*;
use egret_core::check::{check_node, check_plan};
use egret_core::condition::{Condition, ConditionType, Reason};
use egret_core::machines::answering_nodes;
use egret_core::model::*;
use egret_core::node::{Fate, Presence, node_state};
use egret_core::numbers::DEVICE_ADDRESSES_MAX;
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

/// What the agent of worker1 reads: its own record and those of gateways.
fn seen_by_worker1(scene: &Scene) -> Scene {
    let mut seen = scene.clone();
    let gateways = scene.gateway_nodes();
    let records = &mut seen.snapshot.node_records;
    records.retain(|name, _| name.0 == "worker1" || gateways.contains(name));
    seen
}

fn fate(scene: &Scene, to: &str) -> Fate {
    let worker = scene.outcome("worker1").state.worker;
    worker.fate(ip("10.244.1.10"), ip(to), 6, 443)
}

#[test]
fn a_device_of_a_worker_is_no_egress_on_workers_that_do_not_read_its_record() {
    let mut scene = kep_scene();
    scene.settle();
    let vips = ["203.0.113.66/24", "2001:db8::66/64"].map(|text| text.parse().unwrap());
    record(&mut scene, "worker2").node_addresses = vips.into();
    scene.settle();
    let seen = seen_by_worker1(&scene);
    assert!(matches!(fate(&seen, "203.0.113.65"), Fate::Egress(_)));
    assert_eq!(fate(&seen, "203.0.113.66"), Fate::Untouched);
    let facts = seen.facts(&node_name("worker1"));
    let outcome = node_state(&seen.snapshot, &facts, &node_name("worker1")).unwrap();
    let violations = check_node(&seen.snapshot, &facts, &node_name("worker1"), &outcome);
    assert_eq!(violations, []);

    record(&mut scene, "worker2").node_addresses.clear();
    scene.settle();
    let seen = seen_by_worker1(&scene);
    assert!(matches!(fate(&seen, "203.0.113.66"), Fate::Egress(_)));
}

#[test]
fn only_addresses_of_devices_that_no_node_names_are_told_to_all_nodes() {
    let mut scene = kep_scene();
    scene.settle();
    let own = scene.snapshot.nodes[&node_name("worker2")].addresses[0];
    let found = ["203.0.113.66/24".parse().unwrap(), own.into()];
    record(&mut scene, "worker2").node_addresses = found.into();
    record(&mut scene, "worker3").node_addresses = ["203.0.113.66/24".parse().unwrap()].into();
    let carrying = |scene: &Scene| -> Vec<(String, Vec<String>)> {
        let records = scene.snapshot.node_records.values();
        let carrying = records.filter(|record| !record.device_addresses.is_empty());
        let told = carrying.map(|record| {
            let addresses = record.device_addresses.iter().map(ToString::to_string);
            (record.node.0.clone(), addresses.collect())
        });
        told.collect()
    };
    scene.settle();
    let told = vec!["203.0.113.66/32".to_owned()];
    let both = [("gateway1".into(), told.clone()), ("gateway2".into(), told)];
    assert_eq!(carrying(&scene), both);
    // The other node still has it.
    record(&mut scene, "worker2").node_addresses.clear();
    scene.settle();
    assert_eq!(carrying(&scene), both);
    scene.snapshot.nodes.remove(&node_name("worker3"));
    scene.settle();
    assert_eq!(carrying(&scene), []);
}

#[test]
fn more_addresses_of_devices_than_are_told_are_a_finding() {
    let mut scene = kep_scene();
    scene.settle();
    // Every other address, so that nothing aggregates.
    let start = u32::from(std::net::Ipv4Addr::new(10, 64, 0, 0));
    let number = u32::try_from(DEVICE_ADDRESSES_MAX).unwrap();
    let many = (0..=number).map(|n| std::net::Ipv4Addr::from(start + 2 * n));
    let many: BTreeSet<ipnet::IpNet> = many.map(|a| std::net::IpAddr::from(a).into()).collect();
    record(&mut scene, "worker2").node_addresses = many.clone();
    let plan = scene.settle();
    let found = |plan: &egret_core::plan::ClusterPlan| {
        let mut findings = plan.findings.iter();
        findings
            .find(|one| one.field == "spec.deviceAddresses")
            .map(|one| (one.object.name.clone(), one.value.clone()))
    };
    let last = many.last().unwrap().addr().to_string();
    assert_eq!(found(&plan), Some(("gateway1".into(), last)));
    let told = &scene.snapshot.node_records[&node_name("gateway1")].device_addresses;
    assert_eq!(told.len(), DEVICE_ADDRESSES_MAX);
    assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);

    scene.snapshot.settings.never_destinations = vec!["10.64.0.0/16".parse().unwrap()];
    assert_eq!(found(&scene.settle()), None);
}
