//! Which addresses a policy asks for, and whether it may have them.

use super::occupied::{Occupant, Occupied};
use super::{Problem, pool_gives};
use crate::condition::Reason;
use crate::model::*;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// 0 for IPv4, 1 for IPv6.
pub(crate) fn family_index(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// Whether the pool has this address.
pub(crate) fn in_pool(pool: &Pool, address: IpAddr) -> bool {
    // Ranges are of one family each; comparing across families is false on one side or the other only by luck.
    pool.ranges.iter().any(|(first, last)| {
        first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last
    })
}

/// Every pool that has this address.
pub(super) fn pools_of(snapshot: &Snapshot, address: IpAddr) -> impl Iterator<Item = &Pool> {
    snapshot
        .pools
        .values()
        .filter(move |pool| in_pool(pool, address))
}

/// Who has which pod address: looked for among all pods, or in an index that a planner keeps.
pub(crate) trait PodAddresses {
    /// Those of the wanted addresses that a pod has which has not run to its end, each with the pod's name (of several
    /// the last by namespace and name).
    fn holders(&self, wanted: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, &str>;

    /// A test for the addresses of all pods, also of those that have run to their end.
    fn test(&self) -> Box<dyn Fn(IpAddr) -> bool + '_>;
}

impl PodAddresses for Objects<(String, String), Pod> {
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

/// Every address that a policy asks for or has.
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

/// Those of the wanted addresses that nodes, Services and pods have, and the prefixes of pods and Services. An agent sees
/// only its own pods here; what it accepts and the controller does not gets no ports.
pub(super) struct ClusterAddresses<'a> {
    hosts: BTreeMap<IpAddr, (Kind, &'a str)>,
    prefixes: Prefixes<(Kind, &'a str)>,
    occupied: Occupied<'a>,
}

/// Prefixes of which one that contains an address is found without looking at all.
struct Prefixes<V> {
    /// With their order: the first is taken.
    all: BTreeMap<IpNet, (usize, V)>,
    /// Lengths that occur.
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

    /// Who has the address, if agents have found that no policy may.
    pub(super) fn occupant(&self, address: IpAddr) -> Option<&Occupant<'a>> {
        let occupant = self.occupied.get(&address);
        occupant.filter(|occupant| occupant.refuses())
    }

    fn problem(&self, address: IpAddr) -> Option<String> {
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

/// The same question about one address, for pools: nothing out of a pool may be an address of the cluster, or somebody's
/// that its agents have found, or one that no host may have.
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

/// What a policy asks for.
pub(super) struct Requested {
    pub addresses: Vec<IpAddr>,
    pub covers: [bool; 2],
}

pub(super) fn requested(snapshot: &Snapshot, policy: &Policy, out_of_pool: &[IpAddr]) -> Requested {
    let mut covers = [false; 2];
    let addresses: BTreeSet<IpAddr> = match &policy.addresses {
        AddressRequest::Fixed(addresses) => addresses.iter().copied().collect(),
        AddressRequest::Pool(name) => {
            if let Some(pool) = snapshot.pools.get(name) {
                for (first, _) in &pool.ranges {
                    covers[family_index(*first)] = true;
                }
            } else {
                covers = [true; 2];
            }
            out_of_pool.iter().copied().collect()
        }
    };
    // A next hop covers its family as an address would, and is none.
    for address in addresses.iter().chain(policy.next_hop().as_ref()) {
        covers[family_index(*address)] = true;
    }
    Requested {
        addresses: addresses.into_iter().collect(),
        covers,
    }
}

pub(super) fn unusable(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    special
        || match address {
            // 240.0.0.0/4 is reserved (RFC 1112 section 4), with the limited broadcast in it.
            IpAddr::V4(v4) => v4.octets()[0] >= 240 || v4.is_link_local() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        }
}

/// Problems with what a policy asks for.
pub(super) fn problems(
    snapshot: &Snapshot,
    policy: &Policy,
    index: &ClusterAddresses<'_>,
) -> Vec<Problem> {
    match &policy.addresses {
        _ if policy.next_hop().is_some() => Vec::new(),
        AddressRequest::Pool(name) => match snapshot.pools.get(name) {
            None => vec![Problem::new(
                Reason::PoolNotFound,
                "spec.pool",
                &name.0,
                "there is no such EgressPool; create it or name another",
            )],
            Some(pool) => denied_by_pool(snapshot, policy, pool, "spec.pool")
                .into_iter()
                .collect(),
        },
        AddressRequest::Fixed(addresses) if addresses.is_empty() => vec![Problem::new(
            Reason::NoAddress,
            "spec.ips",
            "[]",
            "name at least one address, or a pool",
        )],
        AddressRequest::Fixed(addresses) => addresses
            .iter()
            .enumerate()
            .filter_map(|(i, address)| {
                let field = if addresses.len() == 1 {
                    "spec.ip".into()
                } else {
                    format!("spec.ips[{i}]")
                };
                fixed_problem(snapshot, policy, *address, field, index)
            })
            .collect(),
    }
}

fn fixed_problem(
    snapshot: &Snapshot,
    policy: &Policy,
    address: IpAddr,
    field: String,
    index: &ClusterAddresses<'_>,
) -> Option<Problem> {
    if unusable(address) {
        return Some(Problem::new(
            Reason::AddressInvalid,
            field,
            address,
            "no host can use this as its source address; choose a unicast address",
        ));
    }
    if let Some(remedy) = index.problem(address) {
        return Some(Problem::new(
            Reason::AddressInCluster,
            field,
            address,
            remedy,
        ));
    }
    if let Some(occupant) = index.occupant(address)
        && !may_stay(policy, address, occupant)
    {
        let reason = match occupant.is_machine() {
            true => Reason::AddressInCluster,
            false => Reason::AddressInvalid,
        };
        let remedy = format!("{occupant}; choose one that nothing else has");
        return Some(Problem::new(reason, field, address, remedy));
    }
    let mut pools = pools_of(snapshot, address).peekable();
    if pools.peek().is_none() {
        return match snapshot.settings.unpooled_addresses {
            UnpooledAddresses::Allow => None,
            UnpooledAddresses::Deny => Some(Problem::new(
                Reason::AddressDenied,
                field,
                address,
                "it is in no EgressPool, and this installation allows only addresses out of pools; add it to one",
            )),
        };
    }
    pools.find_map(|pool| {
        let mut problem = denied_by_pool(snapshot, policy, pool, "")?;
        problem.field = field.clone();
        problem.value = address.to_string();
        Some(problem)
    })
}

/// Whether the policy may have the address all the same. What it has been given is taken away by nothing that is found
/// later, which is told. Addresses of earlier systems' objects are on nodes' devices by design.
fn may_stay(policy: &Policy, address: IpAddr, occupant: &Occupant<'_>) -> bool {
    let is_own = matches!(policy.object.kind, Kind::Egress | Kind::ClusterEgress);
    let is_moved = !is_own && matches!(occupant, Occupant::Device(_));
    is_moved || policy.assigned.contains(&address)
}

/// The namespace whose pods a policy that is no `ClusterEgress` selects: a front-end's object may stand elsewhere.
fn tenant(policy: &Policy) -> &str {
    match &policy.selection {
        Selection::Workload { namespace, .. } | Selection::Service { namespace, .. } => namespace,
        Selection::Labels { .. } | Selection::Addresses(_) => &policy.object.namespace,
    }
}

/// An `Egress` may use only what its namespace is given. A `ClusterEgress` is judged per pod (`pair`).
fn denied_by_pool(
    snapshot: &Snapshot,
    policy: &Policy,
    pool: &Pool,
    field: &str,
) -> Option<Problem> {
    if policy.object.kind == Kind::ClusterEgress || pool_gives(snapshot, pool, tenant(policy)) {
        return None;
    }
    Some(Problem::new(
        Reason::AddressDenied,
        field,
        &pool.name.0,
        format!(
            "pool {} is not for namespace {}; ask for it in the pool's spec.namespaces",
            pool.name.0,
            tenant(policy)
        ),
    ))
}

/// Whether `whenUnavailable: NodeAddress` holds: every pool of its addresses must consent, and an address in no pool
/// has nobody to consent for it.
pub(super) fn node_address_consent(
    snapshot: &Snapshot,
    policy: &Policy,
    findings: &mut BTreeSet<Finding>,
) -> bool {
    if policy.when_unavailable == WhenUnavailable::Drop {
        return false;
    }
    let consents = match &policy.addresses {
        AddressRequest::Pool(name) => snapshot
            .pools
            .get(name)
            .is_some_and(|pool| pool.allow_node_address),
        AddressRequest::Fixed(addresses) => addresses.iter().all(|address| {
            let mut pools = pools_of(snapshot, *address).peekable();
            pools.peek().is_some() && pools.all(|pool| pool.allow_node_address)
        }),
    };
    if !consents {
        findings.insert(Finding {
            object: policy.object.clone(),
            field: "spec.whenUnavailable".into(),
            value: "NodeAddress".into(),
            remedy: "Drop holds: the address must be in a pool with allowNodeAddress: true".into(),
        });
    }
    consents
}
