//! Gateways that a node probes, with their timers.

use super::{NodeState, TunnelIndex};
use crate::model::{NodeName, Snapshot};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A gateway to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    /// Its number in the tunnel.
    pub index: TunnelIndex,
    /// Its underlay address.
    pub underlay: IpAddr,
    /// Milliseconds between probes.
    pub interval_ms: u64,
    /// Probes without answer until it counts as dead.
    pub failures: u32,
}

/// All gateways among the node's peers. A node of several `EgressGateway`s is probed with the shortest of their
/// intervals, and with the failure count of that same gateway.
pub fn probe_targets(snapshot: &Snapshot, state: &NodeState) -> BTreeMap<NodeName, ProbeTarget> {
    let gateways = state.peers.iter().filter(|(_, peer)| peer.gateway);
    let targets = gateways.filter_map(|(index, peer)| {
        let name = NodeName(peer.node.clone());
        let node = snapshot.nodes.get(&name)?;
        let groups = snapshot.gateways.values();
        let (interval_ms, failures) = groups
            .filter(|group| group.selects(node))
            .map(|group| (group.probe_interval_ms, group.probe_failures))
            .min()?;
        let target = ProbeTarget {
            index: *index,
            underlay: peer.underlay,
            interval_ms,
            failures,
        };
        Some((name, target))
    });
    targets.collect()
}
