//! Traffic to pods of the cluster is never egress, however their addresses are managed, and an address that two pods
//! have belongs to neither.

use crate::scene::*;
use egret_core::check::{Rule, check_node, check_plan};
use egret_core::condition::{ConditionType, Reason};
use egret_core::explain::{Leaves, Step, explain};
use egret_core::model::*;
use egret_core::node::{
    Fate, MainRoute, NodeFacts, NodeOutcome, ReportKind, Verdict, node_state, pod_routes,
};
use egret_core::numbers::POD_PREFIXES_MAX;
use egret_core::plan::ClusterPlan;
use ipnet::IpNet;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

const EGRESS: &str = "192.168.122.222";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Handling of TCP to port 443 of `to`, from a pod of this node.
fn fate(scene: &Scene, node: &str, from: &str, to: &str) -> Fate {
    let worker = scene.outcome(node).state.worker;
    worker.fate(ip(from), ip(to), 6, 443)
}

/// A cluster whose plugin manages pod addresses itself: no Node has pod CIDRs.
fn without_pod_cidrs() -> Scene {
    let mut scene = kep_scene();
    for node in scene.snapshot.nodes.values_mut() {
        node.pod_cidrs.clear();
    }
    scene
}

#[test]
fn pods_of_other_nodes_are_no_egress_without_pod_cidrs() {
    let mut scene = without_pod_cidrs();
    scene.settle();
    let to_server = fate(&scene, "worker1", "10.244.1.10", "203.0.113.10");
    assert_eq!(to_server, Fate::Egress(ip(EGRESS)));
    for (from, to) in [
        ("10.244.1.10", "10.244.2.10"),
        ("fd00:244:1::10", "fd00:244:2::10"),
    ] {
        assert_eq!(fate(&scene, "worker1", from, to), Fate::Untouched, "{to}");
    }
}

/// Agents read their own pods and the records of gateways, and no other pods.
#[test]
fn no_agent_needs_to_see_the_pods_of_other_nodes() {
    let mut scene = without_pod_cidrs();
    scene.settle();
    let mut seen = scene.clone();
    seen.snapshot.pods.retain(|_, pod| pod.node.0 == "worker1");
    let gateways = scene.gateway_nodes();
    let records = &mut seen.snapshot.node_records;
    records.retain(|name, _| name.0 == "worker1" || gateways.contains(name));
    let to_pod = fate(&seen, "worker1", "10.244.1.10", "10.244.2.10");
    assert_eq!(to_pod, Fate::Untouched);
    let carrying = scene.snapshot.node_records.values();
    let carrying = carrying.filter(|record| !record.pod_prefixes.is_empty());
    let carrying: Vec<&str> = carrying.map(|record| record.node.0.as_str()).collect();
    assert_eq!(carrying, ["gateway1", "gateway2"]);
}

#[test]
fn what_is_covered_is_not_told_and_what_plugins_publish_is_told_whole() {
    let mut scene = kep_scene();
    scene.settle();
    let told = |scene: &Scene| -> BTreeSet<IpNet> {
        scene.snapshot.node_records[&node_name("gateway1")]
            .pod_prefixes
            .clone()
    };
    assert!(told(&scene).is_empty(), "podCIDRs cover every pod");

    let mut scene = without_pod_cidrs();
    scene.snapshot.pod_prefixes = [net("10.244.0.0/16")].into();
    scene.settle();
    let lone = ["fd00:244:1::10/127", "fd00:244:2::10/128"].map(net);
    let all: BTreeSet<IpNet> = lone.into_iter().chain([net("10.244.0.0/16")]).collect();
    assert_eq!(told(&scene), all);
    assert!(scene.outcome("worker1").uncovered.is_empty());
}

/// The outcome of the node, after the checker found no violation.
fn checked(scene: &Scene, node: &str, facts: &NodeFacts) -> NodeOutcome {
    let node = node_name(node);
    let outcome = node_state(&scene.snapshot, facts, &node).unwrap();
    assert_eq!(check_node(&scene.snapshot, facts, &node, &outcome), []);
    outcome
}

fn told(outcome: &NodeOutcome, kind: ReportKind) -> Vec<&str> {
    let all = outcome.reports.iter().filter(|report| report.kind == kind);
    all.map(|report| report.subject.as_str()).collect()
}

