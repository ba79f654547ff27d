//! Facts about the rest of the cluster that a node's state depends on.

use super::pod_addresses;
use super::{IssueKind, NodeFacts, NodeIssue, NotYet, Peer, Tunnel, TunnelIndex};
use super::{UnknownPods, UnknownPodsPolicy};
use crate::model::*;
use crate::numbers::{TUNNEL_OVERHEAD_V4_BYTES, TUNNEL_OVERHEAD_V6_BYTES};
use crate::resolve::gateway_nodes;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// This node.
pub(super) struct Me<'a> {
    pub name: &'a NodeName,
    pub node: &'a Node,
    pub record: &'a NodeRecord,
    pub underlay: IpAddr,
}

impl<'a> Me<'a> {
    pub(super) fn find(snapshot: &'a Snapshot, name: &NodeName) -> Result<Self, NotYet> {
        let (name, node) = snapshot
            .nodes
            .get_key_value(name)
            .ok_or_else(|| NotYet::NoNode(name.clone()))?;
        let record = snapshot
            .node_records
            .get(name)
            .ok_or_else(|| NotYet::NoRecord(name.clone()))?;
        let found = node.addresses.first().or(record.underlay_addresses.first());
        let underlay = *found.ok_or_else(|| NotYet::NoUnderlay(name.clone()))?;
        Ok(Self {
            name,
            node,
            record,
            underlay,
        })
    }
}

/// Underlay address of another node, in the family of this node's tunnel.
pub(super) fn underlay(snapshot: &Snapshot, name: &NodeName, like: IpAddr) -> Option<IpAddr> {
    // A node that was removed from the cluster may still run and have connections to end.
    let own = snapshot
        .nodes
        .get(name)
        .into_iter()
        .flat_map(|node| &node.addresses);
    let found = snapshot.node_records.get(name)?.underlay_addresses.iter();
    own.chain(found)
        .find(|a| a.is_ipv4() == like.is_ipv4())
        .copied()
}

/// Index and underlay address of every node that has both.
pub(super) fn tunnel_nodes(
    snapshot: &Snapshot,
    like: IpAddr,
) -> impl Iterator<Item = (TunnelIndex, &NodeName, IpAddr)> {
    snapshot.node_records.values().filter_map(move |record| {
        let underlay = underlay(snapshot, &record.node, like)?;
        Some((record.tunnel_index, &record.node, underlay))
    })
}

/// Nodes of all gateways.
pub(super) fn all_gateway_nodes(snapshot: &Snapshot) -> BTreeSet<&NodeName> {
    snapshot
        .gateways
        .values()
        .flat_map(|g| gateway_nodes(g, &snapshot.nodes))
        .collect()
}

/// Peers: for a gateway every node, for a worker the gateways.
pub(super) fn peers(
    snapshot: &Snapshot,
    me: &Me<'_>,
    is_gateway: bool,
) -> BTreeMap<TunnelIndex, Peer> {
    let gateways = all_gateway_nodes(snapshot);
    tunnel_nodes(snapshot, me.underlay)
        .filter(|(_, name, _)| *name != me.name && (is_gateway || gateways.contains(name)))
        .map(|(index, name, underlay)| {
            let gateway = gateways.contains(name);
            (
                index,
                Peer {
                    node: name.0.clone(),
                    underlay,
                    gateway,
                },
            )
        })
        .collect()
}

/// The tunnel device of this node.
pub(super) fn tunnel(snapshot: &Snapshot, facts: &NodeFacts, me: &Me<'_>) -> Tunnel {
    let mtu = mtu(snapshot, facts, me.underlay);
    Tunnel {
        devices: facts.underlay_devices.clone(),
        ..Tunnel::new(me.record.tunnel_index, me.underlay, mtu)
    }
}

