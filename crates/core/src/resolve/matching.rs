//! Index of policies by namespace and label, to find those that select one pod: the cost of a pod is the policies that
//! could select it, not all policies. `select` computes the same for all pods at once.

use super::workload::belongs;
use crate::model::*;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Policies (under any key `K`) by the pod properties that they require.
#[derive(Debug)]
pub(crate) struct Matching<K> {
    by_namespace: BTreeMap<String, Bucket<K>>,
    anywhere: Bucket<K>,
    by_endpoint: BTreeMap<IpAddr, Vec<K>>,
    by_prefix: Vec<K>,
    by_service: BTreeMap<(String, String), Vec<K>>,
}

impl<K> Default for Matching<K> {
    fn default() -> Self {
        Matching {
            by_namespace: BTreeMap::new(),
            anywhere: Bucket::default(),
            by_endpoint: BTreeMap::new(),
            by_prefix: Vec::new(),
            by_service: BTreeMap::new(),
        }
    }
}

/// Policies of one namespace: by one label that they require, or without any.
#[derive(Debug)]
struct Bucket<K> {
    by_label: BTreeMap<String, BTreeMap<String, Vec<K>>>,
    rest: Vec<K>,
}

impl<K> Default for Bucket<K> {
    fn default() -> Self {
        Bucket {
            by_label: BTreeMap::new(),
            rest: Vec::new(),
        }
    }
}

impl<K: Clone> Bucket<K> {
    /// Adds the policy under each value of the key; without a label, to the rest.
    fn add<'v>(&mut self, label: Option<(&str, impl Iterator<Item = &'v String>)>, name: &K) {
        let Some((key, values)) = label else {
            self.rest.push(name.clone());
            return;
        };
        let of_key = self.by_label.entry(key.to_owned()).or_default();
        for value in values {
            of_key.entry(value.clone()).or_default().push(name.clone());
        }
    }

    fn candidates<'m>(&'m self, labels: &Labels, found: &mut Vec<&'m K>) {
        found.extend(&self.rest);
        for (key, value) in labels {
            let of_value = self.by_label.get(key).and_then(|values| values.get(value));
            found.extend(of_value.into_iter().flatten());
        }
    }
}

impl<K: Clone + Ord> Matching<K> {
    /// Indexes these policies.
    pub(crate) fn of<'p>(
        snapshot: &Snapshot,
        policies: impl IntoIterator<Item = (K, &'p Policy)>,
    ) -> Self {
        let mut index = Matching::default();
        for (name, policy) in policies {
            index.add(snapshot, name, policy);
        }
        index
    }

    fn add(&mut self, snapshot: &Snapshot, name: K, policy: &Policy) {
        match &policy.selection {
            Selection::Labels {
                namespaces, pods, ..
            } => {
                let label = || {
                    pods.0.iter().find_map(|one| match one {
                        Requirement::In(key, values) => Some((key.as_str(), values.iter())),
                        _ => None,
                    })
                };
                match namespaces {
                    Namespaces::Names(names) => {
                        for namespace in names {
                            let bucket = self.by_namespace.entry(namespace.clone()).or_default();
                            bucket.add(label(), &name);
                        }
                    }
                    Namespaces::All | Namespaces::Labels(_) => self.anywhere.add(label(), &name),
                }
            }
            Selection::Service {
                namespace,
                name: service,
            } => {
                let key = (namespace.clone(), service.clone());
                if let Some(service) = snapshot.services.get(&key) {
                    self.add_behind(service, &name);
                }
                self.by_service.entry(key).or_default().push(name);
            }
            Selection::Addresses(_) => self.by_prefix.push(name),
            Selection::Workload { namespace, .. } => {
                let bucket = self.by_namespace.entry(namespace.clone()).or_default();
                bucket.add(None::<(&str, std::iter::Empty<&String>)>, &name);
            }
        }
    }

    fn add_behind(&mut self, service: &Service, name: &K) {
        if let Some(labels) = service_labels(service) {
            let label = labels.iter().next();
            let label = label.map(|(k, v)| (k.as_str(), std::iter::once(v)));
            let namespace = service.namespace.clone();
            let bucket = self.by_namespace.entry(namespace).or_default();
            bucket.add(label, name);
            return;
        }
        for address in &service.endpoints {
            let of_address = self.by_endpoint.entry(*address).or_default();
            of_address.push(name.clone());
        }
    }

    /// Policies that select by this Service.
    pub(crate) fn of_service(&self, service: &(String, String)) -> &[K] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// Policies that could select the pod, sorted, without duplicates; [`selects`] decides.
    pub(crate) fn candidates(&self, pod: &Pod) -> Vec<&K> {
        let mut found: Vec<&K> = Vec::new();
        self.anywhere.candidates(&pod.labels, &mut found);
        if let Some(bucket) = self.by_namespace.get(&pod.namespace) {
            bucket.candidates(&pod.labels, &mut found);
        }
        for address in &pod.addresses {
            found.extend(self.by_endpoint.get(address).into_iter().flatten());
        }
        found.extend(&self.by_prefix);
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Labels by which a Service selects its pods; `None`: its endpoints count instead.
pub(crate) fn service_labels(service: &Service) -> Option<&Labels> {
    service
        .selector
        .as_ref()
        .filter(|labels| !labels.is_empty())
}

/// Whether the set contains this namespace.
pub(crate) fn in_namespaces(snapshot: &Snapshot, namespaces: &Namespaces, namespace: &str) -> bool {
    match namespaces {
        Namespaces::All => true,
        Namespaces::Names(names) => names.contains(namespace),
        Namespaces::Labels(wanted) => snapshot
            .namespaces
            .get(namespace)
            .is_some_and(|namespace| wanted.matches(&namespace.labels)),
    }
}

/// Whether the policy selects the pod, ignoring whether the pod uses its node's network or has ended.
pub(crate) fn selects(snapshot: &Snapshot, policy: &Policy, pod: &Pod) -> bool {
    match &policy.selection {
        Selection::Labels {
            namespaces,
            pods,
            nodes,
        } => {
            let on_node = |wanted: &LabelSelector| {
                let node = snapshot.nodes.get(&pod.node);
                node.is_some_and(|node| wanted.matches(&node.labels))
            };
            in_namespaces(snapshot, namespaces, &pod.namespace)
                && pods.matches(&pod.labels)
                && nodes.as_ref().is_none_or(on_node)
        }
        Selection::Service { namespace, name } => {
            let key = (namespace.clone(), name.clone());
            let Some(service) = snapshot.services.get(&key) else {
                return false;
            };
            let found = match service_labels(service) {
                Some(labels) => labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v)),
                None => pod.addresses.iter().any(|a| service.endpoints.contains(a)),
            };
            found && pod.namespace == *namespace
        }
        Selection::Addresses(prefixes) => {
            let inside = |address: &IpAddr| prefixes.iter().any(|p| p.contains(address));
            pod.addresses.iter().any(inside)
        }
        Selection::Workload {
            namespace,
            kind,
            name,
        } => pod.namespace == *namespace && belongs(pod, *kind, name),
    }
}
