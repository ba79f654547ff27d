//! The gateway's part of policies with a next hop: the next hops that this node forwards to.

use super::cluster::Me;
use super::groups::Groups;
use super::{GatewayState, IssueKind, NextHopRoute, NodeIssue};
use crate::model::*;
use crate::resolve::{Resolved, usable_gateway};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Next hops of policies of this node's gateways, each once per gateway.
pub(super) fn of_gateway<'r>(
    snapshot: &Snapshot,
    resolved: &[Resolved<'r>],
    node: &NodeName,
) -> impl Iterator<Item = (&'r Gateway, IpAddr)> + use<'r> {
    let node = snapshot.nodes.get(node);
    let here =
        |gateway: &Gateway| usable_gateway(gateway) && node.is_some_and(|one| gateway.selects(one));
    let mut seen: BTreeSet<(&GatewayName, IpAddr)> = BTreeSet::new();
    let mut all = Vec::new();
    for one in resolved.iter().filter(|one| one.refusal.is_none()) {
        let named = one.gateway.zip(one.policy.next_hop());
        let Some((gateway, next_hop)) = named.filter(|(gateway, _)| here(gateway)) else {
            continue;
        };
        if seen.insert((&gateway.name, next_hop)) {
            all.push((gateway, next_hop));
        }
    }
    all.into_iter()
}

/// Numbers the next hops that this node is attached to, for packets from the tunnel; own pods use the same numbers.
pub(super) fn serve(
    snapshot: &Snapshot,
    resolved: &[Resolved<'_>],
    me: &Me<'_>,
    groups: &mut Groups<'_>,
    state: &mut GatewayState,
) {
    for (gateway, next_hop) in of_gateway(snapshot, resolved, me.name) {
        if !groups.has(next_hop) {
            groups.issues.push(NodeIssue {
                kind: IssueKind::NextHopNotAttached,
                subject: gateway.name.0.clone(),
                text: format!(
                    "the next hop {next_hop} is on no network of this gateway node, or its data path carries none: give it an \
                     address of that network, and eBPF"
                ),
            });
            continue;
        }
        let Some((number, _)) = groups.next_hop(gateway, next_hop) else {
            continue;
        };
        let known = &groups.next_hops[&number];
        if matches!(known.route, NextHopRoute::Attached(_)) {
            // Two gateways of this node with one next hop: either number means the same.
            let identifier = known.network_identifier;
            state.next_hops.entry(identifier).or_insert(number);
        }
    }
}
