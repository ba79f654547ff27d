//! Egress addresses: the pools that contain them, and other users of them in the cluster.

use super::occupied::{Occupant, Occupied};
use crate::model::*;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// 0 for IPv4, 1 for IPv6.
pub(crate) fn family_index(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// Whether the pool contains this address.
pub(crate) fn in_pool(pool: &Pool, address: IpAddr) -> bool {
    // Each range is of one family, so comparing an address with both ends never mixes families.
    pool.ranges.iter().any(|(first, last)| {
        first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last
    })
}

/// Every pool that contains this address.
pub(crate) fn pools_of(snapshot: &Snapshot, address: IpAddr) -> impl Iterator<Item = &Pool> {
    snapshot
        .pools
        .values()
        .filter(move |pool| in_pool(pool, address))
}

/// Whether the pool permits this namespace.
pub(crate) fn pool_gives(snapshot: &Snapshot, pool: &Pool, namespace: &str) -> bool {
    match &pool.namespaces {
        Namespaces::All => true,
        Namespaces::Names(names) => names.contains(namespace),
        Namespaces::Labels(selector) => snapshot
            .namespaces
            .get(namespace)
            .is_some_and(|ns| selector.matches(&ns.labels)),
    }
}

/// Look-up of pods by address: a search through all pods, or a planner's index.
pub(crate) trait PodAddresses {
    /// The wanted addresses that a pod has which has not ended, each with the pod's name (of several, the last by
    /// namespace and name).
    fn holders(&self, wanted: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, &str>;

    /// Predicate for addresses of any pod, ended ones included.
    fn test(&self) -> Box<dyn Fn(IpAddr) -> bool + '_>;
}

impl PodAddresses for SharedMap<(String, String), Pod> {
    fn holders(&self, wanted: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, &str> {
        let pods = self.values().filter(|pod| !pod.finished);
        let addresses = pods.flat_map(|pod| pod.addresses.iter().map(move |a| (pod, a)));
        addresses
            .filter(|(_, address)| wanted.contains(address))
            .map(|(pod, address)| (*address, pod.name.as_str()))
            .collect()
    }

    fn test(&self) -> Box<dyn Fn(IpAddr) -> bool + '_> {
        let addresses = self.values().flat_map(|pod| &pod.addresses);
        let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
        Box::new(move |address| addresses.contains(&address))
    }
}

/// Every address that a policy requests or has.
pub(crate) fn asked(policies: &[Policy]) -> BTreeSet<IpAddr> {
    policies
        .iter()
        .flat_map(|policy| match &policy.addresses {
            AddressRequest::Fixed(addresses) => addresses.as_slice(),
            AddressRequest::Pool(_) => policy.assigned.as_slice(),
        })
        .copied()
        .collect()
}

/// The wanted addresses that nodes, Services and pods have, and the prefixes of pods and Services. An agent sees only
/// its own pods here; an address that it accepts and the controller refuses gets no ports.
pub(super) struct ClusterAddresses<'a> {
    hosts: BTreeMap<IpAddr, (Kind, &'a str)>,
    prefixes: Prefixes<(Kind, &'a str)>,
    occupied: Occupied<'a>,
}

/// Set of prefixes; finds one that contains an address without comparing all.
struct Prefixes<V> {
    /// Prefixes with their order: the first match is taken.
    all: BTreeMap<IpNet, (usize, V)>,
    /// Prefix lengths that occur.
    lengths: BTreeSet<u8>,
}

impl<V: Copy> Prefixes<V> {
    fn of(prefixes: impl IntoIterator<Item = (IpNet, V)>) -> Self {
        let mut result = Prefixes {
            all: BTreeMap::new(),
            lengths: BTreeSet::new(),
        };
        for (order, (prefix, value)) in prefixes.into_iter().enumerate() {
            result.lengths.insert(prefix.prefix_len());
            let entry = result.all.entry(prefix.trunc());
            entry.or_insert((order, value));
        }
        result
    }

    fn find(&self, address: IpAddr) -> Option<(IpNet, V)> {
        let lengths = self.lengths.iter();
        let prefixes = lengths.filter_map(|length| IpNet::new(address, *length).ok());
        let found = prefixes.filter_map(|prefix| self.all.get_key_value(&prefix.trunc()));
        found
            .min_by_key(|(_, (order, _))| *order)
            .map(|(prefix, (_, value))| (*prefix, *value))
    }
}

impl<'a> ClusterAddresses<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, pods: &'a impl PodAddresses) -> Self {
        let wanted = asked(&snapshot.policies);
        let mut hosts = BTreeMap::new();
        let mut prefixes = Vec::new();
        for service in snapshot.services.values() {
            let addresses = service.cluster_addresses.iter();
            let addresses = addresses.chain(&service.balancer_addresses);
            for address in addresses.filter(|a| wanted.contains(a)) {
                hosts.insert(*address, (Kind::Service, service.name.as_str()));
            }
        }
        let pods = pods.holders(&wanted).into_iter();
        hosts.extend(pods.map(|(address, pod)| (address, (Kind::Pod, pod))));
        for node in snapshot.nodes.values() {
            for address in node.addresses.iter().filter(|a| wanted.contains(a)) {
                hosts.insert(*address, (Kind::Node, node.name.0.as_str()));
            }
            prefixes.extend(
                node.pod_cidrs
                    .iter()
                    .map(|p| (*p, (Kind::Node, node.name.0.as_str()))),
            );
        }
        prefixes.extend(snapshot.pod_prefixes.iter().map(|p| (*p, (Kind::Pod, ""))));
        prefixes.extend(
            snapshot
                .settings
                .service_cidrs
                .iter()
                .map(|p| (*p, (Kind::Service, ""))),
        );
        let prefixes = Prefixes::of(prefixes);
        let occupied = Occupied::of(snapshot, |address| wanted.contains(address));
        Self {
            hosts,
            prefixes,
            occupied,
        }
    }

    /// Occupant of the address, if agents have found one that excludes policies.
    pub(super) fn occupant(&self, address: IpAddr) -> Option<&Occupant<'a>> {
        let occupant = self.occupied.get(&address);
        occupant.filter(|occupant| occupant.refuses())
    }

    /// Why no policy may have the address: the cluster uses it.
    pub(super) fn problem(&self, address: IpAddr) -> Option<String> {
        if let Some((kind, name)) = self.hosts.get(&address) {
            return Some(format!(
                "{kind:?} {name} has this address; an egress address that is in use in the cluster is not supported \
                 yet, choose a free one"
            ));
        }
        let (prefix, (kind, name)) = self.prefixes.find(address)?;
        Some(match kind {
            Kind::Node => {
                format!("it lies in {prefix}, the pod addresses of Node {name}; choose a free one")
            }
            Kind::Pod => format!(
                "it lies in {prefix}, pod addresses that the network plugin publishes; choose a free one"
            ),
            _ => format!(
                "it lies in {prefix}, the Service addresses of the cluster; choose a free one"
            ),
        })
    }
}

