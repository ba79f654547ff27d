//! Planning of addresses whose inputs changed.

use super::super::keys::PolicyRef;
use super::super::messages::MessageSource;
use super::super::{Dirty, Planner};
use super::Planned;
use crate::model::*;
use crate::plan::demand::Demand;
use crate::plan::epoch_memory::{self, LeastEpochs};
use crate::plan::lease::{self, Cluster, Fate, PlannedAddress};
use crate::plan::{Crowding, crowding, status};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Planner {
    /// Applies a change of an address record in the store, mostly one of our own writes.
    pub(in crate::plan::planner) fn take_address(
        &mut self,
        address: IpAddr,
        new: Option<AddressRecord>,
        dirty: &mut Dirty,
    ) {
        let records = &mut self.snapshot.addresses;
        if records.get(&address) == new.as_ref() {
            return;
        }
        if let Some(new) = &new {
            self.leases.add_record(new);
        }
        let is_there = new.is_some();
        let old = match new {
            Some(new) => records.insert(address, new),
            None => records.remove(&address),
        };
        if let Some(old) = &old {
            self.leases.epochs.remove_record(old);
        }
        // A policy that searches for a free address may find another one.
        dirty.resolve |= self.policies.searched && is_there != old.is_some();
        if is_there != old.is_some() {
            dirty
                .nodes
                .extend(self.leases.claims.resting(address).cloned());
        }
        dirty.addresses.insert(address);
    }

    /// Plans leases of addresses with changed inputs, unwritten plans or a due time.
    pub(in crate::plan::planner) fn plan_leases(&mut self, dirty: &mut Dirty) {
        dirty.addresses.extend(&self.leases.unwritten);
        let due = self.leases.dues.iter();
        let due = due.take_while(|(at, _)| *at <= self.time.now_secs);
        dirty.addresses.extend(due.map(|(_, address)| *address));
        let ahead = self.leases.ahead();
        if ahead != self.leases.ahead_before {
            // Few nodes, and seldom: their word concerns every address.
            dirty.addresses.extend(self.leases.addresses());
            self.leases.ahead_before.clone_from(&ahead);
        }
        let unbelieved = self.leases.unbelieved(&self.snapshot);
        self.messages.put(
            &mut self.plan,
            MessageSource::Epochs,
            Vec::new(),
            unbelieved,
        );
        let mut cluster = Cluster {
            snapshot: &self.snapshot,
            time: self.time,
            epoch: self.leases.epochs.highest(),
            ahead: &ahead,
            claims: &self.leases.claims,
            reports: &self.leases.reports,
            is_fresh: self.leases.epochs.highest() == 0,
            without_record: OnceCell::new(),
        };
        let mut all: Vec<(IpAddr, Option<PlannedAddress>)> = Vec::new();
        for address in &dirty.addresses {
            let need = self.leases.needs.get(address);
            let demand = need.and_then(|need| {
                Some(Demand {
                    gateway: self.snapshot.gateways.get(&need.gateway)?,
                    workers: need.workers.keys().collect(),
                    users: BTreeSet::new(),
                })
            });
            let exists = demand.is_some() || self.snapshot.addresses.contains_key(address);
            let planned =
                exists.then(|| lease::plan_address(&mut cluster, *address, demand.as_ref()));
            all.push((*address, planned));
        }
        for (address, planned) in all {
            self.install(address, planned, dirty);
        }
        for address in dirty.uses.difference(&dirty.addresses) {
            self.measure(*address, &mut dirty.policies, &mut dirty.statuses);
        }
        let kept = self.sweep(dirty);
        self.set_least_epochs(kept, dirty);
        let unwritten = self.leases.unwritten.iter();
        let unwritten = unwritten.filter_map(|address| self.plan.addresses.get(address));
        let mut writes: Vec<(u64, IpAddr)> = unwritten
            .filter(|record| self.snapshot.addresses.get(&record.address) != Some(record))
            .map(|record| (record.epoch, record.address))
            .collect();
        writes.sort_unstable();
        self.plan.address_writes = writes.into_iter().map(|(_, address)| address).collect();
        self.plan.next_change_secs = self.leases.dues.first().map(|(at, _)| *at);
    }

    /// Finds out again how much of an address is needed, without a new plan of its leases.
    fn measure(
        &mut self,
        address: IpAddr,
        policies: &mut BTreeSet<PolicyRef>,
        statuses: &mut BTreeSet<IpAddr>,
    ) {
        let record = self.plan.addresses.get(&address);
        let planned = self.leases.planned.get_mut(&address);
        let Some((record, planned)) = record.zip(planned) else {
            return;
        };
        let crowding = crowding::of_address(&self.snapshot, record, &planned.exhausted);
        if crowding != planned.crowding {
            planned.crowding = crowding;
            let users = self.leases.users(address);
            policies.extend(users.filter_map(|policy| self.policies.reference(policy)));
            statuses.insert(address);
        }
    }

    /// Replaces the planned record of an address.
    fn install(&mut self, address: IpAddr, planned: Option<PlannedAddress>, dirty: &mut Dirty) {
        let unused = self.leases.unused.remove(&address);
        let old = self.plan.addresses.remove(&address);
        dirty.statuses.insert(address);
        dirty.pools |= old.is_some() != planned.is_some();
        let old = old.or(unused);
        let old_leases = old.as_ref().map_or(&[][..], |record| &record.leases);
        let new_leases = planned.as_ref().map_or(&[][..], |p| &p.record.leases);
        let nodes = self.leases.hold(address, old_leases, new_leases);
        // Records of removed nodes stay as long as they have a lease.
        let nodes_here = &self.snapshot.nodes;
        dirty.numbers |= nodes.iter().any(|node| !nodes_here.contains_key(node));
        dirty.nodes.extend(nodes);
        if old.map(|record| record.gateway) != planned.as_ref().map(|p| p.record.gateway.clone()) {
            let holders = planned.iter().flat_map(|p| &p.record.leases);
            dirty.nodes.extend(holders.map(|lease| lease.node.clone()));
        }
        let (mut reasons, findings) = match &planned {
            Some(planned) => (planned.reasons.clone(), planned.findings.clone()),
            None => Default::default(),
        };
        reasons.sort();
        self.messages.put(
            &mut self.plan,
            MessageSource::Leases(address),
            reasons,
            findings,
        );
        let Some(planned) = planned else {
            self.leases.note(address, None);
            self.leases.unwritten.remove(&address);
            return;
        };
        let record = planned.record;
        let is_written = self.snapshot.addresses.get(&address) == Some(&record);
        match is_written && !planned.steering_changed {
            true => drop(self.leases.unwritten.remove(&address)),
            false => drop(self.leases.unwritten.insert(address)),
        }
        let before = self.leases.planned.get(&address);
        let was =
            before.map(|planned| (&planned.exhausted, planned.leased_if_low, planned.crowding));
        let none = BTreeSet::new();
        let crowding = crowding::of_address(&self.snapshot, &record, &planned.exhausted);
        let is = (&planned.exhausted, lease::leased_if_low(&record), crowding);
        if was.unwrap_or((&none, None, Crowding::default())) != is {
            let users = self.leases.users(address);
            let users = users.filter_map(|policy| self.policies.reference(policy));
            dirty.policies.extend(users);
        }
        let waits = |lease: &Lease| matches!(lease.state, LeaseState::Granted | LeaseState::Fenced);
        let note = Planned {
            epoch: record.epoch,
            due: lease::due(&self.snapshot, &record, self.time.now_secs),
            waits_for: (record.restored.is_some() || record.leases.iter().any(waits))
                .then(|| record.gateway.clone()),
            restored: record.restored.map(|restored| restored.epoch),
            leased_if_low: lease::leased_if_low(&record),
            crowding,
            exhausted: planned.exhausted,
            awaits: lease::awaits(&self.snapshot, &record),
        };
        self.leases.note(address, Some(note));
        let stays = self.snapshot.unreadable.addresses.contains(&address);
        if lease::is_empty(&record) && !stays && !self.leases.needs.contains_key(&address) {
            self.leases.unused.insert(address, record);
            dirty.pools = true;
        } else {
            self.plan.addresses.insert(address, record);
        }
    }

    /// Marks node records whose least epoch changed.
    fn set_least_epochs(&mut self, (kept, keepers): (u64, BTreeSet<NodeName>), dirty: &mut Dirty) {
        let least = LeastEpochs {
            restored: self.leases.restored.highest().unwrap_or(0),
            joined: self.leases.epochs.highest(),
            kept,
            keepers,
        };
        let before = std::mem::replace(&mut self.leases.least_epochs, least);
        let least = &self.leases.least_epochs;
        if before.restored != least.restored {
            // Every node is asked what it holds.
            dirty.nodes.extend(self.plan.node_records.keys().cloned());
        }
        if before.joined != least.joined {
            let new = self.plan.node_writes.iter();
            let new = new.filter(|name| !self.snapshot.node_records.contains_key(*name));
            dirty.nodes.extend(new.cloned());
        }
        if (before.kept, &before.keepers) != (least.kept, &least.keepers) {
            let keepers = before.keepers.iter().chain(&least.keepers);
            dirty.nodes.extend(keepers.cloned());
        }
    }

    /// Removes unused records from the plan, and restores those that must stay for now. Returns the epoch that node records
    /// must have before the last one can go, and the nodes.
    fn sweep(&mut self, dirty: &mut Dirty) -> (u64, BTreeSet<NodeName>) {
        self.plan.address_deletions.clear();
        let mut kept = 0;
        let keepers = match self.leases.unused.is_empty() {
            true => BTreeSet::new(),
            false => epoch_memory::keepers(&self.snapshot),
        };
        let highest = self.leases.planned_epochs.highest().unwrap_or(0);
        for (address, record) in &self.leases.unused {
            let reports = &self.leases.reports;
            let fate = lease::fate(&self.snapshot, record, highest, reports, &keepers);
            let goes = matches!(fate, Fate::Goes);
            if matches!(fate, Fate::GoesOnceKept) {
                kept = record.epoch;
            }
            let was_there = match goes {
                true => self.plan.addresses.remove(address).is_some(),
                false => {
                    let before = self.plan.addresses.insert(*address, record.clone());
                    before.is_some()
                }
            };
            if was_there == goes {
                dirty.statuses.insert(*address);
                dirty.pools = true;
            }
            if goes && self.snapshot.addresses.contains_key(address) {
                self.plan.address_deletions.push(*address);
            }
        }
        (kept, keepers)
    }

    /// Updates the status of an address.
    pub(in crate::plan::planner) fn tell_address(&mut self, address: IpAddr) {
        let Some(record) = self.plan.addresses.get(&address) else {
            self.plan.address_status.remove(&address);
            return;
        };
        let users: Vec<ObjectRef> = self.leases.users(address).cloned().collect();
        let planned = self.leases.planned.get(&address);
        let planned = planned.expect("every record of the plan was noted");
        let gateway = self.snapshot.gateways.get(&record.gateway);
        let outside = status::Outside {
            announcer: self.names.announcer(gateway, address),
            is_routed: status::is_routed(&self.snapshot, record),
            conflict: self.names.conflict(gateway, address),
        };
        let unreadable = self.snapshot.unreadable.addresses.contains(&address);
        let exhausted = &planned.exhausted;
        let crowding = planned.crowding;
        let reserved = self.snapshot.reserved(address);
        let told = status::address(
            record,
            Some(users),
            outside,
            exhausted,
            crowding,
            &reserved,
            unreadable,
        );
        self.plan.address_status.insert(address, told);
    }
}
