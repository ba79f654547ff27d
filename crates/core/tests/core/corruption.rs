//! The checker can fail: every rule is broken once, and the checker must report it.

use crate::scene::*;
use egret_core::check::{Rule, check_node, check_plan};
use egret_core::model::*;
use egret_core::node::*;
use egret_core::plan::ClusterPlan;
use std::collections::BTreeSet;

const E: &str = "192.168.122.222";

/// A settled scene with a second address, whose plan has no violation.
fn scene() -> Scene {
    let mut scene = kep_scene();
    scene.add_policy(egress("default", "second", &["192.0.2.9", "2001:db8:2::9"]));
    scene.settle();
    assert_eq!(check_plan(&scene.snapshot, &scene.plan(), scene.time()), []);
    scene
}

fn rules_of_plan(scene: &Scene, corrupt: impl Fn(&mut ClusterPlan)) -> BTreeSet<Rule> {
    let mut plan = scene.plan();
    corrupt(&mut plan);
    check_plan(&scene.snapshot, &plan, scene.time())
        .into_iter()
        .map(|v| v.rule)
        .collect()
}

fn leases(plan: &mut ClusterPlan) -> &mut Vec<Lease> {
    &mut plan.addresses.get_mut(&ip(E)).unwrap().leases
}

fn expect_plan(rule: Rule, scene: &Scene, corrupt: impl Fn(&mut ClusterPlan)) {
    let found = rules_of_plan(scene, corrupt);
    assert!(found.contains(&rule), "{rule:?} not in {found:?}");
}

#[test]
fn leases_that_must_not_be_are_seen() {
    let scene = scene();
    expect_plan(Rule::BlockOwnedTwice, &scene, |p| {
        leases(p)[1].ranges = leases(p)[0].ranges.clone();
    });
    expect_plan(Rule::BlockOwnedTwice, &scene, |p| {
        let mut ghost = leases(p)[0].clone();
        ghost.node = node_name("ghost");
        ghost.state = LeaseState::HoldDown;
        leases(p).push(ghost);
    });
    expect_plan(Rule::RangeInvalid, &scene, |p| {
        leases(p)[0].ranges[0].first += 1
    });
    expect_plan(Rule::RangeInvalid, &scene, |p| {
        leases(p)[0].ranges[0].last -= 1
    });
    expect_plan(Rule::RangeInvalid, &scene, |p| {
        leases(p)[0].ranges.reverse()
    });
    expect_plan(Rule::RangeInvalid, &scene, |p| leases(p)[0].ranges.clear());
    expect_plan(Rule::RangeInvalid, &scene, |p| {
        leases(p)[0].ranges = vec![PortRange {
            first: 960,
            last: 1023,
        }];
    });
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].ranges.pop();
    });
    let mut lost = scene.clone();
    lost.snapshot.addresses.remove(&ip(E));
    expect_plan(Rule::ClaimIgnored, &lost, |p| {
        leases(p).remove(0);
    });
    expect_plan(Rule::ClaimIgnored, &lost, |p| {
        leases(p)[0].node = node_name("worker3");
    });
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p).remove(0);
    });
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].state = LeaseState::HoldDown
    });
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].node = node_name("worker3")
    });
}

#[test]
fn a_lease_that_rests_too_short_is_seen() {
    let mut scene = scene();
    scene.snapshot.pods.remove(&("default".into(), "a1".into()));
    scene.settle();
    let resting = scene.snapshot.addresses[&ip(E)].leases[0].clone();
    assert_eq!(resting.state, LeaseState::HoldDown);
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p).remove(0);
    });
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].since_secs -= 100
    });
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].state = LeaseState::Active
    });
}

