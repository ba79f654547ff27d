//! Selection of pods by policies. Pods are grouped by namespace and labels first, so that the cost is policies times
//! distinct label sets and not times pods.

use super::Resolved;
use super::workload::belongs;
use crate::model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pods and, for each, the policies (positions in the resolved list, ascending) that select it.
pub(crate) struct Selected<'a> {
    pub pods: Vec<&'a Pod>,
    pub policies: Vec<Vec<usize>>,
    /// Per policy: number of pods that match but are not selected, because they use the node's network.
    pub host_network: Vec<u32>,
}

type ByLabels<'a> = BTreeMap<&'a str, BTreeMap<&'a Labels, Vec<usize>>>;

/// Selects among `pods`: those of the cluster or of one node.
pub(crate) fn select<'a>(
    snapshot: &Snapshot,
    resolved: &[Resolved<'_>],
    pods: impl Iterator<Item = &'a Pod>,
) -> Selected<'a> {
    let pods: Vec<&Pod> = pods.filter(|pod| !pod.finished).collect();
    let mut by_labels: ByLabels<'_> = BTreeMap::new();
    let mut by_address: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for (i, pod) in pods.iter().enumerate() {
        by_labels
            .entry(&pod.namespace)
            .or_default()
            .entry(&pod.labels)
            .or_default()
            .push(i);
        for address in &pod.addresses {
            by_address.entry(*address).or_default().push(i);
        }
    }
    let mut policies = vec![Vec::new(); pods.len()];
    let mut host_network = vec![0; resolved.len()];
    for (number, one) in resolved.iter().enumerate() {
        let mut chosen: BTreeSet<usize> = BTreeSet::new();
        match &one.policy.selection {
            Selection::Labels {
                namespaces,
                pods: selector,
                nodes,
            } => {
                let nodes = nodes.as_ref().map(|s| matching_nodes(snapshot, s));
                let chosen_by_label = labelled(snapshot, &by_labels, namespaces, selector);
                chosen.extend(
                    chosen_by_label
                        .filter(|i| nodes.as_ref().is_none_or(|n| n.contains(&pods[*i].node))),
                );
            }
            Selection::Service { namespace, name } => {
                chosen = behind_service(snapshot, &by_labels, &by_address, namespace, name);
                chosen.retain(|i| pods[*i].namespace == *namespace);
            }
            Selection::Addresses(prefixes) => {
                let inside = |address: &IpAddr| prefixes.iter().any(|p| p.contains(address));
                chosen.extend(
                    by_address
                        .iter()
                        .filter(|(a, _)| inside(a))
                        .flat_map(|(_, pods)| pods),
                );
            }
            Selection::Workload {
                namespace,
                kind,
                name,
            } => {
                let sets = by_labels.get(namespace.as_str()).into_iter().flatten();
                let of_namespace = sets.flat_map(|(_, pods)| pods);
                chosen.extend(of_namespace.filter(|i| belongs(pods[**i], *kind, name)));
            }
        }
        for i in chosen {
            if pods[i].host_network {
                host_network[number] += 1;
            } else {
                policies[i].push(number);
            }
        }
    }
    Selected {
        pods,
        policies,
        host_network,
    }
}

fn matching_nodes<'a>(snapshot: &'a Snapshot, selector: &LabelSelector) -> BTreeSet<&'a NodeName> {
    snapshot
        .nodes
        .values()
        .filter(|n| selector.matches(&n.labels))
        .map(|n| &n.name)
        .collect()
}

fn labelled<'a>(
    snapshot: &Snapshot,
    by_labels: &'a ByLabels<'_>,
    namespaces: &Namespaces,
    selector: &LabelSelector,
) -> impl Iterator<Item = usize> + use<'a> {
    let selector = selector.clone();
    let chosen: Vec<_> = match namespaces {
        Namespaces::All => by_labels.values().collect(),
        Namespaces::Names(names) => names
            .iter()
            .filter_map(|name| by_labels.get(name.as_str()))
            .collect(),
        Namespaces::Labels(wanted) => by_labels
            .iter()
            .filter(|(name, _)| {
                snapshot
                    .namespaces
                    .get(**name)
                    .is_some_and(|ns| wanted.matches(&ns.labels))
            })
            .map(|(_, sets)| sets)
            .collect(),
    };
    chosen
        .into_iter()
        .flat_map(|sets| sets.iter())
        .filter(move |(labels, _)| selector.matches(labels))
        .flat_map(|(_, pods)| pods.iter().copied())
}

/// Pods behind a Service: by its selector, which also finds pods without an address, else by its endpoints.
fn behind_service(
    snapshot: &Snapshot,
    by_labels: &ByLabels<'_>,
    by_address: &BTreeMap<IpAddr, Vec<usize>>,
    namespace: &str,
    name: &str,
) -> BTreeSet<usize> {
    let Some(service) = snapshot
        .services
        .get(&(namespace.to_owned(), name.to_owned()))
    else {
        return BTreeSet::new();
    };
    match &service.selector {
        Some(wanted) if !wanted.is_empty() => by_labels
            .get(namespace)
            .into_iter()
            .flatten()
            .filter(|(labels, _)| wanted.iter().all(|(k, v)| labels.get(k) == Some(v)))
            .flat_map(|(_, pods)| pods.iter().copied())
            .collect(),
        _ => service
            .endpoints
            .iter()
            .filter_map(|address| by_address.get(address))
            .flatten()
            .copied()
            .collect(),
    }
}

/// Finding for a Service that does not exist. The policy selects nobody; it is not refused, since the Service may be
/// created later.
pub(super) fn missing_service(snapshot: &Snapshot, policy: &Policy) -> Option<Finding> {
    let Selection::Service { namespace, name } = &policy.selection else {
        return None;
    };
    let known = snapshot
        .services
        .contains_key(&(namespace.clone(), name.clone()));
    (!known).then(|| Finding {
        object: policy.object.clone(),
        field: "spec.serviceName".into(),
        value: name.clone(),
        remedy: format!("there is no Service {namespace}/{name}, so no pod is selected; create it or name another"),
    })
}
