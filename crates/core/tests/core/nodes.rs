//! States of nodes: groups, make before use, fail static, roles.

use crate::scene::*;
use egret_core::check::check_node;
use egret_core::machines::answering_nodes;
use egret_core::model::*;
use egret_core::node::{
    DestinationRange, External, Group, IssueKind, NodeFacts, NodeOutcome, NotYet, Target, Verdict,
    node_state,
};
use std::collections::BTreeSet;

const E: &str = "192.168.122.222";

fn target(outcome: &NodeOutcome) -> (&Target, &Group) {
    let worker = &outcome.state.worker;
    let target = worker
        .targets
        .values()
        .find(|t| t.address == ip(E))
        .unwrap();
    (target, &worker.groups[&target.group])
}

fn members(outcome: &NodeOutcome) -> usize {
    match target(outcome).1 {
        Group::Tunnel(members) => members.len(),
        other => panic!("{other:?}"),
    }
}

fn issues(outcome: &NodeOutcome) -> BTreeSet<IssueKind> {
    outcome.issues.iter().map(|r| r.kind).collect()
}

#[test]
fn a_node_without_number_waits() {
    let scene = kep_scene();
    let node = node_name("worker1");
    let result = node_state(&scene.snapshot, &NodeFacts::default(), &node);
    assert_eq!(result, Err(NotYet::NoRecord(node)));
    let node = node_name("nobody");
    let result = node_state(&scene.snapshot, &NodeFacts::default(), &node);
    assert_eq!(result, Err(NotYet::NoNode(node)));
}

#[test]
fn selected_pods_are_bound_and_others_are_not() {
    let mut scene = kep_scene();
    scene.settle();
    let worker = scene.outcome("worker1").state.worker;
    let pods: Vec<_> = worker.pods.keys().copied().collect();
    assert_eq!(pods, [ip("10.244.1.10"), ip("fd00:244:1::10")]);
    let profile = &worker.profiles[&worker.pods[&ip("10.244.1.10")]];
    let verdicts: Vec<Verdict> = profile.ranges.iter().map(|b| b.verdict).collect();
    assert!(
        matches!(
            verdicts[..],
            [Verdict::Target(_), Verdict::FamilyNotCovered]
        ),
        "{verdicts:?}"
    );
    assert!(worker.throw.contains(&"10.244.1.0/24".parse().unwrap()));
    assert!(scene.outcome("worker3").state.worker.pods.is_empty());
}

/// The device of a pod is gone, another pod may have its address by now, and the API still shows it at the first pod.
#[test]
fn an_address_whose_device_is_gone_is_shut_until_another_pod_has_it() {
    let mut scene = kep_scene();
    scene.settle();
    let node = node_name("worker1");
    let address = ip("10.244.1.10");
    let has = |pod: &&Pod| pod.addresses.contains(&address);
    let pod = scene.snapshot.pods.values().find(has).unwrap().clone();
    let uid = pod.uid.clone();
    let mut facts = scene.facts(&node);
    facts.detached.insert((address, uid));
    let outcome = |scene: &Scene| {
        let outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
        assert_eq!(check_node(&scene.snapshot, &facts, &node, &outcome), []);
        outcome
    };

    let shut = outcome(&scene);
    let worker = &shut.state.worker;
    let boxes = &worker.profiles[&worker.pods[&address]].ranges;
    let refused = |b: &DestinationRange| b.verdict == Verdict::Unavailable;
    assert!(!boxes.is_empty() && boxes.iter().all(refused), "{boxes:?}");
    let other_family = &worker.pods[&ip("fd00:244:1::10")];
    assert_ne!(worker.pods.get(&address), Some(other_family));
    assert_eq!(shut.programmed[0].pods, 0, "it is not served");

    // A pod that no policy selects, and then one that another policy could select: its selection decides.
    let mut next = pod;
    next.name = "next".into();
    next.uid = "uid-next".into();
    next.addresses = vec![address];
    let selected = next.clone();
    next.labels.clear();
    let next_key = (next.namespace.clone(), next.name.clone());
    scene.snapshot.pods.insert(next_key.clone(), next);
    assert_eq!(outcome(&scene).state.worker.pods.get(&address), None);
    scene.snapshot.pods.insert(next_key, selected);
    let served = outcome(&scene);
    let worker = &served.state.worker;
    let boxes = &worker.profiles[&worker.pods[&address]].ranges;
    assert!(
        boxes
            .iter()
            .any(|b| matches!(b.verdict, Verdict::Target(_)))
    );
}

