//! The model of the API server: objects with versions, compare-and-swap, and watches that each client reads as late as
//! the script says. Within a kind changes arrive in order; across kinds in any order.

use crate::step::Kind;
use egret_core::model::{AddressRecord, Node, NodeName, NodeRecord, Pod, Policy, Snapshot};
use egret_core::plan::planner::{Change, changes};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A refused write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another version is there.
    Conflict,
    /// The object is not there.
    NotFound,
}

/// Key of an object whose version matters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Address(IpAddr),
    Record(NodeName),
}

/// Objects of Egret's own kinds at one moment.
#[derive(Clone)]
struct Backup {
    state: Snapshot,
    version: u64,
}

/// The store.
pub struct Store {
    state: Snapshot,
    /// All changes, by kind.
    logs: [Vec<Change>; 5],
    /// Version of the newest write.
    version: u64,
    backup: Option<Backup>,
    /// Nodes whose record was ever deleted or restored.
    disturbed: BTreeSet<NodeName>,
    /// Addresses whose record somebody deleted or restored.
    torn: BTreeSet<IpAddr>,
    /// Addresses whose record somebody restored.
    restored: BTreeSet<IpAddr>,
}

fn kind_of(change: &Change) -> Kind {
    match change {
        Change::Node(..) => Kind::Nodes,
        Change::Pod(..) => Kind::Pods,
        Change::Address(..) => Kind::Addresses,
        Change::NodeRecord(..) => Kind::Records,
        Change::Policies(_) => Kind::Policies,
        Change::Service(..) | Change::Namespace(..) | Change::Everything(_) => {
            unreachable!("the simulation has no such change")
        }
    }
}

fn key_of(change: &Change) -> Option<Key> {
    match change {
        Change::Address(address, _) => Some(Key::Address(*address)),
        Change::NodeRecord(node, _) => Some(Key::Record(node.clone())),
        _ => None,
    }
}

fn same_spec(one: &NodeRecord, other: &NodeRecord) -> bool {
    one.tunnel_index == other.tunnel_index
        && one.grants_epoch == other.grants_epoch
        && one.grants == other.grants
        && one.draining == other.draining
        && one.resting == other.resting
        && one.fenced == other.fenced
        && one.pod_prefixes == other.pod_prefixes
}

fn apply(state: &mut Snapshot, change: Change) {
    match change {
        Change::Node(name, Some(node)) => drop(state.nodes.insert(name, node)),
        Change::Node(name, None) => drop(state.nodes.remove(&name)),
        Change::Pod(key, Some(pod)) => drop(state.pods.insert(key, pod)),
        Change::Pod(key, None) => drop(state.pods.remove(&key)),
        Change::Address(key, Some(record)) => drop(state.addresses.insert(key, record)),
        Change::Address(key, None) => drop(state.addresses.remove(&key)),
        Change::NodeRecord(key, Some(record)) => drop(state.node_records.insert(key, record)),
        Change::NodeRecord(key, None) => drop(state.node_records.remove(&key)),
        Change::Policies(policies) => state.policies = policies,
        Change::Service(..) | Change::Namespace(..) | Change::Everything(_) => {
            unreachable!("the simulation has no such change")
        }
    }
}

impl Store {
    /// A store with these objects.
    pub fn new(state: Snapshot) -> Self {
        Self {
            state,
            logs: Default::default(),
            version: 1,
            backup: None,
            disturbed: BTreeSet::new(),
            torn: BTreeSet::new(),
            restored: BTreeSet::new(),
        }
    }

    /// The objects as they are.
    pub fn state(&self) -> &Snapshot {
        &self.state
    }

    /// Number of changes of one kind so far.
    pub fn changes(&self, kind: Kind) -> usize {
        self.logs[kind as usize].len()
    }

    /// Nodes whose record was ever deleted or restored: gateways may not have known their numbers for a while.
    pub fn disturbed(&self) -> &BTreeSet<NodeName> {
        &self.disturbed
    }

