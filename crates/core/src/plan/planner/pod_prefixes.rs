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
}

impl PodPrefixes {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let uncovered = pod_prefixes::uncovered(snapshot);
        Self {
            coverage: Coverage::of(snapshot),
            told: Told::of(snapshot, &uncovered),
            uncovered,
        }
    }

    /// Pod prefixes in the record of a node that carries them.
    pub(super) fn told(&self) -> &BTreeSet<IpNet> {
        &self.told.prefixes
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

    /// A pod address that some node does not get.
    pub(super) fn untold_pod(&self) -> Option<IpAddr> {
        self.pod_prefixes.told.missing(!self.carriers.is_empty())
    }

    /// Updates the reported prefixes and the nodes whose records carry them, and marks these records.
    pub(super) fn tell_pod_prefixes(&mut self, dirty: &mut Dirty) {
        let missing = self.untold_pod();
        if dirty.pod_prefixes {
            let told = Told::of(&self.snapshot, &self.pod_prefixes.uncovered);
            let before = std::mem::replace(&mut self.pod_prefixes.told, told);
            let told = &self.pod_prefixes.told;
            if before.prefixes != told.prefixes {
                dirty.nodes.extend(self.carriers.iter().cloned());
            }
        }
        if dirty.roles || dirty.numbers {
            let nodes = self.leases.roles.values().flatten();
            let records = &self.plan.node_records;
            let unreadable = &self.snapshot.unreadable.nodes;
            let writable =
                |name: &NodeName| records.contains_key(name) && !unreadable.contains(name);
            let carriers = pod_prefixes::carriers(nodes, writable);
            let before = std::mem::replace(&mut self.carriers, carriers);
            let changed = before.symmetric_difference(&self.carriers);
            dirty.nodes.extend(changed.cloned());
        }
        if self.untold_pod() != missing {
            dirty.policies.extend(self.policies.all());
        }
    }
}
