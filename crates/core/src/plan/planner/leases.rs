//! Addresses and their leases: the indexes by which a change finds what it touches. `planning` plans it.

mod planning;

use crate::model::*;
use crate::plan::Crowding;
use crate::plan::counted::Counted;
use crate::plan::epoch_memory::LeastEpochs;
use crate::plan::lease::{Claims, Epochs, Reports};
use crate::plan::planned_grants::PlannedGrants;
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
