//! The concrete form of a topology: every device, address and route of every host, computed and never random, so that a
//! host that was powered off comes back with the same ones.

use crate::topology::{Cni, Forward, Host, Role, RpFilter, Topology};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the lab's own namespace: the bridges live there, and the controller runs there.
pub const CONTROL: &str = "control";
/// Link-local IPv4 address of the node at every pod link.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Link-local IPv6 address of the node at every pod link.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Hardware address of the node's end of every pod link.
pub const POD_GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// Name prefix of the node's end of pod links, for rules like `-i veth+`.
pub const POD_DEVICE_PREFIX: &str = "veth";
/// Number of the first pod of a host in its podCidrs.
const POD_NUMBER_FIRST: u32 = 10;

/// All segments and hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bridges in the control namespace.
    pub bridges: Vec<Bridge>,
    /// Hosts in the order of the topology.
    pub hosts: Vec<HostLayout>,
    /// Pod prefixes of the whole cluster.
    pub pod_cidrs: Vec<IpNet>,
}

/// A segment's bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Device in the control namespace.
    pub device: String,
    /// See [`crate::topology::Segment::mld_snooping`].
    pub mld_snooping: bool,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLayout {
    /// Name.
    pub name: String,
    /// Roles.
    pub roles: Vec<Role>,
    /// Links in order; device `eth0` first.
    pub links: Vec<LinkLayout>,
    /// Index in `links` of the link with the node address.
    pub node_link: usize,
    /// Next hops of the default routes, at most one per family.
    pub default_routes: Vec<IpAddr>,
    /// Other routes: prefix and next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// Whether it forwards packets.
    pub forwards: bool,
    /// Prefixes of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Its pods.
    pub pods: Vec<PodLayout>,
    /// See [`Host::cni`].
    pub cni: Cni,
    /// See [`Host::forward`].
    pub forward: Forward,
    /// See [`Host::rp_filter`].
    pub rp_filter: RpFilter,
    /// See [`Host::src_valid_mark`].
    pub src_valid_mark: bool,
    /// Extra labels of the Node object.
    pub labels: BTreeMap<String, String>,
}

/// One link of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkLayout {
    /// Device in the host: `eth0`, `eth1`, ...
    pub device: String,
    /// The other end, a port of the bridge in the control namespace.
    pub port: String,
    /// The bridge.
    pub bridge: String,
    /// Hardware address in the host.
    pub mac: String,
    /// Addresses with the prefix lengths of the segment.
    pub addresses: Vec<IpNet>,
    /// MTU of the host's end in bytes, if not the default.
    pub mtu: Option<u32>,
    /// Whether it leads out of the cluster.
    pub external: bool,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLayout {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels of the Pod object.
    pub labels: BTreeMap<String, String>,
    /// The node's end of the pod's link.
    pub device: String,
    /// Hardware address in the pod.
    pub mac: String,
    /// Addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
}

impl PodLayout {
    /// Name of its network namespace below `/run/netns` of its host.
    pub fn netns(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

impl HostLayout {
    /// Whether an agent runs here.
    pub fn is_node(&self) -> bool {
        self.roles.contains(&Role::Worker) || self.roles.contains(&Role::Gateway)
    }

    /// Addresses of the host in its Node object.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.links[self.node_link].addresses.iter().map(IpNet::addr)
    }

    /// Every address on a link of the host.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.links
            .iter()
            .flat_map(|link| link.addresses.iter().map(IpNet::addr))
    }

    /// Device that leads out of the cluster, where the topology names one.
    pub fn external_device(&self) -> Option<&str> {
        self.links
            .iter()
            .find(|link| link.external)
            .map(|link| link.device.as_str())
    }
}

impl Layout {
    /// Computes the layout of a topology that [`Topology::validate`] accepted.
    pub fn of(topology: &Topology) -> Self {
        let numbers = host_numbers(topology);
        let bridges = topology.segments.iter().map(|segment| Bridge {
            device: bridge_device(&segment.name),
            mld_snooping: segment.mld_snooping,
        });
        let hosts = topology.hosts.iter().enumerate();
        let mut layout = Self {
            bridges: bridges.collect(),
            hosts: hosts
                .map(|(index, host)| host_layout(topology, host, index, numbers[index]))
                .collect(),
            pod_cidrs: topology
                .hosts
                .iter()
                .flat_map(|host| host.pod_cidrs.clone())
                .collect(),
        };
        layout.add_pod_routes();
        layout.add_default_routes();
        layout
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Option<&HostLayout> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// A pod and its host.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<(&HostLayout, &PodLayout)> {
        self.hosts.iter().find_map(|host| {
            let pod = host
                .pods
                .iter()
                .find(|pod| pod.namespace == namespace && pod.name == name)?;
            Some((host, pod))
        })
    }

