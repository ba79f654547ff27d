//! Quotas of pods and namespaces in a node's state.

use crate::scene::*;
use egret_core::check::{Rule, check_node};
use egret_core::model::*;
use proptest::prelude::*;
use std::num::NonZeroU32;

const E: &str = "192.168.122.222";

fn of(pod: u32, namespace: u32) -> Quotas {
    Quotas {
        pod: NonZeroU32::new(pod),
        namespace: NonZeroU32::new(namespace),
    }
}

/// A node with pods of two namespaces, and a gateway and a pool with these quotas.
fn scene(gateway: Quotas, of_pool: Option<Quotas>) -> Scene {
    let mut scene = kep_scene();
    let mut everybody = egress("default", "all", &[E]);
    everybody.object = ObjectRef::of_cluster(Kind::ClusterEgress, "all");
    everybody.selection = Selection::Labels {
        namespaces: Namespaces::All,
        pods: selector(&[("app", "MyApp")]),
        nodes: None,
    };
    scene.snapshot.policies = vec![everybody].into();
    scene.add_pod("c1", "worker1", 12, &[("app", "MyApp")]);
    let key = ("default".to_owned(), "c1".to_owned());
    let mut other = std::sync::Arc::unwrap_or_clone(scene.snapshot.pods.remove(&key).unwrap());
    other.namespace = "other".into();
    scene
        .snapshot
        .pods
        .insert(("other".into(), "c1".into()), other);
    let main = scene.snapshot.gateways.get_mut(&GatewayName("main".into()));
    main.unwrap().quotas = gateway;
    if let Some(quotas) = of_pool {
        let pool = Pool {
            quotas,
            ..pool("some", E, E)
        };
        scene.snapshot.pools.insert(pool.name.clone(), pool);
    }
    scene.settle();
    scene
}

fn expect_checked(scene: &Scene) {
    let name = node_name("worker1");
    let (facts, outcome) = (scene.facts(&name), scene.outcome("worker1"));
    assert_eq!(check_node(&scene.snapshot, &facts, &name, &outcome), []);
}

#[test]
fn the_lowest_quota_of_gateway_and_pool_counts_and_pods_of_a_namespace_are_counted_together() {
    let scene = scene(of(100, 0), Some(of(200, 50)));
    expect_checked(&scene);
    let worker = scene.outcome("worker1").state.worker;
    assert!(
        worker
            .targets
            .values()
            .all(|target| target.quotas == of(100, 50))
    );
    let namespace = |pod: &str| worker.namespaces.get(&ip(pod)).copied();
    assert!(namespace("10.244.1.10").is_some());
    assert_ne!(namespace("10.244.1.10"), namespace("10.244.1.12"));
    assert_eq!(namespace("10.244.1.10"), namespace("fd00:244:1::10"));
    assert_eq!(
        worker.quotas(ip("10.244.1.10"), ip("203.0.113.1")),
        of(100, 50)
    );
    assert_eq!(
        worker.quotas(ip("10.244.1.11"), ip("203.0.113.1")),
        of(0, 0)
    );
}

#[test]
fn without_a_quota_of_namespaces_none_is_told() {
    let worker = scene(of(100, 0), None).outcome("worker1").state.worker;
    assert!(worker.namespaces.is_empty());
    assert!(!worker.pods.is_empty());
}

#[test]
fn a_wrong_quota_is_seen_by_the_checker() {
    let scene = scene(of(100, 50), None);
    let name = node_name("worker1");
    let facts = scene.facts(&name);
    let found = |corrupt: &dyn Fn(&mut egret_core::node::WorkerState)| {
        let mut outcome = scene.outcome("worker1");
        corrupt(&mut outcome.state.worker);
        let found = check_node(&scene.snapshot, &facts, &name, &outcome);
        assert!(
            found.iter().any(|one| one.rule == Rule::QuotaWrong),
            "{found:?}"
        );
    };
    found(&|worker| {
        worker
            .targets
            .values_mut()
            .for_each(|t| t.quotas = of(101, 50))
    });
    found(&|worker| {
        worker
            .targets
            .values_mut()
            .for_each(|t| t.quotas = of(100, 0))
    });
    found(&|worker| {
        worker.namespaces.pop_first();
    });
    found(&|worker| {
        let first = *worker.namespaces.values().next().unwrap();
        worker.namespaces.values_mut().for_each(|id| *id = first);
    });
}

proptest! {
    #![proptest_config(cases(32))]

    /// Property: whatever quotas gateway and pool have, the node's state has the lowest of each kind.
    #[test]
    fn quotas_are_the_lowest(all in prop::array::uniform4(0u32..4), pool in any::<bool>()) {
        let scene = scene(of(all[0], all[1]), pool.then(|| of(all[2], all[3])));
        expect_checked(&scene);
    }
}
