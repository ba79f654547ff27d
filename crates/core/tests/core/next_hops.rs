//! Policies with a next hop on the gateways' network.

use crate::scene::*;
use egret_core::condition::{ConditionType, Reason};
use egret_core::explain::{Leaves, explain};
use egret_core::model::*;
use egret_core::node::*;
use egret_core::numbers::GROUPS_MAX;
use egret_core::plan::{ClusterPlan, PolicyPlan};
use std::collections::BTreeSet;
use std::net::IpAddr;

const ROUTER: &str = "10.9.0.1";
const SERVER: &str = "203.0.113.10";

/// A next hop that gateways 1 and 2 are attached to; pods on a worker and on gateway 1; another policy whose next hop
/// no gateway is attached to.
pub fn scene() -> Scene {
    let mut scene = kep_scene();
    let to = |cidr: &str, mut policy: Policy| {
        policy.destinations = Some(vec![Destination {
            cidr: cidr.parse().unwrap(),
            except: Vec::new(),
            ports: Vec::new(),
        }]);
        policy
    };
    let near = to("203.0.113.0/24", routed("default", "near", ROUTER));
    let far = to("198.51.100.0/24", routed("default", "far", "10.66.0.1"));
    scene.add_policy(near);
    scene.add_policy(far);
    scene.add_pod("g", "gateway1", 10, &[("app", "MyApp")]);
    let nodes = ["gateway1", "gateway2"].map(node_name);
    scene.routers.insert(ip(ROUTER), nodes.into());
    scene.settle();
    scene
}

fn route(outcome: &NodeOutcome) -> &NextHopRoute {
    let mut all = outcome.state.worker.next_hops.values();
    let found = all.find(|next_hop| next_hop.address == ip(ROUTER));
    &found.unwrap().route
}

fn policy<'p>(plan: &'p ClusterPlan, name: &str) -> &'p PolicyPlan {
    let found = plan.policies.iter().find(|(object, _)| object.name == name);
    found.unwrap().1
}

fn reason(plan: &PolicyPlan, kind: ConditionType) -> Option<Reason> {
    let found = plan.conditions.iter().find(|c| c.kind == kind);
    found.map(|condition| condition.reason)
}

fn index(scene: &Scene, node: &str) -> TunnelIndex {
    scene.snapshot.node_records[&node_name(node)].tunnel_index
}

fn pod(number: u8) -> IpAddr {
    ip(&format!("10.244.{number}.10"))
}

#[test]
fn traffic_goes_by_the_live_gateways_that_have_the_router_and_takes_no_address_and_no_lease() {
    let mut scene = scene();
    let plan = scene.plan();
    assert!(policy(&plan, "near").ready, "{:?}", policy(&plan, "near"));
    let addresses: Vec<IpAddr> = plan.addresses.keys().copied().collect();
    assert_eq!(addresses, [ip("192.168.122.222")]);
    let both: BTreeSet<_> = ["gateway1", "gateway2"].map(|g| index(&scene, g)).into();
    let outcome = scene.outcome("worker1");
    assert_eq!(route(&outcome), &NextHopRoute::Tunnel(both));
    let fate = outcome.state.worker.fate(pod(1), ip(SERVER), 6, 443);
    let (address, source) = (ip(ROUTER), pod(1));
    assert_eq!(fate, Fate::NextHop { address, source });
    scene.dead.insert(node_name("gateway1"));
    let one = BTreeSet::from([index(&scene, "gateway2")]);
    assert_eq!(route(&scene.outcome("worker1")), &NextHopRoute::Tunnel(one));
    scene.dead.insert(node_name("gateway2"));
    let none = scene.outcome("worker1");
    assert_eq!(route(&none), &NextHopRoute::Nowhere);
    let near = none.programmed.iter().find(|p| p.policy.name == "near");
    assert_eq!(near.unwrap().pods, 0, "and it says so");
}

