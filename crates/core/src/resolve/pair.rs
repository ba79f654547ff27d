//! Pairing of a pod to one of a policy's addresses per family.

use super::Resolved;
use super::address::{family_index, pool_gives, pools_of};
use crate::model::*;
use crate::rendezvous::paired;
use std::net::IpAddr;

/// Addresses (IPv4, IPv6) of one pod by one policy.
pub(crate) type Paired = [Option<IpAddr>; 2];

/// Pairs a pod. Addresses that the pod's namespace may not use are excluded (a `ClusterEgress` selects namespaces that
/// a pool may not permit): the pod then has none of that family, and its traffic is dropped (P8, P1).
pub(crate) fn pair(snapshot: &Snapshot, resolved: &Resolved<'_>, pod: &Pod) -> Paired {
    pair_among(snapshot, resolved.policy, &resolved.addresses, pod)
}

/// Pairs a pod to one of these addresses of the policy.
pub(crate) fn pair_among(
    snapshot: &Snapshot,
    policy: &Policy,
    addresses: &[IpAddr],
    pod: &Pod,
) -> Paired {
    let cluster = policy.object.kind == Kind::ClusterEgress;
    let given = |address: &IpAddr| {
        !cluster
            || pools_of(snapshot, *address).all(|pool| pool_gives(snapshot, pool, &pod.namespace))
    };
    std::array::from_fn(|family| {
        let candidates: Vec<IpAddr> = addresses
            .iter()
            .filter(|a| family_index(**a) == family && given(a))
            .copied()
            .collect();
        match candidates.as_slice() {
            [] => None,
            [only] => Some(*only),
            several => paired(&pod.uid, several.iter().copied()),
        }
    })
}
