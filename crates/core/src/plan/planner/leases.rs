//! Addresses and their leases.

use super::keys::PolicyRef;
use super::messages::MessageSource;
use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::counted::Counted;
use crate::plan::demand::Demand;
use crate::plan::epoch_memory::{self, LeastEpochs};
use crate::plan::lease::{self, Claims, Cluster, Epochs, Fate, PlannedAddress, Reports};
use crate::plan::planned_grants::PlannedGrants;
use crate::plan::{Crowding, crowding, status};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Every address, and the inputs of its leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    needs: BTreeMap<IpAddr, Need>,
    /// Epochs in address and node records.
    epochs: Epochs,
    /// Ranges that nodes have.
    claims: Claims,
    /// Nodes whose record had gone back at the last plan.
    ahead_before: Vec<NodeName>,
    /// Nodes of each gateway.
    pub roles: BTreeMap<GatewayName, BTreeSet<NodeName>>,
    /// What the nodes of each gateway have reported.
    pub reports: Reports,
    /// Epochs that node records have at least.
    pub least_epochs: LeastEpochs,
    planned: BTreeMap<IpAddr, Planned>,
    /// Epochs of planned records.
    planned_epochs: Counted<u64>,
    /// Addresses with leases that some gateway has not reported yet, by gateway.
    waiting: BTreeMap<GatewayName, BTreeSet<IpAddr>>,
    /// Addresses whose planned record is not in the store yet.
    unwritten: BTreeSet<IpAddr>,
    /// Times at which time alone changes an address.
    dues: BTreeSet<(i64, IpAddr)>,
    /// Epochs at which planned records were restored.
    restored: Counted<u64>,
    /// Records without leases and without demand, whether still in the plan or not.
    unused: BTreeMap<IpAddr, AddressRecord>,
    /// Addresses with a lease of each node.
    held: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    /// Addresses whose plan depends on what each node has acknowledged.
    awaiting: BTreeMap<NodeName, BTreeSet<IpAddr>>,
}

/// Users of one address.
#[derive(Debug)]
struct Need {
    gateway: GatewayName,
    users: BTreeSet<ObjectRef>,
    /// Workers, with the number of their pods that use the address.
    workers: BTreeMap<NodeName, u32>,
}

/// Derived facts of a planned record.
#[derive(Debug, Default, PartialEq, Eq)]
struct Planned {
    epoch: u64,
    due: Option<i64>,
    waits_for: Option<GatewayName>,
    restored: Option<u64>,
    /// See [`lease::leased_if_low`].
    leased_if_low: Option<usize>,
    crowding: Crowding,
    exhausted: BTreeSet<NodeName>,
    /// Nodes whose acknowledgement matters.
    awaits: BTreeSet<NodeName>,
}

impl Leases {
    /// Adds a node record.
    pub(super) fn add_node(&mut self, record: &NodeRecord) {
        self.epochs.add_node(record);
        self.claims.add(record);
    }

    /// Removes a node record.
    pub(super) fn remove_node(&mut self, record: &NodeRecord) {
        self.epochs.remove_node(record);
        self.claims.remove(record);
    }

    /// Nodes whose record has gone back.
    pub(super) fn ahead(&self) -> Vec<NodeName> {
        self.epochs.ahead().cloned().collect()
    }

    /// Highest epoch that nodes may report.
    pub(super) fn believed_max(&self) -> u64 {
        self.epochs.believed_max()
    }

    /// Findings about epochs that nodes report.
    pub(super) fn unbelieved(&self, snapshot: &Snapshot) -> BTreeSet<Finding> {
        self.epochs.unbelieved(snapshot)
    }

