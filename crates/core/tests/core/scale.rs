//! The size that planning is meant for: 1,000 nodes, 100,000 pods, 1,000 policies.

use crate::scene::*;
use egret_core::model::*;

/// Pods in 100 namespaces with 10 label sets each; a policy for each of them.
fn large(nodes: u32, pods_per_node: u32) -> Scene {
    let mut scene = Scene::new(0, 3);
    for number in 0..nodes {
        let (high, low) = (number / 250, number % 250 + 1);
        let name = node_name(&format!("node{number:04}"));
        let node = Node {
            name: name.clone(),
            labels: labels(&[("role", "worker")]),
            addresses: vec![ip(&format!("172.16.{high}.{low}"))],
            pod_cidrs: vec![format!("10.{}.{low}.0/24", 100 + high).parse().unwrap()],
        };
        scene.snapshot.nodes.insert(name.clone(), node);
        for pod in 0..pods_per_node {
            let set = (number * pods_per_node + pod) % 1_000;
            let namespace = format!("ns{}", set % 100);
            let pod = Pod {
                namespace: namespace.clone(),
                name: format!("pod-{number}-{pod}"),
                uid: format!("uid-{number}-{pod}"),
                labels: labels(&[("app", &format!("app{}", set / 100)), ("tier", "web")]),
                node: name.clone(),
                addresses: vec![ip(&format!("10.{}.{low}.{}", 100 + high, pod + 2))],
                host_network: false,
                finished: false,
            };
            scene
                .snapshot
                .pods
                .insert((namespace, pod.name.clone()), pod);
        }
    }
    for number in 0..1_000u32 {
        let address = format!("192.0.{}.{}", 2 + number / 250, number % 250 + 1);
        let mut policy = egress(
            &format!("ns{}", number % 100),
            &format!("p{number}"),
            &[&address],
        );
        policy.selection = Selection::Labels {
            namespaces: Namespaces::Names([policy.object.namespace.clone()].into()),
            pods: selector(&[("app", &format!("app{}", number / 100))]),
            nodes: None,
        };
        scene.add_policy(policy);
    }
    scene
}

#[test]
#[ignore = "prints times, judges nothing: cargo test -p egret-core --test core -- --ignored --nocapture scale"]
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
fn a_large_cluster() {
    let mut scene = large(1_000, 100);
    let mut start = std::time::Instant::now();
    let mut lap = |what: &str| {
        println!("{what}: {:?}", start.elapsed());
        start = std::time::Instant::now();
    };
    scene.control();
    lap("first plan");
    scene.control();
    lap("second plan");
    let nodes: Vec<NodeName> = scene.gateway_nodes().into_iter().collect();
    nodes.iter().for_each(|node| scene.run_agent(node));
    lap("three gateways");
    scene.run_agent(&node_name("node0500"));
    lap("one worker");
    let violations = egret_core::check::check_plan(&scene.snapshot, &scene.plan(), scene.now);
    assert_eq!(violations, []);
    lap("plan and check");
}
