//! Precedence of policies that overlap (design section 5): `ClusterEgress` unless overridable, then higher priority,
//! longer destination prefix, older object, namespace/name. Between prefix and age: an `Egress` wins over an
//! overridable `ClusterEgress`.

use crate::model::*;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Rank of a policy by all criteria after the prefix.
pub(crate) type AgeRank = u32;

/// Precedence of a claim on one destination; the smaller one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    gives_way: bool,
    priority: Reverse<i32>,
    prefix: Reverse<u8>,
    age: AgeRank,
}

impl Precedence {
    pub(crate) fn new(policy: &Policy, prefix: u8, age: AgeRank) -> Self {
        Self {
            gives_way: policy.object.kind != Kind::ClusterEgress || policy.overridable,
            priority: Reverse(policy.priority),
            prefix: Reverse(prefix),
            age,
        }
    }
}

/// Ranks of these policies, oldest first.
pub(crate) fn age_ranks<'a>(
    policies: impl IntoIterator<Item = &'a Policy>,
) -> BTreeMap<&'a ObjectRef, AgeRank> {
    let mut order: Vec<&Policy> = policies.into_iter().collect();
    order.sort_by_key(|p| {
        let object = &p.object;
        let yields = object.kind == Kind::ClusterEgress && p.overridable;
        (
            yields,
            p.created_secs,
            &object.namespace,
            &object.name,
            object.kind,
        )
    });
    order
        .into_iter()
        .zip(0..)
        .map(|(policy, rank)| (&policy.object, rank))
        .collect()
}