/// While the controller is down, other nodes do not learn of a new pod.
#[test]
fn a_pod_that_nothing_covers_is_told_once_it_lasts_and_its_node_counts_no_pod() {
    let mut scene = without_pod_cidrs();
    scene.settle();
    scene.add_pod("new", "worker1", 77, &[("app", "Other")]);
    let mut facts = scene.facts(&node_name("worker1"));
    facts.unknown_pods = Default::default();
    let fresh = checked(&scene, "worker1", &facts);
    let addresses = ["10.244.1.77", "fd00:244:1::77"].map(ip);
    assert_eq!(fresh.uncovered, addresses.into());
    assert_eq!(told(&fresh, ReportKind::NoPodCidr), [""; 0]);
    assert_eq!(fresh.programmed[0].pods, 1);
    assert!(
        fresh
            .state
            .worker
            .never
            .iter()
            .any(|net| net.contains(&addresses[0])),
        "its own node knows it"
    );

    facts.uncovered = fresh.uncovered;
    let lasting = checked(&scene, "worker1", &facts);
    assert_eq!(told(&lasting, ReportKind::NoPodCidr), ["10.244.1.77"]);
    assert_eq!(lasting.programmed[0].pods, 0);
    scene.snapshot.settings.never_destinations = vec![net("10.244.0.0/16"), net("fd00:244::/32")];
    let listed = checked(&scene, "worker1", &facts);
    assert_eq!(told(&listed, ReportKind::NoPodCidr), [""; 0]);
    assert_eq!(listed.programmed[0].pods, 1);
}

fn ready(plan: &ClusterPlan) -> (bool, Reason) {
    let policy = plan.policies.values().next().unwrap();
    let mut conditions = policy.conditions.iter();
    let found = conditions
        .find(|one| one.kind == ConditionType::Ready)
        .unwrap();
    (found.status, found.reason)
}

#[test]
fn more_pods_than_can_be_told_leave_no_policy_ready_that_could_cut_them_off() {
    let mut scene = without_pod_cidrs();
    // Every other address, so that nothing aggregates.
    let start = u32::from(Ipv4Addr::new(10, 64, 0, 0));
    for number in 0..=u32::try_from(POD_PREFIXES_MAX).unwrap() {
        let mut pod = scene.snapshot.pods.values().next().unwrap().clone();
        pod.name = format!("many{number}");
        pod.uid.clone_from(&pod.name);
        pod.node = node_name("worker3");
        pod.labels.clear();
        pod.addresses = vec![Ipv4Addr::from(start + 2 * number).into()];
        let key = (pod.namespace.clone(), pod.name.clone());
        scene.snapshot.pods.insert(key, pod);
    }
    let plan = scene.settle();
    assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
    assert_eq!(ready(&plan), (false, Reason::NoPodCidr));
    let told = &scene.snapshot.node_records[&node_name("gateway1")].pod_prefixes;
    assert!(told.len() <= POD_PREFIXES_MAX);
    let uncovered = scene.outcome("worker3").uncovered;
    assert!(
        !uncovered.is_empty() && uncovered.len() < 10,
        "{uncovered:?}"
    );

    let elsewhere = Destination {
        cidr: net("203.0.113.0/24"),
        except: Vec::new(),
        ports: Vec::new(),
    };
    let mut narrow = scene.clone();
    narrow.snapshot.policies[0].destinations = Some(vec![elsewhere]);
    assert_eq!(ready(&narrow.settle()), (true, Reason::Programmed));
    scene.snapshot.settings.never_destinations = vec![net("10.64.0.0/10")];
    assert_eq!(ready(&scene.settle()), (true, Reason::Programmed));
}

/// An unreadable record is not overwritten; the record of another gateway carries the prefixes.
#[test]
fn a_record_that_cannot_be_read_carries_nothing() {
    let mut scene = without_pod_cidrs();
    scene.settle();
    let carriers = |scene: &Scene| -> Vec<String> {
        let plan = scene.plan();
        assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
        let readable = plan.node_records.iter();
        let readable =
            readable.filter(|(name, _)| !scene.snapshot.unreadable.nodes.contains(*name));
        let carrying = readable.filter(|(_, spec)| !spec.pod_prefixes.is_empty());
        carrying.map(|(name, _)| name.0.clone()).collect()
    };
    scene.snapshot.unreadable.nodes = [node_name("gateway1")].into();
    assert_eq!(carriers(&scene), ["gateway2", "gateway3"]);
    scene.snapshot.unreadable.nodes = scene.gateway_nodes();
    assert_eq!(carriers(&scene), [""; 0]);
    assert_eq!(ready(&scene.plan()), (false, Reason::NoPodCidr));
}

#[test]
fn an_egress_address_that_plugins_give_to_pods_is_refused() {
    let mut scene = kep_scene();
    scene.snapshot.pod_prefixes = [net("192.168.122.192/26")].into();
    let plan = scene.settle();
    let policy = plan.policies.values().next().unwrap();
    let refusal = policy.refusal.as_ref().expect("it is refused");
    assert_eq!(refusal.reason, Reason::AddressInCluster);
    assert!(
        refusal.message.contains("network plugin"),
        "{}",
        refusal.message
    );
}

