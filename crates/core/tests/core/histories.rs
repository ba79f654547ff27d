//! Random histories: the checker finds nothing, and every gateway has the ranges that are in use.

use crate::scene::*;
use egret_core::check::{check_node, check_plan};
use egret_core::model::*;
use egret_core::node::{NodeFacts, node_state};
use egret_core::plan::{ClusterPlan, plan};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Clone, Debug)]
pub enum Step {
    AddPod {
        number: u8,
        worker: u8,
        label: u8,
    },
    RemovePod(u8),
    FinishPod(u8),
    AddPolicy {
        number: u8,
        address: u8,
        second: bool,
        cluster: bool,
        gateway: Option<u8>,
    },
    AddPoolPolicy(u8),
    AddNextHop {
        number: u8,
        router: u8,
        other: bool,
    },
    Attach {
        gateway: u8,
        router: u8,
        there: bool,
    },
    RemovePolicy(u8),
    EditPolicy(u8),
    Refuse(u8, bool),
    AddWorker(u8),
    RemoveNode(u8),
    Kill(u8),
    Revive(u8),
    Busy {
        worker: u8,
        address: u8,
        busy: bool,
    },
    Wait(u8),
    Control,
    ControlUntil(u8),
    Agent(u8),
    Everyone,
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..12, 1u8..5, 0u8..3)
            .prop_map(|(number, worker, label)| Step::AddPod { number, worker, label }),
        2 => (0u8..12).prop_map(Step::RemovePod),
        1 => (0u8..12).prop_map(Step::FinishPod),
        2 => (0u8..6, 0u8..4, any::<bool>(), any::<bool>(), prop::option::weighted(0.3, 0u8..2))
            .prop_map(|(number, address, second, cluster, gateway)| Step::AddPolicy {
                number, address, second, cluster, gateway
            }),
        1 => (6u8..9).prop_map(Step::AddPoolPolicy),
        1 => (0u8..6, 0u8..3, any::<bool>())
            .prop_map(|(number, router, other)| Step::AddNextHop { number, router, other }),
        2 => (0u8..3, 0u8..3, any::<bool>())
            .prop_map(|(gateway, router, there)| Step::Attach { gateway, router, there }),
        1 => (0u8..9).prop_map(Step::RemovePolicy),
        1 => (0u8..9).prop_map(Step::EditPolicy),
        1 => (0u8..9, any::<bool>()).prop_map(|(number, refused)| Step::Refuse(number, refused)),
        1 => (1u8..5).prop_map(Step::AddWorker),
        1 => (1u8..8).prop_map(Step::RemoveNode),
        1 => (0u8..3).prop_map(Step::Kill),
        1 => (0u8..3).prop_map(Step::Revive),
        1 => (1u8..5, 0u8..4, any::<bool>())
            .prop_map(|(worker, address, busy)| Step::Busy { worker, address, busy }),
        2 => (1u8..200).prop_map(Step::Wait),
        4 => Just(Step::Control),
        1 => (0u8..8).prop_map(Step::ControlUntil),
        4 => (0u8..8).prop_map(Step::Agent),
        2 => Just(Step::Everyone),
    ]
}

/// Next hops that policies name.
const ROUTERS: [&str; 3] = ["10.9.0.1", "10.9.0.2", "fd00:9::1"];

fn address(number: u8) -> IpAddr {
    ip(&format!("192.0.2.{}", 10 + number))
}

fn any_node(scene: &Scene, number: u8) -> Option<NodeName> {
    let nodes: Vec<&NodeName> = scene.snapshot.nodes.keys().collect();
    (!nodes.is_empty()).then(|| nodes[usize::from(number) % nodes.len()].clone())
}

