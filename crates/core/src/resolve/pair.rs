//! Pairing of a pod to one of a policy's addresses per family.
//!
//! A hash selects the address. A new pod of a policy with several addresses avoids those that are nearly full; its node
//! remembers that for as long as the pod lives (decision 136), and reports it in [`NodeRecord::paired`].

use super::Resolved;
use super::address::{family_index, pool_gives, pools_of};
use crate::model::*;
use crate::rendezvous::paired;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses (IPv4, IPv6) of one pod by one policy.
pub(crate) type Paired = [Option<IpAddr>; 2];

/// The address that a pod is paired to, as its node reports it. Addresses that the pod's namespace may not use are
/// excluded (a `ClusterEgress` selects namespaces that a pool may not permit): the pod then has none of that family, and
/// its traffic is dropped (P8, P1).
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
    let candidates = candidates(snapshot, policy, addresses, pod);
    let record = snapshot.node_records.get(&pod.node);
    let reported = record.map(|record| &record.paired);
    candidates.map(|candidates| {
        if candidates.len() < 2 {
            return candidates.first().copied();
        }
        let mine = |one: &&PairedPod| one.pod == pod.uid && one.policy == policy.object;
        let mut reported = reported.into_iter().flatten().filter(mine);
        let reported = reported.find(|one| candidates.contains(&one.address));
        reported
            .map(|one| one.address)
            .or_else(|| by_hash(pod, &candidates))
    })
}

/// Addresses of which the pod's node needs ports: those that the pod is paired to, and where one of them is nearly full,
/// the one that the pod would be paired to if it were new. So the node has ports of that one before a new pod needs them.
pub(crate) fn needed(
    snapshot: &Snapshot,
    policy: &Policy,
    addresses: &[IpAddr],
    pod: &Pod,
) -> impl Iterator<Item = IpAddr> + use<> {
    let now = pair_among(snapshot, policy, addresses, pod);
    let mut instead: Paired = [None; 2];
    if now.iter().flatten().any(|one| policy.crowded.contains(one)) {
        let candidates = candidates(snapshot, policy, addresses, pod);
        for (family, candidates) in candidates.iter().enumerate() {
            if now[family].is_some_and(|now| policy.crowded.contains(&now)) {
                instead[family] = for_new_pod(pod, candidates, &policy.crowded);
            }
        }
    }
    now.into_iter().chain(instead).flatten()
}

/// Addresses of the policy that the pod may use, by family.
pub(crate) fn candidates(
    snapshot: &Snapshot,
    policy: &Policy,
    addresses: &[IpAddr],
    pod: &Pod,
) -> [Vec<IpAddr>; 2] {
    let cluster = policy.object.kind == Kind::ClusterEgress;
    let given = |address: &IpAddr| {
        !cluster
            || pools_of(snapshot, *address).all(|pool| pool_gives(snapshot, pool, &pod.namespace))
    };
    std::array::from_fn(|family| {
        let of_family = addresses.iter().filter(|a| family_index(**a) == family);
        of_family.filter(|a| given(a)).copied().collect()
    })
}

/// The address of a pod that nobody remembers (RFC 4787 REQ-2).
pub(crate) fn by_hash(pod: &Pod, candidates: &[IpAddr]) -> Option<IpAddr> {
    paired(&pod.uid, candidates.iter().copied())
}

/// The address of a new pod: one that is not full, if there is such a one.
pub(crate) fn for_new_pod(
    pod: &Pod,
    candidates: &[IpAddr],
    full: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let open = candidates.iter().filter(|one| !full.contains(one));
    paired(&pod.uid, open.copied()).or_else(|| by_hash(pod, candidates))
}
