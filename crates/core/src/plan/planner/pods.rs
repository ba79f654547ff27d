//! Index of pods by the properties that policies select, and the bindings of each pod.

use super::keys::{PodRef, PolicyRef};
use super::{Dirty, Planner};
use crate::model::*;
use crate::resolve::{PodAddresses, family_index, needed, selects, service_labels};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

type Key = (String, String);

/// Every pod of the snapshot.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// Pods that have not ended, by namespace and labels.
    by_labels: BTreeMap<String, BTreeMap<Labels, BTreeSet<PodRef>>>,
    /// Pods that have not ended, by node.
    by_node: BTreeMap<NodeName, BTreeSet<PodRef>>,
    /// All pods by address.
    by_address: BTreeMap<IpAddr, BTreeSet<PodRef>>,
    /// Pods that a policy selects, or would select if they had a network of their own.
    bound: BTreeMap<PodRef, Bound>,
}

/// Bindings of one pod.
#[derive(Debug)]
struct Bound {
    policies: Vec<PolicyRef>,
    node: NodeName,
    host_network: bool,
    addressed: bool,
    /// Egress addresses of which its node needs ports for this pod.
    uses: BTreeSet<IpAddr>,
}

/// Removes an entry from a set, and the set from its map when it becomes empty.
fn take_out<K: Ord>(map: &mut BTreeMap<K, BTreeSet<PodRef>>, key: &K, pod: &Key) {
    if let Some(set) = map.get_mut(key) {
        set.remove(pod);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

impl Pods {
    /// Indexes a pod; returns its reference, unless the pod has ended.
    pub(super) fn add(&mut self, key: &Key, pod: &Pod) -> Option<PodRef> {
        let reference = Arc::new(key.clone());
        for address in &pod.addresses {
            let of_address = self.by_address.entry(*address).or_default();
            of_address.insert(reference.clone());
        }
        if pod.finished {
            return None;
        }
        if !self.by_labels.contains_key(&key.0) {
            self.by_labels.insert(key.0.clone(), BTreeMap::new());
        }
        let namespace = self.by_labels.get_mut(&key.0);
        let namespace = namespace.expect("inserted above where it was missing");
        match namespace.get_mut(&pod.labels) {
            Some(pods) => drop(pods.insert(reference.clone())),
            None => drop(namespace.insert(pod.labels.clone(), [reference.clone()].into())),
        }
        match self.by_node.get_mut(&pod.node) {
            Some(pods) => drop(pods.insert(reference.clone())),
            None => drop(
                self.by_node
                    .insert(pod.node.clone(), [reference.clone()].into()),
            ),
        }
        Some(reference)
    }

    /// Removes a pod from the indexes.
    pub(super) fn remove(&mut self, key: &Key, pod: &Pod) {
        for address in &pod.addresses {
            take_out(&mut self.by_address, address, key);
        }
        if pod.finished {
            return;
        }
        if let Some(namespace) = self.by_labels.get_mut(&key.0) {
            take_out(namespace, &pod.labels, key);
            if namespace.is_empty() {
                self.by_labels.remove(&key.0);
            }
        }
        take_out(&mut self.by_node, &pod.node, key);
    }

    /// Pods of a node that have not ended.
    pub(super) fn on(&self, node: &NodeName) -> Vec<PodRef> {
        let pods = self.by_node.get(node);
        pods.into_iter().flatten().cloned().collect()
    }

    /// Pods that the API shows with this address, ended ones too.
    pub(super) fn at(&self, address: &IpAddr) -> impl Iterator<Item = &PodRef> {
        self.by_address.get(address).into_iter().flatten()
    }

    /// Pod addresses inside the prefix.
    pub(super) fn addresses_in(&self, prefix: &IpNet) -> Vec<IpAddr> {
        let inside = self.by_address.range(prefix.network()..=prefix.broadcast());
        inside.map(|(address, _)| *address).collect()
    }

    /// Pods that the policy could select.
    pub(super) fn candidates(&self, snapshot: &Snapshot, policy: &Policy) -> Vec<PodRef> {
        let labelled = |namespace: &str, matches: &dyn Fn(&Labels) -> bool| -> Vec<PodRef> {
            let sets = self.by_labels.get(namespace).into_iter().flatten();
            let sets = sets.filter(|(labels, _)| matches(labels));
            sets.flat_map(|(_, pods)| pods.iter().cloned()).collect()
        };
        let at = |address: &IpAddr| self.by_address.get(address).into_iter().flatten();
        match &policy.selection {
            Selection::Labels {
                namespaces, pods, ..
            } => {
                let names: Vec<&String> = match namespaces {
                    Namespaces::Names(names) => names.iter().collect(),
                    Namespaces::All | Namespaces::Labels(_) => self.by_labels.keys().collect(),
                };
                let of_one = |name: &String| labelled(name, &|labels| pods.matches(labels));
                names.into_iter().flat_map(of_one).collect()
            }
            Selection::Service { namespace, name } => {
                let key = (namespace.clone(), name.clone());
                match snapshot.services.get(&key) {
                    None => Vec::new(),
                    Some(service) => match service_labels(service) {
                        Some(wanted) => labelled(namespace, &|labels| {
                            wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
                        }),
                        None => service.endpoints.iter().flat_map(at).cloned().collect(),
                    },
                }
            }
            Selection::Addresses(prefixes) => prefixes
                .iter()
                .flat_map(|p| self.by_address.range(p.network()..=p.broadcast()))
                .flat_map(|(_, pods)| pods.iter().cloned())
                .collect(),
            Selection::Workload { namespace, .. } => labelled(namespace, &|_| true),
        }
    }

    /// This index as an implementation of [`PodAddresses`].
    pub(super) fn addresses<'a>(&'a self, snapshot: &'a Snapshot) -> Addresses<'a> {
        Addresses {
            by_address: &self.by_address,
            pods: &snapshot.pods,
        }
    }
}

/// See [`PodAddresses`].
pub(super) struct Addresses<'a> {
    by_address: &'a BTreeMap<IpAddr, BTreeSet<PodRef>>,
    pods: &'a SharedMap<Key, Pod>,
}

impl PodAddresses for Addresses<'_> {
    fn holders(&self, wanted: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, &str> {
        let holder = |address: &IpAddr| {
            let pods = self.by_address.get(address)?.iter().rev();
            let mut pods = pods.filter_map(|pod| self.pods.get(&**pod));
            let pod = pods.find(|pod| !pod.finished)?;
            Some((*address, pod.name.as_str()))
        };
        wanted.iter().filter_map(holder).collect()
    }

    fn test(&self) -> Box<dyn Fn(IpAddr) -> bool + '_> {
        Box::new(|address| self.by_address.contains_key(&address))
    }
}

