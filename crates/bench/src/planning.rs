//! Times of `core` at its target size: 1,000 nodes, 100,000 pods, 1,000 policies.

use crate::figure::Report;
use crate::state;
use egret_core::model::{AddressPorts, Grant, NodeName, NodeRecord, PortRange, Snapshot};
use egret_core::node::{NodeFacts, node_state};
use egret_core::plan::planner::{Change, Planner, changes};
use egret_core::plan::{ClusterPlan, PlanTime, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

const PART: &str = "planning";
const NODES: usize = 1_000;
const PODS_PER_NODE: usize = 100;
const POLICIES: usize = 1_000;
const NOW: PlanTime = PlanTime {
    now_secs: 1_000,
    term: 1,
};
/// Pods that come and go one by one.
const SINGLE_PODS: usize = 1_000;

/// Measures plans of the whole cluster from nothing and again, and one node's state.
pub fn measure(report: &mut Report, rounds: usize) {
    for _ in 0..rounds {
        let mut snapshot = state::cluster(NODES, PODS_PER_NODE, POLICIES);
        let first = timed(report, "cluster, from nothing", || plan(&snapshot, NOW));
        write_down(&mut snapshot, &first);
        let second = timed(report, "cluster, again", || plan(&snapshot, NOW));
        // Every gateway has reported every lease now: nothing is left to write.
        write_down(&mut snapshot, &second);

        let node = NodeName("node00500".into());
        let facts = facts(&snapshot);
        let of_node = |snapshot: &Snapshot| {
            node_state(snapshot, &facts, &node).expect("the node is in the cluster")
        };
        timed(report, "one node's state", || of_node(&snapshot));
        let new = state::pod(&node, NODES * PODS_PER_NODE, POLICIES);
        let key = (new.namespace.clone(), new.name.clone());
        let before = snapshot.clone();
        snapshot.pods.insert(key, new);
        timed(report, "cluster, one pod more", || plan(&snapshot, NOW));
        kept(report, before, &snapshot);
        // An agent reads its own node's pods only.
        snapshot.pods.retain(|_, pod| pod.node == node);
        timed(report, "one node's state from its own pods", || {
            of_node(&snapshot)
        });
    }
}

/// Measures the same with the incremental planner.
fn kept(report: &mut Report, before: Snapshot, after: &Snapshot) {
    let mut planner = timed(report, "kept planner, from nothing", || {
        Planner::new(before, NOW)
    });
    let found = timed(report, "kept planner, finding what changed", || {
        changes(planner.snapshot(), after)
    });
    timed(report, "kept planner, one pod more", || {
        planner.update(found, NOW)
    });
    // Pods that come and go, for some of which the policy has a lease already and for others not.
    let mut singles = Vec::new();
    let first = NODES * PODS_PER_NODE + 1;
    for number in first..first + SINGLE_PODS {
        let node = NodeName(format!("node{:05}", number * 7 % NODES));
        let pod = state::pod(&node, number, POLICIES);
        let key = (pod.namespace.clone(), pod.name.clone());
        for pod in [Some(pod), None] {
            let change = [Change::Pod(key.clone(), pod)];
            let start = Instant::now();
            planner.update(change, NOW);
            singles.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    singles.sort_by(f64::total_cmp);
    let (median, p99) = (
        singles[singles.len() / 2],
        singles[singles.len() * 99 / 100],
    );
    report.add(PART, "kept planner, a pod, median", "ours", "ms", median);
    report.add(PART, "kept planner, a pod, p99", "ours", "ms", p99);

    let name = NodeName("node00500".into());
    let mut record = after.node_records[&name].clone();
    record.resource_version += 1;
    record.demand = record
        .grants
        .iter()
        .map(|grant| (grant.address, 7))
        .collect();
    timed(report, "kept planner, an agent's report", || {
        planner.update([Change::NodeRecord(name, Some(record))], NOW)
    });
    let mut policies = after.policies.clone();
    policies[0].priority += 1;
    policies[0].generation += 1;
    timed(report, "kept planner, one policy of 1,000 changed", || {
        planner.update([Change::Policies(policies)], NOW)
    });
}

fn timed<T>(report: &mut Report, name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let ms = start.elapsed().as_secs_f64() * 1e3;
    report.add(PART, name, "ours", "ms", ms);
    result
}

/// Applies the controller's writes to the snapshot, and what agents report once they have applied them.
fn write_down(snapshot: &mut Snapshot, plan: &ClusterPlan) {
    let epochs = plan.addresses.values().map(|record| record.epoch);
    let version = epochs.max().unwrap_or(0);
    snapshot.addresses = plan.addresses.clone().into_iter().collect();
    for (node, spec) in &plan.node_records {
        let record = NodeRecord {
            node: node.clone(),
            tunnel_index: spec.tunnel_index,
            grants: spec.grants.clone(),
            draining: spec.draining.clone(),
            resting: spec.resting.clone(),
            fenced: spec.fenced.clone(),
            grants_epoch: spec.grants_epoch,
            acknowledged: spec.grants_epoch,
            held: held(spec.grants.iter().chain(&spec.draining)),
            pod_prefixes: spec.pod_prefixes.clone(),
            device_addresses: spec.device_addresses.clone(),
            underlay_addresses: snapshot.nodes[node].addresses.clone(),
            steering_version: version,
            datapath: Some("ebpf".into()),
            resource_version: 1,
            ..NodeRecord::new(node.clone())
        };
        snapshot.node_records.insert(node.clone(), record);
    }
    for policy in &mut snapshot.policies {
        if let Some(planned) = plan.policies.get(&policy.object) {
            policy.assigned = planned.addresses.clone();
        }
    }
}

fn held<'a>(grants: impl Iterator<Item = &'a Grant>) -> BTreeMap<IpAddr, Vec<PortRange>> {
    let grants = grants.map(|grant| (grant.address, grant.ranges.as_slice()));
    grants.collect::<AddressPorts>().ranges()
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