    fn add_pod_routes(&mut self) {
        let prefixes: Vec<(String, IpNet, IpAddr)> = self
            .hosts
            .iter()
            .filter(|host| host.is_node())
            .flat_map(|host| {
                host.pod_cidrs.iter().filter_map(|cidr| {
                    let via = host
                        .node_addresses()
                        .find(|via| same_family(via, &cidr.addr()))?;
                    Some((host.name.clone(), *cidr, via))
                })
            })
            .collect();
        for host in self.hosts.iter_mut().filter(|host| host.is_node()) {
            let others = prefixes.iter().filter(|(owner, ..)| *owner != host.name);
            host.routes
                .extend(others.map(|(_, cidr, via)| (*cidr, *via)));
        }
    }

    fn add_default_routes(&mut self) {
        let routers: Vec<LinkLayout> = self
            .hosts
            .iter()
            .filter(|host| host.roles.contains(&Role::Router))
            .flat_map(|host| host.links.clone())
            .collect();
        for host in self
            .hosts
            .iter_mut()
            .filter(|host| !host.roles.contains(&Role::Router))
        {
            let Some(out) = host
                .links
                .iter()
                .find(|link| link.external)
                .or(host.links.first())
            else {
                continue;
            };
            let vias = routers.iter().filter(|link| link.bridge == out.bridge);
            let vias: Vec<IpAddr> = vias
                .flat_map(|link| link.addresses.iter().map(IpNet::addr))
                .collect();
            for is_v4 in [true, false] {
                host.default_routes
                    .extend(vias.iter().find(|via| via.is_ipv4() == is_v4));
            }
        }
    }
}

fn host_layout(topology: &Topology, host: &Host, index: usize, number: u32) -> HostLayout {
    let mut links = host.links.clone();
    if host.has(Role::Router) {
        let named: BTreeSet<_> = host.links.iter().map(|link| link.segment.clone()).collect();
        let missing = topology
            .segments
            .iter()
            .filter(|segment| !named.contains(&segment.name));
        links.extend(missing.map(|segment| crate::topology::Link::to(&segment.name)));
    }
    let node_link = links.iter().position(|link| !link.external).unwrap_or(0);
    let links = links.iter().enumerate().map(|(n, link)| {
        let segment = topology
            .segments
            .iter()
            .find(|segment| segment.name == link.segment);
        let cidrs = segment
            .map(|segment| segment.cidrs.as_slice())
            .unwrap_or_default();
        LinkLayout {
            device: format!("eth{n}"),
            port: format!("{}.{n}", host.name),
            bridge: bridge_device(&link.segment),
            mac: format!("02:e9:00:00:{:02x}:{n:02x}", index + 1),
            addresses: link_addresses(cidrs, &link.addresses, number),
            mtu: link.mtu,
            external: link.external,
        }
    });
    HostLayout {
        name: host.name.clone(),
        roles: host.roles.clone(),
        links: links.collect(),
        node_link,
        default_routes: Vec::new(),
        routes: Vec::new(),
        forwards: host.is_node() || host.has(Role::Router),
        pod_cidrs: host.pod_cidrs.clone(),
        pods: pods(host, index),
        cni: host.cni,
        forward: host.forward,
        rp_filter: host.rp_filter,
        src_valid_mark: host.src_valid_mark,
        labels: host.labels.clone(),
    }
}

/// The number of each pod, in their order.
pub(crate) fn pod_numbers(host: &Host) -> impl Iterator<Item = u32> {
    let pods = host.pods.iter().zip(POD_NUMBER_FIRST..);
    pods.map(|(pod, number)| pod.number.map_or(number, u32::from))
}

fn pods(host: &Host, index: usize) -> Vec<PodLayout> {
    let pods = host.pods.iter().zip(pod_numbers(host));
    pods.map(|(pod, number)| PodLayout {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        labels: pod.labels.clone(),
        device: format!("{POD_DEVICE_PREFIX}{number}"),
        mac: format!("02:e9:01:00:{:02x}:{number:02x}", index + 1),
        addresses: host
            .pod_cidrs
            .iter()
            .map(|cidr| nth_address(cidr, number))
            .collect(),
    })
    .collect()
}