/// The same for one address of a pool: a pool must not allocate an address of the cluster, an address that agents found
/// occupied, or one that no host may have.
pub(crate) fn cluster_address<'a, P: PodAddresses>(
    snapshot: &'a Snapshot,
    pods: &'a P,
) -> impl Fn(IpAddr) -> bool + use<'a, P> {
    let mut hosts: BTreeSet<IpAddr> = BTreeSet::new();
    let mut prefixes: Vec<IpNet> = snapshot.settings.service_cidrs.clone();
    for node in snapshot.nodes.values() {
        hosts.extend(&node.addresses);
        prefixes.extend(&node.pod_cidrs);
    }
    for service in snapshot.services.values() {
        hosts.extend(&service.cluster_addresses);
        hosts.extend(&service.balancer_addresses);
    }
    hosts.extend(&snapshot.api_server);
    prefixes.extend(&snapshot.pod_prefixes);
    let prefixes = IpNet::aggregate(&prefixes);
    let of_pod = pods.test();
    let occupied = Occupied::of(snapshot, |_| true);
    move |address| {
        unusable(address)
            || hosts.contains(&address)
            || occupied.get(&address).is_some()
            || of_pod(address)
            || prefixes.iter().any(|p| p.contains(&address))
    }
}

/// Whether no host may have this address.
pub(super) fn unusable(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    special
        || match address {
            // 240.0.0.0/4 is reserved (RFC 1112 section 4), with the limited broadcast in it.
            IpAddr::V4(v4) => v4.octets()[0] >= 240 || v4.is_link_local() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        }
}
