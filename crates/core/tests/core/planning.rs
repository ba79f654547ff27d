//! Plans of small clusters: addresses, gateways, refusals, conditions.

use crate::scene::*;
use egret_core::condition::{ConditionType, Reason};
use egret_core::model::*;
use egret_core::node::Verdict;
use egret_core::plan::{ClusterPlan, PolicyPlan};

pub fn only(plan: &ClusterPlan) -> &PolicyPlan {
    assert_eq!(plan.policies.len(), 1);
    plan.policies.values().next().unwrap()
}

pub fn named<'a>(plan: &'a ClusterPlan, name: &str) -> &'a PolicyPlan {
    plan.policies
        .iter()
        .find(|(object, _)| object.name == name)
        .unwrap()
        .1
}

pub fn has(policy: &PolicyPlan, kind: ConditionType) -> bool {
    policy.conditions.iter().any(|c| c.kind == kind && c.status)
}

/// A scene with one pod on worker1 and these policies.
pub fn with(policies: Vec<Policy>) -> Scene {
    let mut scene = Scene::new(2, 2);
    scene.add_pod("a1", "worker1", 10, &[("app", "MyApp")]);
    scene.snapshot.policies = policies.into();
    scene
}

#[test]
fn the_kep_manifest_becomes_ready_with_leases_of_its_workers() {
    let mut scene = kep_scene();
    let plan = scene.settle();
    assert_eq!(plan.findings, [].into());
    let policy = only(&plan);
    assert!(policy.ready, "{:?}", policy.conditions);
    assert_eq!((policy.selected, policy.programmed), (2, 2));
    assert!(
        has(policy, ConditionType::FamilyNotCovered),
        "it has no IPv6 address"
    );
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
    assert!(
        plan.reasons
            .iter()
            .any(|r| r.text.contains("granted to worker1")
                || r.text.contains("Active")
                || r.text.contains("Programmed"))
    );
}

#[test]
fn a_plan_survives_json() {
    let mut scene = kep_scene();
    let plan = scene.settle();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<ClusterPlan>(&text).unwrap(), plan);
    let outcome = scene.outcome("worker1");
    let text = serde_json::to_string(&outcome).unwrap();
    assert_eq!(
        serde_json::from_str::<egret_core::node::NodeOutcome>(&text).unwrap(),
        outcome
    );
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_a_finding_and_its_traffic_is_dropped() {
    type Edit = fn(&mut Scene);
    fn policy(scene: &mut Scene) -> &mut Policy {
        &mut scene.snapshot.policies[0]
    }
    fn main(scene: &mut Scene) -> &mut Gateway {
        scene.snapshot.gateways.values_mut().next().unwrap()
    }
    let cases: Vec<(Reason, Edit)> = vec![
        (Reason::AddressInvalid, |s| {
            policy(s).translation = Translation::None {
                next_hop: ip("fe80::1"),
            }
        }),
        (Reason::UnsupportedGateway, |s| {
            main(s).announce = AnnounceMode::Bgp
        }),
        (Reason::UnsupportedGateway, |s| {
            main(s).announce = AnnounceMode::Azure
        }),
        (Reason::UnsupportedGateway, |s| main(s).wireguard = true),
        (Reason::GatewayNotFound, |s| {
            policy(s).gateway = Some(GatewayName("no".into()))
        }),
        (Reason::GatewayNotFound, |s| s.snapshot.gateways.clear()),
        (Reason::GatewayAmbiguous, |s| {
            s.snapshot
                .gateways
                .insert(GatewayName("two".into()), gateway("two"));
        }),
        (Reason::GatewayNotFound, |s| main(s).by_name_only = true),
        (Reason::GatewayMismatch, |s| {
            let mut pool = pool("pool", "192.0.2.0", "192.0.2.255");
            pool.gateway = Some(GatewayName("two".into()));
            s.snapshot
                .gateways
                .insert(GatewayName("two".into()), gateway("two"));
            s.snapshot.pools.insert(pool.name.clone(), pool);
            policy(s).gateway = Some(GatewayName("main".into()));
        }),
        (Reason::PoolNotFound, |s| {
            policy(s).addresses = AddressRequest::Pool(PoolName("no".into()));
        }),
        (Reason::AddressDenied, |s| {
            s.snapshot.settings.unpooled_addresses = UnpooledAddresses::Deny;
        }),
        (Reason::AddressDenied, |s| {
            let mut pool = pool("pool", "192.0.2.0", "192.0.2.255");
            pool.namespaces = Namespaces::Names(["other".to_owned()].into());
            s.snapshot.pools.insert(pool.name.clone(), pool);
        }),
        (Reason::AddressInvalid, |s| {
            policy(s).addresses = AddressRequest::Fixed(vec![ip("224.0.0.1")]);
        }),
        (Reason::AddressInCluster, |s| {
            policy(s).addresses = AddressRequest::Fixed(vec![ip("192.168.122.1")]);
        }),
        (Reason::AddressInCluster, |s| {
            policy(s).addresses = AddressRequest::Fixed(vec![ip("10.244.1.200")]);
        }),
        (Reason::AddressInCluster, |s| {
            policy(s).addresses = AddressRequest::Fixed(vec![ip("10.96.0.1")]);
        }),
        (Reason::AddressInCluster, |s| {
            s.snapshot
                .pods
                .values_mut()
                .for_each(|pod| pod.addresses.push(ip("192.0.2.1")));
        }),
        (Reason::NoAddress, |s| {
            policy(s).addresses = AddressRequest::Fixed(vec![])
        }),
    ];
    for (number, (reason, edit)) in cases.into_iter().enumerate() {
        let mut good = egress("default", "good", &["198.51.100.1"]);
        good.gateway = Some(GatewayName("main".into()));
        let mut scene = with(vec![egress("default", "bad", &["192.0.2.1"]), good]);
        edit(&mut scene);
        let plan = scene.settle();
        let bad = named(&plan, "bad");
        let refusal = bad
            .refusal
            .as_ref()
            .unwrap_or_else(|| panic!("case {number}: {reason}"));
        assert_eq!(refusal.reason, reason, "case {number}");
        assert!(!bad.ready && bad.addresses.is_empty());
        let found = plan.findings.iter().any(|f| f.object.name == "bad");
        assert!(found, "case {number}: {:?}", plan.findings);
        // P9: bad input does not stop the good, where it does not name the same gateway.
        if !matches!(reason, Reason::UnsupportedGateway | Reason::AddressDenied)
            && scene
                .snapshot
                .gateways
                .contains_key(&GatewayName("main".into()))
        {
            assert!(named(&plan, "good").ready, "case {number}");
        }
        scene.snapshot.policies.retain(|p| p.object.name == "bad");
        scene.settle();
        let worker = scene.outcome("worker1").state.worker;
        let profile = &worker.profiles[&worker.pods[&ip("10.244.1.10")]];
        let target = profile
            .ranges
            .iter()
            .any(|b| matches!(b.verdict, Verdict::Target(_)));
        assert!(
            !target && !profile.ranges.is_empty(),
            "case {number}: {profile:?}"
        );
    }
}

