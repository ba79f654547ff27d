//! Node records: a tunnel index for every node, and the grants of its leases.

use super::{NodeRecordSpec, PlanReason};
use crate::model::*;
use crate::numbers::TUNNEL_INDEX_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) struct PlannedNodes {
    pub records: BTreeMap<NodeName, NodeRecordSpec>,
    pub deletions: Vec<NodeName>,
}

pub(super) fn plan_nodes(
    snapshot: &Snapshot,
    addresses: &BTreeMap<IpAddr, AddressRecord>,
    reasons: &mut Vec<PlanReason>,
    findings: &mut BTreeSet<Finding>,
) -> PlannedNodes {
    let mut grants: BTreeMap<&NodeName, Vec<Grant>> = BTreeMap::new();
    let mut holders: BTreeSet<&NodeName> = BTreeSet::new();
    for record in addresses.values() {
        for lease in &record.leases {
            holders.insert(&lease.node);
            if matches!(lease.state, LeaseState::Granted | LeaseState::Active) {
                grants.entry(&lease.node).or_default().push(Grant {
                    address: record.address,
                    gateway: record.gateway.clone(),
                    ranges: lease.ranges.clone(),
                    epoch: lease.epoch,
                });
            }
        }
    }
    let mut records = BTreeMap::new();
    let mut deletions = Vec::new();
    let mut used: BTreeSet<u16> = BTreeSet::new();
    for (name, record) in &snapshot.node_records {
        if !snapshot.nodes.contains_key(name) {
            if !holders.contains(name) {
                deletions.push(name.clone());
                continue;
            }
            reasons.push(PlanReason {
                subject: format!("EgressNode {name}"),
                text: "its Node is gone; the record stays until its leases have come to their end"
                    .into(),
            });
        }
        let valid = (1..=TUNNEL_INDEX_MAX).contains(&record.tunnel_index);
        if !valid || !used.insert(record.tunnel_index) {
            findings.insert(Finding {
                object: node_record(name),
                field: "spec.tunnelIndex".into(),
                value: record.tunnel_index.to_string(),
                remedy:
                    "it is not a valid number of its own; the controller gives the node another"
                        .into(),
            });
            continue;
        }
        let spec = NodeRecordSpec {
            tunnel_index: record.tunnel_index,
            grants: grants.remove(name).unwrap_or_default(),
        };
        records.insert(name.clone(), spec);
    }
    number_new(
        snapshot,
        &used,
        &mut grants,
        &mut records,
        reasons,
        findings,
    );
    PlannedNodes { records, deletions }
}

/// Gives every node without a record the lowest free tunnel index.
fn number_new(
    snapshot: &Snapshot,
    used: &BTreeSet<u16>,
    grants: &mut BTreeMap<&NodeName, Vec<Grant>>,
    records: &mut BTreeMap<NodeName, NodeRecordSpec>,
    reasons: &mut Vec<PlanReason>,
    findings: &mut BTreeSet<Finding>,
) {
    let mut free = (1..=TUNNEL_INDEX_MAX).filter(|index| !used.contains(index));
    let missing: BTreeSet<&NodeName> = snapshot
        .nodes
        .keys()
        .filter(|n| !records.contains_key(*n))
        .collect();
    for name in missing {
        let Some(tunnel_index) = free.next() else {
            findings.insert(Finding {
                object: node_record(name),
                field: "spec.tunnelIndex".into(),
                value: String::new(),
                remedy: format!(
                    "there are more than {TUNNEL_INDEX_MAX} nodes; this one gets no tunnel"
                ),
            });
            continue;
        };
        reasons.push(PlanReason {
            subject: format!("EgressNode {name}"),
            text: format!("tunnel index {tunnel_index} is the lowest free one"),
        });
        let grants = grants.remove(name).unwrap_or_default();
        records.insert(
            name.clone(),
            NodeRecordSpec {
                tunnel_index,
                grants,
            },
        );
    }
}

/// Records that must be written.
pub(super) fn writes(
    snapshot: &Snapshot,
    records: &BTreeMap<NodeName, NodeRecordSpec>,
) -> Vec<NodeName> {
    records
        .iter()
        .filter(|(name, spec)| {
            snapshot.node_records.get(*name).is_none_or(|known| {
                known.tunnel_index != spec.tunnel_index || known.grants != spec.grants
            })
        })
        .map(|(name, _)| name.clone())
        .collect()
}

fn node_record(name: &NodeName) -> ObjectRef {
    ObjectRef {
        kind: Kind::EgressNode,
        namespace: String::new(),
        name: name.0.clone(),
    }
}
