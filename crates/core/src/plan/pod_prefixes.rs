//! Pod addresses that no Node names. Agents know the pods of their own nodes only. The controller knows all pods, and
//! writes the addresses that nodes cannot find themselves into the records of a few gateway nodes, which every agent
//! reads.

use crate::model::*;
use crate::numbers::{POD_PREFIX_RECORDS, POD_PREFIXES_MAX};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pod prefixes that every agent knows without the controller's records.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    /// Number of occurrences of each prefix.
    all: BTreeMap<IpNet, u32>,
    /// Number of prefixes by family (true: IPv4) and length: a look-up of an address tries each of these lengths.
    lengths: BTreeMap<(bool, u8), u32>,
}

fn family(prefix: &IpNet) -> bool {
    prefix.addr().is_ipv4()
}

impl Coverage {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut coverage = Self::default();
        let nodes = snapshot.nodes.values().flat_map(|node| &node.pod_cidrs);
        let listed = snapshot.settings.never_destinations.iter();
        for prefix in nodes.chain(listed).chain(&snapshot.pod_prefixes) {
            coverage.add(*prefix);
        }
        coverage
    }

    pub(super) fn add(&mut self, prefix: IpNet) {
        *self.all.entry(prefix.trunc()).or_default() += 1;
        let length = (family(&prefix), prefix.prefix_len());
        *self.lengths.entry(length).or_default() += 1;
    }

    pub(super) fn remove(&mut self, prefix: IpNet) {
        take_one(&mut self.all, prefix.trunc());
        take_one(&mut self.lengths, (family(&prefix), prefix.prefix_len()));
    }

    pub(super) fn covers(&self, address: IpAddr) -> bool {
        let lengths = self.lengths.keys();
        let lengths = lengths.filter(|(v4, _)| *v4 == address.is_ipv4());
        let mut prefixes = lengths.filter_map(|(_, length)| IpNet::new(address, *length).ok());
        prefixes.any(|prefix| self.all.contains_key(&prefix.trunc()))
    }
}

fn take_one<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Pod prefixes that the controller's records report to every agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Disjoint prefixes.
    pub prefixes: BTreeSet<IpNet>,
    /// The first address beyond `POD_PREFIXES_MAX`.
    pub left_out: Option<IpAddr>,
}

impl Told {
    /// Published prefixes first, then uncovered pod addresses, up to `POD_PREFIXES_MAX`. Addresses beyond the limit
    /// cost nothing.
    pub(super) fn of(snapshot: &Snapshot, uncovered: &BTreeSet<IpAddr>) -> Self {
        let published: Vec<IpNet> = snapshot.pod_prefixes.iter().copied().collect();
        let mut all = IpNet::aggregate(&published);
        let beyond = all.get(POD_PREFIXES_MAX).map(IpNet::network);
        all.truncate(POD_PREFIXES_MAX);
        let room = POD_PREFIXES_MAX - all.len();
        let left_out = beyond.or_else(|| uncovered.iter().nth(room).copied());
        all.extend(uncovered.iter().take(room).copied().map(IpNet::from));
        Self {
            prefixes: IpNet::aggregate(&all).into_iter().collect(),
            left_out,
        }
    }
}

impl Told {
    /// A pod address that some node does not get. `carried`: at least one record carries the prefixes.
    pub(super) fn missing(&self, carried: bool) -> Option<IpAddr> {
        let first = self.prefixes.first().map(IpNet::network);
        self.left_out.or(first.filter(|_| !carried))
    }
}

/// Every address that belongs to one pod alone and that no known prefix covers.
pub(super) fn uncovered(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let coverage = Coverage::of(snapshot);
    let pods = snapshot.pods.values();
    let addresses = pods.flat_map(|pod| pod.own_addresses().iter().copied());
    addresses
        .filter(|address| !coverage.covers(*address))
        .collect()
}

/// Nodes whose records carry the prefixes: the first gateway nodes by name, of those that have a record.
pub(super) fn carriers<'a>(
    gateway_nodes: impl IntoIterator<Item = &'a NodeName>,
    has_record: impl Fn(&NodeName) -> bool,
) -> BTreeSet<NodeName> {
    let nodes: BTreeSet<&NodeName> = gateway_nodes.into_iter().collect();
    let nodes = nodes.into_iter().filter(|name| has_record(name));
    nodes.take(POD_PREFIX_RECORDS).cloned().collect()
}

/// Whether the policy's destinations include this address, so that traffic to it could leave the cluster.
pub(super) fn reaches(policy: &Policy, address: IpAddr) -> bool {
    let destinations = policy.destinations.as_ref();
    destinations.is_none_or(|all| all.iter().any(|one| one.cidr.contains(&address)))
}