#[test]
fn a_lease_that_still_has_connections_must_not_rest() {
    let mut scene = scene();
    scene.snapshot.pods.remove(&("default".into(), "a1".into()));
    scene.busy.insert((node_name("worker1"), ip(E)));
    scene.settle();
    assert_eq!(
        scene.snapshot.addresses[&ip(E)].leases[0].state,
        LeaseState::Draining
    );
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].state = LeaseState::HoldDown
    });
    scene.busy.clear();
    scene.snapshot.nodes.remove(&node_name("worker1"));
    scene
        .snapshot
        .node_records
        .get_mut(&node_name("worker1"))
        .unwrap()
        .demand
        .clear();
    expect_plan(Rule::ReleasedEarly, &scene, |p| {
        leases(p)[0].state = LeaseState::HoldDown
    });
}

#[test]
fn epochs_and_orders_that_must_not_be_are_seen() {
    let scene = scene();
    expect_plan(Rule::EpochOrder, &scene, |p| leases(p)[0].epoch = 1_000);
    expect_plan(Rule::EpochOrder, &scene, |p| {
        p.addresses.get_mut(&ip(E)).unwrap().epoch = 0
    });
    expect_plan(Rule::EpochMissing, &scene, |p| {
        leases(p)[0].state = LeaseState::HoldDown
    });
    expect_plan(Rule::WriteOrder, &scene, |p| leases(p)[0].since_secs += 1);
    expect_plan(Rule::WriteOrder, &scene, |p| p.address_writes.push(ip(E)));
    expect_plan(Rule::WriteOrder, &scene, |p| {
        p.node_writes.push(node_name("worker1"))
    });
    expect_plan(Rule::Deletion, &scene, |p| p.address_deletions.push(ip(E)));
    expect_plan(Rule::Deletion, &scene, |p| {
        p.addresses.remove(&ip(E));
        p.address_deletions.push(ip(E));
    });
    expect_plan(Rule::Deletion, &scene, |p| {
        p.node_deletions.push(node_name("worker1"))
    });
    let mut changed = scene.clone();
    changed.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    let count = changed.plan().address_writes.len();
    assert!(count > 1);
    expect_plan(Rule::WriteOrder, &changed, |p| p.address_writes.reverse());
    expect_plan(Rule::EpochOrder, &changed, |p| {
        let epoch = p.addresses.values().map(|r| r.epoch).max().unwrap();
        p.addresses.values_mut().for_each(|r| r.epoch = epoch);
    });
}

#[test]
fn grants_indexes_and_addresses_that_must_not_be_are_seen() {
    let mut scene = scene();
    let worker = node_name("worker1");
    let mut unread = scene.clone();
    let address = *scene.snapshot.addresses.keys().next().unwrap();
    unread.snapshot.unreadable.addresses.insert(address);
    expect_plan(Rule::UnreadableTouched, &unread, |p| {
        p.address_writes.push(address);
    });
    expect_plan(Rule::UnreadableTouched, &unread, |p| {
        p.addresses.get_mut(&address).unwrap().leases.clear();
    });
    expect_plan(Rule::UnreadableTouched, &unread, |p| {
        p.node_records
            .values_mut()
            .for_each(|spec| spec.grants.clear());
    });
    expect_plan(Rule::GrantsDiffer, &scene, |p| {
        p.node_records.get_mut(&worker).unwrap().grants.clear()
    });
    expect_plan(Rule::GrantsDiffer, &scene, |p| {
        p.node_records.get_mut(&worker).unwrap().grants[0].epoch -= 1;
    });
    expect_plan(Rule::TunnelIndex, &scene, |p| {
        let other = p.node_records[&node_name("worker2")].tunnel_index;
        p.node_records.get_mut(&worker).unwrap().tunnel_index = other;
    });
    expect_plan(Rule::TunnelIndex, &scene, |p| {
        p.node_records.get_mut(&worker).unwrap().tunnel_index = 0;
    });
    expect_plan(Rule::TunnelIndex, &scene, |p| {
        p.node_records.get_mut(&worker).unwrap().tunnel_index = 77;
    });
    expect_plan(Rule::TunnelIndex, &scene, |p| {
        p.node_records.remove(&worker);
    });
    let first = scene.snapshot.policies[0].object.clone();
    expect_plan(Rule::AddressWrong, &scene, |p| {
        p.policies.get_mut(&first).unwrap().addresses = vec![ip("192.0.2.9")];
    });
    expect_plan(Rule::AddressWrong, &scene, |p| {
        p.policies.get_mut(&first).unwrap().gateway = Some(GatewayName("other".into()));
    });
    expect_plan(Rule::AddressWrong, &scene, |p| {
        p.policies.remove(&first);
    });
    expect_plan(Rule::ReadyTooEarly, &scene, |p| {
        let policy = p.policies.get_mut(&first).unwrap();
        policy.addresses.clear();
        policy.ready = true;
    });
    expect_plan(Rule::FindingUnclear, &scene, |p| {
        p.findings.insert(Finding {
            object: first.clone(),
            field: "spec.ip".into(),
            value: String::new(),
            remedy: String::new(),
        });
    });
    let plan = scene.plan();
    scene.snapshot.settings.unpooled_addresses = UnpooledAddresses::Deny;
    let rules: BTreeSet<Rule> = check_plan(&scene.snapshot, &plan, scene.time())
        .into_iter()
        .map(|v| v.rule)
        .collect();
    assert_eq!(rules, [Rule::AddressNotAllowed].into());
}

