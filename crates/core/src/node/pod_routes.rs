//! Pod prefixes derived from a node's own routes.
//!
//! A route other than the default may lead to a network outside, and traffic to that is egress. Evidence for pods:
//!
//! - the route uses a device of a network plugin, by the device names in the plugins' sources;
//! - its next hop is an address of another node of the cluster (host-gw, BGP and IPIP modes), and no administrator made
//!   it (`RTPROT_STATIC`, as systemd-networkd and NetworkManager write): a node may be a router to elsewhere, too;
//! - it leads to a single address, directly over a veth device: a pod of this node, also before the API shows it.
//!
//! Connected networks of ordinary devices, routes by any other router and tunnels of unknown name are no evidence.

use crate::model::*;
use crate::numbers::{
    CLASSIC_ROUTE_PROTOCOL, POD_ROUTE_WIDEST_V4, POD_ROUTE_WIDEST_V6, POD_ROUTES_MAX,
    ROUTE_PROTOCOL,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// `RTPROT_STATIC` of `linux/rtnetlink.h`: "Route installed by administrator".
const RTPROT_STATIC: u8 = 4;

/// Devices of network plugins.
const DEVICES: [&str; 16] = [
    "cni0",
    "cbr0",
    "kube-bridge",
    "weave",
    "flannel-wg",
    "flannel-wg-v6",
    "vxlan.calico",
    "vxlan-v6.calico",
    "wireguard.cali",
    "wg-v6.cali",
    "cilium_host",
    "cilium_vxlan",
    "cilium_geneve",
    "antrea-gw0",
    "ovn-k8s-mp0",
    "ovn0",
];
/// Name prefixes of network plugins' devices, one device per node or per pod.
const DEVICE_PREFIXES: [&str; 7] = [
    "flannel.",
    "flannel-v6.",
    "cali",
    "lxc",
    "eni",
    "azv",
    "tun-",
];
/// Default name prefix of veth devices (`drv_name` of `drivers/net/veth.c`).
const VETH: &str = "veth";

/// One next hop of a unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MainRoute {
    /// Destination.
    pub to: IpNet,
    /// Index of the device.
    pub device: u32,
    /// The next hop; `None`: directly connected.
    pub next_hop: Option<IpAddr>,
    /// Origin of the route (`rtm_protocol`).
    pub protocol: u8,
}

/// Pod prefixes among the routes' destinations; where several routes have one prefix, all of them must be evidence.
/// `names`: devices by index.
pub fn pod_routes(
    snapshot: &Snapshot,
    me: &NodeName,
    routes: &[MainRoute],
    names: &BTreeMap<u32, String>,
) -> BTreeSet<IpNet> {
    let others = snapshot.nodes.values().filter(|node| node.name != *me);
    let others: BTreeSet<IpAddr> = others.flat_map(|node| &node.addresses).copied().collect();
    let mut verdicts: BTreeMap<IpNet, bool> = BTreeMap::new();
    for route in routes {
        let leads = leads_to_pods(route, names.get(&route.device), &others);
        *verdicts.entry(route.to.trunc()).or_insert(true) &= leads;
    }
    let found = verdicts.into_iter().filter(|(_, leads)| *leads);
    let found: Vec<IpNet> = found.map(|(prefix, _)| prefix).collect();
    let found = IpNet::aggregate(&found).into_iter();
    found.take(POD_ROUTES_MAX).collect()
}

fn leads_to_pods(route: &MainRoute, device: Option<&String>, others: &BTreeSet<IpAddr>) -> bool {
    let widest = match route.to {
        IpNet::V4(_) => POD_ROUTE_WIDEST_V4,
        IpNet::V6(_) => POD_ROUTE_WIDEST_V6,
    };
    let ours = [ROUTE_PROTOCOL, CLASSIC_ROUTE_PROTOCOL].contains(&route.protocol);
    if ours || route.to.prefix_len() < widest {
        return false;
    }
    let device = device.map_or("", String::as_str);
    let of_plugin = DEVICES.contains(&device)
        || DEVICE_PREFIXES
            .iter()
            .any(|start| device.starts_with(start));
    let by_node = route.protocol != RTPROT_STATIC
        && route
            .next_hop
            .is_some_and(|next_hop| others.contains(&next_hop));
    let one = route.to.prefix_len() == route.to.max_prefix_len();
    let to_pod = one && route.next_hop.is_none() && device.starts_with(VETH);
    of_plugin || by_node || to_pod
}