pub fn start() -> Scene {
    let mut scene = Scene::new(3, 3);
    let mut other = gateway("other");
    other.outbound = Outbound::Announcer;
    other.default = false;
    scene
        .snapshot
        .gateways
        .get_mut(&GatewayName("main".into()))
        .unwrap()
        .default = true;
    scene.snapshot.gateways.insert(other.name.clone(), other);
    let mut pool = pool("pool", "192.0.2.100", "192.0.2.101");
    pool.ranges.push((ip("2001:db8:2::1"), ip("2001:db8:2::4")));
    scene.snapshot.pools.insert(pool.name.clone(), pool);
    scene
}

pub fn take(scene: &mut Scene, step: &Step) {
    match step {
        Step::AddPod {
            number,
            worker,
            label,
        } => {
            let node = format!("worker{worker}");
            if scene.snapshot.nodes.contains_key(&node_name(&node)) {
                let app = ["MyApp", "Other", "Third"][usize::from(*label)];
                scene.add_pod(&format!("pod{number}"), &node, 10 + number, &[("app", app)]);
            }
        }
        Step::RemovePod(number) => {
            scene
                .snapshot
                .pods
                .remove(&("default".into(), format!("pod{number}")));
        }
        Step::FinishPod(number) => {
            let key = ("default".to_owned(), format!("pod{number}"));
            if let Some(pod) = scene.snapshot.pods.get_mut(&key) {
                pod.finished = true;
            }
        }
        Step::AddPolicy {
            number,
            address: a,
            second,
            cluster,
            gateway,
        } => {
            let mut addresses = vec![address(*a).to_string()];
            if *second {
                addresses.push(address(a + 1).to_string());
            }
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut policy = egress("default", &format!("p{number}"), &addresses);
            policy.created_secs = i64::from(*number % 3);
            policy.gateway =
                gateway.map(|g| GatewayName(["other", "missing"][usize::from(g)].into()));
            if *cluster {
                policy.object.kind = Kind::ClusterEgress;
                policy.object.namespace = String::new();
            }
            add(scene, policy);
        }
        Step::AddPoolPolicy(number) => {
            let mut policy = egress("default", &format!("p{number}"), &[]);
            policy.addresses = AddressRequest::Pool(PoolName("pool".into()));
            add(scene, policy);
        }
        Step::AddNextHop {
            number,
            router,
            other,
        } => {
            let router = ROUTERS[usize::from(*router)];
            let mut policy = routed("default", &format!("p{number}"), router);
            policy.gateway = other.then(|| GatewayName("other".into()));
            add(scene, policy);
        }
        Step::RemovePolicy(number) => {
            let name = format!("p{number}");
            let policies = &mut scene.snapshot.policies;
            policies.retain(|p| p.object.name != name);
        }
        other => take_in_cluster(scene, other),
    }
}

fn add(scene: &mut Scene, policy: Policy) {
    scene
        .snapshot
        .policies
        .retain(|p| p.object.name != policy.object.name);
    scene.add_policy(policy);
}

fn attach(scene: &mut Scene, gateway: NodeName, router: IpAddr, there: bool) {
    let nodes = scene.routers.entry(router).or_default();
    match there {
        true => drop(nodes.insert(gateway)),
        false => drop(nodes.remove(&gateway)),
    }
}

