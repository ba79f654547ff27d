//! Pool addresses: allocated, kept, and refused.

use crate::planning::{has, named, only, with};
use crate::scene::*;
use egret_core::condition::ConditionType;
use egret_core::model::*;

pub fn pooled(name: &str) -> Policy {
    let mut policy = egress("default", name, &[]);
    policy.addresses = AddressRequest::Pool(PoolName("pool".into()));
    policy
}

#[test]
fn pools_give_the_lowest_free_address_of_each_family_and_policies_keep_it() {
    let mut scene = with(vec![pooled("b"), pooled("a")]);
    let mut pool = pool("pool", "192.0.2.1", "192.0.2.3");
    pool.ranges.push((ip("2001:db8::1"), ip("2001:db8::ff")));
    scene.snapshot.pools.insert(pool.name.clone(), pool);
    scene.add_policy(egress("default", "fixed", &["192.0.2.1"]));
    let plan = scene.settle();
    assert_eq!(plan.findings, [].into());
    assert_eq!(
        named(&plan, "a").addresses,
        [ip("192.0.2.2"), ip("2001:db8::1")]
    );
    assert_eq!(
        named(&plan, "b").addresses,
        [ip("192.0.2.3"), ip("2001:db8::2")]
    );
    assert!(plan.policies.values().all(|p| p.ready), "{plan:#?}");

    // The policy with a fixed address is deleted: no other moves to the lower address, but a new one gets it once it is
    // free.
    scene.snapshot.policies.retain(|p| p.object.name != "fixed");
    scene.settle();
    scene.now += 200;
    scene.settle();
    scene.add_policy(pooled("c"));
    let plan = scene.settle();
    assert_eq!(
        named(&plan, "a").addresses,
        [ip("192.0.2.2"), ip("2001:db8::1")]
    );
    assert_eq!(
        named(&plan, "c").addresses,
        [ip("192.0.2.1"), ip("2001:db8::3")]
    );

    scene.add_policy(pooled("d"));
    let plan = scene.settle();
    let late = named(&plan, "d");
    assert!(!late.ready && !has(late, ConditionType::Allocated));
    assert_eq!(plan.findings.len(), 1);
    assert_eq!(
        (
            plan.findings.first().unwrap().field.as_str(),
            plan.findings.first().unwrap().value.as_str()
        ),
        ("spec.pool", "pool")
    );
}

/// Recreating a gateway or a pool must not move the addresses of its policies.
#[test]
fn a_policy_that_is_refused_for_a_while_has_its_address_again_afterwards() {
    for (wait, is_pool) in [(0, false), (1_000, false), (0, true), (1_000, true)] {
        let mut scene = with(vec![pooled("a")]);
        let usual = pool("pool", "192.0.2.1", "192.0.2.9");
        scene.snapshot.pools.insert(usual.name.clone(), usual);
        assert_eq!(only(&scene.settle()).addresses, [ip("192.0.2.1")]);
        let before = scene.snapshot.clone();
        match is_pool {
            true => scene.snapshot.pools.clear(),
            false => scene.snapshot.gateways.clear(),
        }
        let plan = scene.settle();
        assert!(only(&plan).refusal.is_some() && only(&plan).addresses.is_empty());
        // While it is refused, another policy does not get its address, whether or not its ports are still in
        // hold-down.
        scene.now += wait;
        scene.settle();
        scene.add_policy(pooled("b"));
        let other = pool("other", "192.0.2.1", "192.0.2.1");
        scene.snapshot.pools.insert(other.name.clone(), other);
        let mut third = pooled("c");
        third.addresses = AddressRequest::Pool(PoolName("other".into()));
        scene.add_policy(third);
        scene.settle();
        scene.snapshot.gateways = before.gateways;
        scene.snapshot.pools.extend(before.pools);
        let plan = scene.settle();
        let case = format!("{wait} {is_pool}");
        assert_eq!(named(&plan, "a").addresses, [ip("192.0.2.1")], "{case}");
        assert_eq!(named(&plan, "b").addresses, [ip("192.0.2.2")], "{case}");
        assert!(named(&plan, "c").addresses.is_empty(), "{case}");
    }
}

#[test]
fn a_pool_gives_no_address_of_the_cluster() {
    let mut scene = with(vec![pooled("a")]);
    let pool = pool("pool", "192.168.122.1", "192.168.122.9");
    scene.snapshot.pools.insert(pool.name.clone(), pool);
    // 1 and 2 are workers, 5 is the API server.
    assert_eq!(only(&scene.settle()).addresses, [ip("192.168.122.3")]);
}