#[test]
fn a_dead_gateway_leaves_the_group_and_with_the_last_one_nothing_changes() {
    let mut scene = kep_scene();
    scene.settle();
    assert_eq!(members(&scene.outcome("worker1")), 3);
    scene.dead.insert(node_name("gateway1"));
    scene.run_agents();
    let before = scene.outcome("worker1");
    assert_eq!(members(&before), 2);
    scene
        .dead
        .extend([node_name("gateway2"), node_name("gateway3")]);
    let after = scene.outcome("worker1");
    assert_eq!(after.state, before.state, "fail static");
    assert_eq!(issues(&after), [IssueKind::FailStatic].into());
    assert_eq!(after.programmed[0].pods, 0);
    // Once more, as after several rounds.
    scene.run_agents();
    assert_eq!(scene.outcome("worker1").state, before.state);
}

#[test]
fn with_consent_the_node_address_is_used_while_every_gateway_is_dead() {
    let mut scene = kep_scene();
    scene.snapshot.policies[0].when_unavailable = WhenUnavailable::NodeAddress;
    let mut refused = scene.clone();
    let plan = refused.settle();
    assert_eq!(
        plan.findings.first().unwrap().field,
        "spec.whenUnavailable",
        "no pool, no consent"
    );

    let mut pool = pool("pool", E, E);
    pool.allow_node_address = true;
    scene.snapshot.pools.insert(pool.name.clone(), pool);
    scene.settle();
    let all: Vec<NodeName> = scene.gateway_nodes().into_iter().collect();
    for scene in [&mut scene, &mut refused] {
        scene.dead.extend(all.clone());
    }
    let kept = refused.outcome("worker1");
    let to_node = scene.outcome("worker1");
    let boxes = |o: &NodeOutcome| {
        o.state
            .worker
            .profiles
            .values()
            .next()
            .unwrap()
            .ranges
            .clone()
    };
    assert!(boxes(&kept).iter().any(|b| b.first.is_ipv4()));
    assert!(
        boxes(&to_node).iter().all(|b| b.first.is_ipv6()),
        "IPv6 is rejected as before"
    );
    assert!(issues(&to_node).contains(&IssueKind::NodeAddress));

    // Right after the start, missing answers mean nothing.
    let mut facts = scene.facts(&node_name("worker1"));
    facts.settled = false;
    let fresh = node_state(&scene.snapshot, &facts, &node_name("worker1")).unwrap();
    assert!(boxes(&fresh).iter().any(|b| b.first.is_ipv4()));
}

#[test]
fn ranges_wait_for_the_last_live_gateway() {
    let mut scene = kep_scene();
    scene.settle();
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    scene.control();
    scene.run_agent(&node_name("gateway1"));
    scene.run_agent(&node_name("gateway2"));
    let outcome = scene.outcome("worker3");
    assert!(target(&outcome).0.ranges.is_empty());
    assert_eq!(outcome.programmed[0].pods, 0);
    assert_eq!(issues(&outcome), [IssueKind::AwaitingGateways].into());
    let mut without = scene.clone();
    without.dead.insert(node_name("gateway3"));
    assert_eq!(
        target(&without.outcome("worker3")).0.ranges.len(),
        4,
        "a dead one is not waited for"
    );
    scene.run_agent(&node_name("gateway3"));
    assert_eq!(target(&scene.outcome("worker3")).0.ranges.len(), 4);
}

#[test]
fn a_gateway_that_has_loaded_nothing_is_no_next_hop() {
    let mut scene = kep_scene();
    scene.settle();
    scene.add_node("gateway4", 104, "gateway");
    scene.control();
    let before = scene.outcome("worker1");
    assert_eq!(members(&before), 3);
    assert_eq!(
        target(&before).0.ranges.len(),
        4,
        "nor is anybody held up by it"
    );
    scene.run_agent(&node_name("gateway4"));
    assert_eq!(members(&scene.outcome("worker1")), 4);
}

