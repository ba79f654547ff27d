//! Addresses that a policy requests, and whether it may have them.

use super::Problem;
use super::address::{ClusterAddresses, family_index, pool_gives, pools_of, unusable};
use super::occupied::Occupant;
use crate::condition::Reason;
use crate::model::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The addresses of one policy with their pools, looked up once.
pub(super) struct PolicyAddresses<'a> {
    policy: &'a Policy,
    request: Request<'a>,
    /// Sorted, without duplicates: the addresses that it names, or that its pool has allocated to it.
    pub addresses: Vec<IpAddr>,
    /// Families (IPv4, IPv6) that the policy covers, whether or not an address exists yet.
    pub covers: [bool; 2],
}

/// Address request of a policy, with its pools resolved.
enum Request<'a> {
    /// Named addresses, in the policy's order, each with the pools that contain it.
    Fixed(Vec<(IpAddr, Vec<&'a Pool>)>),
    /// Addresses from the pool of this name; `None`: the pool does not exist.
    Pool(&'a PoolName, Option<&'a Pool>),
}

impl<'a> PolicyAddresses<'a> {
    /// `out_of_pool`: addresses that its pool has allocated to it, if it names one.
    pub(super) fn of(snapshot: &'a Snapshot, policy: &'a Policy, out_of_pool: &[IpAddr]) -> Self {
        let mut covers = [false; 2];
        let (request, addresses): (_, BTreeSet<IpAddr>) = match &policy.addresses {
            AddressRequest::Fixed(addresses) => {
                let with_pools =
                    |address: &IpAddr| (*address, pools_of(snapshot, *address).collect());
                let request = Request::Fixed(addresses.iter().map(with_pools).collect());
                (request, addresses.iter().copied().collect())
            }
            AddressRequest::Pool(name) => {
                let pool = snapshot.pools.get(name);
                match pool {
                    Some(pool) => {
                        for (first, _) in &pool.ranges {
                            covers[family_index(*first)] = true;
                        }
                    }
                    None => covers = [true; 2],
                }
                let request = Request::Pool(name, pool);
                (request, out_of_pool.iter().copied().collect())
            }
        };
        // A next hop covers its family as an address would, but is no address of the policy.
        for address in addresses.iter().chain(policy.next_hop().as_ref()) {
            covers[family_index(*address)] = true;
        }
        Self {
            policy,
            request,
            addresses: addresses.into_iter().collect(),
            covers,
        }
    }

    /// Every pool that it requests, by name or by an address: once for each address.
    pub(super) fn pools(&self) -> impl Iterator<Item = &'a Pool> {
        let (named, of_addresses) = match &self.request {
            Request::Pool(_, pool) => (*pool, &[][..]),
            Request::Fixed(addresses) => (None, addresses.as_slice()),
        };
        let of_addresses = of_addresses.iter().flat_map(|(_, pools)| pools).copied();
        named.into_iter().chain(of_addresses)
    }

    /// Problems with the policy's request.
    pub(super) fn problems(
        &self,
        snapshot: &Snapshot,
        index: &ClusterAddresses<'_>,
    ) -> Vec<Problem> {
        match &self.request {
            _ if self.policy.next_hop().is_some() => Vec::new(),
            Request::Pool(name, None) => vec![Problem::new(
                Reason::PoolNotFound,
                "spec.pool",
                &name.0,
                "there is no such EgressPool; create it or name another",
            )],
            Request::Pool(_, Some(pool)) => {
                denied_by_pool(snapshot, self.policy, pool, "spec.pool")
                    .into_iter()
                    .collect()
            }
            Request::Fixed(addresses) if addresses.is_empty() => vec![Problem::new(
                Reason::NoAddress,
                "spec.ips",
                "[]",
                "name at least one address, or a pool",
            )],
            Request::Fixed(addresses) => addresses
                .iter()
                .enumerate()
                .filter_map(|(i, (address, pools))| {
                    let field = if addresses.len() == 1 {
                        "spec.ip".into()
                    } else {
                        format!("spec.ips[{i}]")
                    };
                    self.fixed_problem(snapshot, (*address, pools.as_slice()), field, index)
                })
                .collect(),
        }
    }

    fn fixed_problem(
        &self,
        snapshot: &Snapshot,
        (address, pools): (IpAddr, &[&Pool]),
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
            && !may_stay(self.policy, address, occupant)
        {
            let reason = match occupant.is_machine() {
                true => Reason::AddressInCluster,
                false => Reason::AddressInvalid,
            };
            let remedy = format!("{occupant}; choose one that nothing else has");
            return Some(Problem::new(reason, field, address, remedy));
        }
        if pools.is_empty() {
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
        pools.iter().find_map(|pool| {
            let mut problem = denied_by_pool(snapshot, self.policy, pool, "")?;
            problem.field = field.clone();
            problem.value = address.to_string();
            Some(problem)
        })
    }

    /// Whether `whenUnavailable: NodeAddress` is in force: every pool of its addresses must consent. Nobody can consent
    /// for an address in no pool.
    pub(super) fn node_address_consent(&self, findings: &mut BTreeSet<Finding>) -> bool {
        if self.policy.when_unavailable == WhenUnavailable::Drop {
            return false;
        }
        let consents = match &self.request {
            Request::Pool(_, pool) => pool.is_some_and(|pool| pool.allow_node_address),
            Request::Fixed(addresses) => addresses.iter().all(|(_, pools)| {
                !pools.is_empty() && pools.iter().all(|pool| pool.allow_node_address)
            }),
        };
        if !consents {
            findings.insert(Finding {
                object: self.policy.object.clone(),
                field: "spec.whenUnavailable".into(),
                value: "NodeAddress".into(),
                remedy: "Drop holds: the address must be in a pool with allowNodeAddress: true"
                    .into(),
            });
        }
        consents
    }
}

/// Whether the policy may keep the address although it is occupied. An allocated address is not revoked by later
/// findings; they are reported instead. Addresses of earlier systems' objects are on nodes' devices by design.
fn may_stay(policy: &Policy, address: IpAddr, occupant: &Occupant<'_>) -> bool {
    let is_own = matches!(policy.object.kind, Kind::Egress | Kind::ClusterEgress);
    let is_moved = !is_own && matches!(occupant, Occupant::Device(_));
    is_moved || policy.assigned.contains(&address)
}

/// Namespace of the pods that a policy other than `ClusterEgress` selects; a front-end's object may be in a different
/// one.
fn tenant(policy: &Policy) -> &str {
    match &policy.selection {
        Selection::Workload { namespace, .. } | Selection::Service { namespace, .. } => namespace,
        Selection::Labels { .. } | Selection::Addresses(_) => &policy.object.namespace,
    }
}

/// Whether the pool does not permit the policy's namespace. A `ClusterEgress` is checked per pod (`pair`).
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
