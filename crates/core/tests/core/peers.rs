//! Gateways that pass packets without an owner to each other.

use crate::scene::*;
use egret_core::model::*;
use egret_core::node::*;

/// State of a gateway of three, with these of the others dead or lagging.
fn peers(of: &str, dead: &[&str], lagging: &[&str]) -> (GatewayPeers, Steering, Scene) {
    let mut scene = kep_scene();
    scene.settle();
    scene.dead = dead.iter().map(|name| node_name(name)).collect();
    let node = node_name(of);
    let mut facts = scene.facts(&node);
    let behind = lagging.iter().map(|name| node_name(name)).collect();
    facts.lagging.insert(GatewayName("main".into()), behind);
    let outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
    let gateway = outcome.state.gateway.expect("a gateway");
    let table = gateway
        .addresses
        .values()
        .next()
        .expect("an address")
        .clone();
    (gateway.peers, table, scene)
}

fn relay(of: &str, dead: &[&str], lagging: &[&str]) -> Option<String> {
    let (peers, table, scene) = peers(of, dead, lagging);
    let index = peers.relays.get(&table.group)?;
    let mut records = scene.snapshot.node_records.values();
    let record = records.find(|record| record.tunnel_index == *index);
    Some(record.expect("a node with this index").node.to_string())
}

#[test]
fn each_gateway_passes_them_to_the_next_one_that_can_know_more() {
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(relay("gateway1", &[], &[]), some("gateway2"));
    assert_eq!(relay("gateway2", &[], &[]), some("gateway3"));
    assert_eq!(relay("gateway3", &[], &[]), some("gateway1"));
    assert_eq!(relay("gateway1", &["gateway2"], &[]), some("gateway3"));
    assert_eq!(relay("gateway1", &[], &["gateway2"]), some("gateway3"));
    assert_eq!(relay("gateway1", &["gateway2"], &["gateway3"]), None);
}

#[test]
fn packets_are_taken_from_gateways_of_the_same_group_alone_dead_or_not() {
    let (peers, _, scene) = peers("gateway1", &["gateway2"], &[]);
    let index = |name: &str| scene.snapshot.node_records[&node_name(name)].tunnel_index;
    assert_eq!(peers.members, ["gateway2", "gateway3"].map(index).into());
}
