//! What the tests of leases ask of a scene.

use crate::scene::*;
use egret_core::check::check_plan;
use egret_core::model::*;
use egret_core::plan::ClusterPlan;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub const E: &str = "192.168.122.222";

pub fn leases_of(scene: &Scene, node: &str) -> Vec<Lease> {
    let record = &scene.snapshot.addresses[&ip(E)];
    let mine = record.leases.iter().filter(|l| l.node.0 == node);
    mine.cloned().collect()
}

pub fn states_of(scene: &Scene, node: &str) -> Vec<LeaseState> {
    leases_of(scene, node).iter().map(|l| l.state).collect()
}

pub fn ports(ranges: &[PortRange]) -> u32 {
    let sizes = ranges.iter().map(|r| u32::from(r.last - r.first) + 1);
    sizes.sum()
}

/// Ports in which the node may open flows.
pub fn usable(scene: &Scene, node: &str) -> u32 {
    let leases = leases_of(scene, node);
    let usable = leases.iter().filter(|lease| lease.state.is_usable());
    usable.map(|lease| ports(&lease.ranges)).sum()
}

pub fn record<'s>(scene: &'s mut Scene, node: &str) -> &'s mut NodeRecord {
    let records = &mut scene.snapshot.node_records;
    records.get_mut(&node_name(node)).unwrap()
}

pub fn remove_pod(scene: &mut Scene, name: &str) {
    let key = ("default".to_owned(), name.to_owned());
    assert!(scene.snapshot.pods.remove(&key).is_some());
}

pub fn remove_node(scene: &mut Scene, name: &str) -> Node {
    let name = node_name(name);
    scene.snapshot.pods.retain(|_, pod| pod.node != name);
    let node = scene.snapshot.nodes.remove(&name).unwrap();
    std::sync::Arc::unwrap_or_clone(node)
}

/// Plans, lets the checker look, and writes.
pub fn control(scene: &mut Scene) -> ClusterPlan {
    let planned = scene.plan();
    assert_eq!(check_plan(&scene.snapshot, &planned, scene.time()), []);
    scene.control()
}

/// The same with all agents, until nothing changes.
pub fn settle(scene: &mut Scene) -> ClusterPlan {
    for _ in 0..40 {
        let before = scene.snapshot.clone();
        let planned = control(scene);
        scene.run_agents();
        if scene.snapshot == before {
            return planned;
        }
    }
    panic!("controller and agents never come to rest");
}

/// No two nodes may open flows in one block.
pub fn assert_disjoint(scene: &Scene) {
    let mut owners: BTreeMap<(IpAddr, u16), &NodeName> = BTreeMap::new();
    for (node, outcome) in &scene.applied {
        for target in outcome.state.worker.targets.values() {
            let ranges = target.ranges.iter();
            for block in ranges.flat_map(|range| range.first / 64..=range.last / 64) {
                let other = owners.insert((target.address, block), node);
                assert!(
                    other.is_none_or(|o| o == node),
                    "{block}: {other:?} and {node}"
                );
            }
        }
    }
}
