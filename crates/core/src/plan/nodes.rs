//! Node records: a tunnel index for every node, and the grants of its leases.

use super::pod_prefixes::{Told, carriers};
use super::{NodeRecordSpec, PlanReason, unreadable};
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
    believed_max: u64,
    reasons: &mut Vec<PlanReason>,
    findings: &mut BTreeSet<Finding>,
) -> PlannedNodes {
    let mut grants: BTreeMap<&NodeName, NodeGrants> = BTreeMap::new();
    let mut holders: BTreeSet<&NodeName> = BTreeSet::new();
    for record in addresses.values() {
        for lease in &record.leases {
            holders.insert(&lease.node);
            grants.entry(&lease.node).or_default().add(record, lease);
        }
    }
    let restored = addresses.values().filter_map(|record| record.restored);
    let restored = restored.map(|restored| restored.epoch).max().unwrap_or(0);
    let numbers = number(snapshot, &|name| holders.contains(name));
    reasons.extend(numbers.reasons);
    findings.extend(numbers.findings);
    let records = numbers.indexes.into_iter().map(|(name, tunnel_index)| {
        let grants = grants.remove(&name).unwrap_or_default();
        let grants = grants.since(restored).sorted();
        let grants = unreadable::grants(snapshot, &name, grants, believed_max);
        let spec = NodeRecordSpec {
            tunnel_index,
            grants: grants.usable,
            draining: grants.draining,
            grants_epoch: grants.epoch,
            pod_prefixes: BTreeSet::new(),
        };
        (name, spec)
    });
    PlannedNodes {
        records: records.collect(),
        deletions: numbers.deletions,
    }
}

impl PlannedNodes {
    /// Writes the reported pod addresses into the records that carry them; returns an address that some node does not
    /// get.
    pub(super) fn carry(&mut self, snapshot: &Snapshot, told: &Told) -> Option<IpAddr> {
        let gateways = snapshot.gateways.values();
        let nodes = gateways.flat_map(|gateway| gateway_nodes(gateway, &snapshot.nodes));
        let writable = |name: &NodeName| {
            self.records.contains_key(name) && !snapshot.unreadable.nodes.contains(name)
        };
        let carriers = carriers(nodes, writable);
        for (name, spec) in &mut self.records {
            let told = match carriers.contains(name) {
                true => told.prefixes.clone(),
                false => BTreeSet::new(),
            };
            spec.pod_prefixes = unreadable::pod_prefixes(snapshot, name, told);
        }
        told.missing(!carriers.is_empty())
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

/// What a worker is told of its leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeGrants {
    /// Ranges in which it may open flows.
    pub usable: Vec<Grant>,
    /// Ranges in which its flows may go on.
    pub draining: Vec<Grant>,
    /// Highest epoch of these, withdrawals included.
    pub epoch: u64,
}

impl NodeGrants {
    /// What the node's record contains.
    pub(super) fn of_record(record: &NodeRecord) -> Self {
        NodeGrants {
            usable: record.grants.clone(),
            draining: record.draining.clone(),
            epoch: record.grants_epoch,
        }
    }

    /// Adds a lease of the node. The flows of a node that is gone go on for a while, in case that it comes back; what it
    /// finds fenced then is no longer its own.
    pub(super) fn add(&mut self, record: &AddressRecord, lease: &Lease) {
        let list = match lease.state {
            LeaseState::Granted | LeaseState::Active => &mut self.usable,
            LeaseState::Draining | LeaseState::Vanished => &mut self.draining,
            LeaseState::Fenced | LeaseState::HoldDown => return,
        };
        list.push(Grant {
            address: record.address,
            gateway: record.gateway.clone(),
            ranges: lease.ranges.clone(),
            epoch: lease.epoch,
        });
        let withdrawn = lease.withdrawn.unwrap_or(0);
        self.epoch = self.epoch.max(lease.epoch).max(withdrawn);
    }

    /// With an epoch that is at least this one.
    pub(super) fn since(mut self, epoch: u64) -> Self {
        self.epoch = self.epoch.max(epoch);
        self
    }

    /// In the order of records.
    pub(super) fn sorted(mut self) -> Self {
        sort(&mut self.usable);
        sort(&mut self.draining);
        self
    }
}

/// Sorts by address and ranges.
pub(super) fn sort(grants: &mut [Grant]) {
    grants.sort_by(|a, b| (a.address, &a.ranges).cmp(&(b.address, &b.ranges)));
}

/// Whether the record must be written.
pub(super) fn differs(known: Option<&NodeRecord>, spec: &NodeRecordSpec) -> bool {
    known.is_none_or(|known| {
        known.tunnel_index != spec.tunnel_index
            || known.grants != spec.grants
            || known.draining != spec.draining
            || known.grants_epoch != spec.grants_epoch
            || known.pod_prefixes != spec.pod_prefixes
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
