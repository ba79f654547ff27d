//! Addresses and their leases.

use super::messages::MessageSource;
use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::demand::Demand;
use crate::plan::lease::{self, Cluster, PlannedAddress};
use crate::plan::{nodes, status};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Every address, and what its leases depend on.
#[derive(Debug, Default)]
pub(super) struct Leases {
    needs: BTreeMap<IpAddr, Need>,
    /// Epochs that records and nodes name.
    epochs: Counted<u64>,
    /// Nodes of each gateway.
    pub roles: BTreeMap<GatewayName, BTreeSet<NodeName>>,
    /// The epoch that every node of each gateway has.
    reported: BTreeMap<GatewayName, u64>,
    planned: BTreeMap<IpAddr, Planned>,
    /// Epochs of planned records.
    planned_epochs: Counted<u64>,
    /// Addresses with leases that gateways have to learn, by gateway.
    waiting: BTreeMap<GatewayName, BTreeSet<IpAddr>>,
    /// Addresses that are not in the store as they are planned.
    unwritten: BTreeSet<IpAddr>,
    /// When time alone changes which address.
    dues: BTreeSet<(i64, IpAddr)>,
    /// Records without leases of addresses that nobody wants; gone from the plan or not.
    unused: BTreeMap<IpAddr, AddressRecord>,
    /// Addresses with a lease of this node.
    held: BTreeMap<NodeName, BTreeSet<IpAddr>>,
}

/// Who wants an address.
#[derive(Debug)]
struct Need {
    gateway: GatewayName,
    users: BTreeSet<ObjectRef>,
    /// Workers, with the number of their pods that use it.
    workers: BTreeMap<NodeName, u32>,
}

/// What is remembered of a planned record.
#[derive(Debug, Default, PartialEq, Eq)]
struct Planned {
    epoch: u64,
    due: Option<i64>,
    waits_for: Option<GatewayName>,
    exhausted: BTreeSet<NodeName>,
}

/// Values, each as often as it occurs.
#[derive(Debug)]
struct Counted<T>(BTreeMap<T, u32>);

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Counted(BTreeMap::new())
    }
}

impl<T: Ord + Copy> Counted<T> {
    fn add(&mut self, value: T) {
        *self.0.entry(value).or_default() += 1;
    }

    fn remove(&mut self, value: T) {
        if let Some(count) = self.0.get_mut(&value) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&value);
            }
        }
    }

    fn highest(&self) -> Option<T> {
        self.0.last_key_value().map(|(value, _)| *value)
    }
}

impl Leases {
    /// A node record is there.
    pub(super) fn add_node(&mut self, record: &NodeRecord) {
        self.epochs.add(lease::node_epoch(record));
    }

    /// A node record is gone.
    pub(super) fn remove_node(&mut self, record: &NodeRecord) {
        self.epochs.remove(lease::node_epoch(record));
    }

    /// An address record is there.
    pub(super) fn add_record(&mut self, record: &AddressRecord) {
        self.epochs.add(lease::record_epoch(record));
    }

    /// One more pod of the node uses the address; whether it is the first.
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

    /// One pod of the node less; whether it was the last.
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

    /// Who uses which address from now on; the addresses where something is different.
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

    /// Gateways that the node belongs to.
    pub(super) fn gateways_of(&self, node: &NodeName) -> Vec<GatewayName> {
        let roles = self.roles.iter();
        let mine = roles.filter(|(_, nodes)| nodes.contains(node));
        mine.map(|(gateway, _)| gateway.clone()).collect()
    }

    /// What the nodes of a gateway report; whether that is something new.
    pub(super) fn report(&mut self, gateway: &GatewayName, epoch: Option<u64>) -> bool {
        let before = match epoch {
            Some(epoch) => self.reported.insert(gateway.clone(), epoch),
            None => self.reported.remove(gateway),
        };
        before != epoch
    }

    /// Addresses with leases that nodes of this gateway have to learn.
    pub(super) fn waiting_for(&self, gateway: &GatewayName) -> Vec<IpAddr> {
        let waiting = self.waiting.get(gateway);
        waiting.into_iter().flatten().copied().collect()
    }

    /// Addresses with a lease of the node.
    pub(super) fn of_node(&self, node: &NodeName) -> Vec<IpAddr> {
        let held = self.held.get(node);
        held.into_iter().flatten().copied().collect()
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
    ) -> Vec<Grant> {
        let held = self.held.get(node).into_iter().flatten();
        let records = held.filter_map(|address| records.get(address));
        let grants = records.flat_map(|record| {
            // Sorted by node.
            let first = record.leases.partition_point(|lease| lease.node < *node);
            let mine = record.leases[first..].iter();
            mine.take_while(|lease| lease.node == *node)
                .filter_map(|lease| nodes::grant(record, lease))
        });
        grants.collect()
    }

