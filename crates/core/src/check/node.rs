//! Rules for the state of one node.

use super::leases::steering;
use super::next_hops::next_hops;
use super::ranges::check_profile;
use super::traffic_keys::traffic_keys;
use super::{Found, Rule, Violation, pod_addresses};
use crate::model::*;
use crate::node::{GatewayState, Group, NodeFacts, NodeOutcome, NodeState, Verdict};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Checks the state of one node against its inputs.
pub fn check_node(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    node: &NodeName,
    outcome: &NodeOutcome,
) -> Vec<Violation> {
    let mut found = Found::default();
    let state = &outcome.state;
    let Some((own, record)) = snapshot
        .nodes
        .get(node)
        .zip(snapshot.node_records.get(node))
    else {
        found.add(Rule::Dangling, node, "a state of a node that is not known");
        return found.sorted();
    };
    for (id, profile) in &state.worker.profiles {
        check_profile(*id, profile, &mut found);
    }
    let index = record.tunnel_index == state.tunnel.index;
    found.expect(
        index,
        Rule::TunnelIndex,
        node,
        "the tunnel has another index than the record",
    );
    references(state, &mut found);
    traffic_keys(snapshot, outcome, &mut found);
    ranges(snapshot, facts, own, record, outcome, &mut found);
    groups(snapshot, own, state, &mut found);
    next_hops(snapshot, facts, own, state, &mut found);
    never(snapshot, state, &mut found);
    pod_addresses::never(snapshot, facts, own, state, &mut found);
    pod_addresses::uncovered(snapshot, facts, node, outcome, &mut found);
    let selects = |policy: &Policy, pod: &Pod| selects(snapshot, policy, pod);
    pod_addresses::shared(snapshot, facts, own, state, selects, &mut found);
    pods(snapshot, facts, own, state, &mut found);
    devices(snapshot, facts, node, state, &mut found);
    unknown(snapshot, node, own, state, &mut found);
    guard(snapshot, record, state, &mut found);
    gateway(snapshot, own, state, &mut found);
    programmed(snapshot, node, outcome, &mut found);
    found.sorted()
}

fn references(state: &NodeState, found: &mut Found) {
    let worker = &state.worker;
    for profile in worker.profiles.values() {
        for one in &profile.ranges {
            if let Verdict::Target(id) = one.verdict {
                let target = worker.targets.get(&id);
                let there = target.is_some_and(|t| t.address.is_ipv4() == one.first.is_ipv4());
                found.expect(
                    there,
                    Rule::Dangling,
                    format!("target {:x}", id.0),
                    "missing or of the other family",
                );
            }
        }
    }
    for target in worker.targets.values() {
        let there = worker.groups.contains_key(&target.group);
        found.expect(
            there,
            Rule::Dangling,
            format!("group {}", target.group),
            "missing",
        );
        let known = worker.egress_addresses.contains(&target.address);
        found.expect(
            known,
            Rule::GuardWrong,
            target.address,
            "the guard does not know it",
        );
    }
    canaries(state, found);
    for (address, id) in worker.pods.iter() {
        let there = worker.profiles.contains_key(id);
        found.expect(
            there,
            Rule::Dangling,
            format!("profile {:x} of {address}", id.0),
            "missing",
        );
    }
}

/// Source addresses of this node's canaries.
fn canary_sources(state: &NodeState) -> BTreeSet<IpAddr> {
    let canary = state.worker.canary.as_ref();
    canary
        .map(|canary| canary.sources.clone())
        .unwrap_or_default()
}

/// Canaries go only to canary destinations.
fn canaries(state: &NodeState, found: &mut Found) {
    let worker = &state.worker;
    let prefixes: [IpNet; 2] =
        ["198.18.79.0/24", "100::79:0:0/120"].map(|text| text.parse().expect("written here"));
    for source in canary_sources(state) {
        let profile = worker
            .pods
            .get(&source)
            .and_then(|id| worker.profiles.get(id));
        let right = profile.is_some_and(|profile| {
            let mut boxes = profile.ranges.iter();
            profile.portless.is_empty()
                && boxes
                    .all(|b| b.first == b.last && prefixes.iter().any(|net| net.contains(&b.first)))
        });
        found.expect(right, Rule::PodWrong, source, "a canary that goes anywhere");
    }
}

