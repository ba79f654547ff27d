//! Which gateway nodes may answer for an address. Usually every one of its group; but where the kernel of one has the
//! address itself, because keepalived or a person put it there, that one answers anyway, and the others leave it to it.

use crate::model::{NodeName, Snapshot};
use crate::node::GatewayState;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The gateway nodes that may answer for each address of the state. `own`: this node, and the addresses that its kernel
/// has now; what other nodes have is what their agents reported last. `live`: other gateways that answer. A node that
/// had the address and is gone counts no more: whoever gets it next says so itself.
pub fn answering_nodes(
    snapshot: &Snapshot,
    state: &GatewayState,
    own: (&NodeName, &BTreeSet<IpAddr>),
    live: &BTreeSet<NodeName>,
) -> BTreeMap<IpAddr, BTreeSet<NodeName>> {
    // An address without blocks (held down) is answered for by nobody.
    let steered = state
        .addresses
        .iter()
        .filter(|(_, steering)| !steering.blocks.is_empty());
    steered
        .filter_map(|(address, _)| {
            let all = group(snapshot, *address)?;
            let holds = |node: &&NodeName| holds(snapshot, *address, node, own, live);
            let holders: BTreeSet<NodeName> = all.iter().filter(holds).cloned().collect();
            let chosen = if holders.is_empty() { all } else { holders };
            Some((*address, chosen))
        })
        .collect()
}

fn group(snapshot: &Snapshot, address: IpAddr) -> Option<BTreeSet<NodeName>> {
    let record = snapshot.addresses.get(&address)?;
    let gateway = snapshot.gateways.get(&record.gateway)?;
    let nodes = snapshot
        .nodes
        .values()
        .filter(|node| gateway.nodes.matches(&node.labels));
    Some(nodes.map(|node| node.name.clone()).collect())
}

fn holds(
    snapshot: &Snapshot,
    address: IpAddr,
    node: &NodeName,
    (me, local): (&NodeName, &BTreeSet<IpAddr>),
    live: &BTreeSet<NodeName>,
) -> bool {
    if node == me {
        return local.contains(&address);
    }
    let record = snapshot.node_records.get(node);
    let reported = record.map(|record| &record.external_addresses);
    let has = reported.is_some_and(|all| all.iter().any(|network| network.addr() == address));
    has && live.contains(node)
}