fn route(to: &str, device: u32, next_hop: Option<&str>, protocol: u8) -> MainRoute {
    MainRoute {
        to: net(to),
        device,
        next_hop: next_hop.map(ip),
        protocol,
    }
}

#[test]
fn routes_of_plugins_and_by_nodes_say_where_pods_are_and_others_do_not() {
    let scene = kep_scene();
    let names = [
        (1, "eth0"),
        (2, "flannel.1"),
        (3, "cali0123"),
        (4, "veth0123"),
        (5, "wg0"),
        (6, "egret0"),
    ];
    let names: BTreeMap<u32, String> = names.map(|(index, name)| (index, name.to_owned())).into();
    let of =
        |routes: &[MainRoute]| pod_routes(&scene.snapshot, &node_name("worker1"), routes, &names);
    const BOOT: u8 = 3;
    const KERNEL: u8 = 2;
    const STATIC: u8 = 4;
    const BIRD: u8 = 12;
    let good = [
        route("10.1.2.0/24", 2, Some("10.1.2.0"), BOOT),
        route("10.1.3.0/24", 1, Some("192.168.122.2"), BIRD),
        route("fd00:1:3::/64", 1, Some("fd00:122::3"), BOOT),
        route("10.1.1.9/32", 3, None, BOOT),
        route("10.1.1.11/32", 4, None, BOOT),
    ];
    let found: Vec<String> = of(&good).iter().map(IpNet::to_string).collect();
    assert_eq!(
        found,
        [
            "10.1.1.9/32",
            "10.1.1.11/32",
            "10.1.2.0/23",
            "fd00:1:3::/64"
        ]
    );
    let other = [
        // Networks of the node, routers, tunnels to elsewhere.
        route("192.168.122.0/24", 1, None, KERNEL),
        route("172.16.0.0/16", 1, Some("192.168.122.254"), BOOT),
        route("172.17.0.0/16", 5, None, BOOT),
        // Via another node, but made by an administrator; via this node itself.
        route("172.18.0.0/16", 1, Some("192.168.122.2"), STATIC),
        route("172.19.0.0/16", 1, Some("192.168.122.1"), BOOT),
        // A network behind a veth device can be anything.
        route("172.20.0.0/16", 4, None, BOOT),
        // Half of all addresses, and a route of our own (protocol 79).
        route("0.0.0.0/1", 2, None, BOOT),
        route("172.21.0.0/16", 1, Some("192.168.122.2"), 79),
        // One next hop to pods and one elsewhere.
        route("172.22.0.0/16", 1, Some("192.168.122.2"), BIRD),
        route("172.22.0.0/16", 1, Some("192.168.122.254"), BIRD),
    ];
    assert_eq!(of(&other), BTreeSet::new());
}

/// Pod addresses of one node of a cluster.
#[derive(Clone, Debug)]
struct Shape {
    pod_cidrs: bool,
    /// Every other node has a route to this node's pods.
    routed: bool,
    /// Host part after 10.244.N. or fd00:244:N::, and whether the address is outside that prefix.
    pods: Vec<(u8, bool)>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let pods = prop::collection::vec((1u8..250, any::<bool>()), 0..4);
    (any::<bool>(), any::<bool>(), pods).prop_map(|(pod_cidrs, routed, pods)| Shape {
        pod_cidrs,
        routed,
        pods,
    })
}

/// A cluster of these shapes, and the routes of its nodes.
fn shaped(shapes: &[Shape], published: u8, listed: bool) -> (Scene, BTreeSet<IpNet>) {
    let mut scene = kep_scene();
    let mut routes = BTreeSet::new();
    for (number, shape) in (1..).zip(shapes) {
        let name = format!("worker{number}");
        let node = scene.snapshot.nodes.get_mut(&node_name(&name)).unwrap();
        let cidrs = match shape.pod_cidrs {
            true => node.pod_cidrs.clone(),
            false => std::mem::take(&mut node.pod_cidrs),
        };
        if shape.routed {
            routes.extend(cidrs);
        }
        for (index, (last, lone)) in shape.pods.iter().enumerate() {
            let pod = format!("pod{number}-{index}");
            scene.add_pod(
                &pod,
                &name,
                *last,
                &[("app", if *lone { "MyApp" } else { "Other" })],
            );
            let pod = scene
                .snapshot
                .pods
                .get_mut(&("default".to_owned(), pod))
                .unwrap();
            if *lone {
                pod.addresses = vec![
                    ip(&format!("172.31.{number}.{last}")),
                    ip(&format!("fd00:31:{number}::{last}")),
                ];
            }
        }
    }
    scene.snapshot.pod_prefixes = match published {
        0 => BTreeSet::new(),
        1 => ["10.244.0.0/16", "fd00:244::/32"].map(net).into(),
        _ => ["172.31.1.0/25", "10.244.2.0/26"].map(net).into(),
    };
    if listed {
        scene.snapshot.settings.never_destinations = vec![net("172.31.0.0/16")];
    }
    (scene, routes)
}

