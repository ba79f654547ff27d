//! Content of a lab: segments and hosts, as written in the YAML form of `docs/lab.md`.
//!
//! [`crate::layout`] turns it into concrete addresses, devices and routes.

mod check;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

pub use check::TopologyError;

/// Segments and hosts of one lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// Ethernet segments, each one a bridge.
    pub segments: Vec<Segment>,
    /// Machines.
    pub hosts: Vec<Host>,
}

/// One Ethernet segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Segment {
    /// Name, at most 12 characters.
    pub name: String,
    /// Prefixes of the segment: at most one per address family.
    pub cidrs: Vec<IpNet>,
    /// The bridge forwards IPv6 multicast only to ports that asked for the group (RFC 4541), with a querier of its own.
    #[serde(default)]
    pub mld_snooping: bool,
}

/// Role of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs pods; Egret's agent runs here.
    Worker,
    /// Sends and receives for egress addresses; Egret's agent runs here.
    Gateway,
    /// Forwards between all segments; knows no pod prefix.
    Router,
    /// A machine outside the cluster that answers requests.
    Server,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Name, at most 12 characters.
    pub name: String,
    /// Roles; none: a plain machine.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// Links; a router is linked to every segment, the ones named here only change settings.
    #[serde(default)]
    pub links: Vec<Link>,
    /// Prefixes of the pods of this node: at most one per address family.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// How pods that leave the cluster are masqueraded.
    #[serde(default)]
    pub cni: Cni,
    /// Policy of the forward chain.
    #[serde(default)]
    pub forward: Forward,
    /// Reverse path filter of all devices (`net.ipv4.conf.all.rp_filter`).
    #[serde(default)]
    pub rp_filter: RpFilter,
    /// `net.ipv4.conf.all.src_valid_mark`.
    #[serde(default)]
    pub src_valid_mark: bool,
    /// Pods on this node.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// Labels of the Node object in addition to those of the roles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A host's link to a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// Name of the segment.
    pub segment: String,
    /// Whether this link, which is not the first one, leads out of the cluster: default routes use it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub external: bool,
    /// Addresses instead of the automatic ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// MTU of the host's end, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// How pods that leave the cluster get their node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cni {
    /// Rules of iptables, with the nf_tables backend.
    #[default]
    IptablesNft,
    /// Rules of iptables, with the legacy ip_tables backend.
    IptablesLegacy,
    /// A native nftables table.
    Nft,
    /// No masquerading.
    None,
}

/// Policy of the forward chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// All packets are forwarded.
    #[default]
    Accept,
    /// Only traffic between pods and the host's links is forwarded, in the flavour of [`Host::cni`] (`none`: a native
    /// nftables table).
    Drop,
}

/// Reverse path filter (RFC 3704).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RpFilter {
    /// The source is reachable by any device (2).
    #[default]
    Loose,
    /// The source is reachable by the device that the packet came from (1).
    Strict,
}

/// A pod: a network namespace behind a veth pair with host routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Labels of the Pod object.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Last number of its addresses instead of the automatic one, which counts the node's pods from 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u8>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Host {
    /// Whether the host has `role`.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether the host is a node of the cluster, so that an agent runs on it.
    pub fn is_node(&self) -> bool {
        self.has(Role::Worker) || self.has(Role::Gateway)
    }

    /// The link with the address by which other nodes reach this host: the first that is not external.
    pub fn node_link(&self) -> Option<&Link> {
        self.links
            .iter()
            .find(|link| !link.external)
            .or(self.links.first())
    }
}