/// MTU inside the tunnel: what the underlay leaves, at most the smallest limit of the gateways.
fn mtu(snapshot: &Snapshot, facts: &NodeFacts, underlay: IpAddr) -> u32 {
    let overhead = if underlay.is_ipv4() {
        TUNNEL_OVERHEAD_V4_BYTES
    } else {
        TUNNEL_OVERHEAD_V6_BYTES
    };
    let limit = snapshot
        .gateways
        .values()
        .filter_map(|g| g.mtu)
        .min()
        .unwrap_or(u32::MAX);
    facts.underlay_mtu.saturating_sub(overhead).min(limit)
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Destinations that are not egress traffic in any network: this host, link-local, multicast and broadcast.
pub fn never_anywhere() -> Vec<IpNet> {
    let v4 = |a, b, prefix| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix));
    let v6 = |first, last, prefix| {
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last),
            prefix,
        ))
    };
    vec![
        v4(0, 0, 8),
        v4(127, 0, 8),
        v4(169, 254, 16),
        v4(224, 0, 4),
        host(IpAddr::V4(Ipv4Addr::BROADCAST)),
        v6(0, 1, 128),
        v6(0xfe80, 0, 10),
        v6(0xff00, 0, 8),
    ]
}

/// Destinations that are not egress traffic whatever policies say; aggregated, so disjoint.
pub(super) fn never<'a>(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    own_pods: impl Iterator<Item = &'a Pod>,
) -> BTreeSet<IpNet> {
    let mut all = never_anywhere();
    all.extend(pod_addresses::known_to_all(snapshot));
    all.extend(&facts.pod_routes);
    let own_pods = own_pods.flat_map(Pod::own_addresses);
    all.extend(own_pods.copied().map(host));
    for node in snapshot.nodes.values() {
        all.extend(node.addresses.iter().copied().map(host));
    }
    all.extend(&snapshot.settings.service_cidrs);
    let services = snapshot
        .services
        .values()
        .flat_map(|s| &s.cluster_addresses);
    all.extend(services.copied().map(host));
    all.extend(snapshot.api_server.iter().copied().map(host));
    // Addresses that agents found at nodes and no Node object names: VIPs, second networks, loopbacks.
    for record in snapshot.node_records.values() {
        let Some(node) = snapshot.nodes.get(&record.node) else {
            continue;
        };
        let addresses = record.node_addresses.iter().map(IpNet::addr);
        let unnamed = addresses.filter(|address| !node.addresses.contains(address));
        all.extend(unnamed.map(host));
    }
    // The same of workers whose records this node does not read.
    let records = snapshot.node_records.values();
    all.extend(records.flat_map(|record| &record.device_addresses));
    all.extend(facts.local_addresses.iter().copied().map(host));
    IpNet::aggregate(&all).into_iter().collect()
}

/// Addresses of unknown pods, if their packets are to be dropped.
pub(super) fn unknown<'a>(
    me: &Me<'_>,
    facts: &NodeFacts,
    pods: impl Iterator<Item = &'a Pod>,
    issues: &mut Vec<NodeIssue>,
) -> Option<UnknownPods> {
    if facts.unknown_pods == UnknownPodsPolicy::Pass {
        return None;
    }
    let cidrs: BTreeSet<IpNet> = me.node.pod_cidrs.iter().copied().collect();
    if cidrs.is_empty() {
        issues.push(NodeIssue {
            kind: IssueKind::NoPodCidr,
            subject: me.name.0.clone(),
            text: "--unknown-pods=drop needs spec.podCIDRs of the Node, and there are none: packets of pods that the API \
                   has not shown yet leave as the network plugin has it"
                .to_owned(),
        });
        return None;
    }
    let addresses = pods.flat_map(|pod| pod.own_addresses().iter().copied());
    let known = addresses
        .filter(|address| cidrs.iter().any(|cidr| cidr.contains(address)))
        .collect();
    Some(UnknownPods { cidrs, known })
}

/// Prefixes and addresses of this node's pods.
pub(super) fn throw<'a>(node: &Node, pods: impl Iterator<Item = &'a Pod>) -> BTreeSet<IpNet> {
    let mut all = node.pod_cidrs.clone();
    all.extend(pods.flat_map(Pod::own_addresses).copied().map(host));
    IpNet::aggregate(&all).into_iter().collect()
}
