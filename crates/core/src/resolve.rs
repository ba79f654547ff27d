//! The meaning of policies in this cluster: gateway and addresses, or the reason why a policy is refused. Planner and
//! nodes share it, so its inputs are only those that both see alike: policies, gateways, pools, nodes, namespaces and
//! services, never pods of other nodes and never leases (P10). Agents' reports are included as far as records are
//! visible: an address that the controller alone refuses gets no ports.

mod address;
mod gateway;
mod matching;
mod next_hop;
mod occupied;
mod pair;
mod policy_addresses;
mod rank;
mod select;
mod workload;

pub(crate) use address::{
    PodAddresses, asked, cluster_address, family_index, in_pool, pool_gives, pools_of,
};
pub(crate) use gateway::{gateway_nodes, gateway_problem, usable_gateway};
pub(crate) use matching::{Matching, in_namespaces, selects, service_labels};
pub(crate) use next_hop::network_identifier;
pub(crate) use occupied::occupies;
pub(crate) use pair::{Paired, by_hash, candidates, for_new_pod, needed, pair};
pub(crate) use rank::{AgeRank, Precedence, age_ranks};
pub(crate) use select::{Selected, select};

use crate::condition::Reason;
use crate::model::*;
use policy_addresses::PolicyAddresses;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Refusal of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refusal {
    /// Reason of the condition.
    pub reason: Reason,
    /// Message of the condition, as a sentence.
    pub message: String,
}

/// A policy with all its references resolved.
#[derive(Clone, Debug)]
pub(crate) struct Resolved<'a> {
    pub policy: &'a Policy,
    /// Set even for some refused policies.
    pub gateway: Option<&'a Gateway>,
    /// Sorted; empty for refused policies and where the pool had no free address.
    pub addresses: Vec<IpAddr>,
    /// Addresses that the pool has allocated to it, also while the policy is refused.
    pub given: Vec<IpAddr>,
    /// Families (IPv4, IPv6) that the policy covers, whether or not an address exists yet.
    pub covers: [bool; 2],
    /// `whenUnavailable: NodeAddress` is set and every pool consents.
    pub node_address: bool,
    pub refusal: Option<Refusal>,
    /// Other users of its addresses, in sentences. The policy had the addresses before that was known, and keeps them.
    pub occupied: Vec<String>,
}

/// A problem that refuses a policy, with the finding for its author.
pub(crate) struct Problem {
    pub reason: Reason,
    pub field: String,
    pub value: String,
    pub remedy: String,
}

impl Problem {
    pub(crate) fn new(
        reason: Reason,
        field: impl Into<String>,
        value: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            reason,
            field: field.into(),
            value: value.to_string(),
            remedy: remedy.into(),
        }
    }

    fn finding(&self, object: &ObjectRef) -> Finding {
        Finding {
            object: object.clone(),
            field: self.field.clone(),
            value: self.value.clone(),
            remedy: self.remedy.clone(),
        }
    }
}

/// Resolves all policies. `assigned`: addresses from pools. The result is sorted by object, each once.
pub(crate) fn resolve<'a>(
    snapshot: &'a Snapshot,
    assigned: &BTreeMap<&ObjectRef, Vec<IpAddr>>,
    pods: &'a impl PodAddresses,
) -> (Vec<Resolved<'a>>, BTreeSet<Finding>) {
    let mut findings = gateway::findings(snapshot);
    let mut resolved = Vec::with_capacity(snapshot.policies.len());
    let index = address::ClusterAddresses::of(snapshot, pods);
    for (_, policy) in distinct(&snapshot.policies) {
        let out_of_pool = assigned.get(&policy.object);
        let out_of_pool = out_of_pool.map_or(&[][..], Vec::as_slice);
        resolved.push(one(snapshot, policy, out_of_pool, &index, &mut findings));
    }
    settle_conflicts(&mut resolved, &mut findings);
    next_hop::settle(&mut resolved, &mut findings);
    (resolved, findings)
}

