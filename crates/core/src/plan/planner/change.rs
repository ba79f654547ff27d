//! Changes of a snapshot, and the parts of a plan that they affect.

use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::lease::Concerns;
use crate::resolve::{distinct, in_namespaces, in_pool};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// One change of a snapshot. `None`: the object was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a change lives for one update, and most changes are records"
)]
pub enum Change {
    /// A pod, by namespace and name.
    Pod((String, String), Option<Pod>),
    /// A Service, by namespace and name.
    Service((String, String), Option<Service>),
    /// A namespace.
    Namespace(String, Option<Namespace>),
    /// A node.
    Node(NodeName, Option<Node>),
    /// An `EgressAddress`.
    Address(IpAddr, Option<AddressRecord>),
    /// An `EgressNode`.
    NodeRecord(NodeName, Option<NodeRecord>),
    /// The complete list of policies.
    Policies(List<Policy>),
    /// Gateways, pools, settings, API servers, published pod prefixes, holders of addresses or unreadable records,
    /// together with everything else.
    Everything(Box<Snapshot>),
}

/// Changes that turn one snapshot into another, for sources that deliver whole snapshots only. Parts that both share
/// are not compared (see [`SharedMap`]): the cost is that of the changes if the newer snapshot was made from the older,
/// and one comparison per object if not.
pub fn changes(old: &Snapshot, new: &Snapshot) -> Vec<Change> {
    let same = (&old.settings, &old.gateways, &old.pools, &old.api_server)
        == (&new.settings, &new.gateways, &new.pools, &new.api_server)
        && old.unreadable == new.unreadable
        && old.pod_prefixes == new.pod_prefixes
        && old.held_by == new.held_by;
    if !same {
        return vec![Change::Everything(Box::new(new.clone()))];
    }
    let mut all = Vec::new();
    // Objects that others refer to come first.
    differing(&old.namespaces, &new.namespaces, |key, value| {
        all.push(Change::Namespace(key, value));
    });
    differing(&old.nodes, &new.nodes, |key, value| {
        all.push(Change::Node(key, value));
    });
    differing(&old.services, &new.services, |key, value| {
        all.push(Change::Service(key, value));
    });
    if old.policies != new.policies {
        all.push(Change::Policies(new.policies.clone()));
    }
    differing(&old.pods, &new.pods, |key, value| {
        all.push(Change::Pod(key, value));
    });
    differing(&old.addresses, &new.addresses, |key, value| {
        all.push(Change::Address(key, value));
    });
    differing(&old.node_records, &new.node_records, |key, value| {
        all.push(Change::NodeRecord(key, value));
    });
    all
}

/// Calls `found` for every key whose value differs.
fn differing<K: Clone + Ord, V: Clone + PartialEq>(
    old: &SharedMap<K, V>,
    new: &SharedMap<K, V>,
    mut found: impl FnMut(K, Option<V>),
) {
    old.differences(new, |key, value| {
        found(key.clone(), value.map(|value| V::clone(value)));
    });
}

/// Replaces a value; returns the previous one unless it is equal.
fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut SharedMap<K, V>,
    key: K,
    value: Option<V>,
) -> Result<Option<Arc<V>>, ()> {
    if map.get(&key) == value.as_ref() {
        return Err(());
    }
    Ok(match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    })
}

/// Whether pods are selected in the namespace of this name.
fn names(selection: &Selection, name: &str) -> bool {
    match selection {
        Selection::Labels {
            namespaces: Namespaces::Names(names),
            ..
        } => names.contains(name),
        Selection::Service { namespace, .. } | Selection::Workload { namespace, .. } => {
            namespace == name
        }
        _ => false,
    }
}

impl Planner {
    /// Applies one change; returns true if everything has to be planned from nothing.
    pub(super) fn take(&mut self, change: Change, dirty: &mut Dirty) -> bool {
        match change {
            Change::Pod(key, pod) => self.take_pod(key, pod, dirty),
            Change::Service(key, service) => self.take_service(key, service, dirty),
            Change::Namespace(name, namespace) => {
                return self.take_namespace(name, namespace, dirty);
            }
            Change::Node(name, node) => self.take_node(name, node, dirty),
            Change::Address(address, record) => self.take_address(address, record, dirty),
            Change::NodeRecord(name, record) => self.take_node_record(name, record, dirty),
            Change::Policies(policies) => self.take_policies(policies, dirty),
            Change::Everything(snapshot) => {
                let same = self.snapshot == *snapshot;
                self.snapshot = *snapshot;
                return !same;
            }
        }
        false
    }

    /// Whether the meaning of policies depends on whether the cluster uses this address.
    pub(super) fn matters(&self, address: &IpAddr) -> bool {
        let in_any_pool = || self.snapshot.pools.values().any(|p| in_pool(p, *address));
        self.policies.asked.contains(address) || self.policies.searched && in_any_pool()
    }