/// Ranges in use are granted, and every live gateway that may receive a reply has them.
fn ranges(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own: &Node,
    record: &NodeRecord,
    outcome: &NodeOutcome,
    found: &mut Found,
) {
    for (id, target) in &outcome.state.worker.targets {
        let Some(key) = outcome.target_groups.get(id) else {
            found.add(
                Rule::Dangling,
                format!("target {:x}", id.0),
                "its group is not named",
            );
            continue;
        };
        let Some(gateway) = snapshot.gateways.get(&key.gateway) else {
            found.add(Rule::Dangling, &key.gateway.0, "no such gateway");
            continue;
        };
        let mut versions: Vec<u64> = snapshot
            .nodes
            .values()
            .filter(|n| gateway.nodes.matches(&n.labels) && n.name != own.name)
            .filter(|n| facts.live.contains(&n.name))
            .filter_map(|n| facts.versions.get(&n.name).copied().filter(|v| *v > 0))
            .collect();
        if let Some(state) = &outcome.state.gateway
            && matches!(
                outcome.state.worker.groups.get(&target.group),
                Some(Group::Local { .. })
            )
        {
            versions.push(state.version);
        }
        let known = versions.into_iter().min();
        for range in &target.ranges {
            let mine = |g: &&Grant| g.address == target.address && g.gateway == key.gateway;
            let granted = record.grants.iter().filter(mine).find(|grant| {
                let mut granted = grant.ranges.iter();
                granted.any(|g| g.first <= range.first && range.last <= g.last)
            });
            let Some(grant) = granted else {
                found.add(
                    Rule::RangeNotUsable,
                    target.address,
                    format!("{range} is not granted"),
                );
                continue;
            };
            if known.is_some_and(|known| known < grant.epoch) {
                let text = format!(
                    "{range} of epoch {} is not known to every gateway",
                    grant.epoch
                );
                found.add(Rule::RangeNotUsable, target.address, text);
            }
        }
    }
}

fn groups(snapshot: &Snapshot, own: &Node, state: &NodeState, found: &mut Found) {
    let known: BTreeSet<u16> = snapshot
        .node_records
        .values()
        .map(|r| r.tunnel_index)
        .collect();
    for (number, group) in &state.worker.groups {
        let subject = format!("group {number}");
        found.expect(
            (1..=120).contains(number),
            Rule::GroupWrong,
            &subject,
            "number",
        );
        match group {
            Group::Tunnel(members) => {
                found.expect(!members.is_empty(), Rule::GroupWrong, &subject, "empty");
                let to_self = members.contains(&state.tunnel.index);
                found.expect(
                    !to_self,
                    Rule::GroupWrong,
                    &subject,
                    "leads to the node itself",
                );
                let all = members.iter().all(|m| known.contains(m));
                found.expect(all, Rule::GroupWrong, &subject, "leads to an unknown node");
            }
            Group::Local { .. } => {
                let role = snapshot
                    .gateways
                    .values()
                    .any(|g| g.nodes.matches(&own.labels));
                found.expect(
                    role,
                    Rule::GroupWrong,
                    &subject,
                    "local, and the node is no gateway",
                );
            }
            Group::Nowhere => {}
        }
    }
}

fn never(snapshot: &Snapshot, state: &NodeState, found: &mut Found) {
    let nets: Vec<&IpNet> = state.worker.never.iter().collect();
    // Sorted by address and then by length: of two overlapping prefixes the wider comes first.
    let apart = nets.windows(2).all(|w| !w[0].contains(w[1]));
    found.expect(apart, Rule::Overlap, "never", "prefixes overlap");
    let mut check = |what: &str, wanted: IpNet| {
        let inside = nets.iter().any(|net| net.contains(&wanted));
        found.expect(inside, Rule::NeverIncomplete, wanted, what);
    };
    for text in [
        "127.0.0.0/8",
        "::1/128",
        "169.254.0.0/16",
        "fe80::/10",
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255/32",
        "0.0.0.0/8",
    ] {
        check("is for no egress", text.parse().expect("written here"));
    }
    for node in snapshot.nodes.values() {
        node.addresses
            .iter()
            .for_each(|a| check("node address", IpNet::from(*a)));
        let record = snapshot.node_records.get(&node.name);
        record
            .iter()
            .flat_map(|record| &record.node_addresses)
            .for_each(|a| check("address of a node's device", IpNet::from(a.addr())));
    }
    let records = snapshot.node_records.values();
    records
        .flat_map(|record| &record.device_addresses)
        .for_each(|net| check("address of another node's device", *net));
    let services = snapshot
        .services
        .values()
        .flat_map(|s| &s.cluster_addresses);
    services.for_each(|a| check("Service address", IpNet::from(*a)));
    snapshot
        .api_server
        .iter()
        .for_each(|a| check("API server", IpNet::from(*a)));
    let settings = &snapshot.settings;
    let listed = settings.service_cidrs.iter();
    listed.for_each(|net| check("setting", *net));
}

