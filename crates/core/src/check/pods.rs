//! Rules for the pods of a node: which are selected, their addresses and devices.

use super::{Found, Rule};
use crate::model::*;
use crate::node::{NodeFacts, NodeState, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Source addresses of this node's canaries.
pub(super) fn canary_sources(state: &NodeState) -> BTreeSet<IpAddr> {
    let canary = state.worker.canary.as_ref();
    canary
        .map(|canary| canary.sources.clone())
        .unwrap_or_default()
}

/// Selection by labels, one policy and one pod at a time.
pub(super) fn selects(snapshot: &Snapshot, policy: &Policy, pod: &Pod) -> bool {
    match &policy.selection {
        Selection::Labels {
            namespaces,
            pods,
            nodes,
        } => {
            let namespace = match namespaces {
                Namespaces::All => true,
                Namespaces::Names(names) => names.contains(&pod.namespace),
                Namespaces::Labels(selector) => snapshot
                    .namespaces
                    .get(&pod.namespace)
                    .is_some_and(|ns| selector.matches(&ns.labels)),
            };
            let node = nodes.as_ref().is_none_or(|selector| {
                snapshot
                    .nodes
                    .get(&pod.node)
                    .is_some_and(|n| selector.matches(&n.labels))
            });
            namespace && node && pods.matches(&pod.labels)
        }
        Selection::Service { namespace, name } => {
            let key = (namespace.clone(), name.clone());
            pod.namespace == *namespace
                && snapshot
                    .services
                    .get(&key)
                    .is_some_and(|service| match &service.selector {
                        Some(wanted) if !wanted.is_empty() => {
                            wanted.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
                        }
                        _ => pod.addresses.iter().any(|a| service.endpoints.contains(a)),
                    })
        }
        Selection::Addresses(nets) => pod
            .addresses
            .iter()
            .any(|a| nets.iter().any(|net| net.contains(a))),
        Selection::Workload {
            namespace,
            kind,
            name,
        } => {
            let made_by = |kind: &str, name: &str| {
                let owner = pod.owner.as_ref();
                owner.is_some_and(|owner| owner.kind == kind && owner.name == name)
            };
            pod.namespace == *namespace
                && match kind {
                    WorkloadKind::Pod => pod.name == *name,
                    // A Deployment's ReplicaSets have the hash of their pods' label in their name.
                    WorkloadKind::Deployment => {
                        let hash = pod.labels.get("pod-template-hash");
                        hash.is_some_and(|hash| made_by("ReplicaSet", &format!("{name}-{hash}")))
                    }
                    other => made_by(&format!("{other:?}"), name),
                }
        }
    }
}

pub(super) fn pods(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own: &Node,
    state: &NodeState,
    found: &mut Found,
) {
    let mut owners: BTreeMap<IpAddr, bool> = BTreeMap::new();
    let mut lost: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for pod in snapshot.pods.values() {
        if pod.node != own.name || pod.finished || pod.host_network {
            continue;
        }
        let selected = snapshot
            .policies
            .iter()
            .any(|policy| selects(snapshot, policy, pod));
        for address in pod.addresses.iter().filter(|a| !own.addresses.contains(a)) {
            let detached = facts.detached.contains(&(*address, pod.uid.clone()));
            let side = if detached { &mut lost } else { &mut owners };
            *side.entry(*address).or_default() |= selected;
        }
    }
    lost.retain(|address, _| !owners.contains_key(address));
    for address in lost.keys() {
        let profile = state
            .worker
            .pods
            .get(address)
            .map(|id| &state.worker.profiles[id]);
        let boxes = profile.into_iter().flat_map(|profile| &profile.ranges);
        found.expect(
            boxes
                .into_iter()
                .all(|b| !matches!(b.verdict, Verdict::Target(_))),
            Rule::PodWrong,
            address,
            "its pod's device is gone, and it still gets an egress address",
        );
    }
    owners.append(&mut lost);
    let canaries = canary_sources(state);
    for address in canaries.iter() {
        let alone = !owners.contains_key(address);
        found.expect(
            alone,
            Rule::PodWrong,
            address,
            "a pod's, and a canary's too",
        );
    }
    let of_pods = state.worker.pods.keys();
    for address in of_pods.filter(|address| !canaries.contains(address)) {
        let mine = owners.get(address) == Some(&true);
        found.expect(
            mine,
            Rule::PodWrong,
            address,
            "no policy selects a pod of this node with it",
        );
    }
    for (address, _) in owners.iter().filter(|(_, selected)| **selected) {
        let there = state.worker.pods.contains_key(address);
        found.expect(
            there,
            Rule::PodWrong,
            address,
            "its pod is selected, and it is missing",
        );
    }
}

/// An address counts only on packets from the device of its pod.
pub(super) fn devices(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    name: &NodeName,
    state: &NodeState,
    found: &mut Found,
) {
    let worker = &state.worker;
    let led = |(address, uid): &(IpAddr, String)| {
        let mut pods = snapshot.pods.values();
        !facts.detached.contains(&(*address, uid.clone()))
            && pods
                .any(|pod| pod.node == *name && pod.uid == *uid && pod.addresses.contains(address))
    };
    let real = facts.devices.iter().filter(|(held, _)| led(held));
    let real: BTreeSet<(IpAddr, u32)> = real.map(|((a, _), index)| (*a, *index)).collect();
    let canary = |address: &IpAddr, index: &u32| {
        let canary = worker.canary.as_ref();
        canary.is_some_and(|c| c.device == *index && c.sources.contains(address))
    };
    let of_pods = worker.devices.iter();
    for (address, index) in of_pods.filter(|(address, index)| !canary(address, index)) {
        let there = worker.pods.contains_key(address) && real.contains(&(*address, *index));
        found.expect(there, Rule::PodWrong, address, "another device leads to it");
    }
    for (address, index) in &real {
        let bound = worker.devices.contains_key(address);
        // A device cannot distinguish pods that share an address and have a device each.
        let mut others = real.iter().filter(|(other, _)| other == address);
        let is_one = others.all(|(_, other)| other == index);
        let selected = worker.pods.contains_key(address) && is_one;
        found.expect(
            bound == selected,
            Rule::PodWrong,
            address,
            "its device does not count",
        );
    }
}

/// No unknown address counts as a known pod's, and no known pod's address as unknown.
pub(super) fn unknown(
    snapshot: &Snapshot,
    name: &NodeName,
    own: &Node,
    state: &NodeState,
    found: &mut Found,
) {
    let Some(unknown) = &state.worker.unknown else {
        return;
    };
    found.expect(
        !unknown.cidrs.is_empty()
            && unknown
                .cidrs
                .iter()
                .eq(own.pod_cidrs.iter().collect::<BTreeSet<_>>()),
        Rule::PodWrong,
        name,
        "unknown pods are looked for elsewhere than in the node's pod CIDRs",
    );
    let mut left = unknown.known.clone();
    for pod in snapshot.pods.values() {
        if pod.node != *name || pod.finished || pod.host_network {
            continue;
        }
        for address in &pod.addresses {
            let inside = own.pod_cidrs.iter().any(|cidr| cidr.contains(address));
            let known = unknown.known.contains(address);
            left.remove(address);
            found.expect(
                known == inside,
                Rule::PodWrong,
                address,
                "it is a pod's, and would be dropped as nobody's",
            );
        }
    }
    for address in left {
        found.expect(
            false,
            Rule::PodWrong,
            address,
            "no pod has it, and it counts as known",
        );
    }
}
