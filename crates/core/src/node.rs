//! The state of one node: what its kernel must contain, as data. `datapath` applies it and decides nothing.
//!
//! Made from the same snapshot as the plan, as this node's agent sees it: policies, gateways, pools, nodes, its own
//! pods and grants; on gateways also every `EgressAddress`. Pods and grants of other nodes are not read (P10).

mod canary;
mod cluster;
mod concern;
mod ending;
mod facts;
mod gateway;
mod grants;
mod groups;
mod ids;
mod issue;
mod lookup;
mod next_hops;
mod outcome;
mod pairings;
mod pod_addresses;
mod pod_forwarding;
mod pod_routes;
mod podmap;
mod policies;
mod probe_targets;
mod profiles;
mod programmed;
mod quotas;
mod state;
mod traffic_keys;

pub use canary::{CANARY_CAPABILITY, CanaryEnd, CanaryPath, is_canary_destination};
pub use cluster::never_anywhere;
pub use concern::concerns;
pub use ending::{Ending, Idle};
pub use facts::*;
pub use grants::NodeGrants;
pub(crate) use grants::ports_of;
pub(crate) use groups::OPEN_TUNNEL;
pub use ids::*;
pub use issue::{IssueKind, NodeIssue};
pub use lookup::Fate;
pub use outcome::NodeOutcome;
pub use pairings::PodPairings;
pub use pod_forwarding::{CniPath, PathFacts, PodForwarding, UplinkRoute};
pub use pod_routes::{MainRoute, pod_routes};
pub use podmap::{PodChange, PodMap};
pub use policies::Policies;
pub use probe_targets::{ProbeTarget, probe_targets};
pub use programmed::bounded_programmed;
pub use state::Presence;
pub use state::*;
pub use traffic_keys::TrafficKey;

use crate::model::*;
use crate::resolve::{Resolved, select};
use groups::Groups;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// [`Policies::node_state`] where the node's facts do not depend on its policies.
pub fn node_state(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    node: &NodeName,
) -> Result<NodeOutcome, NotYet> {
    Policies::of(snapshot).node_state(facts, node)
}

