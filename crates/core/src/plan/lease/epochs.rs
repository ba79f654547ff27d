//! The cluster's counter of epochs: the highest that objects have, and what nodes report.
//!
//! Objects are written by the controller alone. Reports come from nodes, of which each may be compromised: a reported
//! epoch is believed only within a bounded distance, so that no node can wear the counter out.

use super::super::counted::Counted;
use crate::model::*;
use crate::resolve::gateway_nodes;
use std::collections::{BTreeMap, BTreeSet};

/// Distance from the highest epoch of any object up to which a report is believed: more than changes happen in a year at
/// 100 per second. At one report per second, the counter's 63 bits last for 68 years.
const EPOCH_LEAP_MAX: u64 = 1 << 32;

/// Epochs of all objects and reports.
#[derive(Debug, Default)]
pub(in crate::plan) struct Epochs {
    /// Epochs in address records and in the controller's part of node records.
    written: Counted<u64>,
    /// Epochs that nodes report.
    reported: Counted<u64>,
    /// Nodes that acknowledged an epoch which their record does not have, by that epoch: their record has gone back.
    ahead: BTreeMap<NodeName, u64>,
}

impl Epochs {
    pub(in crate::plan) fn of(snapshot: &Snapshot) -> Self {
        let mut epochs = Self::default();
        for record in snapshot.addresses.values() {
            epochs.add_record(record);
        }
        for record in snapshot.node_records.values() {
            epochs.add_node(record);
        }
        epochs
    }

    pub(in crate::plan) fn add_record(&mut self, record: &AddressRecord) {
        self.written.add(record_epoch(record));
    }

    pub(in crate::plan) fn remove_record(&mut self, record: &AddressRecord) {
        self.written.remove(record_epoch(record));
    }

    pub(in crate::plan) fn add_node(&mut self, record: &NodeRecord) {
        self.written.add(granted_epoch(record));
        self.reported.add(reported_by(record));
        if record.acknowledged > record.grants_epoch {
            self.ahead.insert(record.node.clone(), record.acknowledged);
        }
    }

    pub(in crate::plan) fn remove_node(&mut self, record: &NodeRecord) {
        self.written.remove(granted_epoch(record));
        self.reported.remove(reported_by(record));
        self.ahead.remove(&record.node);
    }

    /// Highest epoch of the cluster.
    pub(in crate::plan) fn highest(&self) -> u64 {
        let written = self.written.highest().unwrap_or(0);
        let reported = self.reported.highest_up_to(self.believed_max());
        written.max(reported.unwrap_or(0))
    }

    /// Highest reported epoch that is believed.
    pub(in crate::plan) fn believed_max(&self) -> u64 {
        let written = self.written.highest().unwrap_or(0);
        written.saturating_add(EPOCH_LEAP_MAX).min(u64::MAX >> 1)
    }

    /// Findings about reported epochs that are not believed. Without any, no record is looked at.
    pub(in crate::plan) fn unbelieved(&self, snapshot: &Snapshot) -> BTreeSet<Finding> {
        let max = self.believed_max();
        match self.reported.highest() > Some(max) {
            true => unbelieved(&snapshot.node_records, max),
            false => BTreeSet::new(),
        }
    }

    /// Nodes whose record has gone back, as they show.
    pub(in crate::plan) fn ahead(&self) -> impl Iterator<Item = &NodeName> {
        let max = self.believed_max();
        let ahead = self.ahead.iter();
        ahead.filter_map(move |(node, epoch)| (*epoch <= max).then_some(node))
    }
}

/// Highest epoch in an address record.
pub(in crate::plan) fn record_epoch(record: &AddressRecord) -> u64 {
    let leases = record.leases.iter();
    let leases = leases.map(|lease| lease.epoch.max(lease.withdrawn.unwrap_or(0)));
    let restored = record.restored.map_or(0, |restored| restored.epoch);
    leases.fold(record.epoch.max(restored), u64::max)
}

/// Highest epoch in the controller's part of a node record.
fn granted_epoch(record: &NodeRecord) -> u64 {
    let grants = record.grants.iter().chain(&record.draining);
    let grants = grants.chain(&record.resting).map(|grant| grant.epoch);
    grants.fold(record.grants_epoch, u64::max)
}

