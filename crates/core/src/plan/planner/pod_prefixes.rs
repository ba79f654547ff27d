//! Incremental update of pod addresses that no Node names.

use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::pod_prefixes::{self, Coverage, Told};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Index of pod addresses that no Node names.
#[derive(Debug, Default)]
pub(super) struct PodPrefixes {
    coverage: Coverage,
    uncovered: BTreeSet<IpAddr>,
    told: Told,
    carriers: BTreeSet<NodeName>,
}

impl PodPrefixes {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let uncovered = pod_prefixes::uncovered(snapshot);
        Self {
            coverage: Coverage::of(snapshot),
            told: Told::of(snapshot, &uncovered),
            uncovered,
            carriers: BTreeSet::new(),
        }
    }

    /// A pod address that some node does not get.
    pub(super) fn missing(&self) -> Option<IpAddr> {
        self.told.missing(!self.carriers.is_empty())
    }

    /// Pod prefixes in this node's record.
    pub(super) fn carried_by(&self, node: &NodeName) -> BTreeSet<IpNet> {
        match self.carriers.contains(node) {
            true => self.told.prefixes.clone(),
            false => BTreeSet::new(),
        }
    }
}

impl Planner {
    /// Updates one address after a change of its pods or of the prefixes that cover it.
    pub(super) fn look_at_pod_address(&mut self, address: IpAddr, dirty: &mut Dirty) {
        let own = self.pods.at(&address).any(|key| {
            let pod = self.snapshot.pods.get(&**key);
            pod.is_some_and(|pod| !pod.own_addresses().is_empty())
        });
        let known = &mut self.pod_prefixes;
        dirty.pod_prefixes |= match own && !known.coverage.covers(address) {
            true => known.uncovered.insert(address),
            false => known.uncovered.remove(&address),
        };
    }

    /// Replaces the pod prefixes of a node.
    pub(super) fn take_pod_cidrs(&mut self, old: &[IpNet], new: &[IpNet], dirty: &mut Dirty) {
        if old == new {
            return;
        }
        let coverage = &mut self.pod_prefixes.coverage;
        old.iter().for_each(|prefix| coverage.remove(*prefix));
        new.iter().for_each(|prefix| coverage.add(*prefix));
        for prefix in old.iter().chain(new) {
            for address in self.pods.addresses_in(prefix) {
                self.look_at_pod_address(address, dirty);
            }
        }
    }

    /// Updates the reported prefixes, and marks the records that carry them.
    pub(super) fn tell_pod_prefixes(&mut self, dirty: &mut Dirty) {
        let missing = self.pod_prefixes.missing();
        if dirty.pod_prefixes {
            let told = Told::of(&self.snapshot, &self.pod_prefixes.uncovered);
            let before = std::mem::replace(&mut self.pod_prefixes.told, told);
            let told = &self.pod_prefixes.told;
            if before.prefixes != told.prefixes {
                dirty
                    .nodes
                    .extend(self.pod_prefixes.carriers.iter().cloned());
            }
        }
        if dirty.roles || dirty.numbers {
            let nodes = self.leases.roles.values().flatten();
            let records = &self.plan.node_records;
            let unreadable = &self.snapshot.unreadable.nodes;
            let writable =
                |name: &NodeName| records.contains_key(name) && !unreadable.contains(name);
            let carriers = pod_prefixes::carriers(nodes, writable);
            let before = std::mem::replace(&mut self.pod_prefixes.carriers, carriers);
            let after = &self.pod_prefixes.carriers;
            dirty
                .nodes
                .extend(before.symmetric_difference(after).cloned());
        }
        if self.pod_prefixes.missing() != missing {
            dirty.policies.extend(self.policies.all());
        }
    }
}