#[test]
fn a_node_that_is_a_gateway_itself_goes_out_by_its_own_device() {
    let mut scene = kep_scene();
    scene.add_pod("g", "gateway1", 10, &[("app", "MyApp")]);
    scene.settle();
    let local = scene.outcome("gateway1");
    assert_eq!(
        target(&local).1,
        &Group::Local {
            device: "eth1".into()
        }
    );
    assert_eq!(local.programmed[0].pods, 1);
    let mut facts = scene.facts(&node_name("gateway1"));
    facts.external = Some(External {
        device: "eth1".into(),
        link_up: false,
        leads_out: [true; 2],
    });
    let down = node_state(&scene.snapshot, &facts, &node_name("gateway1")).unwrap();
    assert_eq!(members(&down), 2, "the others, never itself");
}

#[test]
fn a_cluster_of_one_node_works() {
    let mut scene = Scene::new(0, 1);
    scene.add_policy(egress("default", "my-app", &[E]));
    scene.add_pod("a1", "gateway1", 10, &[("app", "MyApp")]);
    let plan = scene.settle();
    assert!(plan.policies.values().next().unwrap().ready, "{plan:#?}");
    let state = scene.outcome("gateway1").state;
    assert!(state.peers.is_empty());
    let own = state.tunnel.index;
    let gateway = state.gateway.unwrap();
    assert!(
        gateway.addresses[&ip(E)]
            .blocks
            .values()
            .all(|index| *index == own)
    );
    assert!(gateway.workers.contains_key(&own));
}

#[test]
fn with_outbound_announcer_only_the_first_live_gateway_sends() {
    let mut scene = kep_scene();
    scene.add_policy(egress(
        "default",
        "second",
        &["192.0.2.9", "192.0.2.10", "192.0.2.11"],
    ));
    scene
        .snapshot
        .gateways
        .values_mut()
        .for_each(|g| g.outbound = Outbound::Announcer);
    scene.settle();
    for _ in 0..3 {
        let outcome = scene.outcome("worker1");
        for (id, target) in &outcome.state.worker.targets {
            let group = &outcome.state.worker.groups[&target.group];
            let key = &outcome.target_groups[id];
            let gateways = scene.gateway_nodes();
            let order = egret_core::rendezvous::announcer_order(target.address, &gateways);
            let first = order
                .into_iter()
                .find(|n| !scene.dead.contains(*n))
                .unwrap();
            assert_eq!(key.only.as_ref(), Some(first));
            let index = scene.snapshot.node_records[first].tunnel_index;
            assert_eq!(group, &Group::Tunnel([index].into()));
        }
        let next = scene
            .gateway_nodes()
            .into_iter()
            .find(|n| !scene.dead.contains(n))
            .unwrap();
        if scene.dead.len() == 2 {
            break;
        }
        scene.dead.insert(next);
    }
    scene.run_agents();
    let before = scene.outcome("worker1").state;
    scene.dead = scene.gateway_nodes();
    assert_eq!(scene.outcome("worker1").state, before, "fail static");
}

#[test]
fn groups_keep_their_numbers() {
    let mut scene = kep_scene();
    scene.snapshot.policies[0].gateway = Some(GatewayName("main".into()));
    scene.settle();
    let before = scene.outcome("worker1").groups;
    let mut first = egress("default", "a-first", &["192.0.2.9"]);
    first.gateway = Some(GatewayName("alpha".into()));
    scene.add_policy(first);
    scene
        .snapshot
        .gateways
        .insert(GatewayName("alpha".into()), gateway("alpha"));
    scene.settle();
    let after = scene.outcome("worker1").groups;
    assert_eq!(after.len(), 2);
    for (key, number) in before {
        assert_eq!(after[&key], number);
    }
}

#[test]
fn a_worker_needs_nothing_of_other_nodes_but_where_they_are() {
    let mut scene = kep_scene();
    scene.settle();
    let whole = scene.outcome("worker1");
    let me = node_name("worker1");
    scene.snapshot.pods.retain(|_, pod| pod.node == me);
    for record in scene.snapshot.node_records.values_mut() {
        if record.node != me {
            record.grants.clear();
            record.programmed.clear();
            record.demand.clear();
        }
    }
    scene.snapshot.addresses.clear();
    assert_eq!(scene.outcome("worker1"), whole);
}

