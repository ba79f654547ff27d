//! Node records: a tunnel index for every node, and the grants of its leases.

use super::epoch_memory::LeastEpochs;
use super::planned_grants::PlannedGrants;
use super::pod_prefixes::{Told, carriers};
use super::{NodeRecordSpec, PlanReason, device_addresses, unreadable};
use crate::model::*;
use crate::numbers::TUNNEL_INDEX_MAX;
use crate::resolve::gateway_nodes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) struct PlannedNodes {
    pub records: BTreeMap<NodeName, NodeRecordSpec>,
    pub deletions: Vec<NodeName>,
}

pub(super) fn plan_nodes(
    snapshot: &Snapshot,
    addresses: &BTreeMap<IpAddr, AddressRecord>,
    least_epochs: &LeastEpochs,
    (believed_max, now_secs): (u64, i64),
    reasons: &mut Vec<PlanReason>,
    findings: &mut BTreeSet<Finding>,
) -> PlannedNodes {
    let mut grants: BTreeMap<&NodeName, PlannedGrants> = BTreeMap::new();
    let mut holders: BTreeSet<&NodeName> = BTreeSet::new();
    for record in addresses.values() {
        for lease in &record.leases {
            holders.insert(&lease.node);
            grants.entry(&lease.node).or_default().add(record, lease);
        }
    }
    let numbers = number(snapshot, &|name| holders.contains(name));
    reasons.extend(numbers.reasons);
    findings.extend(numbers.findings);
    let records = numbers.indexes.into_iter().map(|(name, tunnel_index)| {
        let grants = grants.remove(&name).unwrap_or_default();
        let grants = grants.since(least_epochs.of(snapshot, &name)).sorted();
        let grants = unreadable::grants(snapshot, &name, grants, believed_max);
        let spec = NodeRecordSpec {
            tunnel_index,
            grants: grants.usable,
            draining: grants.draining,
            resting: grants.resting,
            fenced: fenced(snapshot, &name, now_secs),
            grants_epoch: grants.epoch,
            pod_prefixes: BTreeSet::new(),
            device_addresses: BTreeSet::new(),
        };
        (name, spec)
    });
    PlannedNodes {
        records: records.collect(),
        deletions: numbers.deletions,
    }
}

impl PlannedNodes {
    /// Writes the reported addresses of pods and devices into the records that carry them; returns the nodes of these
    /// records.
    pub(super) fn carry(
        &mut self,
        snapshot: &Snapshot,
        pods: &Told,
        devices: &device_addresses::Told,
    ) -> BTreeSet<NodeName> {
        let gateways = snapshot.gateways.values();
        let nodes = gateways.flat_map(|gateway| gateway_nodes(gateway, &snapshot.nodes));
        let writable = |name: &NodeName| {
            self.records.contains_key(name) && !snapshot.unreadable.nodes.contains(name)
        };
        let carriers = carriers(nodes, writable);
        for (name, spec) in &mut self.records {
            let (pods, devices) = match carriers.contains(name) {
                true => (pods.prefixes.clone(), devices.addresses.clone()),
                false => (BTreeSet::new(), BTreeSet::new()),
            };
            unreadable::carry(snapshot, name, spec, (pods, devices));
        }
        carriers
    }
}

/// Existing node records and their tunnel indexes.
pub(super) struct Numbers {
    pub indexes: BTreeMap<NodeName, u16>,
    pub deletions: Vec<NodeName>,
    pub reasons: Vec<PlanReason>,
    pub findings: Vec<Finding>,
}