#[test]
fn the_default_gateway_is_used_and_a_second_default_is_a_finding() {
    let mut scene = with(vec![egress("default", "p", &["192.0.2.1"])]);
    for name in ["alpha", "beta"] {
        let mut other = gateway(name);
        other.default = true;
        scene.snapshot.gateways.insert(other.name.clone(), other);
    }
    let plan = scene.settle();
    assert_eq!(only(&plan).gateway, Some(GatewayName("alpha".into())));
    assert_eq!(plan.findings.len(), 1);
    assert_eq!(plan.findings.first().unwrap().object.name, "beta");
}

#[test]
fn a_gateway_that_an_earlier_systems_object_brings_makes_no_other_policy_ambiguous() {
    let mut named_one = egress("default", "theirs", &["192.0.2.2"]);
    named_one.gateway = Some(GatewayName("brought".into()));
    let mut scene = with(vec![egress("default", "ours", &["192.0.2.1"]), named_one]);
    let mut brought = gateway("brought");
    brought.by_name_only = true;
    scene
        .snapshot
        .gateways
        .insert(brought.name.clone(), brought);
    let plan = scene.settle();
    for (policy, gateway) in [("ours", "main"), ("theirs", "brought")] {
        let policy = named(&plan, policy);
        assert_eq!(policy.gateway, Some(GatewayName(gateway.into())));
        assert!(policy.ready, "{policy:?}");
    }
}

#[test]
fn an_address_belongs_to_the_gateway_of_its_oldest_policy() {
    let mut young = egress("default", "a-young", &["192.0.2.1"]);
    young.created_secs = 200;
    young.priority = 100;
    young.gateway = Some(GatewayName("two".into()));
    let mut old = egress("default", "old", &["192.0.2.1"]);
    old.gateway = Some(GatewayName("main".into()));
    let mut scene = with(vec![young, old]);
    scene
        .snapshot
        .gateways
        .insert(GatewayName("two".into()), gateway("two"));
    let plan = scene.settle();
    assert_eq!(
        named(&plan, "a-young").refusal.as_ref().unwrap().reason,
        Reason::AddressConflict
    );
    assert!(named(&plan, "old").refusal.is_none());
    assert_eq!(plan.findings.len(), 1);
}

#[test]
fn two_policies_share_an_address_and_one_lease() {
    let mut scene = with(vec![
        egress("default", "one", &["192.0.2.1"]),
        egress("default", "two", &["192.0.2.1"]),
    ]);
    let plan = scene.settle();
    assert_eq!(plan.addresses[&ip("192.0.2.1")].leases.len(), 1);
    assert_eq!(plan.address_status[&ip("192.0.2.1")].users.len(), 2);
    assert!(has(named(&plan, "two"), ConditionType::Overlapped));
    assert!(!has(named(&plan, "one"), ConditionType::Overlapped));
}