fn expect_node(rule: Rule, scene: &Scene, node: &str, corrupt: impl Fn(&mut NodeOutcome)) {
    let node = node_name(node);
    let facts = scene.facts(&node);
    let mut outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
    assert_eq!(check_node(&scene.snapshot, &facts, &node, &outcome), []);
    corrupt(&mut outcome);
    let found: BTreeSet<Rule> = check_node(&scene.snapshot, &facts, &node, &outcome)
        .into_iter()
        .map(|violation| violation.rule)
        .collect();
    assert!(found.contains(&rule), "{rule:?} not in {found:?}");
}

fn profile(outcome: &mut NodeOutcome) -> &mut Profile {
    outcome.state.worker.profiles.values_mut().next().unwrap()
}

fn first_target(outcome: &mut NodeOutcome) -> &mut Target {
    outcome
        .state
        .worker
        .targets
        .values_mut()
        .find(|t| t.address == ip(E))
        .unwrap()
}

#[test]
fn profiles_and_references_that_must_not_be_are_seen() {
    let scene = scene();
    let node = |rule, corrupt: fn(&mut NodeOutcome)| expect_node(rule, &scene, "worker1", corrupt);
    node(Rule::Overlap, |o| {
        let mut inner = profile(o).ranges[0];
        inner.first = ip("10.0.0.0");
        inner.last = ip("10.0.0.255");
        inner.protocol = Some(Protocol::Udp);
        (inner.port_first, inner.port_last) = (53, 53);
        profile(o).ranges.push(inner);
        profile(o).ranges.sort_unstable();
    });
    node(Rule::Overlap, |o| {
        let range = profile(o).portless[0];
        profile(o).portless.insert(0, range);
    });
    node(Rule::Overlap, |o| {
        o.state
            .worker
            .never
            .insert("10.244.1.0/25".parse().unwrap());
    });
    node(Rule::BoxMalformed, |o| profile(o).ranges.reverse());
    node(Rule::BoxMalformed, |o| profile(o).ranges[0].port_first = 1);
    node(Rule::BoxMalformed, |o| {
        profile(o).ranges[0].last = ip("::1")
    });
    node(Rule::Dangling, |o| o.state.worker.targets.clear());
    node(Rule::Dangling, |o| o.state.worker.groups.clear());
    node(Rule::Dangling, |o| o.state.worker.profiles.clear());
    node(Rule::Dangling, |o| o.target_groups.clear());
    node(Rule::AccountWrong, |o| o.traffic_keys.clear());
    node(Rule::AccountWrong, |o| {
        first_target(o).traffic_key = TrafficKeyId(0xbad)
    });
    node(Rule::AccountWrong, |o| {
        let accounts = o.traffic_keys.values_mut().flatten();
        accounts.for_each(|account| account.policy.name = "nobody".into());
    });
    node(Rule::RangeNotUsable, |o| {
        first_target(o).ranges[0] = PortRange {
            first: 1024,
            last: 1087,
        };
    });
}