/// Highest epoch in the agent's part of a node record.
fn reported_by(record: &NodeRecord) -> u64 {
    record.steering_version.max(record.acknowledged)
}

/// Findings about epochs in this report that are above the highest that is believed.
fn unbelieved(records: &SharedMap<NodeName, NodeRecord>, max: u64) -> BTreeSet<Finding> {
    let found = records.values().flat_map(|record| {
        let fields = [
            ("status.steeringVersion", record.steering_version),
            ("status.acknowledgedEpoch", record.acknowledged),
        ];
        let bad = fields.into_iter().filter(|(_, epoch)| *epoch > max);
        bad.map(|(field, epoch)| Finding {
            object: ObjectRef::of_cluster(Kind::EgressNode, &record.node.0),
            field: field.into(),
            value: epoch.to_string(),
            remedy:
                "no correct agent reports so high an epoch, and it is not believed; look at what runs on this node"
                    .into(),
        })
    });
    found.collect()
}

/// What the gateways of every group report. The controller does not probe, so a gateway counts from its agent's first
/// report until its Node is removed. Workers do probe, and decide themselves which ranges they may use.
#[derive(Debug, Default)]
pub(in crate::plan) struct Reports {
    /// Per group: the epoch that every gateway with an agent has reached; no entry where no agent runs.
    epochs: BTreeMap<GatewayName, u64>,
    /// Per group: the first gateway that may forward by tables which nobody knows.
    unknown: BTreeMap<GatewayName, NodeName>,
}

impl Reports {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut reports = Self::default();
        for gateway in snapshot.gateways.values() {
            let nodes = gateway_nodes(gateway, &snapshot.nodes);
            reports.set(&gateway.name, nodes.iter().copied(), &snapshot.node_records);
        }
        reports
    }

    /// Sets what the gateways of a group report; returns whether it changed.
    pub(in crate::plan) fn set<'n>(
        &mut self,
        gateway: &GatewayName,
        nodes: impl IntoIterator<Item = &'n NodeName> + Clone,
        records: &SharedMap<NodeName, NodeRecord>,
    ) -> bool {
        let unknown = |node: &&NodeName| has_unknown_tables(records.get(*node));
        let unknown = nodes.clone().into_iter().find(unknown).cloned();
        let epoch = reported_epoch(nodes, records);
        replace(&mut self.epochs, gateway, epoch) | replace(&mut self.unknown, gateway, unknown)
    }

    /// The epoch that every gateway of the group with an agent has reached; `None`: no agent runs.
    pub(super) fn epoch(&self, gateway: &GatewayName) -> Option<u64> {
        self.epochs.get(gateway).copied()
    }

    /// A gateway of the group that may forward by tables which nobody knows: it is waited for like a dead one.
    pub(super) fn unknown(&self, gateway: &GatewayName) -> Option<&NodeName> {
        self.unknown.get(gateway)
    }

    /// Whether every gateway with an agent has reached this epoch, whatever its group.
    pub(super) fn all_have(&self, epoch: u64) -> bool {
        self.epochs.values().all(|known| *known >= epoch)
    }
}

fn replace<V: PartialEq>(
    all: &mut BTreeMap<GatewayName, V>,
    gateway: &GatewayName,
    value: Option<V>,
) -> bool {
    if all.get(gateway) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(all.insert(gateway.clone(), value)),
        None => drop(all.remove(gateway)),
    }
    true
}

/// Whether a gateway with this record may forward by tables which nobody knows: its record was made anew in a cluster that
/// was in use, and no agent has reported since. A gateway that was there before the first lease has no tables.
pub(in crate::plan) fn has_unknown_tables(record: Option<&NodeRecord>) -> bool {
    record.is_none_or(|record| record.underlay_addresses.is_empty() && record.grants_epoch > 0)
}

/// The epoch that all these gateways of one group have reached.
fn reported_epoch<'n>(
    nodes: impl IntoIterator<Item = &'n NodeName>,
    records: &SharedMap<NodeName, NodeRecord>,
) -> Option<u64> {
    nodes
        .into_iter()
        .filter_map(|node| records.get(node))
        .filter(|record| !record.underlay_addresses.is_empty())
        .map(|record| record.steering_version)
        .min()
}
