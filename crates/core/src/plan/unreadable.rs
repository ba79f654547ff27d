//! Records that exist and cannot be read: they are not changed, and their addresses and indexes count as taken.

use super::NodeRecordSpec;
use super::planned_grants::{self, PlannedGrants};
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
    planned: PlannedGrants,
    believed_max: u64,
) -> PlannedGrants {
    let unreadable = &snapshot.unreadable;
    let record = snapshot.node_records.get(node);
    let known = record.map(PlannedGrants::of_record);
    let known = known.unwrap_or_default();
    let epoch = planned_grants::grants_epoch(record, planned.epoch, believed_max);
    if unreadable.nodes.contains(node) {
        return known;
    }
    if unreadable.addresses.is_empty() {
        return PlannedGrants { epoch, ..planned };
    }
    let merge = |mut planned: Vec<Grant>, known: Vec<Grant>| {
        let stays = |grant: &Grant| unreadable.addresses.contains(&grant.address);
        planned.retain(|grant| !stays(grant));
        planned.extend(known.into_iter().filter(stays));
        planned_grants::sort(&mut planned);
        planned
    };
    PlannedGrants {
        usable: merge(planned.usable, known.usable),
        draining: merge(planned.draining, known.draining),
        resting: merge(planned.resting, known.resting),
        epoch,
    }
}

/// Sets the addresses of pods and of devices in a node's record, or leaves them as they are if the record cannot be
/// read.
pub(super) fn carry(
    snapshot: &Snapshot,
    node: &NodeName,
    spec: &mut NodeRecordSpec,
    (pods, devices): (BTreeSet<IpNet>, BTreeSet<IpNet>),
) {
    let known = match snapshot.unreadable.nodes.contains(node) {
        true => snapshot.node_records.get(node),
        false => None,
    };
    let known = known.map(|record| (&record.pod_prefixes, &record.device_addresses));
    (spec.pod_prefixes, spec.device_addresses) = match known {
        Some((pods, devices)) => (pods.clone(), devices.clone()),
        None => (pods, devices),
    };
}
