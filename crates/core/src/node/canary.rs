//! Canaries of a node: one path per gateway group and family, with a few ports of one of the node's leases.

use super::cluster::Me;
use super::{
    CanaryState, DestinationRange, Group, GroupNumber, NodeFacts, PortRange, Profile, TrafficKeyId,
};
use super::{ProfileId, Target, TargetId, TunnelIndex, Verdict, WorkerState};
use crate::hash::StableHash;
use crate::model::{GroupKey, Pod, Quotas, Snapshot};
use crate::numbers::{
    CANARY_DESTINATION_V4, CANARY_DESTINATION_V6, CANARY_LEASE_MIN_PORTS, CANARY_LEASE_PORTS,
    CANARY_SOURCE_V4, CANARY_SOURCE_V6,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Capability of gateways that return canaries.
pub const CANARY_CAPABILITY: &str = "canary";

/// One path that canaries measure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CanaryPath {
    /// The gateway group.
    pub group: GroupKey,
    /// The egress address, which determines the family.
    pub egress: IpAddr,
    /// Source of the packets.
    pub source: IpAddr,
    /// Destination of the packets, known to the gateway's program.
    pub destination: IpAddr,
    /// Where the canaries end.
    pub end: CanaryEnd,
}

/// Where canaries of a path end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CanaryEnd {
    /// At a gateway, which returns them to the node.
    Gateway,
    /// At the guard of this node, which consumes them after all other hooks: beyond it they would be visible outside.
    /// For a node that is its own gateway, and for gateways that return no canaries.
    Guard,
}

/// Whether packets to this address are canaries.
pub fn is_canary_destination(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == CANARY_DESTINATION_V4.octets()[..3],
        IpAddr::V6(v6) => v6.octets()[..15] == CANARY_DESTINATION_V6.octets()[..15],
    }
}

/// Destination of a group's canaries.
fn destination(number: GroupNumber, v4: bool) -> IpAddr {
    if v4 {
        let [a, b, c, _] = CANARY_DESTINATION_V4.octets();
        return Ipv4Addr::new(a, b, c, number).into();
    }
    let mut octets = CANARY_DESTINATION_V6.octets();
    octets[15] = number;
    Ipv6Addr::from(octets).into()
}

/// An address that firewalls treat as a pod's and that no pod gets: for IPv4 the first of the node's pod CIDR, which no
/// host in a subnet has, for IPv6 the last.
fn source(me: &Me<'_>, own_pods: &BTreeSet<IpAddr>, v4: bool) -> IpAddr {
    let of_family = |cidr: &&IpNet| cidr.addr().is_ipv4() == v4;
    let cidr = me.node.pod_cidrs.iter().find(of_family);
    let address = cidr.map(|cidr| match v4 {
        true => cidr.network(),
        false => cidr.broadcast(),
    });
    let fallback = match v4 {
        true => IpAddr::V4(CANARY_SOURCE_V4),
        false => IpAddr::V6(CANARY_SOURCE_V6),
    };
    address
        .filter(|address| !own_pods.contains(address))
        .unwrap_or(fallback)
}

/// Adds what canaries need to the worker's part. `keys`: the group of each target.
pub(super) fn add<'a>(
    snapshot: &'a Snapshot,
    (me, facts): (&Me<'_>, &NodeFacts),
    own_pods: impl Iterator<Item = &'a Pod>,
    worker: &mut WorkerState,
    keys: &mut BTreeMap<TargetId, GroupKey>,
) -> Vec<CanaryPath> {
    let Some(device) = facts.canary_device else {
        return Vec::new();
    };
    let own_pods: BTreeSet<IpAddr> = own_pods.flat_map(|pod| &pod.addresses).copied().collect();
    let mut paths = Vec::new();
    let mut profile = Profile::default();
    let groups: Vec<(GroupNumber, Group)> = worker.groups.clone().into_iter().collect();
    for (number, group) in groups {
        for v4 in [true, false] {
            let Some(end) = end(snapshot, facts, &group, v4) else {
                continue;
            };
            let to = destination(number, v4);
            if worker.never.iter().any(|net| net.contains(&to)) {
                continue;
            }
            let Some((base, range)) = lease(worker, number, v4) else {
                continue;
            };
            let id = TargetId(
                StableHash::new("canary")
                    .number(number.into())
                    .number(u64::from(v4))
                    .finish(),
            );
            let target = Target {
                ranges: vec![range],
                traffic_key: TrafficKeyId::CANARY,
                quotas: Quotas::default(),
                ..worker.targets[&base].clone()
            };
            let Some(group) = keys.get(&base).cloned() else {
                continue;
            };
            paths.push(CanaryPath {
                group: group.clone(),
                egress: target.address,
                source: source(me, &own_pods, v4),
                destination: to,
                end,
            });
            keys.insert(id, group);
            worker.targets.insert(id, target);
            profile.ranges.push(only(to, id));
        }
    }
    if paths.is_empty() {
        return paths;
    }
    profile.ranges.sort_unstable();
    let id = ProfileId(StableHash::new("canary").finish());
    worker.profiles.insert(id, profile);
    let sources: BTreeSet<IpAddr> = paths.iter().map(|path| path.source).collect();
    for source in &sources {
        worker.pods.insert(*source, id);
        worker.devices.insert(*source, device);
    }
    let end_here = paths.iter().filter(|path| path.end == CanaryEnd::Guard);
    worker.canary = Some(CanaryState {
        device,
        sources,
        end_here: end_here.map(|path| path.destination).collect(),
    });
    paths.sort();
    paths
}

/// Where canaries of a group end; `None` where they have no route.
fn end(snapshot: &Snapshot, facts: &NodeFacts, group: &Group, v4: bool) -> Option<CanaryEnd> {
    let members = match group {
        Group::Tunnel(members) => members,
        // Their destination is in no network, so they take the route of pods' packets only where the external device
        // has the default route.
        Group::Local { .. } => {
            let external = facts.external.as_ref()?;
            return external.leads_out[usize::from(!v4)].then_some(CanaryEnd::Guard);
        }
        Group::Nowhere => return None,
    };
    let able: BTreeSet<TunnelIndex> = snapshot
        .node_records
        .values()
        .filter(|record| record.capabilities.contains(CANARY_CAPABILITY))
        .map(|record| record.tunnel_index)
        .collect();
    Some(match members.is_subset(&able) {
        true => CanaryEnd::Gateway,
        false => CanaryEnd::Guard,
    })
}

/// A target of the group whose lease is large enough, and the last ports of its largest range.
fn lease(worker: &WorkerState, number: GroupNumber, v4: bool) -> Option<(TargetId, PortRange)> {
    let ports = |range: &PortRange| u32::from(range.last) - u32::from(range.first) + 1;
    let mut targets = worker.targets.iter();
    let (id, target) = targets.find(|(_, target)| {
        let leased: u32 = target.ranges.iter().map(ports).sum();
        target.group == number && target.address.is_ipv4() == v4 && leased >= CANARY_LEASE_MIN_PORTS
    })?;
    let largest = target.ranges.iter().max_by_key(|range| ports(range))?;
    let first = largest.last.saturating_sub(CANARY_LEASE_PORTS - 1);
    let first = first.max(largest.first);
    let last = largest.last;
    Some((*id, PortRange { first, last }))
}

fn only(address: IpAddr, target: TargetId) -> DestinationRange {
    DestinationRange {
        first: address,
        last: address,
        protocol: None,
        port_first: 0,
        port_last: u16::MAX,
        verdict: Verdict::Target(target),
    }
}