fn state_of(
    snapshot: &Snapshot,
    resolved: &[Resolved<'_>],
    facts: &NodeFacts,
    node: &NodeName,
) -> Result<NodeOutcome, NotYet> {
    let me = cluster::Me::find(snapshot, node)?;
    let mut issues = Vec::new();
    let mut findings: BTreeSet<Finding> = BTreeSet::new();
    let own_pods = snapshot.pods.values().filter(|pod| pod.node == *node);
    let mut gateway = gateway::state(snapshot, facts, &me, &mut issues);
    let version = gateway.as_ref().map_or(0, |g| g.version);
    let grants = facts.grants.clone();
    let grants = grants.unwrap_or_else(|| NodeGrants::of(me.record));
    let mut groups = Groups::new(snapshot, facts, (&me, version), &grants.usable);
    let selected = select(snapshot, resolved, own_pods.clone());
    let built = profiles::build(
        snapshot,
        resolved,
        &selected,
        (&me, facts),
        &mut groups,
        &mut findings,
    );
    if let Some(gateway) = &mut gateway {
        next_hops::serve(snapshot, resolved, &me, &mut groups, gateway);
    }
    issues.append(&mut groups.issues);
    issues.extend(built.issues);
    let (pairings, paired) = built.pairings.decided();
    let namespaces = quotas::namespaces(&selected, &built.pods, &groups.targets);
    let traffic_keys = traffic_keys::assign(&mut groups.targets, &groups.policies);
    let never = cluster::never(snapshot, facts, own_pods.clone());
    let throw = cluster::throw(me.node, own_pods.clone());
    let (pod_forwarding, reinject) =
        pod_forwarding::decide(&facts.path, [&never, &throw], &built.profiles);
    let (mut profiles, mut programmed) = (built.profiles, built.programmed);
    let uncovered = pod_addresses::uncovered(snapshot, own_pods.clone());
    let exposed = pod_addresses::refuse(facts, &uncovered, resolved, &mut programmed);
    issues.extend(exposed);
    let refused = refuse(&pod_forwarding, resolved, &mut profiles, &mut programmed);
    issues.extend(refused);
    let mut worker = WorkerState {
        never,
        throw,
        groups: groups.groups,
        targets: groups.targets,
        next_hops: groups.next_hops,
        profiles,
        pods: built.pods,
        namespaces,
        devices: built.devices,
        egress_addresses: egress_addresses(snapshot, resolved, &me),
        reinject,
        keep_uplinks: matches!(pod_forwarding, PodForwarding::Unsupported(_)),
        unknown: cluster::unknown(&me, facts, own_pods.clone(), &mut issues),
        flow_ports: grants.flows,
        canary: None,
    };
    let mut target_groups = groups.keys;
    let canaries = match pod_forwarding {
        PodForwarding::Unsupported(_) => Vec::new(),
        PodForwarding::Netfilter | PodForwarding::Bpf => canary::add(
            snapshot,
            (&me, facts),
            own_pods,
            &mut worker,
            &mut target_groups,
        ),
    };
    issues.extend(facts.broken_paths.iter().map(BrokenPath::issue));
    issues.sort();
    issues.dedup();
    Ok(NodeOutcome {
        state: NodeState {
            tunnel: cluster::tunnel(snapshot, facts, &me),
            peers: cluster::peers(snapshot, &me, gateway.is_some()),
            node_addresses: snapshot
                .nodes
                .values()
                .flat_map(|n| &n.addresses)
                .copied()
                .collect(),
            worker,
            gateway,
        },
        silent: silent(snapshot, facts, node),
        findings: findings.into_iter().collect(),
        programmed,
        pod_forwarding,
        issues,
        groups: groups.numbers,
        group_members: groups.members,
        pairings,
        paired,
        target_groups,
        canaries,
        broken_paths: facts.broken_paths.clone(),
        traffic_keys,
        uncovered,
        granted: me.record.grants.iter().map(|grant| grant.address).collect(),
    })
}

/// Refuses egress traffic of pods whose packets do not, or may not, pass the stack in both directions, and reports
/// nothing of it as programmed.
fn refuse(
    pod_forwarding: &PodForwarding,
    resolved: &[Resolved<'_>],
    profiles: &mut BTreeMap<ProfileId, Profile>,
    programmed: &mut [Programmed],
) -> Option<NodeIssue> {
    match pod_forwarding {
        PodForwarding::Netfilter => None,
        PodForwarding::Unsupported(_) => {
            pod_forwarding::refuse(profiles);
            programmed.iter_mut().for_each(|one| one.pods = 0);
            None
        }
        PodForwarding::Bpf => {
            let refused = pod_forwarding::refuse_next_hops(profiles);
            let counted = programmed.iter_mut();
            counted
                .filter(|one| is_to_next_hop(resolved, &one.policy))
                .for_each(|one| one.pods = 0);
            refused
        }
    }
}

/// Gateways that this node would send to and that do not answer its probes; empty before every gateway had time to
/// answer.
fn silent(snapshot: &Snapshot, facts: &NodeFacts, me: &NodeName) -> BTreeSet<NodeName> {
    let of_a_gateway = |node: &&Node| {
        let mut gateways = snapshot.gateways.values();
        gateways.any(|gateway| gateway.selects(node))
    };
    let others = snapshot.nodes.values().filter(|node| node.name != *me);
    let silent = others.filter(|node| facts.settled && !facts.live.contains(&node.name));
    let silent = silent.filter(of_a_gateway);
    silent.map(|node| node.name.clone()).collect()
}

fn is_to_next_hop(resolved: &[Resolved<'_>], policy: &ObjectRef) -> bool {
    let found = resolved.iter().find(|one| one.policy.object == *policy);
    found.is_some_and(|one| one.policy.next_hop().is_some())
}

/// Every address that only Egret may send from. Addresses that a node has are excluded: dropping them on the node's own
/// devices would cut the node off.
fn egress_addresses(
    snapshot: &Snapshot,
    resolved: &[Resolved<'_>],
    me: &cluster::Me<'_>,
) -> BTreeSet<IpAddr> {
    let mut all: BTreeSet<IpAddr> = resolved
        .iter()
        .flat_map(|r| &r.addresses)
        .copied()
        .collect();
    let own = me.record.grants.iter().chain(&me.record.draining);
    all.extend(own.map(|grant| grant.address));
    all.extend(snapshot.addresses.keys());
    for address in snapshot.nodes.values().flat_map(|node| &node.addresses) {
        all.remove(address);
    }
    all
}
