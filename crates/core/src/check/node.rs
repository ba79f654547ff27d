//! Rules for the state of one node.

use super::gateway::gateway;
use super::next_hops::next_hops;
use super::pods::{canary_sources, devices, pods, selects, unknown};
use super::quotas::quotas;
use super::ranges::check_profile;
use super::traffic_keys::traffic_keys;
use super::{Found, Rule, Violation, pod_addresses};
use crate::model::*;
use crate::node::{Group, NodeFacts, NodeOutcome, NodeState, Verdict};
use ipnet::IpNet;
use std::collections::BTreeSet;
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
    quotas(snapshot, outcome, &mut found);
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
            .filter(|n| gateway.selects(n) && n.name != own.name)
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
                let role = snapshot.gateways.values().any(|g| g.selects(own));
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