#[test]
fn the_tunnel_is_smaller_than_the_underlay_and_than_the_gateway_asks() {
    let mut scene = kep_scene();
    scene.settle();
    assert_eq!(scene.outcome("worker1").state.tunnel.mtu, 1450);
    scene
        .snapshot
        .gateways
        .values_mut()
        .for_each(|g| g.mtu = Some(1400));
    assert_eq!(scene.outcome("worker1").state.tunnel.mtu, 1400);
    for node in scene.snapshot.nodes.values_mut() {
        node.addresses.reverse();
    }
    scene
        .snapshot
        .gateways
        .values_mut()
        .for_each(|g| g.mtu = None);
    assert_eq!(
        scene.outcome("worker1").state.tunnel.mtu,
        1430,
        "IPv6 underlay"
    );
}

#[test]
fn a_profile_with_too_many_boxes_leaves_out_the_policy_that_ranks_last() {
    let mut scene = kep_scene();
    let mut huge = egress("default", "huge", &["192.0.2.9"]);
    huge.priority = -1;
    let ports: Vec<PortMatch> = (0..33)
        .map(|n| PortMatch {
            protocol: Protocol::Tcp,
            first: 2 * n + 1,
            last: 2 * n + 1,
        })
        .collect();
    let one = |n: u32| Destination {
        cidr: format!("203.{}.{}.1/32", n / 250, n % 250).parse().unwrap(),
        except: Vec::new(),
        ports: ports.clone(),
    };
    huge.destinations = Some((0..2_000).map(one).collect());
    scene.add_policy(huge);
    let small = Destination {
        cidr: "198.51.100.0/24".parse().unwrap(),
        except: Vec::new(),
        ports: Vec::new(),
    };
    scene.snapshot.policies[0].destinations = Some(vec![small]);
    scene.settle();
    let outcome = scene.outcome("worker1");
    let names: Vec<&str> = outcome
        .findings
        .iter()
        .map(|f| f.object.name.as_str())
        .collect();
    assert_eq!(names, ["huge"]);
    let profile = outcome.state.worker.profiles.values().next().unwrap();
    assert_eq!(profile.ranges.len(), 1, "the other one is carried out");
    let pods: Vec<u32> = outcome.programmed.iter().map(|p| p.pods).collect();
    assert_eq!(pods, [0, 1]);
    assert!(
        !scene
            .plan()
            .policies
            .iter()
            .any(|(o, p)| o.name == "huge" && p.ready)
    );
}

/// keepalived, or a person, has assigned the address to a gateway node.
#[test]
fn a_node_that_has_the_address_is_left_to_answer_for_it() {
    let mut scene = kep_scene();
    scene.settle();
    let me = node_name("gateway1");
    let state = scene.outcome("gateway1").state.gateway.unwrap();
    let live: BTreeSet<NodeName> = scene.gateway_nodes();
    let nobody = BTreeSet::new();
    let answer = |scene: &Scene, local: &BTreeSet<std::net::IpAddr>, live: &BTreeSet<NodeName>| {
        answering_nodes(&scene.snapshot, &state, (&me, local), live)[&ip(E)].clone()
    };
    let all = answer(&scene, &nobody, &live);
    assert_eq!(all, live);
    // Another gateway has it, and answers for it as long as it is alive.
    let second = node_name("gateway2");
    let record = scene.snapshot.node_records.get_mut(&second).unwrap();
    record.external_addresses = [format!("{E}/32").parse().unwrap()].into();
    assert_eq!(
        answer(&scene, &nobody, &live),
        BTreeSet::from([second.clone()])
    );
    assert_eq!(answer(&scene, &nobody, &BTreeSet::new()), all);
    // An address of the same subnet does not count.
    let record = scene.snapshot.node_records.get_mut(&second).unwrap();
    record.external_addresses = ["192.168.122.22/24".parse().unwrap()].into();
    assert_eq!(answer(&scene, &nobody, &live), all);
    // The addresses of this node's kernel count, not the reported ones.
    let own = BTreeSet::from([ip(E)]);
    assert_eq!(answer(&scene, &own, &live), BTreeSet::from([me.clone()]));
    let record = scene.snapshot.node_records.get_mut(&me).unwrap();
    record.external_addresses = [format!("{E}/32").parse().unwrap()].into();
    assert_eq!(answer(&scene, &nobody, &live), all);
}