#[test]
fn a_gateway_with_the_router_sends_itself_with_its_own_source_and_serves_others() {
    let mut scene = scene();
    let outcome = scene.outcome("gateway1");
    let NextHopRoute::Attached(here) = route(&outcome) else {
        panic!("{:?}", route(&outcome))
    };
    assert_eq!(
        (here.device.as_str(), here.source),
        ("eth2", ip("10.9.0.9"))
    );
    let served = outcome.state.gateway.as_ref().unwrap().next_hops.clone();
    let identifier =
        outcome.state.worker.next_hops[served.values().next().unwrap()].network_identifier;
    assert_eq!(served.keys().copied().collect::<Vec<_>>(), [identifier]);
    let others = scene.outcome("worker1").state.worker.next_hops;
    assert!(others.values().any(|n| n.network_identifier == identifier));
    let fate = outcome.state.worker.fate(pod(101), ip(SERVER), 17, 53);
    let (address, source) = (ip(ROUTER), ip("10.9.0.9"));
    assert_eq!(fate, Fate::NextHop { address, source });

    // Its device is gone: the other gateway is used, and nobody sends to this one any more.
    scene
        .routers
        .insert(ip(ROUTER), [node_name("gateway2")].into());
    scene.settle();
    let one = BTreeSet::from([index(&scene, "gateway2")]);
    for node in ["worker1", "gateway1"] {
        assert_eq!(
            route(&scene.outcome(node)),
            &NextHopRoute::Tunnel(one.clone())
        );
    }
    let state = scene.outcome("gateway1").state.gateway.unwrap();
    assert!(state.next_hops.is_empty());
    let degraded = reason(policy(&scene.plan(), "near"), ConditionType::Degraded);
    assert_eq!(degraded, Some(Reason::NextHopNotAttached));
}

#[test]
fn a_router_that_no_gateway_has_is_said_and_its_traffic_goes_nowhere() {
    let scene = scene();
    let plan = scene.plan();
    let far = policy(&plan, "far");
    assert!(!far.ready && far.refusal.is_none());
    let why = reason(far, ConditionType::Ready);
    assert_eq!(why, Some(Reason::NextHopNotAttached));
    let outcome = scene.outcome("worker1");
    let profile = &outcome.state.worker.profiles[&outcome.state.worker.pods[&pod(1)]];
    let verdict = |to: &str| {
        let mut boxes = profile.ranges.iter();
        let inside = boxes.find(|b| b.first <= ip(to) && ip(to) <= b.last);
        inside.unwrap().verdict
    };
    let Verdict::NextHop(number) = verdict("198.51.100.1") else {
        panic!("{:?}", verdict("198.51.100.1"))
    };
    let next_hops = &outcome.state.worker.next_hops;
    assert_eq!(next_hops[&number].route, NextHopRoute::Nowhere);
    assert!(matches!(verdict("192.0.2.1"), Verdict::Target(_)));
    assert!(!outcome.state.worker.is_usable(pod(1)));
    let gateway = scene.outcome("gateway1");
    let kinds: BTreeSet<IssueKind> = gateway.issues.iter().map(|r| r.kind).collect();
    assert!(kinds.contains(&IssueKind::NextHopNotAttached), "{kinds:?}");
}

/// Two addresses with the same network identifier.
fn alike() -> [String; 2] {
    let identifier = |address: &str| {
        let mut scene = Scene::new(1, 1);
        scene.add_policy(routed("default", "p", address));
        scene.add_pod("a", "worker1", 10, &[("app", "MyApp")]);
        scene.control();
        let state = scene.outcome("worker1").state.worker;
        let next_hop = state.next_hops.into_values().next().unwrap();
        next_hop.network_identifier
    };
    // Found by search: 23 bits of the hash are equal.
    let found = ["10.9.8.45", "10.9.18.215"];
    assert_eq!(identifier(found[0]), identifier(found[1]));
    found.map(str::to_owned)
}