impl Topology {
    /// The topology without a file: worker1..3 with two selected pods and an unselected one each, gateway1..3, the
    /// router, and a server with two addresses behind it.
    pub fn built_in() -> Self {
        let net = |text: &str| text.parse().expect("a literal prefix");
        let mut hosts = Vec::new();
        for n in 1..=3 {
            let pod = |name: String, app: &str| Pod {
                name,
                namespace: default_namespace(),
                labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
                number: None,
            };
            hosts.push(Host {
                pod_cidrs: vec![
                    net(&format!("10.244.{n}.0/24")),
                    net(&format!("fd00:244:{n}::/64")),
                ],
                pods: vec![
                    pod(format!("a{n}"), "MyApp"),
                    pod(format!("b{n}"), "MyApp"),
                    pod(format!("other{n}"), "Other"),
                ],
                ..Host::plain(&format!("worker{n}"), Role::Worker, &["nodes"])
            });
        }
        for n in 1..=3 {
            hosts.push(Host::plain(
                &format!("gateway{n}"),
                Role::Gateway,
                &["nodes"],
            ));
        }
        hosts.push(Host::plain("router", Role::Router, &[]));
        let mut server = Host::plain("server", Role::Server, &["outside"]);
        server.links[0].addresses = [
            "203.0.113.10",
            "2001:db8:1::10",
            "203.0.113.20",
            "2001:db8:1::20",
        ]
        .map(|text| text.parse().expect("a literal address"))
        .to_vec();
        hosts.push(server);
        let segment = |name: &str, v4: &str, v6: &str| Segment {
            name: name.to_owned(),
            cidrs: vec![net(v4), net(v6)],
            mld_snooping: false,
        };
        Self {
            segments: vec![
                segment("nodes", "192.168.122.0/24", "fd00:122::/64"),
                segment("outside", "203.0.113.0/24", "2001:db8:1::/64"),
            ],
            hosts,
        }
    }

    /// Reads a topology from YAML text and checks it.
    ///
    /// # Errors
    /// Text that is not of this form, or a topology that [`Topology::validate`] rejects.
    pub fn from_yaml(text: &str) -> Result<Self, TopologyError> {
        let topology: Self =
            serde_saphyr::from_str(text).map_err(|error| TopologyError::Yaml(error.to_string()))?;
        topology.validate()?;
        Ok(topology)
    }

    /// Reads a topology from a file and checks it.
    ///
    /// # Errors
    /// An unreadable file, or an error of [`Topology::from_yaml`].
    pub fn from_file(path: &Path) -> Result<Self, TopologyError> {
        let text = std::fs::read_to_string(path).map_err(|source| TopologyError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_yaml(&text)
    }
}

impl Host {
    /// A host with one role, links to `segments`, no pods and the default settings.
    pub fn plain(name: &str, role: Role, segments: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            roles: vec![role],
            links: segments.iter().map(|segment| Link::to(segment)).collect(),
            pod_cidrs: Vec::new(),
            cni: Cni::default(),
            forward: Forward::default(),
            rp_filter: RpFilter::default(),
            src_valid_mark: false,
            pods: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

impl Link {
    /// A link with automatic addresses.
    pub fn to(segment: &str) -> Self {
        Self {
            segment: segment.to_owned(),
            external: false,
            addresses: Vec::new(),
            mtu: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_topology_is_valid_and_survives_yaml() {
        let topology = Topology::built_in();
        topology.validate().unwrap();
        let text = serde_saphyr::to_string(&topology).unwrap();
        assert_eq!(Topology::from_yaml(&text).unwrap(), topology);
    }

    #[test]
    fn the_form_of_the_interface_description_is_read() {
        let topology = Topology::from_yaml(
            "segments: [{name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64], mldSnooping: false}, {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}]\n\
             hosts:\n\
             - {name: worker1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64], cni: iptables-legacy, forward: drop, rpFilter: strict, srcValidMark: false, pods: [{name: a1, namespace: default, labels: {app: MyApp}}]}\n\
             - {name: gateway1, roles: [gateway], links: [{segment: nodes}]}\n\
             - {name: router, roles: [router]}\n\
             - {name: server, roles: [server], links: [{segment: outside}]}\n",
        )
        .unwrap();
        assert_eq!(topology.hosts[0].cni, Cni::IptablesLegacy);
        assert_eq!(topology.hosts[0].forward, Forward::Drop);
        assert_eq!(topology.hosts[0].pods[0].labels["app"], "MyApp");
    }

    #[test]
    fn the_example_in_the_documentation_is_a_topology() {
        let page = include_str!("../../../docs/lab.md");
        let example = page
            .split("```yaml\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        let topology = Topology::from_yaml(example).unwrap();
        assert_eq!(topology.hosts[0].links[0].mtu, Some(1500));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error =
            Topology::from_yaml("segments: []\nhosts: [{name: a, colour: red}]\n").unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }
}