proptest! {
    #![proptest_config(cases(48))]

    /// Property, for any cluster: a pod reaches every other pod as without Egret, and nothing else bypasses egress.
    #[test]
    fn no_pod_of_any_cluster_is_ever_egress(
        shapes in prop::collection::vec(shape(), 3), published in 0u8..3, listed in any::<bool>()
    ) {
        let (mut scene, routes) = shaped(&shapes, published, listed);
        let plan = scene.settle();
        prop_assert_eq!(check_plan(&scene.snapshot, &plan, scene.time()), []);
        let pods: BTreeSet<IpAddr> = scene.snapshot.pods.values().flat_map(|pod| pod.addresses.clone()).collect();
        for node in ["worker1", "worker2", "worker3"] {
            let mut facts = scene.facts(&node_name(node));
            facts.pod_routes = routes.clone();
            let outcome = checked(&scene, node, &facts);
            prop_assert_eq!(&outcome.uncovered, &BTreeSet::new());
            let worker = &outcome.state.worker;
            for from in worker.pods.keys() {
                for to in pods.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
                    prop_assert_eq!(worker.fate(*from, *to, 6, 443), Fate::Untouched, "{} to {}", from, to);
                }
                let (server, fate) = match from.is_ipv4() {
                    true => ("203.0.113.10", Fate::Egress(ip(EGRESS))),
                    false => ("2001:db8:1::10", Fate::Refused),
                };
                let profile = &worker.profiles[&worker.pods[from]];
                let shut = profile.ranges.iter().all(|one| !matches!(one.verdict, Verdict::Target(_)));
                let wanted = if shut { Fate::Refused } else { fate };
                prop_assert_eq!(worker.fate(*from, ip(server), 6, 443), wanted);
            }
        }
    }
}

/// One pod is stale, and the API does not show which: their packets cannot be told apart.
#[test]
fn an_address_that_two_pods_have_is_refused_for_both_and_both_are_told() {
    let mut scene = kep_scene();
    scene.settle();
    let other = ("default".to_owned(), "b1".to_owned());
    let other = scene.snapshot.pods.get_mut(&other).unwrap();
    other.addresses = vec![ip("10.244.1.10")];
    let facts = scene.facts(&node_name("worker1"));
    let outcome = checked(&scene, "worker1", &facts);
    let worker = &outcome.state.worker;
    let fate = |to: &str| worker.fate(ip("10.244.1.10"), ip(to), 6, 443);
    assert_eq!(fate("203.0.113.10"), Fate::Refused);
    assert_eq!(fate("10.244.2.10"), Fate::Untouched);
    let both = ["Pod default/a1", "Pod default/b1"];
    assert_eq!(told(&outcome, ReportKind::PodAddressConflict), both);
    assert_eq!(outcome.programmed[0].pods, 0);
    for pod in ["a1", "b1"] {
        let to = Some(ip("203.0.113.10"));
        let said = explain(&scene.snapshot, Some(&outcome), ("default", pod), to);
        assert_eq!(said.leaves, Leaves::Stopped, "{said:?}");
        let named = |step: &Step| !step.ok && step.text.contains("too");
        assert!(said.steps.iter().any(named), "{said:?}");
    }

    // The checker would find its packets leaving.
    let (id, open) = scene.applied[&node_name("worker1")]
        .state
        .worker
        .profiles
        .iter()
        .next()
        .unwrap();
    let mut wrong = outcome.clone();
    wrong.state.worker.profiles.insert(*id, open.clone());
    let mut pods = wrong.state.worker.pods.clone();
    pods.insert(ip("10.244.1.10"), *id);
    wrong.state.worker.pods = pods;
    let found = check_node(&scene.snapshot, &facts, &node_name("worker1"), &wrong);
    assert!(
        found.iter().any(|one| one.rule == Rule::PodWrong),
        "{found:?}"
    );

    // Pods of the same policies leave alike, whichever pod sends.
    let other = ("default".to_owned(), "b1".to_owned());
    let other = scene.snapshot.pods.get_mut(&other).unwrap();
    other.labels = labels(&[("app", "MyApp")]);
    let outcome = checked(&scene, "worker1", &facts);
    let fate = outcome
        .state
        .worker
        .fate(ip("10.244.1.10"), ip("203.0.113.10"), 6, 443);
    assert_eq!(fate, Fate::Egress(ip(EGRESS)));
    assert_eq!(told(&outcome, ReportKind::PodAddressConflict), [""; 0]);
}