impl Planner {
    /// Removes the bindings of a pod to its policies, addresses and node.
    pub(super) fn unbind(&mut self, pod: &Key, dirty: &mut Dirty) {
        let Some(bound) = self.pods.bound.remove(pod) else {
            return;
        };
        for policy in &bound.policies {
            let work = self.policies.get_mut(policy);
            work.pods.remove(pod);
            if bound.host_network {
                work.counts.host_network -= 1;
            } else {
                work.counts.addressed -= u32::from(bound.addressed);
                let plan = self.policy_plan(policy);
                plan.selected -= 1;
                let count = plan.pods.get_mut(&bound.node);
                let count = count.expect("a pod that is bound is counted on its node");
                *count -= 1;
                if *count == 0 {
                    plan.pods.remove(&bound.node);
                }
            }
            dirty.policies.insert(policy.clone());
        }
        if !bound.host_network {
            self.leave_set(&bound.policies, dirty);
        }
        for address in bound.uses {
            if self.leases.release(address, &bound.node) {
                dirty.addresses.insert(address);
            }
        }
    }

    /// Binds a pod to the policies that select it.
    pub(super) fn bind(&mut self, reference: &PodRef, dirty: &mut Dirty) {
        let Some(pod) = self.snapshot.pods.get(&**reference) else {
            return;
        };
        let candidates = self.policies.matching.candidates(pod).into_iter();
        let chosen = candidates.filter(|policy| {
            let policy = self.policies.policy(&self.snapshot, policy);
            selects(&self.snapshot, policy, pod)
        });
        let policies: Vec<PolicyRef> = chosen.cloned().collect();
        if policies.is_empty() {
            return;
        }
        let bound = Bound {
            uses: self.uses(pod, &policies),
            node: pod.node.clone(),
            host_network: pod.host_network,
            addressed: !pod.addresses.is_empty(),
            policies,
        };
        for policy in &bound.policies {
            let work = self.policies.get_mut(policy);
            work.pods.insert(reference.clone());
            if bound.host_network {
                work.counts.host_network += 1;
            } else {
                work.counts.addressed += u32::from(bound.addressed);
                let plan = self.policy_plan(policy);
                plan.selected += 1;
                *plan.pods.entry(bound.node.clone()).or_default() += 1;
            }
            dirty.policies.insert(policy.clone());
        }
        if !bound.host_network {
            self.join_set(&bound.policies, dirty);
        }
        for address in &bound.uses {
            if self.leases.need(*address, &bound.node) {
                dirty.addresses.insert(*address);
            }
        }
        self.pods.bound.insert(reference.clone(), bound);
    }

    /// Egress addresses of which the pod's node needs ports for it.
    fn uses(&self, pod: &Pod, policies: &[PolicyRef]) -> BTreeSet<IpAddr> {
        let node = self.snapshot.nodes.get(&pod.node);
        let Some(node) = node.filter(|_| !pod.host_network) else {
            return BTreeSet::new();
        };
        let families = super::super::demand::families(pod, node);
        let needed = policies.iter().flat_map(|policy| {
            let known = self.policies.get(policy);
            let policy = self.policies.policy(&self.snapshot, policy);
            needed(&self.snapshot, policy, &known.meaning.addresses, pod)
        });
        needed.filter(|a| families[family_index(*a)]).collect()
    }
}
