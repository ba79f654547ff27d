//! The gateway's part of a node state: steering tables, and the gateways that get what these lack.

use super::cluster::{Me, tunnel_nodes};
use super::{
    GatewayPeers, GatewayState, IssueKind, NodeFacts, NodeIssue, Presence, Steering, TunnelIndex,
};
use crate::model::*;
use crate::numbers::BLOCK_PORTS;
use crate::resolve::{gateway_nodes, usable_gateway};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The steering tables of this node, if it is a gateway.
pub(super) fn state(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    me: &Me<'_>,
    issues: &mut Vec<NodeIssue>,
) -> Option<GatewayState> {
    let mine: Vec<&Gateway> = snapshot
        .gateways
        .values()
        .filter(|g| usable_gateway(g) && g.selects(me.node))
        .collect();
    let first = mine.first()?;
    if mine
        .iter()
        .any(|g| g.external_interface != first.external_interface)
    {
        issues.push(NodeIssue {
            kind: IssueKind::ExternalDeviceConflict,
            subject: me.name.to_string(),
            text: format!(
                "its gateways name different external devices; that of {} is used for all",
                first.name.0
            ),
        });
    }
    let Some(external) = &facts.external else {
        issues.push(NodeIssue {
            kind: IssueKind::NoExternalDevice,
            subject: me.name.to_string(),
            text: "it is selected as a gateway and has no external device".into(),
        });
        return None;
    };
    // A worker without a known address has never run, and cannot have connections.
    let reachable: Vec<(TunnelIndex, &NodeName, IpAddr)> =
        tunnel_nodes(snapshot, me.underlay).collect();
    let indexes: BTreeMap<&NodeName, TunnelIndex> = reachable
        .iter()
        .map(|(index, name, _)| (*name, *index))
        .collect();
    let mut addresses = BTreeMap::new();
    for record in snapshot.addresses.values() {
        let gateway = snapshot.gateways.get(&record.gateway);
        let presence = gateway.map_or_else(Presence::default, |g| Presence::of(g.announce));
        let mut table = steering(record, &indexes, presence, facts);
        if let Some(position) = mine.iter().position(|g| g.name == record.gateway) {
            table.group = group_number(position);
        } else {
            // Addresses of gateways that this node is not part of: it is a worker there, and only answers to its own
            // blocks may pass.
            let own = me.record.tunnel_index;
            table.blocks.retain(|_, index| *index == own);
            table.announce = false;
            if table.blocks.is_empty() {
                continue;
            }
        }
        addresses.insert(record.address, table);
    }
    let workers = reachable
        .iter()
        .map(|(index, _, underlay)| (*index, *underlay))
        .collect();
    Some(GatewayState {
        external_device: external.device.clone(),
        addresses,
        workers,
        next_hops: BTreeMap::new(),
        peers: peers(snapshot, facts, me, &mine, &indexes),
        version: snapshot
            .addresses
            .values()
            .map(|record| record.epoch)
            .max()
            .unwrap_or(0)
            .max(facts.steering_version),
    })
}

/// Number of the group at this position among the node's groups; 0 beyond what numbers can express.
fn group_number(position: usize) -> u16 {
    u16::try_from(position + 1).unwrap_or(0)
}

/// The other gateways of `mine`. The next live one by name gets what this one has no owner for, so that each gateway of
/// a group passes such packets to another one.
fn peers(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    me: &Me<'_>,
    mine: &[&Gateway],
    indexes: &BTreeMap<&NodeName, TunnelIndex>,
) -> GatewayPeers {
    let mut peers = GatewayPeers::default();
    for (position, gateway) in mine.iter().enumerate() {
        let mut others = gateway_nodes(gateway, &snapshot.nodes);
        others.remove(me.name);
        peers
            .members
            .extend(others.iter().filter_map(|node| indexes.get(node)));
        let lagging = facts.lagging.get(&gateway.name);
        others.retain(|node| {
            facts.live.contains(*node) && !lagging.is_some_and(|behind| behind.contains(*node))
        });
        let next = others.range::<NodeName, _>(me.name..).next();
        let relay = next
            .or_else(|| others.first())
            .and_then(|node| indexes.get(node));
        if let Some(relay) = relay
            && group_number(position) > 0
        {
            peers.relays.insert(group_number(position), *relay);
        }
    }
    peers
}

/// Steering table of one address: blocks of leases in which the worker may have connections.
fn steering(
    record: &AddressRecord,
    indexes: &BTreeMap<&NodeName, TunnelIndex>,
    presence: Presence,
    facts: &NodeFacts,
) -> Steering {
    let mut blocks = BTreeMap::new();
    for lease in record
        .leases
        .iter()
        .filter(|lease| lease.state.is_steered())
    {
        let Some(index) = indexes.get(&lease.node) else {
            continue;
        };
        for range in &lease.ranges {
            for block in range.first / BLOCK_PORTS..=range.last / BLOCK_PORTS {
                // Overlapping leases are an error of the record. The first holder gets the block, the same one on every
                // gateway.
                blocks.entry(block).or_insert(*index);
            }
        }
    }
    Steering {
        blocks,
        group: 0,
        presence,
        announce: presence.is_announced() && facts.announcing.contains(&record.address),
    }
}
