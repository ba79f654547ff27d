//! Statuses of gateways, pools and addresses.

use crate::scene::*;
use egret_core::condition::{ConditionType, Reason};
use egret_core::model::*;

#[test]
fn gateways_pools_and_addresses_say_whether_they_serve() {
    let says =
        |conditions: &[egret_core::condition::Condition]| -> Vec<(ConditionType, bool, Reason)> {
            conditions
                .iter()
                .map(|c| (c.kind, c.status, c.reason))
                .collect()
        };
    let mut scene = kep_scene();
    let full = pool("full", "192.168.122.222", "192.168.122.222");
    scene.snapshot.pools.insert(full.name.clone(), full);
    scene.settle();
    let announcer = scene.snapshot.node_records.get_mut(&node_name("gateway1"));
    announcer.unwrap().announcing = [ip("192.168.122.222")].into();
    let plan = scene.plan();
    let accepted = (ConditionType::Accepted, true, Reason::Accepted);
    let gateway = plan.gateways.values().next().unwrap();
    let serving = (ConditionType::Ready, true, Reason::Serving);
    assert_eq!(says(&gateway.conditions), [accepted, serving]);
    let exhausted = (ConditionType::Ready, false, Reason::PoolExhausted);
    let pool = plan.pools.values().next().unwrap();
    assert_eq!(says(&pool.conditions), [accepted, exhausted]);
    let address = plan.address_status.values().next().unwrap();
    let announced = (ConditionType::Ready, true, Reason::Announced);
    assert_eq!(says(&address.conditions), [announced]);

    for record in scene.snapshot.node_records.values_mut() {
        record.underlay_addresses.clear();
        record.announcing.clear();
        record.datapath = Some("nftables".into());
    }
    let plan = scene.plan();
    let gateway = plan.gateways.values().next().unwrap();
    let alone = (ConditionType::Ready, false, Reason::NoGateway);
    let weak = (ConditionType::Degraded, true, Reason::NftablesDatapath);
    assert_eq!(says(&gateway.conditions), [accepted, alone, weak]);
    let address = plan.address_status.values().next().unwrap();
    let silent = (ConditionType::Ready, false, Reason::NotAnnounced);
    assert_eq!(says(&address.conditions), [silent]);
}

#[test]
fn nothing_is_ready_without_a_way_out_at_any_gateway() {
    let mut scene = kep_scene();
    scene.settle();
    let says = |conditions: &[egret_core::condition::Condition], kind| {
        let found = conditions.iter().find(|one| one.kind == kind);
        found.map(|one| (one.status, one.reason))
    };
    let (ready, degraded) = (ConditionType::Ready, ConditionType::Degraded);
    let lost = |scene: &mut Scene, gateway: &str, lost: bool| {
        let record = scene.snapshot.node_records.get_mut(&node_name(gateway));
        record.unwrap().uplink_lost = lost;
    };
    let both = |scene: &Scene, kind| {
        let plan = scene.plan();
        let policy = says(&plan.policies.values().next().unwrap().conditions, kind);
        let gateway = says(&plan.gateways.values().next().unwrap().conditions, kind);
        [policy, gateway]
    };
    lost(&mut scene, "gateway1", true);
    assert_eq!(both(&scene, degraded), [Some((true, Reason::NoUplink)); 2]);
    let [policy, gateway] = both(&scene, ready);
    assert_eq!(policy, Some((true, Reason::Programmed)));
    assert_eq!(gateway, Some((true, Reason::Serving)));
    for gateway in ["gateway2", "gateway3"] {
        lost(&mut scene, gateway, true);
    }
    assert_eq!(both(&scene, ready), [Some((false, Reason::NoUplink)); 2]);
    lost(&mut scene, "gateway3", false);
    assert_eq!(both(&scene, ready), [policy, gateway]);
}

/// The record of a gateway without power still reports that it announces.
#[test]
fn of_several_that_say_they_announce_the_last_in_the_order_does() {
    let mut scene = kep_scene();
    scene.settle();
    let address = *scene.plan().address_status.keys().next().unwrap();
    let all: Vec<NodeName> = scene.snapshot.node_records.keys().cloned().collect();
    let order = egret_core::rendezvous::announcer_order(address, &all);
    assert!(order.len() > 1, "{order:?}");
    for (n, node) in order.iter().enumerate() {
        let record = scene.snapshot.node_records.get_mut(*node).unwrap();
        record.announcing = [address].into();
        let told = &scene.plan().address_status[&address];
        assert_eq!(told.announcer.as_ref(), Some(*node), "{n} before it");
    }
}

/// Gateways whose external addresses are not known are not judged; `Static` promises a route to the gateways.
#[test]
fn an_address_in_no_subnet_of_the_gateways_is_told() {
    let mut scene = kep_scene();
    scene.settle();
    let told = |scene: &Scene| {
        let plan = scene.plan();
        let policy = plan.policies.values().next().unwrap();
        let found = policy
            .conditions
            .iter()
            .find(|one| one.kind == ConditionType::Degraded);
        found.map(|one| (one.reason, one.message.clone()))
    };
    assert_eq!(told(&scene), None);
    let outside = |scene: &mut Scene, subnet: &str| {
        for record in scene.snapshot.node_records.values_mut() {
            if record.node.0.starts_with("gateway") {
                record.external_addresses = [subnet.parse().unwrap()].into();
            }
        }
    };
    outside(&mut scene, "192.168.122.21/24");
    assert_eq!(told(&scene), None);
    outside(&mut scene, "fd00:122::21/64");
    assert_eq!(told(&scene), None);
    outside(&mut scene, "192.168.123.21/24");
    let (reason, message) = told(&scene).unwrap();
    assert_eq!(reason, Reason::NotOnLink);
    assert!(message.contains("192.168.122.222"), "{message}");
    // Two deficiencies are one condition.
    for record in scene.snapshot.node_records.values_mut() {
        record.datapath = Some("nftables".into());
    }
    let (reason, message) = told(&scene).unwrap();
    assert_eq!(reason, Reason::NotOnLink);
    assert!(message.contains("ownership"), "{message}");
    let gateway = scene.snapshot.gateways.values_mut().next().unwrap();
    gateway.announce = AnnounceMode::Static;
    assert_eq!(told(&scene).unwrap().0, Reason::NftablesDatapath);
}