#[test]
fn pods_are_paired_to_one_address_and_stay_with_it() {
    let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let mut scene = with(vec![egress("default", "p", &all)]);
    for number in 20..60 {
        scene.add_pod(
            &format!("pod{number}"),
            "worker2",
            number,
            &[("app", "MyApp")],
        );
    }
    scene.settle();
    let used = |scene: &Scene| {
        let worker = scene.outcome("worker2").state.worker;
        let address = |profile: &egret_core::node::ProfileId| {
            let Verdict::Target(id) = worker.profiles[profile].ranges[0].verdict else {
                panic!()
            };
            worker.targets[&id].address
        };
        worker
            .pods
            .iter()
            .map(|(pod, profile)| (*pod, address(profile)))
            .collect::<Vec<_>>()
    };
    let before = used(&scene);
    for address in all {
        assert!(
            before.iter().filter(|(_, a)| *a == ip(address)).count() > 4,
            "{before:?}"
        );
    }
    let AddressRequest::Fixed(fixed) = &mut scene.snapshot.policies[0].addresses else {
        panic!()
    };
    fixed.pop();
    scene.settle();
    for ((pod, old), (_, new)) in before.into_iter().zip(used(&scene)) {
        assert!(
            old == new || old == ip("192.0.2.3"),
            "{pod} moved from {old} to {new}"
        );
    }
}

#[test]
fn a_cluster_egress_gives_no_namespace_an_address_that_is_not_for_it() {
    let mut policy = egress("", "p", &["192.0.2.1"]);
    policy.object.kind = Kind::ClusterEgress;
    policy.selection = Selection::Labels {
        namespaces: Namespaces::All,
        pods: LabelSelector::default(),
        nodes: None,
    };
    let mut scene = with(vec![policy]);
    scene.add_pod("stranger", "worker2", 11, &[]);
    let key = ("default".to_owned(), "stranger".to_owned());
    let stranger = scene.snapshot.pods.remove(&key).unwrap();
    let mut stranger = std::sync::Arc::unwrap_or_clone(stranger);
    stranger.namespace = "other".into();
    scene
        .snapshot
        .pods
        .insert(("other".into(), "stranger".into()), stranger);
    let mut pool = pool("pool", "192.0.2.0", "192.0.2.255");
    pool.namespaces = Namespaces::Names(["default".to_owned()].into());
    scene.snapshot.pools.insert(pool.name.clone(), pool);
    let plan = scene.settle();
    let holders: Vec<&NodeName> = plan.addresses[&ip("192.0.2.1")]
        .leases
        .iter()
        .map(|l| &l.node)
        .collect();
    assert_eq!(holders, [&node_name("worker1")]);
    let worker = scene.outcome("worker2").state.worker;
    let profile = &worker.profiles[&worker.pods[&ip("10.244.2.11")]];
    assert_eq!(profile.ranges[0].verdict, Verdict::Unavailable);
}

#[test]
fn pods_of_the_node_network_and_finished_pods_are_not_selected() {
    let mut scene = kep_scene();
    let pods: Vec<(String, String)> = scene.snapshot.pods.keys().cloned().collect();
    scene.snapshot.pods.get_mut(&pods[0]).unwrap().host_network = true;
    scene.snapshot.pods.get_mut(&pods[1]).unwrap().finished = true;
    let plan = scene.settle();
    let policy = only(&plan);
    assert_eq!(policy.selected, 0);
    let accepted = &policy.conditions[0];
    assert_eq!(
        (accepted.status, accepted.reason),
        (true, Reason::HostNetworkPods)
    );
}

#[test]
fn a_pod_gets_its_ports_before_it_has_an_address() {
    let mut scene = with(vec![egress("default", "p", &["192.0.2.1"])]);
    scene
        .snapshot
        .pods
        .values_mut()
        .for_each(|pod| pod.addresses.clear());
    let plan = scene.settle();
    assert_eq!(plan.addresses[&ip("192.0.2.1")].leases.len(), 1);
    assert_eq!(only(&plan).selected, 1);
}

#[test]
fn service_selection_finds_the_pods_behind_it() {
    let mut policy = egress("default", "p", &["192.0.2.1"]);
    policy.selection = Selection::Service {
        namespace: "default".into(),
        name: "web".into(),
    };
    let mut scene = with(vec![policy]);
    scene.add_pod("b", "worker2", 12, &[("app", "Other")]);
    let plan = scene.settle();
    assert_eq!(
        (
            only(&plan).selected,
            plan.findings.first().unwrap().field.as_str()
        ),
        (0, "spec.serviceName")
    );
    let mut service = Service {
        balancer_addresses: Vec::new(),
        namespace: "default".into(),
        name: "web".into(),
        cluster_addresses: vec![ip("10.96.0.10")],
        selector: Some(labels(&[("app", "MyApp")])),
        endpoints: [ip("10.244.2.12")].into(),
    };
    let key = ("default".to_owned(), "web".to_owned());
    scene.snapshot.services.insert(key.clone(), service.clone());
    assert_eq!(
        only(&scene.settle()).pods.keys().next(),
        Some(&node_name("worker1"))
    );
    service.selector = None;
    scene.snapshot.services.insert(key, service);
    assert_eq!(
        only(&scene.settle()).pods.keys().next(),
        Some(&node_name("worker2"))
    );
}