    fn take_pod(&mut self, key: (String, String), pod: Option<Pod>, dirty: &mut Dirty) {
        let Ok(old) = replace(&mut self.snapshot.pods, key.clone(), pod) else {
            return;
        };
        self.unbind(&key, dirty);
        dirty.pods.remove(&key);
        let new = self.snapshot.pods.get(&key);
        let shape = |pod: &Pod| (pod.addresses.clone(), pod.finished);
        if old.as_deref().map(shape) != new.map(shape) {
            let both = old
                .as_deref()
                .into_iter()
                .chain(new)
                .flat_map(|pod| &pod.addresses);
            dirty.resolve |= both.into_iter().any(|address| self.matters(address));
        }
        if let Some(old) = &old {
            self.pods.remove(&key, old);
        }
        if let Some(new) = self.snapshot.pods.get(&key) {
            dirty.pods.extend(self.pods.add(&key, new));
        }
        let new = self.snapshot.pods.get(&key);
        let both = old.as_deref().into_iter().chain(new);
        let addresses: Vec<IpAddr> = both.flat_map(|pod| pod.addresses.clone()).collect();
        for address in addresses {
            self.look_at_pod_address(address, dirty);
        }
    }

    fn take_service(&mut self, key: (String, String), new: Option<Service>, dirty: &mut Dirty) {
        let Ok(old) = replace(&mut self.snapshot.services, key.clone(), new) else {
            return;
        };
        let named = self.policies.of_service(&key);
        dirty.resolve |= !named.is_empty();
        dirty.selections.extend(named);
        let new = self.snapshot.services.get(&key);
        let both = old.as_deref().into_iter().chain(new);
        let mut addresses =
            both.flat_map(|s| s.cluster_addresses.iter().chain(&s.balancer_addresses));
        dirty.resolve |= addresses.any(|address| self.matters(address));
    }

    fn take_namespace(&mut self, name: String, new: Option<Namespace>, dirty: &mut Dirty) -> bool {
        let reaches = |planner: &Self, namespaces: &Namespaces| {
            matches!(namespaces, Namespaces::Labels(_))
                && in_namespaces(&planner.snapshot, namespaces, &name)
        };
        let found = |planner: &Self| {
            let pools = planner.snapshot.pools.values();
            let pools: Vec<bool> = pools.map(|p| reaches(planner, &p.namespaces)).collect();
            let policies = distinct(&planner.snapshot.policies).map(|(_, policy)| policy);
            let policies = policies.filter(|policy| match &policy.selection {
                Selection::Labels { namespaces, .. } => reaches(planner, namespaces),
                _ => false,
            });
            let policies: Vec<ObjectRef> = policies.map(|p| p.object.clone()).collect();
            (pools, policies)
        };
        let (pools_before, before) = found(self);
        let knew_none = self.snapshot.namespaces.is_empty();
        if replace(&mut self.snapshot.namespaces, name.clone(), new).is_err() {
            return false;
        }
        let (pools, after) = found(self);
        let moved = before.iter().filter(|p| !after.contains(p));
        let moved: Vec<ObjectRef> = moved
            .chain(after.iter().filter(|p| !before.contains(p)))
            .cloned()
            .collect();
        dirty.resolve |= !moved.is_empty();
        // The status of these policies may change although no pod does.
        let named = distinct(&self.snapshot.policies).map(|(_, policy)| policy);
        let named = named.filter(|policy| names(&policy.selection, &name));
        let told = named.map(|policy| &policy.object).chain(&moved);
        let told = told.filter_map(|policy| self.policies.reference(policy));
        dirty.policies.extend(told);
        if knew_none != self.snapshot.namespaces.is_empty() {
            // Missing namespaces are reported only where some namespace is known.
            dirty.policies.extend(self.policies.all());
        }
        dirty.selections.extend(moved);
        pools != pools_before
    }

    fn take_node(&mut self, name: NodeName, new: Option<Node>, dirty: &mut Dirty) {
        let pods = self.pods.on(&name);
        let Ok(old) = replace(&mut self.snapshot.nodes, name.clone(), new) else {
            return;
        };
        let cidrs = |node: Option<&Node>| node.map_or(Vec::new(), |node| node.pod_cidrs.clone());
        let (before, after) = (cidrs(old.as_deref()), cidrs(self.snapshot.nodes.get(&name)));
        self.take_pod_cidrs(&before, &after, dirty);
        self.look_at_devices(&name, dirty);
        for pod in pods {
            self.unbind(&pod, dirty);
            dirty.pods.insert(pod);
        }
        dirty.resolve = true;
        dirty.roles = true;
        dirty.numbers = true;
        dirty.nodes.insert(name.clone());
        dirty.addresses.extend(self.leases.of_node(&name));
        if let Some(record) = self.snapshot.node_records.get(&name) {
            dirty.addresses.extend(Concerns::of(record).addresses());
        }
        if self.leases.is_restored() {
            dirty.addresses.extend(self.leases.restored());
        }
    }

    fn take_policies(&mut self, policies: List<Policy>, dirty: &mut Dirty) {
        let old = std::mem::replace(&mut self.snapshot.policies, policies);
        let before: BTreeMap<&ObjectRef, &Policy> =
            distinct(&old).map(|(_, p)| (&p.object, p)).collect();
        for (_, policy) in distinct(&self.snapshot.policies) {
            match before.get(&policy.object) {
                Some(known) if *known == policy => {}
                Some(known) => {
                    // Neither of these two fields affects pods.
                    let quiet = Policy {
                        generation: policy.generation,
                        assigned: policy.assigned.clone(),
                        ..(*known).clone()
                    };
                    if quiet != *policy {
                        dirty.selections.insert(policy.object.clone());
                    }
                    dirty
                        .policies
                        .extend(self.policies.reference(&policy.object));
                }
                None => {}
            }
        }
        dirty.resolve = true;
    }
}
