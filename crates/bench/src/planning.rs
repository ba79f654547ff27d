//! Times of `core` at the size it is meant for: 1,000 nodes, 100,000 pods, 1,000 policies.

use crate::figure::Report;
use crate::state;
use egret_core::model::{NodeName, NodeRecord, Snapshot};
use egret_core::node::{NodeFacts, node_state};
use egret_core::plan::{ClusterPlan, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const PART: &str = "planning";
const NODES: usize = 1_000;
const PODS_PER_NODE: usize = 100;
const POLICIES: usize = 1_000;
const NOW_SECS: i64 = 1_000;

/// Plans of the whole cluster from nothing and again, and one node's state.
pub fn measure(report: &mut Report, rounds: usize) {
    for _ in 0..rounds {
        let mut snapshot = state::cluster(NODES, PODS_PER_NODE, POLICIES);
        let first = timed(report, "cluster, from nothing", || {
            plan(&snapshot, NOW_SECS)
        });
        write_down(&mut snapshot, &first);
        timed(report, "cluster, again", || plan(&snapshot, NOW_SECS));

        let node = NodeName("node00500".into());
        let facts = facts(&snapshot);
        let of_node = |snapshot: &Snapshot| {
            node_state(snapshot, &facts, &node).expect("the node is in the cluster")
        };
        timed(report, "one node's state", || of_node(&snapshot));
        let new = state::pod(&node, NODES * PODS_PER_NODE, POLICIES);
        let key = (new.namespace.clone(), new.name.clone());
        snapshot.pods.insert(key, new);
        timed(report, "cluster, one pod more", || {
            plan(&snapshot, NOW_SECS)
        });
        // An agent reads its own node's pods only.
        snapshot.pods.retain(|_, pod| pod.node == node);
        timed(report, "one node's state from its own pods", || {
            of_node(&snapshot)
        });
    }
}

fn timed<T>(report: &mut Report, name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let ms = start.elapsed().as_secs_f64() * 1e3;
    report.add(PART, name, "ours", "ms", ms);
    result
}

/// What the controller would have written.
fn write_down(snapshot: &mut Snapshot, plan: &ClusterPlan) {
    snapshot.addresses = plan.addresses.clone();
    for (node, spec) in &plan.node_records {
        let record = NodeRecord {
            node: node.clone(),
            tunnel_index: spec.tunnel_index,
            grants: spec.grants.clone(),
            underlay_addresses: snapshot.nodes[node].addresses.clone(),
            steering_version: u64::MAX,
            announcing: BTreeSet::new(),
            demand: BTreeMap::new(),
            full_destinations: BTreeMap::new(),
            programmed: Vec::new(),
            datapath: Some("ebpf".into()),
            resource_version: 1,
        };
        snapshot.node_records.insert(node.clone(), record);
    }
    for policy in &mut snapshot.policies {
        if let Some(planned) = plan.policies.get(&policy.object) {
            policy.assigned = planned.addresses.clone();
        }
    }
}

fn facts(snapshot: &Snapshot) -> NodeFacts {
    let gateways = snapshot.nodes.values();
    let gateways: BTreeSet<NodeName> = gateways
        .filter(|node| {
            node.labels
                .get("role")
                .is_some_and(|role| role == "gateway")
        })
        .map(|node| node.name.clone())
        .collect();
    NodeFacts {
        underlay_mtu: 1500,
        settled: true,
        versions: gateways.iter().map(|g| (g.clone(), u64::MAX)).collect(),
        ever_live: gateways.clone(),
        live: gateways,
        ..NodeFacts::default()
    }
}
