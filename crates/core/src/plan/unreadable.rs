//! Records that exist and cannot be read: they are not changed, and their addresses and indexes count as taken.

use super::lease;
use super::nodes::{self, NodeGrants};
use crate::model::*;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// Tunnel indexes of node records of which nothing else can be read.
pub(super) fn tunnel_indexes(snapshot: &Snapshot) -> BTreeSet<u16> {
    let nodes = snapshot.unreadable.nodes.iter();
    let records = nodes.filter_map(|node| snapshot.node_records.get(node));
    records.map(|record| record.tunnel_index).collect()
}

/// Whether it is unknown which ports are in use on the node.
pub(super) fn demand_is_unknown(snapshot: &Snapshot, node: &NodeName) -> bool {
    let unreadable = &snapshot.unreadable;
    unreadable.demand.contains(node) || unreadable.nodes.contains(node)
}

/// The grants of a node, from `planned` leases. Grants of addresses with an unreadable record stay as they are in the
/// node's record. All grants stay if the node's own record cannot be read.
pub(super) fn grants(
    snapshot: &Snapshot,
    node: &NodeName,
    planned: NodeGrants,
    believed_max: u64,
) -> NodeGrants {
    let unreadable = &snapshot.unreadable;
    let record = snapshot.node_records.get(node);
    let known = record.map(|record| NodeGrants::of_record(record));
    let known = known.unwrap_or_default();
    let epoch = lease::grants_epoch(record, planned.epoch, believed_max);
    if unreadable.nodes.contains(node) {
        return known;
    }
    if unreadable.addresses.is_empty() {
        return NodeGrants { epoch, ..planned };
    }
    let merge = |mut planned: Vec<Grant>, known: Vec<Grant>| {
        let stays = |grant: &Grant| unreadable.addresses.contains(&grant.address);
        planned.retain(|grant| !stays(grant));
        planned.extend(known.into_iter().filter(stays));
        nodes::sort(&mut planned);
        planned
    };
    NodeGrants {
        usable: merge(planned.usable, known.usable),
        draining: merge(planned.draining, known.draining),
        epoch,
    }
}

/// Pod prefixes in a node's record: `planned`, or the present ones if the record cannot be read.
pub(super) fn pod_prefixes(
    snapshot: &Snapshot,
    node: &NodeName,
    planned: BTreeSet<IpNet>,
) -> BTreeSet<IpNet> {
    if !snapshot.unreadable.nodes.contains(node) {
        return planned;
    }
    let record = snapshot.node_records.get(node);
    record.map_or_else(BTreeSet::new, |record| record.pod_prefixes.clone())
}