    /// All addresses with a plan or a demand.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.planned.keys().chain(self.needs.keys()).copied()
    }

    /// Addresses whose plan waits for nodes to say what they hold.
    pub(super) fn restored(&self) -> impl Iterator<Item = IpAddr> {
        let planned = self.planned.iter();
        let restored = planned.filter(|(_, planned)| planned.restored.is_some());
        restored.map(|(address, _)| *address)
    }

    /// Whether some plan waits for that.
    pub(super) fn is_restored(&self) -> bool {
        self.restored.highest().is_some()
    }

    /// Adds an address record.
    pub(super) fn add_record(&mut self, record: &AddressRecord) {
        self.epochs.add_record(record);
    }

    /// Counts one more pod of the node for the address; returns whether it is the first.
    pub(super) fn need(&mut self, address: IpAddr, node: &NodeName) -> bool {
        let Some(need) = self.needs.get_mut(&address) else {
            return false;
        };
        if let Some(pods) = need.workers.get_mut(node) {
            *pods += 1;
            return false;
        }
        need.workers.insert(node.clone(), 1);
        true
    }

    /// Counts one pod of the node less; returns whether it was the last.
    pub(super) fn release(&mut self, address: IpAddr, node: &NodeName) -> bool {
        let Some(need) = self.needs.get_mut(&address) else {
            return false;
        };
        let Some(pods) = need.workers.get_mut(node) else {
            return false;
        };
        *pods -= 1;
        if *pods > 0 {
            return false;
        }
        need.workers.remove(node);
        true
    }

    /// Sets the policies that use each address; returns the addresses that changed.
    pub(super) fn use_by(
        &mut self,
        users: BTreeMap<IpAddr, (GatewayName, BTreeSet<ObjectRef>)>,
    ) -> BTreeSet<IpAddr> {
        let mut changed: BTreeSet<IpAddr> = BTreeSet::new();
        self.needs.retain(|address, need| {
            let stays = users.contains_key(address);
            debug_assert!(stays || need.workers.is_empty());
            if !stays {
                changed.insert(*address);
            }
            stays
        });
        for (address, (gateway, users)) in users {
            match self.needs.get_mut(&address) {
                Some(need) if need.gateway == gateway && need.users == users => continue,
                Some(need) => {
                    need.gateway = gateway;
                    need.users = users;
                }
                None => {
                    let need = Need {
                        gateway,
                        users,
                        workers: BTreeMap::new(),
                    };
                    self.needs.insert(address, need);
                }
            }
            changed.insert(address);
        }
        changed
    }

    /// Policies that use the address.
    pub(super) fn users(&self, address: IpAddr) -> impl Iterator<Item = &ObjectRef> {
        let need = self.needs.get(&address);
        need.into_iter().flat_map(|need| &need.users)
    }

    /// Gateways that select the node.
    pub(super) fn gateways_of(&self, node: &NodeName) -> Vec<GatewayName> {
        let roles = self.roles.iter();
        let mine = roles.filter(|(_, nodes)| nodes.contains(node));
        mine.map(|(gateway, _)| gateway.clone()).collect()
    }

    /// Addresses with leases that nodes of this gateway have not reported yet.
    pub(super) fn waiting_for(&self, gateway: &GatewayName) -> Vec<IpAddr> {
        let waiting = self.waiting.get(gateway);
        waiting.into_iter().flatten().copied().collect()
    }

    /// Addresses with a lease of the node.
    pub(super) fn of_node(&self, node: &NodeName) -> Vec<IpAddr> {
        let held = self.held.get(node);
        held.into_iter().flatten().copied().collect()
    }

    /// Addresses whose plan depends on what the node has acknowledged.
    pub(super) fn awaiting(&self, node: &NodeName) -> Vec<IpAddr> {
        let awaiting = self.awaiting.get(node);
        awaiting.into_iter().flatten().copied().collect()
    }

    /// Whether few ports of the address are free.
    pub(super) fn is_low(&self, address: IpAddr) -> bool {
        let planned = self.planned.get(&address);
        planned.is_some_and(|planned| planned.leased_if_low.is_some())
    }

    /// Whether the node has a lease in any state.
    pub(super) fn holds(&self, node: &NodeName) -> bool {
        self.held.contains_key(node)
    }

    /// The grants of a node, by address.
    pub(super) fn grants(
        &self,
        node: &NodeName,
        records: &BTreeMap<IpAddr, AddressRecord>,
    ) -> PlannedGrants {
        let mut grants = PlannedGrants::default();
        let held = self.held.get(node).into_iter().flatten();
        for record in held.filter_map(|address| records.get(address)) {
            // Sorted by node.
            let first = record.leases.partition_point(|lease| lease.node < *node);
            let mine = record.leases[first..].iter();
            for lease in mine.take_while(|lease| lease.node == *node) {
                grants.add(record, lease);
            }
        }
        grants
    }

    /// Updates the indexes for a planned record; `None`: the record is removed.
    fn note(&mut self, address: IpAddr, planned: Option<Planned>) {
        if let Some(old) = self.planned.remove(&address) {
            self.planned_epochs.remove(old.epoch);
            if let Some(epoch) = old.restored {
                self.restored.remove(epoch);
            }
            if let Some(due) = old.due {
                self.dues.remove(&(due, address));
            }
            if let Some(waiting) = old.waits_for.and_then(|g| self.waiting.get_mut(&g)) {
                waiting.remove(&address);
            }
            for node in &old.awaits {
                if let Some(awaiting) = self.awaiting.get_mut(node) {
                    awaiting.remove(&address);
                    if awaiting.is_empty() {
                        self.awaiting.remove(node);
                    }
                }
            }
        }
        let Some(new) = planned else { return };
        self.planned_epochs.add(new.epoch);
        if let Some(epoch) = new.restored {
            self.restored.add(epoch);
        }
        if let Some(due) = new.due {
            self.dues.insert((due, address));
        }
        if let Some(gateway) = &new.waits_for {
            let waiting = self.waiting.entry(gateway.clone()).or_default();
            waiting.insert(address);
        }
        for node in &new.awaits {
            let awaiting = self.awaiting.entry(node.clone()).or_default();
            awaiting.insert(address);
        }
        self.planned.insert(address, new);
    }

    /// Nodes whose leases of the address changed.
    fn hold(&mut self, address: IpAddr, old: &[Lease], new: &[Lease]) -> BTreeSet<NodeName> {
        if old == new {
            return BTreeSet::new();
        }
        let (old, new) = (by_node(old), by_node(new));
        let mut changed: BTreeSet<NodeName> = BTreeSet::new();
        for (node, leases) in &old {
            if new.get(*node) != Some(leases) {
                changed.insert((*node).clone());
            }
            if !new.contains_key(*node)
                && let Some(held) = self.held.get_mut(*node)
            {
                held.remove(&address);
                if held.is_empty() {
                    self.held.remove(*node);
                }
            }
        }
        for node in new.keys().filter(|node| !old.contains_key(*node)) {
            changed.insert((*node).clone());
            self.held
                .entry((*node).clone())
                .or_default()
                .insert(address);
        }
        changed
    }
}

/// The leases of each node; planned records are sorted by node.
fn by_node(leases: &[Lease]) -> BTreeMap<&NodeName, &[Lease]> {
    let chunks = leases.chunk_by(|a, b| a.node == b.node);
    chunks.map(|chunk| (&chunk[0].node, chunk)).collect()
}

impl Planner {
    /// Applies a change of an address record in the store, mostly one of our own writes.
    pub(super) fn take_address(
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
    pub(super) fn plan_leases(&mut self, dirty: &mut Dirty) {
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
    pub(super) fn tell_address(&mut self, address: IpAddr) {
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