    /// Addresses whose record somebody deleted or restored: gateways may have lost their tables for a while.
    pub fn torn(&self) -> &BTreeSet<IpAddr> {
        &self.torn
    }

    /// Addresses whose record somebody restored: ports that rested meanwhile are unknown until some node shows it.
    pub fn restored(&self) -> &BTreeSet<IpAddr> {
        &self.restored
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.state, change.clone());
        self.logs[kind_of(&change) as usize].push(change);
    }

    /// Sets or deletes a Node.
    pub fn set_node(&mut self, name: NodeName, node: Option<Node>) {
        if self.state.nodes.get(&name) != node.as_ref() {
            self.change(Change::Node(name, node));
        }
    }

    /// Sets or deletes a pod.
    pub fn set_pod(&mut self, key: (String, String), pod: Option<Pod>) {
        if self.state.pods.get(&key) != pod.as_ref() {
            self.change(Change::Pod(key, pod));
        }
    }

    /// Replaces a policy.
    pub fn set_policy(&mut self, policy: Policy) {
        let mut policies = self.state.policies.clone();
        for known in policies.iter_mut().filter(|p| p.object == policy.object) {
            *known = policy.clone();
        }
        self.change(Change::Policies(policies));
    }

    /// Writes an address record, if the store has the version that `record` names (0: none).
    pub fn write_address(&mut self, record: &AddressRecord) -> Result<(), Refused> {
        let known = self.state.addresses.get(&record.address);
        if known.map_or(0, |known| known.resource_version) != record.resource_version {
            return Err(Refused::Conflict);
        }
        self.version += 1;
        let mut record = record.clone();
        record.resource_version = self.version;
        self.change(Change::Address(record.address, Some(record)));
        Ok(())
    }

    /// Deletes an address record, if the store has this version; `None`: any.
    pub fn delete_address(&mut self, address: IpAddr, version: Option<u64>) -> Result<(), Refused> {
        let known = self
            .state
            .addresses
            .get(&address)
            .ok_or(Refused::NotFound)?;
        if version.is_some_and(|version| version != known.resource_version) {
            return Err(Refused::Conflict);
        }
        if version.is_none() {
            self.torn.insert(address);
        }
        self.change(Change::Address(address, None));
        Ok(())
    }

    /// Writes the controller's part of a node record, if that part is still as in `seen`. The agent's part stays.
    pub fn write_record(
        &mut self,
        record: &NodeRecord,
        seen: Option<&NodeRecord>,
    ) -> Result<(), Refused> {
        let node = record.node.clone();
        let known = self.state.node_records.get(&node).cloned();
        let is_as_seen = match (&known, seen) {
            (None, None) => true,
            (Some(known), Some(seen)) => same_spec(known, seen),
            _ => false,
        };
        if !is_as_seen {
            return Err(Refused::Conflict);
        }
        let mut known = known.unwrap_or_else(|| NodeRecord::new(node.clone()));
        known.tunnel_index = record.tunnel_index;
        known.grants = record.grants.clone();
        known.draining = record.draining.clone();
        known.resting = record.resting.clone();
        known.fenced = record.fenced.clone();
        known.grants_epoch = record.grants_epoch;
        known.pod_prefixes = record.pod_prefixes.clone();
        self.version += 1;
        known.resource_version = self.version;
        self.change(Change::NodeRecord(node, Some(known)));
        Ok(())
    }

    /// Writes the agent's part of a node record.
    pub fn write_status(&mut self, status: &NodeRecord) -> Result<(), Refused> {
        let node = status.node.clone();
        let known = self
            .state
            .node_records
            .get(&node)
            .ok_or(Refused::NotFound)?;
        let mut record = status.clone();
        record.tunnel_index = known.tunnel_index;
        record.grants = known.grants.clone();
        record.draining = known.draining.clone();
        record.resting = known.resting.clone();
        record.fenced = known.fenced.clone();
        record.grants_epoch = known.grants_epoch;
        record.pod_prefixes = known.pod_prefixes.clone();
        record.resource_version = known.resource_version;
        if record == *known {
            return Ok(());
        }
        self.version += 1;
        record.resource_version = self.version;
        self.change(Change::NodeRecord(node, Some(record)));
        Ok(())
    }

    /// Deletes a node record.
    pub fn delete_record(&mut self, node: &NodeName) {
        if self.state.node_records.contains_key(node) {
            self.disturbed.insert(node.clone());
            self.change(Change::NodeRecord(node.clone(), None));
        }
    }

    /// Makes a backup.
    pub fn back_up(&mut self) {
        self.backup = Some(Backup {
            state: self.state.clone(),
            version: self.version,
        });
    }

    /// Restores the records of Egret from the backup, with their versions: the counter goes back too, as etcd's revision
    /// does.
    pub fn restore(&mut self) {
        let Some(backup) = self.backup.clone() else {
            return;
        };
        let before = Snapshot {
            addresses: backup.state.addresses,
            node_records: backup.state.node_records,
            ..self.state.clone()
        };
        self.restored.extend(self.state.addresses.keys());
        for change in changes(&self.state, &before) {
            self.change(change);
        }
        self.version = backup.version;
        let names = self
            .state
            .node_records
            .keys()
            .chain(self.state.nodes.keys());
        self.disturbed.extend(names.cloned());
        self.restored.extend(self.state.addresses.keys());
        self.torn.extend(&self.restored);
    }
}

