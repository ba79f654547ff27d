//! Pod addresses that every node knows, and pods of this node whose addresses other nodes do not know.

use super::{IssueKind, NodeFacts, NodeIssue, Programmed};
use crate::model::*;
use crate::resolve::Resolved;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Prefixes that every node treats as pods': from Nodes, from network plugins, from the controller and from settings.
pub(super) fn known_to_all(snapshot: &Snapshot) -> impl Iterator<Item = IpNet> {
    let nodes = snapshot.nodes.values().flat_map(|node| &node.pod_cidrs);
    let records = snapshot.node_records.values();
    let told = records.flat_map(|record| &record.pod_prefixes);
    let listed = snapshot.settings.never_destinations.iter();
    nodes
        .chain(told)
        .chain(&snapshot.pod_prefixes)
        .chain(listed)
        .copied()
}

/// Addresses of own pods that other nodes do not know.
pub(super) fn uncovered<'a>(
    snapshot: &Snapshot,
    own_pods: impl Iterator<Item = &'a Pod>,
) -> BTreeSet<IpAddr> {
    let known: Vec<IpNet> = known_to_all(snapshot).collect();
    // Disjoint and in order: only the last one that begins at or before an address can contain it.
    let known = IpNet::aggregate(&known);
    let is_known = |address: &IpAddr| {
        let behind = known.partition_point(|net| net.network() <= *address);
        let found = behind.checked_sub(1).map(|last| known[last]);
        found.is_some_and(|net| net.contains(address))
    };
    let addresses = own_pods.flat_map(Pod::own_addresses).copied();
    addresses.filter(|address| !is_known(address)).collect()
}

/// Reports pods that policies of other nodes may cut off, after a delay, and counts nothing as programmed for policies
/// that could take traffic to them.
pub(super) fn refuse(
    facts: &NodeFacts,
    uncovered: &BTreeSet<IpAddr>,
    resolved: &[Resolved<'_>],
    programmed: &mut [Programmed],
) -> Option<NodeIssue> {
    let lasting: BTreeSet<IpAddr> = uncovered.intersection(&facts.uncovered).copied().collect();
    let first = lasting.first()?;
    for one in programmed {
        let policy = resolved
            .iter()
            .find(|known| known.policy.object == one.policy);
        let destinations = policy.and_then(|known| known.policy.destinations.as_ref());
        let reaches = |address: &IpAddr| {
            destinations.is_none_or(|all| all.iter().any(|to| to.cidr.contains(address)))
        };
        if lasting.iter().any(reaches) {
            one.pods = 0;
        }
    }
    Some(NodeIssue {
        kind: IssueKind::NoPodCidr,
        subject: first.to_string(),
        text: "this address of a pod, or one of several, is in no spec.podCIDRs, in no prefix that a network plugin \
               publishes, and not told by the controller: policies of other nodes may take traffic to it to a gateway; \
               see that the controller runs, or name the prefix by --never-destination"
            .to_owned(),
    })
}
