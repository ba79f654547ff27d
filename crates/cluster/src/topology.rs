//! The machines of the cluster that `./dev cluster up` builds: the lab's addresses, and one host for the control plane.

use egret_lab::topology::{Host, Link, Role, Topology};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The host of etcd, API server, controller manager and scheduler.
pub const CONTROL_PLANE: &str = "controlplane";
/// Addresses of the control plane's host.
const CONTROL_PLANE_ADDRESSES: [&str; 2] = ["192.168.122.2", "fd00:122::2"];
/// Label of nodes that send and receive for egress addresses.
const GATEWAY_LABEL: &str = "egret.dev/gateway";

/// The control plane, this many workers and gateways, the router, and the server behind it, which is no cluster member.
pub fn topology(workers: usize, gateways: usize) -> Topology {
    let built_in = Topology::built_in();
    let wanted = |host: &Host| {
        let number = |role: &str| host.name.strip_prefix(role).and_then(|n| n.parse().ok());
        match (number("worker"), number("gateway")) {
            (Some(n), _) => (1..=workers).contains(&n),
            (_, Some(n)) => (1..=gateways).contains(&n),
            _ => true,
        }
    };
    let mut hosts: Vec<Host> = built_in.hosts.into_iter().filter(wanted).collect();
    for host in hosts.iter_mut().filter(|host| host.is_node()) {
        // Kubernetes makes the pods, also on gateways: DaemonSets run on every node.
        host.pods.clear();
        if host.has(Role::Gateway) {
            let n = host.name.trim_start_matches("gateway");
            let cidrs = [format!("10.244.10{n}.0/24"), format!("fd00:244:10{n}::/64")];
            host.pod_cidrs = cidrs
                .map(|cidr| cidr.parse().expect("a literal prefix"))
                .to_vec();
            host.labels
                .insert(GATEWAY_LABEL.to_owned(), "true".to_owned());
        }
    }
    let mut control = Host::plain(CONTROL_PLANE, Role::Server, &[]);
    control.roles.clear();
    control.labels = BTreeMap::new();
    control.links = vec![Link {
        addresses: CONTROL_PLANE_ADDRESSES
            .map(|address| address.parse::<IpAddr>().expect("a literal address"))
            .to_vec(),
        ..Link::to("nodes")
    }];
    hosts.push(control);
    Topology { hosts, ..built_in }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_lab::layout::Layout;

    #[test]
    fn the_cluster_has_the_labs_addresses() {
        let topology = topology(2, 2);
        topology.validate().unwrap();
        let layout = Layout::of(&topology);
        let names: Vec<&str> = layout.hosts.iter().map(|host| host.name.as_str()).collect();
        let wanted = [
            "worker1",
            "worker2",
            "gateway1",
            "gateway2",
            "router",
            "server",
            CONTROL_PLANE,
        ];
        assert_eq!(names, wanted);
        let addresses = |name: &str| {
            let host = layout.host(name).unwrap();
            host.addresses()
                .map(|address| address.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(addresses("worker2"), ["192.168.122.12", "fd00:122::12"]);
        assert_eq!(addresses(CONTROL_PLANE), ["192.168.122.2", "fd00:122::2"]);
        assert_eq!(addresses("server")[0], "203.0.113.10");
    }
}
