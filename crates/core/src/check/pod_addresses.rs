//! Rules for pod addresses: which every node must know, and which belong to no single pod.

use super::{Found, Rule};
use crate::model::*;
use crate::node::{NodeFacts, NodeOutcome, NodeState, Verdict};
use crate::plan::ClusterPlan;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Addresses that belong to one pod alone, with the nodes of the pods.
fn own(snapshot: &Snapshot) -> BTreeMap<IpAddr, BTreeSet<&NodeName>> {
    let mut all: BTreeMap<IpAddr, BTreeSet<&NodeName>> = BTreeMap::new();
    for pod in snapshot.pods.values() {
        if pod.finished || pod.host_network {
            continue;
        }
        for address in &pod.addresses {
            all.entry(*address).or_default().insert(&pod.node);
        }
    }
    all
}

/// Pod prefixes that nodes know without the controller.
fn said(snapshot: &Snapshot) -> Vec<IpNet> {
    let nodes = snapshot.nodes.values().flat_map(|node| &node.pod_cidrs);
    let listed = &snapshot.settings.never_destinations;
    nodes
        .chain(listed)
        .chain(&snapshot.pod_prefixes)
        .copied()
        .collect()
}

fn inside(all: &[IpNet], address: &IpAddr) -> bool {
    all.iter().any(|net| net.contains(address))
}

/// Whether every address of the prefix is in a published prefix or is a pod's.
fn is_filled(
    prefix: IpNet,
    published: &[IpNet],
    pods: &BTreeMap<IpAddr, BTreeSet<&NodeName>>,
) -> bool {
    if published.iter().any(|net| net.contains(&prefix)) {
        return true;
    }
    match prefix.prefix_len() == prefix.max_prefix_len() {
        true => pods.contains_key(&prefix.addr()),
        false => match prefix.subnets(prefix.prefix_len() + 1) {
            Ok(mut halves) => halves.all(|half| is_filled(half, published, pods)),
            Err(_) => false,
        },
    }
}

/// Every pod's address is known to every node, or no policy that could take traffic to it out of the cluster is ready.
/// No other address counts as a pod's.
pub(super) fn plan(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    let (pods, mut known) = (own(snapshot), said(snapshot));
    let published = IpNet::aggregate(&snapshot.pod_prefixes.iter().copied().collect::<Vec<_>>());
    let is_gateway = |name: &NodeName| {
        let node = snapshot.nodes.get(name);
        let mut gateways = snapshot.gateways.values();
        node.is_some_and(|node| gateways.any(|gateway| gateway.selects(node)))
    };
    // An unreadable record informs no node reliably, and is not changed.
    let unreadable = &snapshot.unreadable.nodes;
    let records = plan.node_records.iter();
    for (name, spec) in records.filter(|(name, _)| !unreadable.contains(*name)) {
        let none = spec.pod_prefixes.is_empty();
        found.expect(
            none || is_gateway(name),
            Rule::NeverIncomplete,
            name,
            "workers do not read its record",
        );
        for prefix in &spec.pod_prefixes {
            found.expect(
                is_filled(*prefix, &published, &pods),
                Rule::NeverIncomplete,
                prefix,
                "it has addresses that are no pod's",
            );
        }
        known.extend(&spec.pod_prefixes);
    }
    if !plan.node_records.keys().any(is_gateway) {
        return; // Without gateways nothing leaves by them.
    }
    for address in pods.keys().filter(|address| !inside(&known, address)) {
        let reaches = |policy: &&Policy| {
            let destinations = policy.destinations.as_ref();
            destinations.is_none_or(|all| all.iter().any(|one| one.cidr.contains(address)))
        };
        for policy in snapshot.policies.iter().filter(reaches) {
            let ready = plan
                .policies
                .get(&policy.object)
                .is_some_and(|told| told.ready);
            found.expect(
                !ready,
                Rule::ReadyTooEarly,
                &policy.object,
                "it may cut pods off from each other",
            );
        }
    }
}

/// Prefixes that every node knows, and this node's own pods, are never egress destinations.
pub(super) fn never(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own_node: &Node,
    state: &NodeState,
    found: &mut Found,
) {
    let mut wanted = said(snapshot);
    let records = snapshot.node_records.values();
    wanted.extend(records.flat_map(|record| &record.pod_prefixes));
    wanted.extend(&facts.pod_routes);
    let pods = own(snapshot);
    let mine = pods
        .iter()
        .filter(|(_, nodes)| nodes.contains(&own_node.name));
    wanted.extend(mine.map(|(address, _)| IpNet::from(*address)));
    for prefix in wanted {
        let there = state.worker.never.iter().any(|net| net.contains(&prefix));
        found.expect(there, Rule::NeverIncomplete, prefix, "pod addresses");
    }
}

/// Pods whose addresses other nodes do not know are reported, and policies that could cut them off count nothing as
/// programmed.
pub(super) fn uncovered(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    node: &NodeName,
    outcome: &NodeOutcome,
    found: &mut Found,
) {
    let mut known = said(snapshot);
    let records = snapshot.node_records.values();
    known.extend(records.flat_map(|record| &record.pod_prefixes));
    let pods = own(snapshot);
    let mine = pods.iter().filter(|(_, nodes)| nodes.contains(node));
    let missing: BTreeSet<IpAddr> = mine
        .map(|(a, _)| *a)
        .filter(|a| !inside(&known, a))
        .collect();
    found.expect(
        missing == outcome.uncovered,
        Rule::NeverIncomplete,
        node,
        "pods that others do not know are not told",
    );
    for address in missing.intersection(&facts.uncovered) {
        for one in &outcome.programmed {
            let policy = snapshot
                .policies
                .iter()
                .find(|policy| policy.object == one.policy);
            let destinations = policy.and_then(|policy| policy.destinations.as_ref());
            let reaches =
                destinations.is_none_or(|all| all.iter().any(|to| to.cidr.contains(address)));
            found.expect(
                !reaches || one.pods == 0,
                Rule::ProgrammedWrong,
                &one.policy,
                "it may cut pods off from each other",
            );
        }
    }
}

/// An address that pods with different policies share gets no egress address. `selects`: whether a policy selects a pod.
pub(super) fn shared(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own_node: &Node,
    state: &NodeState,
    selects: impl Fn(&Policy, &Pod) -> bool,
    found: &mut Found,
) {
    let mut sets: BTreeMap<IpAddr, BTreeSet<BTreeSet<usize>>> = BTreeMap::new();
    for pod in snapshot.pods.values() {
        if pod.node != own_node.name || pod.finished || pod.host_network {
            continue;
        }
        let policies = snapshot.policies.iter().enumerate();
        let policies = policies.filter(|(_, policy)| selects(policy, pod));
        let set: BTreeSet<usize> = policies.map(|(number, _)| number).collect();
        for address in &pod.addresses {
            let lost = facts.detached.contains(&(*address, pod.uid.clone()));
            if !lost && !own_node.addresses.contains(address) {
                sets.entry(*address).or_default().insert(set.clone());
            }
        }
    }
    for (address, _) in sets.iter().filter(|(_, sets)| sets.len() > 1) {
        let profile = state.worker.pods.get(address);
        let profile = profile.and_then(|id| state.worker.profiles.get(id));
        let mut boxes = profile.into_iter().flat_map(|profile| &profile.ranges);
        let shut =
            boxes.all(|one| !matches!(one.verdict, Verdict::Target(_) | Verdict::NextHop(_)));
        found.expect(
            shut,
            Rule::PodWrong,
            address,
            "several pods have it, and it gets an egress address",
        );
    }
}