/// Policies sorted by object, with their positions; of two with one name the older.
pub(crate) fn distinct(policies: &[Policy]) -> impl Iterator<Item = (usize, &Policy)> {
    let mut by_object: BTreeMap<&ObjectRef, (usize, &Policy)> = BTreeMap::new();
    for (position, policy) in policies.iter().enumerate() {
        by_object
            .entry(&policy.object)
            .and_modify(|known| {
                if (policy.created_secs, &policy.uid) < (known.1.created_secs, &known.1.uid) {
                    *known = (position, policy);
                }
            })
            .or_insert((position, policy));
    }
    by_object.into_values()
}

fn one<'a>(
    snapshot: &'a Snapshot,
    policy: &'a Policy,
    out_of_pool: &[IpAddr],
    index: &address::ClusterAddresses<'_>,
    findings: &mut BTreeSet<Finding>,
) -> Resolved<'a> {
    let mut found = PolicyAddresses::of(snapshot, policy, out_of_pool);
    let wanted_gateway = gateway::of_policy(snapshot, policy, &found);
    let mut problems: Vec<Problem> = next_hop::problem(policy).into_iter().collect();
    problems.extend(found.problems(snapshot, index));
    let gateway = match wanted_gateway {
        Ok(gateway) => Some(gateway),
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let node_address = found.node_address_consent(findings);
    findings.extend(problems.iter().map(|p| p.finding(&policy.object)));
    findings.extend(select::missing_service(snapshot, policy));
    let refusal = problems.into_iter().next().map(|p| Refusal {
        reason: p.reason,
        message: format!("{} {}: {}", p.field, p.value, p.remedy),
    });
    if refusal.is_some() {
        found.addresses.clear();
    }
    let addresses = found.addresses.iter();
    let occupied = addresses.filter_map(|address| {
        let occupant = index.occupant(*address)?;
        Some(format!("{address}: {occupant}"))
    });
    let occupied = occupied.collect();
    let given = out_of_pool.iter().copied();
    Resolved {
        policy,
        gateway,
        addresses: found.addresses,
        given: given.filter(|a| policy.assigned.contains(a)).collect(),
        covers: found.covers,
        node_address,
        refusal,
        occupied,
    }
}

/// Decides the gateway group of each address. The oldest policy wins, so that nobody can take an address from its users
/// with a policy of higher priority.
fn settle_conflicts(resolved: &mut [Resolved<'_>], findings: &mut BTreeSet<Finding>) {
    let mut order: Vec<usize> = (0..resolved.len()).collect();
    order.sort_by_key(|i| {
        (
            resolved[*i].policy.created_secs,
            &resolved[*i].policy.object,
        )
    });
    let mut taken: BTreeMap<IpAddr, (GatewayName, ObjectRef)> = BTreeMap::new();
    for i in order {
        let this = &mut resolved[i];
        let Some(gateway) = this.gateway.filter(|_| this.refusal.is_none()) else {
            continue;
        };
        let clash = this.addresses.iter().find_map(|address| {
            taken
                .get(address)
                .filter(|(name, _)| *name != gateway.name)
                .map(|by| (*address, by))
        });
        if let Some((address, (name, by))) = clash {
            let problem = Problem::new(
                Reason::AddressConflict,
                "spec.gateway",
                &gateway.name.0,
                format!(
                    "{address} is served by gateway {} for {by}; use that gateway or another address",
                    name.0
                ),
            );
            findings.insert(problem.finding(&this.policy.object));
            let message = problem.remedy;
            this.refusal = Some(Refusal {
                reason: Reason::AddressConflict,
                message,
            });
            this.occupied.clear();
            this.addresses.clear();
            continue;
        }
        for address in &this.addresses {
            taken
                .entry(*address)
                .or_insert_with(|| (gateway.name.clone(), this.policy.object.clone()));
        }
    }
}

/// Addresses out of pools, as the controller reported them.
pub(crate) fn assigned(snapshot: &Snapshot) -> BTreeMap<&ObjectRef, Vec<IpAddr>> {
    let out_of_pool = |policy: &Policy| match &policy.addresses {
        AddressRequest::Fixed(_) => Vec::new(),
        AddressRequest::Pool(name) => {
            let pool = snapshot.pools.get(name);
            let mine = policy.assigned.iter().copied();
            mine.filter(|a| pool.is_some_and(|pool| in_pool(pool, *a)))
                .collect()
        }
    };
    snapshot
        .policies
        .iter()
        .map(|policy| (&policy.object, out_of_pool(policy)))
        .collect()
}