/// Selection by labels, one policy and one pod at a time.
fn selects(snapshot: &Snapshot, policy: &Policy, pod: &Pod) -> bool {
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

fn pods(snapshot: &Snapshot, facts: &NodeFacts, own: &Node, state: &NodeState, found: &mut Found) {
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
fn devices(
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
fn unknown(snapshot: &Snapshot, name: &NodeName, own: &Node, state: &NodeState, found: &mut Found) {
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

fn guard(snapshot: &Snapshot, record: &NodeRecord, state: &NodeState, found: &mut Found) {
    let of_nodes: BTreeSet<IpAddr> = snapshot
        .nodes
        .values()
        .flat_map(|n| &n.addresses)
        .copied()
        .collect();
    for address in &state.worker.egress_addresses {
        let node = of_nodes.contains(address);
        found.expect(
            !node,
            Rule::GuardWrong,
            address,
            "a node has it and would be cut off",
        );
    }
    let wanted = snapshot
        .addresses
        .keys()
        .chain(record.grants.iter().map(|g| &g.address));
    for address in wanted.filter(|a| !of_nodes.contains(a)) {
        let there = state.worker.egress_addresses.contains(address);
        found.expect(
            there,
            Rule::GuardWrong,
            address,
            "the guard does not know it",
        );
    }
    let all = of_nodes.is_subset(&state.node_addresses);
    found.expect(all, Rule::GuardWrong, "node addresses", "one is missing");
}

fn gateway(snapshot: &Snapshot, own: &Node, state: &NodeState, found: &mut Found) {
    let Some(gateway) = &state.gateway else {
        return;
    };
    let highest = snapshot
        .addresses
        .values()
        .map(|r| r.epoch)
        .max()
        .unwrap_or(0);
    let version = gateway.version == highest;
    found.expect(
        version,
        Rule::VersionWrong,
        &own.name,
        "not the highest epoch",
    );
    let family = state.tunnel.underlay.is_ipv4();
    let addressed = |record: &&NodeRecord| {
        let node = snapshot
            .nodes
            .get(&record.node)
            .into_iter()
            .flat_map(|n| &n.addresses);
        node.chain(&record.underlay_addresses)
            .any(|a| a.is_ipv4() == family)
    };
    let indexes: BTreeMap<&NodeName, u16> = snapshot
        .node_records
        .values()
        .filter(addressed)
        .map(|r| (&r.node, r.tunnel_index))
        .collect();
    let workers = gateway.workers.keys().copied().collect::<BTreeSet<u16>>();
    let all = workers == indexes.values().copied().collect();
    found.expect(
        all,
        Rule::SteeringWrong,
        &own.name,
        "workers are not the nodes with an address",
    );
    for record in snapshot.addresses.values() {
        tables(snapshot, own, state, gateway, (record, &indexes), found);
    }
    for address in gateway.addresses.keys() {
        let there = snapshot.addresses.contains_key(address);
        found.expect(there, Rule::SteeringWrong, address, "no record of it");
    }
}

/// The steering table of one address: complete on the gateways of its group; on others only the node's own blocks.
fn tables(
    snapshot: &Snapshot,
    own: &Node,
    state: &NodeState,
    gateway: &GatewayState,
    (record, indexes): (&AddressRecord, &BTreeMap<&NodeName, u16>),
    found: &mut Found,
) {
    let mine = snapshot.gateways.get(&record.gateway).is_some_and(|g| {
        g.nodes.matches(&own.labels)
            && !g.wireguard
            && matches!(g.announce, AnnounceMode::L2 | AnnounceMode::Static)
    });
    let mut expected: BTreeMap<u16, u16> = steering(record)
        .into_iter()
        .filter_map(|(block, node)| Some((block, *indexes.get(node)?)))
        .collect();
    if !mine {
        expected.retain(|_, index| *index == state.tunnel.index);
    }
    let address = record.address;
    let Some(served) = gateway.addresses.get(&address) else {
        let unneeded = !mine && expected.is_empty();
        found.expect(unneeded, Rule::SteeringWrong, address, "missing");
        return;
    };
    let needed = mine || !expected.is_empty();
    found.expect(
        needed,
        Rule::SteeringWrong,
        address,
        "not of this gateway's groups",
    );
    found.expect(
        served.blocks == expected,
        Rule::SteeringWrong,
        address,
        "blocks",
    );
    let announces = mine || !served.announce;
    found.expect(
        announces,
        Rule::SteeringWrong,
        address,
        "announced for another group",
    );
    let mode = snapshot.gateways.get(&record.gateway).map(|g| g.announce);
    let answers = !served.announce || mode == Some(AnnounceMode::L2);
    let text = "answered for, and routers lead to it";
    found.expect(answers, Rule::SteeringWrong, address, text);
}

fn programmed(snapshot: &Snapshot, name: &NodeName, outcome: &NodeOutcome, found: &mut Found) {
    for one in &outcome.programmed {
        let policy = snapshot.policies.iter().find(|p| p.object == one.policy);
        let Some(policy) = policy else {
            found.add(Rule::ProgrammedWrong, &one.policy, "no such policy");
            continue;
        };
        let known = |pod: &&Pod| pod.node == *name && selects(snapshot, policy, pod);
        let usable = snapshot.pods.values().filter(known).filter(|pod| {
            pod.addresses
                .iter()
                .any(|a| outcome.state.worker.pods.contains_key(a))
        });
        let enough = one.pods as usize <= usable.count() && one.generation <= policy.generation;
        found.expect(
            enough,
            Rule::ProgrammedWrong,
            &one.policy,
            "more pods than there are",
        );
    }
}