    /// Notes what a record depends on from now on; `None`: there is none any more.
    fn note(&mut self, address: IpAddr, planned: Option<Planned>) {
        if let Some(old) = self.planned.remove(&address) {
            self.planned_epochs.remove(old.epoch);
            if let Some(due) = old.due {
                self.dues.remove(&(due, address));
            }
            if let Some(waiting) = old.waits_for.and_then(|g| self.waiting.get_mut(&g)) {
                waiting.remove(&address);
            }
        }
        let Some(new) = planned else { return };
        self.planned_epochs.add(new.epoch);
        if let Some(due) = new.due {
            self.dues.insert((due, address));
        }
        if let Some(gateway) = &new.waits_for {
            let waiting = self.waiting.entry(gateway.clone()).or_default();
            waiting.insert(address);
        }
        self.planned.insert(address, new);
    }

    /// Nodes whose leases of the address are others now.
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
    /// What somebody wrote into an address record; mostly ourselves.
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
            self.leases.epochs.remove(lease::record_epoch(old));
        }
        // A policy that looks for a free address may find another.
        dirty.resolve |= self.policies.searched && is_there != old.is_some();
        dirty.addresses.insert(address);
    }

    /// Plans leases where something is different, where what was planned is not written yet, and where time is up.
    pub(super) fn plan_leases(&mut self, dirty: &mut Dirty) {
        dirty.addresses.extend(&self.leases.unwritten);
        let due = self.leases.dues.iter();
        let due = due.take_while(|(at, _)| *at <= self.now_secs);
        dirty.addresses.extend(due.map(|(_, address)| *address));
        let mut cluster = Cluster {
            snapshot: &self.snapshot,
            now_secs: self.now_secs,
            epoch: self.leases.epochs.highest().unwrap_or(0),
            reported: &self.leases.reported,
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
        self.sweep(dirty);
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

    /// Puts a planned record in the place of the one before.
    fn install(&mut self, address: IpAddr, planned: Option<PlannedAddress>, dirty: &mut Dirty) {
        let unused = self.leases.unused.remove(&address);
        let old = self.plan.addresses.remove(&address);
        dirty.statuses.insert(address);
        dirty.pools |= old.is_some() != planned.is_some();
        let old = old.or(unused);
        let old_leases = old.as_ref().map_or(&[][..], |record| &record.leases);
        let new_leases = planned.as_ref().map_or(&[][..], |p| &p.record.leases);
        let nodes = self.leases.hold(address, old_leases, new_leases);
        // Records of nodes that are gone stay for as long as they have a lease.
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
        let exhausted_before = before.map(|planned| &planned.exhausted);
        if exhausted_before.map_or(!planned.exhausted.is_empty(), |b| *b != planned.exhausted) {
            let users = self.leases.users(address);
            let users = users.filter_map(|policy| self.policies.reference(policy));
            dirty.policies.extend(users);
        }
        let waits =
            |lease: &Lease| matches!(lease.state, LeaseState::Granted | LeaseState::Draining);
        let note = Planned {
            epoch: record.epoch,
            due: lease::due(&self.snapshot, &record),
            waits_for: record
                .leases
                .iter()
                .any(waits)
                .then(|| record.gateway.clone()),
            exhausted: planned.exhausted,
        };
        self.leases.note(address, Some(note));
        let stays = self.snapshot.unreadable.addresses.contains(&address);
        if record.leases.is_empty() && !stays && !self.leases.needs.contains_key(&address) {
            self.leases.unused.insert(address, record);
            dirty.pools = true;
        } else {
            self.plan.addresses.insert(address, record);
        }
    }

    /// Takes records out of the plan that nobody needs, and puts back those that must stay a while.
    fn sweep(&mut self, dirty: &mut Dirty) {
        self.plan.address_deletions.clear();
        let highest = self.leases.planned_epochs.highest().unwrap_or(0);
        for (address, record) in &self.leases.unused {
            let goes = lease::may_go(record, highest, &self.leases.reported);
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
    }

    /// Tells an address what has become of it.
    pub(super) fn tell_address(&mut self, address: IpAddr) {
        let Some(record) = self.plan.addresses.get(&address) else {
            self.plan.address_status.remove(&address);
            return;
        };
        let users: Vec<ObjectRef> = self.leases.users(address).cloned().collect();
        let planned = self.leases.planned.get(&address);
        let planned = planned.expect("every record of the plan was noted");
        let outside = status::Outside {
            announcer: self.names.announcer(address),
            is_routed: status::is_routed(&self.snapshot, record),
            conflict: self.names.conflict(address),
        };
        let unreadable = self.snapshot.unreadable.addresses.contains(&address);
        let exhausted = &planned.exhausted;
        let told = status::address(record, Some(users), outside, exhausted, unreadable);
        self.plan.address_status.insert(address, told);
    }
}
