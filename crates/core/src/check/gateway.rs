//! Rules for a gateway's steering tables.

use super::leases::steering;
use super::{Found, Rule};
use crate::model::*;
use crate::node::{GatewayState, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// The steering tables of a gateway.
pub(super) fn gateway(snapshot: &Snapshot, own: &Node, state: &NodeState, found: &mut Found) {
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
        g.selects(own)
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