#[test]
fn groups_pods_and_guards_that_must_not_be_are_seen() {
    let scene = scene();
    let node = |rule, corrupt: fn(&mut NodeOutcome)| expect_node(rule, &scene, "worker1", corrupt);
    node(Rule::GroupWrong, |o| {
        let index = o.state.tunnel.index;
        o.state
            .worker
            .groups
            .values_mut()
            .for_each(|g| *g = Group::Tunnel([index].into()));
    });
    node(Rule::GroupWrong, |o| {
        o.state
            .worker
            .groups
            .values_mut()
            .for_each(|g| *g = Group::Tunnel([].into()));
    });
    node(Rule::GroupWrong, |o| {
        o.state
            .worker
            .groups
            .values_mut()
            .for_each(|g| *g = Group::Tunnel([999].into()));
    });
    node(Rule::GroupWrong, |o| {
        let local = Group::Local {
            device: "eth0".into(),
        };
        o.state
            .worker
            .groups
            .values_mut()
            .for_each(|g| *g = local.clone());
    });
    node(Rule::NeverIncomplete, |o| {
        o.state.worker.never.pop_first();
    });
    node(Rule::PodWrong, |o| o.state.worker.pods.clear());
    node(Rule::PodWrong, |o| {
        let id = *o.state.worker.pods.values().next().unwrap();
        o.state.worker.pods.insert(ip("10.244.1.11"), id);
    });
    node(Rule::PodWrong, |o| unknown(o).known.clear());
    node(Rule::PodWrong, |o| unknown(o).cidrs.clear());
    node(Rule::PodWrong, |o| {
        unknown(o).known.insert(ip("10.244.1.99"));
    });
    node(Rule::GuardWrong, |o| {
        o.state.worker.egress_addresses.clear()
    });
    node(Rule::GuardWrong, |o| {
        o.state.worker.egress_addresses.insert(ip("192.168.122.1"));
    });
    node(Rule::GuardWrong, |o| o.state.node_addresses.clear());
    node(Rule::TunnelIndex, |o| o.state.tunnel.index += 1);
    node(Rule::ProgrammedWrong, |o| o.programmed[0].pods += 5);
}

#[test]
fn ranges_that_a_live_gateway_does_not_know_are_seen() {
    let mut scene = scene();
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    scene.control();
    let grants = scene.snapshot.node_records[&node_name("worker3")]
        .grants
        .clone();
    expect_node(Rule::RangeNotUsable, &scene, "worker3", |o| {
        let grant = grants.iter().find(|g| g.address == ip(E)).unwrap();
        first_target(o).ranges = grant.ranges.clone();
    });
}

#[test]
fn steering_that_must_not_be_is_seen() {
    let scene = scene();
    let node = |rule, corrupt: fn(&mut GatewayState)| {
        expect_node(rule, &scene, "gateway1", |o| {
            corrupt(o.state.gateway.as_mut().unwrap())
        });
    };
    node(Rule::SteeringWrong, |g| {
        g.addresses.get_mut(&ip(E)).unwrap().blocks.pop_first();
    });
    node(Rule::SteeringWrong, |g| {
        g.addresses.get_mut(&ip(E)).unwrap().blocks.insert(16, 1);
        g.addresses.get_mut(&ip(E)).unwrap().blocks.insert(17, 1);
    });
    node(Rule::SteeringWrong, |g| {
        g.addresses.remove(&ip(E));
    });
    node(Rule::SteeringWrong, |g| {
        g.addresses.insert(ip("203.0.113.1"), Steering::default());
    });
    node(Rule::SteeringWrong, |g| g.workers.clear());
    node(Rule::VersionWrong, |g| g.version += 1);
    node(Rule::VersionWrong, |g| g.version -= 1);
}

