//! Addresses of nodes' devices that no Node object names: second networks, VIPs, loopbacks. Each agent reports its own.
//! Workers read the reports of gateways only, so the controller writes those of all nodes into the records of a few
//! gateway nodes, beside the pod prefixes.

use crate::model::*;
use crate::numbers::DEVICE_ADDRESSES_MAX;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses that the node reports and its Node object does not name. None of a node that is gone.
pub(super) fn of_node(snapshot: &Snapshot, name: &NodeName) -> BTreeSet<IpAddr> {
    let (Some(node), Some(record)) = (snapshot.nodes.get(name), snapshot.node_records.get(name))
    else {
        return BTreeSet::new();
    };
    let addresses = record.node_addresses.iter().map(IpNet::addr);
    let unnamed = addresses.filter(|address| !node.addresses.contains(address));
    unnamed.collect()
}

/// The same of all nodes.
pub(super) fn all(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let nodes = snapshot.nodes.keys();
    nodes.flat_map(|name| of_node(snapshot, name)).collect()
}

/// Addresses that the controller's records report to every agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Disjoint prefixes.
    pub addresses: BTreeSet<IpNet>,
    /// The first address beyond `DEVICE_ADDRESSES_MAX`.
    left_out: Option<IpAddr>,
}

impl Told {
    /// `all`: every such address, in order.
    pub(super) fn of<'a>(snapshot: &Snapshot, all: impl Iterator<Item = &'a IpAddr>) -> Self {
        let listed = &snapshot.settings.never_destinations;
        let is_listed = |address: &IpAddr| listed.iter().any(|net| net.contains(address));
        let mut unlisted = all.filter(|address| !is_listed(address)).copied();
        let told: Vec<IpNet> = unlisted
            .by_ref()
            .take(DEVICE_ADDRESSES_MAX)
            .map(IpNet::from)
            .collect();
        Self {
            addresses: IpNet::aggregate(&told).into_iter().collect(),
            left_out: unlisted.next(),
        }
    }

    /// Finding about the addresses beyond the limit, at the first record that carries the others.
    pub(super) fn finding(&self, carriers: &BTreeSet<NodeName>) -> Option<Finding> {
        let (carrier, left_out) = (carriers.first()?, self.left_out?);
        Some(Finding {
            object: ObjectRef::of_cluster(Kind::EgressNode, &carrier.0),
            field: "spec.deviceAddresses".into(),
            value: left_out.to_string(),
            remedy: format!(
                "devices of nodes have more than {DEVICE_ADDRESSES_MAX} addresses that no Node names; policies of other \
                 nodes may take traffic to this one, and to those behind it, to a gateway: name their networks by \
                 --never-destination"
            ),
        })
    }
}
