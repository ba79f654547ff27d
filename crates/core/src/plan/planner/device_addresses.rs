//! Incremental update of the addresses of nodes' devices that no Node names.

use super::messages::MessageSource;
use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::device_addresses::{Told, of_node};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Index of these addresses.
#[derive(Debug, Default)]
pub(super) struct DeviceAddresses {
    of_nodes: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    /// Number of nodes that have each address.
    all: BTreeMap<IpAddr, u32>,
    told: Told,
}

impl DeviceAddresses {
    /// Addresses in the record of a node that carries them.
    pub(super) fn told(&self) -> &BTreeSet<IpNet> {
        &self.told.addresses
    }

    /// Replaces the addresses of a node; returns whether the set of all addresses changed.
    fn replace(&mut self, name: &NodeName, new: BTreeSet<IpAddr>) -> bool {
        let old = match new.is_empty() {
            true => self.of_nodes.remove(name),
            false => self.of_nodes.insert(name.clone(), new.clone()),
        };
        let old = old.unwrap_or_default();
        let mut changed = false;
        for address in new.difference(&old) {
            let count = self.all.entry(*address).or_default();
            *count += 1;
            changed |= *count == 1;
        }
        for address in old.difference(&new) {
            if let Some(count) = self.all.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.all.remove(address);
                    changed = true;
                }
            }
        }
        changed
    }
}

impl Planner {
    /// Updates the addresses of one node after a change of its Node or of its record.
    pub(super) fn look_at_devices(&mut self, name: &NodeName, dirty: &mut Dirty) {
        let now = of_node(&self.snapshot, name);
        dirty.device_addresses |= self.device_addresses.replace(name, now);
    }

    /// Updates the reported addresses, and marks the records that carry them.
    pub(super) fn tell_device_addresses(&mut self, dirty: &mut Dirty) {
        let known = &mut self.device_addresses;
        if dirty.device_addresses {
            let told = Told::of(&self.snapshot, known.all.keys());
            let before = std::mem::replace(&mut known.told, told);
            if before.addresses != known.told.addresses {
                dirty.nodes.extend(self.carriers.iter().cloned());
            }
        }
        if dirty.device_addresses || dirty.roles || dirty.numbers {
            let findings = known.told.finding(&self.carriers);
            let source = MessageSource::DeviceAddresses;
            let findings = findings.into_iter().collect();
            self.messages
                .put(&mut self.plan, source, Vec::new(), findings);
        }
    }
}
