//! Rules for the next hops of one node: each leads only where its policies say.

use super::{Found, Rule};
use crate::model::*;
use crate::node::{NextHop, NextHopRoute, NodeFacts, NodeState, Verdict};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub(super) fn next_hops(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own: &Node,
    state: &NodeState,
    found: &mut Found,
) {
    let worker = &state.worker;
    for one in worker.profiles.values().flat_map(|profile| &profile.ranges) {
        if let Verdict::NextHop(number) = one.verdict {
            let known = worker.next_hops.get(&number);
            let there = known.is_some_and(|n| n.address.is_ipv4() == one.first.is_ipv4());
            let subject = format!("next hop {number}");
            let text = "missing or of the other family";
            found.expect(there, Rule::Dangling, subject, text);
        }
    }
    let mut identifiers: BTreeMap<u32, IpAddr> = BTreeMap::new();
    for (number, next_hop) in &worker.next_hops {
        let subject = format!("next hop {number}");
        let free = (1..=250).contains(number) && !worker.groups.contains_key(number);
        found.expect(free, Rule::GroupWrong, &subject, "number");
        let named = |policy: &Policy| match policy.translation {
            Translation::None { next_hop: named } => named == next_hop.address,
            Translation::Leased => false,
        };
        let wanted = snapshot.policies.iter().any(named);
        found.expect(wanted, Rule::Dangling, &subject, "no policy names it");
        let identifier = next_hop.network_identifier;
        let range = (0x80_0000..=0xff_ffff).contains(&identifier);
        let known = identifiers.entry(identifier).or_insert(next_hop.address);
        let alone = *known == next_hop.address;
        let text = "its identifier is out of range, or another's too";
        found.expect(range && alone, Rule::SteeringWrong, &subject, text);
        route(snapshot, facts, own, state, next_hop, found);
    }
    served(state, found);
}

fn route(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own: &Node,
    state: &NodeState,
    next_hop: &NextHop,
    found: &mut Found,
) {
    let subject = next_hop.address;
    let is_gateway = |node: &Node| {
        let mut gateways = snapshot.gateways.values();
        gateways.any(|gateway| gateway.selects(node))
    };
    match &next_hop.route {
        NextHopRoute::Attached(attachment) => {
            let seen = facts.attached.get(&subject) == Some(attachment);
            found.expect(
                seen && is_gateway(own),
                Rule::GroupWrong,
                subject,
                "attached, and the kernel does not say so or the node is no gateway",
            );
        }
        NextHopRoute::Tunnel(members) => {
            let leads = |record: &&NodeRecord| {
                let node = snapshot.nodes.get(&record.node);
                record.next_hops.contains(&subject)
                    && facts.live.contains(&record.node)
                    && node.is_some_and(is_gateway)
            };
            let mut fit = snapshot.node_records.values().filter(leads);
            let all = members.iter().all(|member| {
                *member != state.tunnel.index && fit.clone().any(|r| r.tunnel_index == *member)
            });
            found.expect(
                all && !members.is_empty() && fit.next().is_some(),
                Rule::GroupWrong,
                subject,
                "leads to nobody, to itself, or to a node that is no live gateway with it",
            );
        }
        NextHopRoute::Nowhere => {}
    }
}

/// Packets that the gateway takes from the tunnel go to the next hop of their network identifier.
fn served(state: &NodeState, found: &mut Found) {
    let served = state.gateway.as_ref().map(|gateway| &gateway.next_hops);
    let worker = &state.worker;
    for (identifier, number) in served.into_iter().flatten() {
        let right = worker.next_hops.get(number).is_some_and(|next_hop| {
            next_hop.network_identifier == *identifier
                && matches!(next_hop.route, NextHopRoute::Attached(_))
        });
        let text = "it is another's, or not attached";
        found.expect(
            right,
            Rule::SteeringWrong,
            format!("identifier {identifier:#x}"),
            text,
        );
    }
    for next_hop in worker.next_hops.values() {
        let attached = matches!(next_hop.route, NextHopRoute::Attached(_));
        let there = served.is_none_or(|all| all.contains_key(&next_hop.network_identifier));
        let text = "attached, and not served to other nodes";
        found.expect(
            there || !attached,
            Rule::SteeringWrong,
            next_hop.address,
            text,
        );
    }
}