fn take_in_cluster(scene: &mut Scene, step: &Step) {
    match step {
        Step::EditPolicy(number) => {
            let name = format!("p{number}");
            for policy in scene
                .snapshot
                .policies
                .iter_mut()
                .filter(|p| p.object.name == name)
            {
                policy.generation += 1;
                policy.priority = 1 - policy.priority;
            }
        }
        Step::Refuse(number, refused) => {
            let name = format!("p{number}");
            let policies = scene.snapshot.policies.iter_mut();
            for policy in policies.filter(|p| p.object.name == name) {
                policy.generation += 1;
                policy.gateway = refused.then(|| GatewayName("missing".into()));
            }
        }
        Step::AddWorker(number) => scene.add_node(&format!("worker{number}"), *number, "worker"),
        Step::RemoveNode(number) => {
            let name = match number {
                1..=4 => format!("worker{number}"),
                _ => format!("gateway{}", number - 4),
            };
            let name = node_name(&name);
            scene.snapshot.nodes.remove(&name);
            scene.snapshot.pods.retain(|_, pod| pod.node != name);
            scene.applied.remove(&name);
            scene.facts.remove(&name);
        }
        Step::Kill(number) => {
            scene
                .dead
                .insert(node_name(&format!("gateway{}", number + 1)));
        }
        Step::Revive(number) => {
            scene
                .dead
                .remove(&node_name(&format!("gateway{}", number + 1)));
        }
        Step::Busy {
            worker,
            address: a,
            busy,
        } => {
            let key = (node_name(&format!("worker{worker}")), address(*a));
            if *busy {
                scene.busy.insert(key);
            } else {
                scene.busy.remove(&key);
            }
        }
        Step::Attach {
            gateway,
            router,
            there,
        } => {
            let gateway = node_name(&format!("gateway{}", gateway + 1));
            attach(scene, gateway, ip(ROUTERS[usize::from(*router)]), *there);
        }
        Step::Wait(seconds) => scene.now += i64::from(*seconds),
        Step::Control => drop(scene.control()),
        Step::ControlUntil(writes) => drop(scene.control_until(usize::from(*writes))),
        Step::Agent(number) => {
            if let Some(node) = any_node(scene, *number) {
                scene.run_agent(&node);
            }
        }
        Step::Everyone => {
            scene.control();
            scene.run_agents();
        }
        _ => unreachable!("handled before"),
    }
}

/// Pool addresses by the name of the policy for which their record was written.
type Given = BTreeMap<String, BTreeSet<IpAddr>>;

/// A policy keeps its pool address as long as it exists, wherever a controller stopped. `before`: the plan before the
/// step.
fn kept(scene: &Scene, step: &Step, before: &ClusterPlan, given: &mut Given) {
    if let Step::AddPolicy { number, .. }
    | Step::AddPoolPolicy(number)
    | Step::AddNextHop { number, .. }
    | Step::RemovePolicy(number) = step
    {
        given.remove(&format!("p{number}"));
    }
    let plan = scene.plan();
    let pooled = scene.snapshot.policies.iter();
    for policy in pooled.filter(|p| matches!(p.addresses, AddressRequest::Pool(_))) {
        let (object, records) = (&policy.object, &scene.snapshot.addresses);
        let given = given.entry(object.name.clone()).or_default();
        let planned = before.policies.get(object).map(|p| p.addresses.iter());
        let written = planned.into_iter().flatten();
        let mine = matches!(step, Step::Control | Step::ControlUntil(_));
        given.extend(written.filter(|address| mine && records.contains_key(address)));
        if plan.policies[object].refusal.is_some() {
            continue;
        }
        let now = &plan.policies[object].addresses;
        let lost = given.iter().find(|address| !now.contains(address));
        assert_eq!(lost, None, "{object} has {now:?} now");
    }
}

fn inspect(scene: &Scene) {
    let plan_now = scene.plan();
    let violations = check_plan(&scene.snapshot, &plan_now, scene.time());
    assert!(violations.is_empty(), "{violations:#?}");
    for (number, node) in scene.snapshot.nodes.keys().enumerate() {
        let facts = scene.facts(node);
        if let Ok(outcome) = node_state(&scene.snapshot, &facts, node) {
            let violations = check_node(&scene.snapshot, &facts, node, &outcome);
            assert!(violations.is_empty(), "{node}: {violations:#?}");
        }
        // The same with some devices gone, on a different node each time.
        if scene.now.rem_euclid(4) != number as i64 {
            continue;
        }
        let gone = scene.snapshot.pods.values().step_by(2);
        let gone = gone.flat_map(|pod| pod.addresses.iter().map(|a| (*a, pod.uid.clone())));
        let all = scene.snapshot.pods.values();
        let all = all.flat_map(|pod| pod.addresses.iter().map(|a| (*a, pod.uid.clone())));
        let facts = NodeFacts {
            detached: gone.collect(),
            devices: all.zip(7..).filter(|(_, index)| index % 3 != 0).collect(),
            ..facts
        };
        if let Ok(outcome) = node_state(&scene.snapshot, &facts, node) {
            let violations = check_node(&scene.snapshot, &facts, node, &outcome);
            assert!(violations.is_empty(), "{node}: {violations:#?}");
        }
    }
    // Neither the order of policies nor the time of the call matters.
    let mut turned = scene.snapshot.clone();
    turned.policies.reverse();
    assert_eq!(plan(&turned, scene.time()), plan_now);
}

