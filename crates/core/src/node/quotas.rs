//! Quotas of connections on this node: which target has which, and which namespace each pod is of.

use super::ids::{NamespaceId, TargetId};
use super::podmap::PodMap;
use super::state::{Target, Verdict, WorkerState};
use crate::hash::StableHash;
use crate::model::*;
use crate::resolve::{Selected, pools_of};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The quotas of an address: those of its gateway and of its pools, the lowest of each kind.
pub(super) fn of_address(snapshot: &Snapshot, gateway: &Gateway, address: IpAddr) -> Quotas {
    let pools = pools_of(snapshot, address);
    pools.fold(gateway.quotas, |all, pool| all.lower(pool.quotas))
}

/// Namespaces of the addresses of pods in `pods`; empty where no target has a quota for namespaces.
pub(super) fn namespaces(
    selected: &Selected<'_>,
    pods: &PodMap,
    targets: &BTreeMap<TargetId, Target>,
) -> BTreeMap<IpAddr, NamespaceId> {
    let mut targets = targets.values();
    if !targets.any(|target| target.quotas.namespace.is_some()) {
        return BTreeMap::new();
    }
    let own = selected.pods.iter().filter(|pod| !pod.host_network);
    let all = own.flat_map(|pod| pod.addresses.iter().map(move |address| (*address, pod)));
    let known = all.filter(|(address, _)| pods.contains_key(address));
    known
        .map(|(address, pod)| (address, namespace_id(&pod.namespace)))
        .collect()
}

fn namespace_id(name: &str) -> NamespaceId {
    NamespaceId(StableHash::new("namespace").text(name).finish())
}

impl WorkerState {
    /// Quotas for connections of a pod's address to this destination: those of the target that it leads to, with
    /// whatever port.
    pub fn quotas(&self, pod: IpAddr, destination: IpAddr) -> Quotas {
        let profile = self.pods.get(&pod).and_then(|id| self.profiles.get(id));
        let ranges = profile.into_iter().flat_map(|profile| &profile.ranges);
        let inside = ranges.filter(|one| {
            one.first.is_ipv4() == destination.is_ipv4()
                && (one.first..=one.last).contains(&destination)
        });
        let quotas = inside.filter_map(|one| match one.verdict {
            Verdict::Target(id) => self.targets.get(&id).map(|target| target.quotas),
            _ => None,
        });
        quotas.fold(Quotas::default(), Quotas::lower)
    }
}