#[test]
fn of_two_routers_that_gateways_could_not_tell_apart_the_older_policys_counts() {
    let [first, second] = alike();
    let mut scene = kep_scene();
    let mut young = routed("default", "a-young", &second);
    young.created_secs = 200;
    scene.add_policy(young);
    scene.add_policy(routed("default", "old", &first));
    let plan = scene.settle();
    let refusal = policy(&plan, "a-young").refusal.as_ref().unwrap();
    assert_eq!(refusal.reason, Reason::Duplicate);
    assert!(refusal.message.contains(&first), "{}", refusal.message);
    assert!(policy(&plan, "old").refusal.is_none());
    assert!(plan.findings.iter().any(|f| f.object.name == "a-young"));
}

#[test]
fn where_no_number_is_left_traffic_is_dropped_and_it_is_said() {
    let mut scene = Scene::new(1, 1);
    for number in 0..260 {
        let (high, low) = (number / 200, number % 200 + 1);
        let mut policy = routed(
            "default",
            &format!("p{number:03}"),
            &format!("10.9.{high}.{low}"),
        );
        let cidr = format!("203.0.{high}.{low}/32").parse().unwrap();
        policy.destinations = Some(vec![Destination {
            cidr,
            except: Vec::new(),
            ports: Vec::new(),
        }]);
        scene.add_policy(policy);
    }
    scene.add_pod("a", "worker1", 10, &[("app", "MyApp")]);
    scene.control();
    let outcome = scene.outcome("worker1");
    assert_eq!(
        outcome.state.worker.next_hops.len(),
        usize::from(GROUPS_MAX)
    );
    let limits = outcome.issues.iter().filter(|r| r.kind == IssueKind::Limit);
    assert_eq!(limits.count(), 1, "alike, so said once");
    let refused = |number: &u32| {
        let to = ip(&format!("203.0.{}.{}", number / 200, number % 200 + 1));
        outcome.state.worker.fate(pod(1), to, 6, 443) == Fate::Refused
    };
    assert_eq!(
        (0..260).filter(refused).count(),
        260 - usize::from(GROUPS_MAX)
    );
}

#[test]
fn where_programs_take_answers_past_the_stack_such_traffic_is_dropped_and_said() {
    let scene = scene();
    let node = node_name("worker1");
    let mut facts = scene.facts(&node);
    facts.path.choice = CniPath::Bpf;
    facts.path.routes = [UplinkRoute {
        device: "eth0".into(),
        ethernet: true,
        to: "0.0.0.0/0".parse().unwrap(),
    }]
    .into();
    let outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
    assert_eq!(outcome.pod_forwarding, PodForwarding::Bpf);
    let boxes = outcome
        .state
        .worker
        .profiles
        .values()
        .flat_map(|p| &p.ranges);
    let verdicts: BTreeSet<Verdict> = boxes.map(|b| b.verdict).collect();
    assert!(verdicts.contains(&Verdict::Unavailable));
    assert!(!verdicts.iter().any(|v| matches!(v, Verdict::NextHop(_))));
    assert!(
        outcome
            .issues
            .iter()
            .any(|r| r.kind == IssueKind::NextHopPath)
    );
    let near = outcome.programmed.iter().find(|p| p.policy.name == "near");
    assert_eq!(near.unwrap().pods, 0);
}

#[test]
fn an_explanation_names_router_and_gateways() {
    let scene = scene();
    let outcome = scene.outcome("worker1");
    let to = Some(ip(SERVER));
    let said = explain(&scene.snapshot, Some(&outcome), ("default", "a1"), to);
    assert_eq!(said.leaves, Leaves::Through([ip(ROUTER)].into()));
    let text: Vec<&str> = said.steps.iter().map(|step| step.text.as_str()).collect();
    let text = text.join("\n");
    assert!(text.contains("gateway1 or gateway2"), "{text}");
    let to = Some(ip("198.51.100.1"));
    let far = explain(&scene.snapshot, Some(&outcome), ("default", "a1"), to);
    assert_eq!(far.leaves, Leaves::Stopped, "{:#?}", far.steps);
}