#[test]
fn next_hops_that_must_not_be_are_seen() {
    let scene = crate::next_hops::scene();
    type Corrupt = fn(&mut NodeOutcome, GroupNumber);
    let node = |rule, node: &str, corrupt: Corrupt| {
        expect_node(rule, &scene, node, |o| {
            let mut all = o.state.worker.next_hops.iter();
            let near = all.find(|(_, n)| n.address == ip("10.9.0.1"));
            let number = *near.unwrap().0;
            corrupt(o, number);
        });
    };
    fn first(o: &mut NodeOutcome, number: GroupNumber) -> &mut NextHop {
        o.state.worker.next_hops.get_mut(&number).unwrap()
    }
    fn served(o: &mut NodeOutcome) -> &mut std::collections::BTreeMap<u32, GroupNumber> {
        &mut o.state.gateway.as_mut().unwrap().next_hops
    }
    node(Rule::Dangling, "worker1", |o, _| {
        o.state.worker.next_hops.clear()
    });
    node(Rule::Dangling, "worker1", |o, n| {
        first(o, n).address = ip("10.9.0.77")
    });
    node(Rule::SteeringWrong, "worker1", |o, n| {
        first(o, n).network_identifier = 14790
    });
    node(Rule::GroupWrong, "worker1", |o, n| {
        let own = o.state.tunnel.index;
        first(o, n).way = NextHopWay::Tunnel([own].into());
    });
    node(Rule::GroupWrong, "worker1", |o, n| {
        first(o, n).way = NextHopWay::Tunnel(BTreeSet::new())
    });
    node(Rule::GroupWrong, "worker1", |o, n| {
        let group = Group::Nowhere;
        o.state.worker.groups.insert(n, group);
    });
    node(Rule::GroupWrong, "gateway1", |o, n| {
        if let NextHopWay::Attached(here) = &mut first(o, n).way {
            here.source = ip("192.168.122.101");
        }
    });
    node(Rule::SteeringWrong, "gateway1", |o, _| served(o).clear());
    node(Rule::SteeringWrong, "gateway1", |o, n| {
        served(o).insert(0x80_0001, n);
    });
    expect_plan(Rule::ReadyTooEarly, &scene, |p| {
        let far = p.policies.iter_mut().find(|(o, _)| o.name == "far");
        far.unwrap().1.ready = true;
    });
    expect_plan(Rule::AddressWrong, &scene, |p| {
        let near = p.policies.iter_mut().find(|(o, _)| o.name == "near");
        near.unwrap().1.addresses.push(ip(E));
    });
}

#[test]
fn a_gateway_that_is_a_worker_of_another_group_knows_its_own_blocks() {
    let mut scene = kep_scene();
    scene.snapshot.policies[0].gateway = Some(GatewayName("main".into()));
    let mut other = gateway("other");
    other.nodes = selector(&[("role", "worker")]);
    scene.snapshot.gateways.insert(other.name.clone(), other);
    scene.settle();
    let own = scene.snapshot.node_records[&node_name("worker1")].tunnel_index;
    let blocks = scene.outcome("worker1").state.gateway.unwrap().addresses[&ip(E)]
        .blocks
        .clone();
    assert!(blocks.len() == 16 && blocks.values().all(|index| *index == own));
    expect_node(Rule::SteeringWrong, &scene, "worker1", |o| {
        o.state
            .gateway
            .as_mut()
            .unwrap()
            .addresses
            .get_mut(&ip(E))
            .unwrap()
            .announce = true;
    });
    expect_node(Rule::SteeringWrong, &scene, "worker1", |o| {
        o.state.gateway.as_mut().unwrap().addresses.clear();
    });
}

fn unknown(outcome: &mut NodeOutcome) -> &mut UnknownPods {
    outcome.state.worker.unknown.as_mut().unwrap()
}
