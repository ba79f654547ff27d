//! Rules for quotas on one node.

use super::{Found, Rule};
use crate::model::*;
use crate::node::{NamespaceId, NodeOutcome};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

/// Each target has the lowest quota of its gateway and of the pools that its address is in; every pod that such a quota
/// concerns has a namespace, and pods of one namespace have the same.
pub(super) fn quotas(snapshot: &Snapshot, outcome: &NodeOutcome, found: &mut Found) {
    let worker = &outcome.state.worker;
    let mut of_namespaces = false;
    for (id, target) in &worker.targets {
        if target.is_of_canaries() {
            continue;
        }
        let Some(key) = outcome.target_groups.get(id) else {
            continue;
        };
        let gateway = snapshot.gateways.get(&key.gateway);
        let pools = snapshot.pools.values().filter(|pool| {
            let mut ranges = pool.ranges.iter();
            ranges.any(|(first, last)| {
                first.is_ipv4() == target.address.is_ipv4()
                    && (*first..=*last).contains(&target.address)
            })
        });
        let all = gateway.map(|gateway| gateway.quotas).into_iter();
        let all: Vec<Quotas> = all.chain(pools.map(|pool| pool.quotas)).collect();
        let lowest = |of: fn(&Quotas) -> Option<NonZeroU32>| all.iter().filter_map(of).min();
        let is_right = target.quotas.pod == lowest(|quotas| quotas.pod)
            && target.quotas.namespace == lowest(|quotas| quotas.namespace);
        found.expect(
            is_right,
            Rule::QuotaWrong,
            target.address,
            "not the lowest quota",
        );
        of_namespaces |= target.quotas.namespace.is_some();
    }
    if !of_namespaces {
        return;
    }
    let mut ids: BTreeMap<NamespaceId, &str> = BTreeMap::new();
    for pod in snapshot.pods.values().filter(|pod| !pod.finished) {
        let ids_of_pod = pod
            .addresses
            .iter()
            .filter_map(|a| worker.namespaces.get(a));
        for id in ids_of_pod {
            let namespace = ids.entry(*id).or_insert(&pod.namespace);
            let is_own = *namespace == pod.namespace;
            found.expect(
                is_own,
                Rule::QuotaWrong,
                &pod.name,
                "counted in another namespace",
            );
        }
    }
    let distinct: BTreeSet<&&str> = ids.values().collect();
    found.expect(
        distinct.len() == ids.len(),
        Rule::QuotaWrong,
        "namespaces",
        "one namespace is counted as several",
    );
    let canaries = super::pods::canary_sources(&outcome.state);
    for address in worker
        .pods
        .keys()
        .filter(|address| !canaries.contains(address))
    {
        let there = worker.namespaces.contains_key(address);
        found.expect(there, Rule::QuotaWrong, address, "its namespace is unknown");
    }
}
