//! Allocation of addresses from pools: a policy keeps the addresses that it has, and gets the lowest free one of each
//! family that it lacks.

use super::PlanReason;
use crate::model::*;
use crate::resolve::{PodAddresses, cluster_address, family_index, in_pool, pool_gives};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) struct Allocation<'a> {
    pub assigned: BTreeMap<&'a ObjectRef, Vec<IpAddr>>,
    pub findings: Vec<Finding>,
    /// Some policy lacked an address and searched for a free one, so the result depends on which are taken.
    pub searched: bool,
}

/// Allocates for every policy that names a pool and may use it.
pub(super) fn allocate<'a>(
    snapshot: &'a Snapshot,
    pods: &impl PodAddresses,
    reasons: &mut Vec<PlanReason>,
) -> Allocation<'a> {
    let mut asking: Vec<(&Policy, &Pool)> = snapshot
        .policies
        .iter()
        .filter_map(|policy| match &policy.addresses {
            AddressRequest::Pool(name) => Some((policy, snapshot.pools.get(name)?)),
            AddressRequest::Fixed(_) => None,
        })
        .filter(|(policy, pool)| {
            policy.object.kind == Kind::ClusterEgress
                || pool_gives(snapshot, pool, &policy.object.namespace)
        })
        .collect();
    asking.sort_by_key(|(policy, _)| (policy.created_secs, &policy.object));
    let mut result = Allocation {
        assigned: BTreeMap::new(),
        findings: Vec::new(),
        searched: false,
    };
    let mut kept: BTreeSet<IpAddr> = BTreeSet::new();
    for (policy, pool) in &asking {
        let mut families = [false; 2];
        let mine: Vec<IpAddr> = policy
            .assigned
            .iter()
            .filter(|a| in_pool(pool, **a) && !kept.contains(a))
            .filter(|a| !std::mem::replace(&mut families[family_index(**a)], true))
            .copied()
            .collect();
        kept.extend(&mine);
        result.assigned.insert(&policy.object, mine);
    }
    // Policies without a pool keep their addresses for the time when the pool is back.
    for policy in without_pool(snapshot) {
        let mine = policy.assigned.iter().filter(|a| !kept.contains(a));
        let mine: Vec<IpAddr> = mine.copied().collect();
        kept.extend(&mine);
        result.assigned.insert(&policy.object, mine);
    }
    if asking.is_empty() {
        return result;
    }
    // Taken: addresses that other policies name, that are still draining, or that the cluster itself uses.
    let mut taken = kept;
    taken.extend(snapshot.addresses.keys());
    taken.extend(
        snapshot
            .policies
            .iter()
            .flat_map(|policy| match &policy.addresses {
                AddressRequest::Fixed(addresses) => addresses.clone(),
                AddressRequest::Pool(_) => Vec::new(),
            }),
    );
    let of_cluster = cluster_address(snapshot, pods);
    for (policy, pool) in asking {
        let mine = result.assigned.entry(&policy.object).or_default();
        result.searched |= complete(
            policy,
            pool,
            mine,
            &mut taken,
            &of_cluster,
            &mut result.findings,
            reasons,
        );
        mine.sort_unstable();
    }
    result
}

fn without_pool(snapshot: &Snapshot) -> impl Iterator<Item = &Policy> {
    let is_away = |policy: &&Policy| match &policy.addresses {
        AddressRequest::Pool(name) => !snapshot.pools.contains_key(name),
        AddressRequest::Fixed(_) => false,
    };
    snapshot.policies.iter().filter(is_away)
}

/// Adds one address for each family that the pool has and the policy lacks; returns whether it lacked any.
fn complete(
    policy: &Policy,
    pool: &Pool,
    mine: &mut Vec<IpAddr>,
    taken: &mut BTreeSet<IpAddr>,
    of_cluster: &impl Fn(IpAddr) -> bool,
    findings: &mut Vec<Finding>,
    reasons: &mut Vec<PlanReason>,
) -> bool {
    let mut searched = false;
    for family in 0..2 {
        let mut ranges = pool
            .ranges
            .iter()
            .filter(|(first, _)| family_index(*first) == family)
            .peekable();
        if ranges.peek().is_none() || mine.iter().any(|a| family_index(*a) == family) {
            continue;
        }
        searched = true;
        let mut sorted: Vec<_> = ranges.copied().collect();
        sorted.sort_unstable();
        let free = sorted.into_iter().find_map(|(first, last)| {
            // At most as many steps as addresses are taken: all candidates of a family differ.
            std::iter::successors(Some(first), |a| next(*a))
                .take_while(|a| *a <= last)
                .find(|a| !taken.contains(a) && !of_cluster(*a))
        });
        match free {
            Some(address) => {
                taken.insert(address);
                mine.push(address);
                reasons.push(PlanReason {
                    subject: policy.object.to_string(),
                    text: format!(
                        "{address} is the lowest free address of pool {}",
                        pool.name.0
                    ),
                });
            }
            None => findings.push(Finding {
                object: policy.object.clone(),
                field: "spec.pool".into(),
                value: pool.name.0.clone(),
                remedy: format!(
                    "the pool has no free {} address; enlarge it or delete policies that use it",
                    if family == 0 { "IPv4" } else { "IPv6" }
                ),
            }),
        }
    }
    searched
}

fn next(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().checked_add(1)?)),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().checked_add(1)?)),
    })
}
