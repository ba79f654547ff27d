//! Gateway nodes that may answer ARP and ND for an address. Usually every node of its group. If the kernel of one has
//! the address itself, because keepalived or a person assigned it, that one answers anyway, and the others do not.

use crate::model::{NodeName, Snapshot};
use crate::node::GatewayState;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Gateway nodes that may answer for each address of the state. `own`: this node, and the addresses that its kernel has
/// now; other nodes' addresses are those of their agents' last reports. `live`: other gateways that answer probes. A
/// dead node that had the address does not count: the next node that gets it reports it.
pub fn answering_nodes(
    snapshot: &Snapshot,
    state: &GatewayState,
    own: (&NodeName, &BTreeSet<IpAddr>),
    live: &BTreeSet<NodeName>,
) -> BTreeMap<IpAddr, BTreeSet<NodeName>> {
    // Nobody answers for an address without blocks (in hold-down).
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
    let nodes = snapshot.nodes.values().filter(|node| gateway.selects(node));
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
