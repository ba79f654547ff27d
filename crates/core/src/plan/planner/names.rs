//! Contents of node records, indexed by address and by policy.

use super::super::status;
use crate::model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Inverted index of node records.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Nodes that announce each address.
    announcers: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    /// Conflicts of each address: the observing nodes and the other machine.
    conflicts: BTreeMap<IpAddr, BTreeMap<NodeName, AddressClaim>>,
    /// Programmed pods by policy and generation.
    programmed: BTreeMap<ObjectRef, BTreeMap<i64, u32>>,
    /// Number of nodes on which an address has no free port towards some destination.
    full_on: BTreeMap<IpAddr, u32>,
    /// The keys of `full_on`.
    full: BTreeSet<IpAddr>,
}

impl Names {
    /// Adds a record.
    pub(super) fn add(&mut self, record: &NodeRecord) {
        for address in &record.announcing {
            let announcers = self.announcers.entry(*address).or_default();
            announcers.insert(record.node.clone());
        }
        for (address, claim) in &record.conflicts {
            let hearing = self.conflicts.entry(*address).or_default();
            hearing.insert(record.node.clone(), *claim);
        }
        for one in &record.programmed {
            if !self.programmed.contains_key(&one.policy) {
                self.programmed.insert(one.policy.clone(), BTreeMap::new());
            }
            let generations = self.programmed.get_mut(&one.policy);
            let generations = generations.expect("inserted above where it was missing");
            *generations.entry(one.generation).or_default() += one.pods;
        }
        for address in record.full_destinations.keys() {
            *self.full_on.entry(*address).or_default() += 1;
            self.full.insert(*address);
        }
    }

    /// Removes a record that was added.
    pub(super) fn remove(&mut self, record: &NodeRecord) {
        for address in &record.announcing {
            if let Some(announcers) = self.announcers.get_mut(address) {
                announcers.remove(&record.node);
                if announcers.is_empty() {
                    self.announcers.remove(address);
                }
            }
        }
        for address in record.conflicts.keys() {
            if let Some(hearing) = self.conflicts.get_mut(address) {
                hearing.remove(&record.node);
                if hearing.is_empty() {
                    self.conflicts.remove(address);
                }
            }
        }
        for one in &record.programmed {
            if let Some(generations) = self.programmed.get_mut(&one.policy) {
                if let Some(pods) = generations.get_mut(&one.generation) {
                    *pods -= one.pods;
                }
                generations.retain(|_, pods| *pods > 0);
                if generations.is_empty() {
                    self.programmed.remove(&one.policy);
                }
            }
        }
        for address in record.full_destinations.keys() {
            if let Some(nodes) = self.full_on.get_mut(address) {
                *nodes -= 1;
                if *nodes == 0 {
                    self.full_on.remove(address);
                    self.full.remove(address);
                }
            }
        }
    }

    /// Announcer of an address of this gateway.
    pub(super) fn announcer(
        &self,
        gateway: Option<&Gateway>,
        address: IpAddr,
    ) -> Option<&NodeName> {
        status::announcer(gateway, address, self.announcers.get(&address)?)
    }

    /// Whether any node reports another machine with this address.
    pub(super) fn is_contested(&self, address: IpAddr) -> bool {
        self.conflicts.contains_key(&address)
    }

    /// See [`status::conflict`].
    pub(super) fn conflict(
        &self,
        gateway: Option<&Gateway>,
        address: IpAddr,
    ) -> Option<(&NodeName, AddressClaim)> {
        let announcer = self.announcer(gateway, address);
        status::conflict(self.conflicts.get(&address)?, announcer)
    }

    /// Pods of a policy that are programmed at this generation.
    pub(super) fn programmed(&self, policy: &ObjectRef, generation: i64) -> u32 {
        let generations = self.programmed.get(policy);
        let pods = generations.and_then(|generations| generations.get(&generation));
        pods.copied().unwrap_or(0)
    }

    /// Addresses without a free port towards some destination on some node.
    pub(super) fn full(&self) -> &BTreeSet<IpAddr> {
        &self.full
    }
}