fn link_addresses(cidrs: &[IpNet], wanted: &[IpAddr], number: u32) -> Vec<IpNet> {
    let mut addresses = Vec::new();
    for cidr in cidrs {
        let mut own: Vec<IpAddr> = wanted
            .iter()
            .copied()
            .filter(|address| cidr.contains(address))
            .collect();
        if own.is_empty() {
            own.push(nth_address(cidr, number));
        }
        addresses.extend(own.into_iter().map(|address| {
            IpNet::new(address, cidr.prefix_len())
                .expect("the length comes from a prefix of this family")
        }));
    }
    addresses
}

/// The address with this number. IPv6 repeats the decimal digits, so that .11 and ::11 belong together.
fn nth_address(cidr: &IpNet, number: u32) -> IpAddr {
    match cidr {
        IpNet::V4(cidr) => Ipv4Addr::from(u32::from(cidr.network()) + number).into(),
        IpNet::V6(cidr) => {
            let digits = u128::from_str_radix(&number.to_string(), 16)
                .expect("decimal digits are hexadecimal digits");
            Ipv6Addr::from(u128::from(cidr.network()) + digits).into()
        }
    }
}

/// Host numbers: routers from 1, servers from 10, workers from 11, gateways from 21, others from 31; the next free one
/// where a number is taken.
fn host_numbers(topology: &Topology) -> Vec<u32> {
    type IsKind = fn(&Host) -> bool;
    let kinds: [(IsKind, u32); 5] = [
        (|host| host.has(Role::Router), 1),
        (|host| host.has(Role::Worker), 11),
        (|host| host.has(Role::Gateway), 21),
        (|host| host.has(Role::Server), 10),
        (|_| true, 31),
    ];
    let mut numbers = vec![0; topology.hosts.len()];
    let mut taken = BTreeSet::new();
    for (is_kind, base) in kinds {
        for (index, host) in topology.hosts.iter().enumerate() {
            if numbers[index] == 0 && is_kind(host) {
                let number = (base..).find(|number| !taken.contains(number));
                numbers[index] = number.expect("there are fewer hosts than numbers");
                taken.insert(numbers[index]);
            }
        }
    }
    numbers
}

fn bridge_device(segment: &str) -> String {
    format!("br-{segment}")
}

/// Whether both are IPv4 or both IPv6.
pub(crate) fn same_family(a: &IpAddr, b: &IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_lab_has_the_documented_addresses() {
        let layout = Layout::of(&Topology::built_in());
        let addresses = |name: &str| -> Vec<String> {
            layout
                .host(name)
                .unwrap()
                .addresses()
                .map(|address| address.to_string())
                .collect()
        };
        assert_eq!(addresses("worker1"), ["192.168.122.11", "fd00:122::11"]);
        assert_eq!(addresses("worker3"), ["192.168.122.13", "fd00:122::13"]);
        assert_eq!(addresses("gateway1"), ["192.168.122.21", "fd00:122::21"]);
        assert_eq!(
            addresses("router"),
            [
                "192.168.122.1",
                "fd00:122::1",
                "203.0.113.1",
                "2001:db8:1::1"
            ]
        );
        assert_eq!(addresses("server")[..2], ["203.0.113.10", "203.0.113.20"]);
        let (host, pod) = layout.pod("default", "b2").unwrap();
        assert_eq!(host.name, "worker2");
        assert_eq!(pod.addresses[0].to_string(), "10.244.2.11");
        assert_eq!(pod.addresses[1].to_string(), "fd00:244:2::11");
        assert!(layout.host("router").unwrap().routes.is_empty());
        assert_eq!(layout.host("gateway1").unwrap().routes.len(), 6);
        assert_eq!(host.default_routes[1].to_string(), "fd00:122::1");
    }

    #[test]
    fn an_external_link_takes_the_default_route_and_leaves_the_node_address() {
        let mut topology = Topology::built_in();
        topology.segments.push(crate::topology::Segment {
            name: "edge".to_owned(),
            cidrs: vec!["198.51.100.0/24".parse().unwrap()],
            mld_snooping: false,
        });
        topology.hosts[3].links.push(crate::topology::Link {
            external: true,
            ..crate::topology::Link::to("edge")
        });
        topology.validate().unwrap();
        let layout = Layout::of(&topology);
        let gateway = layout.host("gateway1").unwrap();
        assert_eq!(gateway.external_device(), Some("eth1"));
        assert_eq!(
            gateway.default_routes,
            ["198.51.100.1".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(
            gateway.node_addresses().next().unwrap().to_string(),
            "192.168.122.21"
        );
    }
}
