//! Addresses of pods that no Node names, by what changed.

use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::pod_prefixes::{self, Coverage, Told};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What is known of them.
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

    /// An address of a pod that some node is not told of.
    pub(super) fn missing(&self) -> Option<IpAddr> {
        self.told.missing(!self.carriers.is_empty())
    }

    /// What the record of this node carries.
    pub(super) fn carried_by(&self, node: &NodeName) -> BTreeSet<IpNet> {
        match self.carriers.contains(node) {
            true => self.told.prefixes.clone(),
            false => BTreeSet::new(),
        }
    }
}

impl Planner {
    /// Pods with this address have come, gone or changed, or what covers it.
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

    /// A node names these prefixes now instead of those.
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

    /// Brings what is told up to date, and finds the records that carry it.
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