/// What one client has read.
pub struct Reader {
    /// The objects, as the client knows them.
    pub view: Snapshot,
    cursors: [usize; 5],
    /// Own writes, by the position in the log from which on changes are news.
    own: BTreeMap<Key, usize>,
}

impl Reader {
    /// A client that has just listed everything; its lists lack this number of changes of each kind. `origin`: the objects
    /// at the beginning.
    pub fn list(store: &Store, origin: &Snapshot, lag: usize) -> Self {
        let mut reader = Self {
            view: origin.clone(),
            cursors: [0; 5],
            own: BTreeMap::new(),
        };
        if lag == 0 {
            reader.view = store.state.clone();
            reader.cursors = std::array::from_fn(|kind| store.logs[kind].len());
            return reader;
        }
        for kind in Kind::ALL {
            reader.sync(store, kind, store.changes(kind).saturating_sub(lag));
        }
        reader
    }

    /// Position in the log of a kind.
    pub fn position(&self, kind: Kind) -> usize {
        self.cursors[kind as usize]
    }

    /// Reads at most this number of changes; returns whether there were any.
    pub fn sync(&mut self, store: &Store, kind: Kind, changes: usize) -> bool {
        let log = &store.logs[kind as usize];
        let from = self.cursors[kind as usize];
        let to = log.len().min(from.saturating_add(changes));
        for (position, change) in log.iter().enumerate().take(to).skip(from) {
            let is_old = key_of(change).is_some_and(|key| self.own.get(&key) > Some(&position));
            if !is_old {
                apply(&mut self.view, change.clone());
            }
        }
        self.cursors[kind as usize] = to;
        to > from
    }

    /// Reads everything; returns whether there was anything.
    pub fn sync_all(&mut self, store: &Store) -> bool {
        let mut news = false;
        for kind in Kind::ALL {
            news |= self.sync(store, kind, usize::MAX);
        }
        news
    }

    /// The newest change of the store is this client's own write: it knows it before its watch tells it.
    pub fn wrote(&mut self, store: &Store, kind: Kind) {
        let log = &store.logs[kind as usize];
        let change = log.last().expect("something was written");
        if let Some(key) = key_of(change) {
            self.own.insert(key, log.len() - 1);
        }
        apply(&mut self.view, change.clone());
    }
}