/// Assigns tunnel indexes. `holds`: whether a node has a lease in any state.
pub(super) fn number(snapshot: &Snapshot, holds: &dyn Fn(&NodeName) -> bool) -> Numbers {
    let mut numbers = Numbers {
        indexes: BTreeMap::new(),
        deletions: Vec::new(),
        reasons: Vec::new(),
        findings: Vec::new(),
    };
    let mut used: BTreeSet<u16> = unreadable::tunnel_indexes(snapshot);
    for (name, record) in &snapshot.node_records {
        if !snapshot.nodes.contains_key(name) {
            if !holds(name) {
                numbers.deletions.push(name.clone());
                continue;
            }
            numbers.reasons.push(PlanReason {
                subject: format!("EgressNode {name}"),
                text: "its Node is gone; the record stays until its leases have come to their end"
                    .into(),
            });
        }
        let valid = (1..=TUNNEL_INDEX_MAX).contains(&record.tunnel_index);
        if snapshot.unreadable.nodes.contains(name) {
            // An unreadable record cannot be renumbered; another node with the same index is.
            numbers.indexes.insert(name.clone(), record.tunnel_index);
            continue;
        }
        if !valid || !used.insert(record.tunnel_index) {
            numbers.findings.push(Finding {
                object: node_record(name),
                field: "spec.tunnelIndex".into(),
                value: record.tunnel_index.to_string(),
                remedy:
                    "it is not a valid number of its own; the controller gives the node another"
                        .into(),
            });
            continue;
        }
        numbers.indexes.insert(name.clone(), record.tunnel_index);
    }
    number_new(snapshot, &used, &mut numbers);
    numbers
}

/// Assigns the lowest free tunnel index to every node without a record.
fn number_new(snapshot: &Snapshot, used: &BTreeSet<u16>, numbers: &mut Numbers) {
    let mut free = (1..=TUNNEL_INDEX_MAX).filter(|index| !used.contains(index));
    for name in snapshot.nodes.keys() {
        if numbers.indexes.contains_key(name) || snapshot.unreadable.nodes.contains(name) {
            continue;
        }
        let Some(tunnel_index) = free.next() else {
            numbers.findings.push(Finding {
                object: node_record(name),
                field: "spec.tunnelIndex".into(),
                value: String::new(),
                remedy: format!(
                    "there are more than {TUNNEL_INDEX_MAX} nodes; this one gets no tunnel"
                ),
            });
            continue;
        };
        numbers.reasons.push(PlanReason {
            subject: format!("EgressNode {name}"),
            text: format!("tunnel index {tunnel_index} is the lowest free one"),
        });
        numbers.indexes.insert(name.clone(), tunnel_index);
    }
}

/// The fence of a node, as its Node object asks for it; since the first plan that saw it.
pub(super) fn fenced(snapshot: &Snapshot, name: &NodeName, now_secs: i64) -> Option<Fenced> {
    let known = snapshot.node_records.get(name);
    let known = known.and_then(|record| record.fenced.as_ref());
    if snapshot.unreadable.nodes.contains(name) {
        return known.cloned();
    }
    let node = snapshot.nodes.get(name)?;
    let reason = node.maintenance.fence.clone()?;
    let since_secs = known.map_or(now_secs, |fenced| fenced.since_secs);
    Some(Fenced { reason, since_secs })
}

/// Whether the record must be written.
pub(super) fn differs(known: Option<&NodeRecord>, spec: &NodeRecordSpec) -> bool {
    known.is_none_or(|known| {
        known.tunnel_index != spec.tunnel_index
            || known.grants != spec.grants
            || known.draining != spec.draining
            || known.resting != spec.resting
            || known.fenced != spec.fenced
            || known.grants_epoch != spec.grants_epoch
            || known.pod_prefixes != spec.pod_prefixes
            || known.device_addresses != spec.device_addresses
    })
}

/// Records that must be written.
pub(super) fn writes(
    snapshot: &Snapshot,
    records: &BTreeMap<NodeName, NodeRecordSpec>,
) -> Vec<NodeName> {
    records
        .iter()
        .filter(|(name, spec)| differs(snapshot.node_records.get(*name), spec))
        .map(|(name, _)| name.clone())
        .collect()
}

fn node_record(name: &NodeName) -> ObjectRef {
    ObjectRef::of_cluster(Kind::EgressNode, &name.0)
}