/// R2 in the kernels: when a worker starts to use a block, every live gateway of the group steers it to that worker.
fn made_before_use(scene: &Scene, node: &NodeName) {
    let Some(outcome) = scene.applied.get(node) else {
        return;
    };
    for (id, target) in &outcome.state.worker.targets {
        let key = &outcome.target_groups[id];
        let gateway = &scene.snapshot.gateways[&key.gateway];
        let live = scene
            .snapshot
            .nodes
            .values()
            .filter(|n| gateway.nodes.matches(&n.labels) && !scene.dead.contains(&n.name));
        for other in live {
            let Some(state) = scene
                .applied
                .get(&other.name)
                .and_then(|o| o.state.gateway.as_ref())
            else {
                continue;
            };
            if state.version == 0 {
                continue;
            }
            for range in &target.ranges {
                for block in range.first / 64..=range.last / 64 {
                    let steered = state
                        .addresses
                        .get(&target.address)
                        .and_then(|steering| steering.blocks.get(&block));
                    assert_eq!(
                        steered,
                        Some(&outcome.state.tunnel.index),
                        "{node} uses block {block} of {}, {} does not know",
                        target.address,
                        other.name
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn whatever_happens_the_checker_is_silent(steps in prop::collection::vec(step(), 1..60)) {
        let mut scene = start();
        let mut given = Given::new();
        for step in &steps {
            let before = scene.plan();
            take(&mut scene, step);
            inspect(&scene);
            kept(&scene, step, &before, &mut given);
            if let Step::Agent(number) = step
                && let Some(node) = any_node(&scene, *number)
                && !scene.dead.contains(&node)
                && scene.snapshot.node_records.contains_key(&node)
            {
                made_before_use(&scene, &node);
            }
        }
        // Without further changes, controller and agents reach a fixed point, and every accepted policy is ready.
        scene.dead.clear();
        scene.busy.clear();
        scene.settle();
        scene.now += 1_000;
        scene.settle();
        inspect(&scene);
        let plan = scene.plan();
        let gateways = !scene.gateway_nodes().is_empty();
        for (object, policy) in plan.policies.iter().filter(|(_, p)| p.refusal.is_none()) {
            let missing = |c: &egret_core::condition::Condition| c.reason == egret_core::condition::Reason::NextHopNotAttached;
            if policy.conditions.iter().any(missing) {
                continue;
            }
            let allocated = !policy.conditions.iter().any(|c| c.reason == egret_core::condition::Reason::PoolExhausted);
            prop_assert!(policy.ready || !gateways || !allocated, "{object} {:?}", policy.conditions);
        }
        // Without policies everything is removed, in the end also records.
        scene.snapshot.policies.clear();
        scene.settle();
        scene.now += 1_000;
        scene.settle();
        scene.now += 1_000;
        scene.settle();
        let leases: Vec<&Lease> =
            scene.snapshot.addresses.values().flat_map(|r| &r.leases).collect();
        let of_the_living =
            leases.iter().filter(|l| scene.snapshot.nodes.contains_key(&l.node)).count();
        prop_assert_eq!(of_the_living, 0);
        if leases.is_empty() {
            prop_assert!(scene.snapshot.addresses.is_empty(), "{:?}", scene.snapshot.addresses);
        }
    }
}
