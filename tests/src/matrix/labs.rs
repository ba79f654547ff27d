//! Groups cells into labs: nodes of different settings share a lab, pods of different policies and marks share a node.

use super::cells::{Cell, ExternalLink, Ground, Marks, Node, Nodes, Policy, Underlay};
use crate::cluster::pod;
use egret_lab::topology::{Host, Link, Role, Segment};
use egret_lab::{Topology, layout::POD_DEVICE_PREFIX};
use std::net::IpAddr;

/// Most nodes with pods in one lab: each has an agent, and the machine is small.
const WORKERS_MAX: usize = 8;
/// Most pods in one lab: each sends continuously, in both families.
const PODS_MAX: usize = 24;
/// Gateways of a lab of many nodes.
const GATEWAYS: usize = 2;

/// A pod and its environment.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// Name.
    pub name: String,
    /// Its device on the node.
    pub device: String,
    /// Marks on its packets.
    pub marks: Marks,
    /// Its policy.
    pub policy: Policy,
}

/// A node with pods.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Name.
    pub name: String,
    /// Its settings.
    pub node: Node,
    /// Its selected pods.
    pub pods: Vec<PodPlan>,
}

impl NodePlan {
    /// A pod that no policy selects, and its device.
    pub fn unselected(&self) -> (String, String) {
        let name = self.name.replace("node", "u");
        (name, device(self.pods.len()))
    }
}

/// The lab counts devices of pods like their addresses, from 10.
fn device(place: usize) -> String {
    format!("{POD_DEVICE_PREFIX}{}", 10 + place)
}

/// A lab for some cells.
#[derive(Debug, Clone)]
pub struct LabPlan {
    /// Factors that all its cells share.
    pub ground: Ground,
    /// Number among the labs of the same ground.
    pub number: usize,
    /// Nodes with pods.
    pub nodes: Vec<NodePlan>,
}

/// Labs for all these cells.
pub fn of(cells: &[Cell]) -> Vec<LabPlan> {
    let mut labs: Vec<LabPlan> = Vec::new();
    for cell in cells {
        let room = match cell.ground.nodes {
            Nodes::Many => (PODS_MAX / pods_of_node(cells, cell)).clamp(1, WORKERS_MAX),
            Nodes::One => 1,
        };
        let fits = |lab: &&mut LabPlan| {
            let mut nodes = lab.nodes.iter();
            lab.ground == cell.ground
                && (lab.nodes.len() < room || nodes.any(|plan| plan.node == cell.node))
        };
        let number = labs.iter().filter(|lab| lab.ground == cell.ground).count();
        let lab = match labs.iter_mut().find(fits) {
            Some(lab) => lab,
            None => {
                labs.push(LabPlan {
                    ground: cell.ground,
                    number,
                    nodes: Vec::new(),
                });
                labs.last_mut().expect("one was pushed")
            }
        };
        lab.add(cell);
    }
    labs
}

/// Number of cells that share this one's node.
fn pods_of_node(cells: &[Cell], cell: &Cell) -> usize {
    let same = |one: &&Cell| one.ground == cell.ground && one.node == cell.node;
    cells.iter().filter(same).count()
}

impl LabPlan {
    fn add(&mut self, cell: &Cell) {
        let number = self.nodes.len() + 1;
        let at = self.nodes.iter().position(|plan| plan.node == cell.node);
        let at = at.unwrap_or(self.nodes.len());
        if at == self.nodes.len() {
            self.nodes.push(NodePlan {
                name: format!("node{number}"),
                node: cell.node,
                pods: Vec::new(),
            });
        }
        let plan = &mut self.nodes[at];
        let place = plan.pods.len();
        plan.pods.push(PodPlan {
            name: format!("p{}x{place}", at + 1),
            device: device(place),
            marks: cell.marks,
            policy: cell.policy,
        });
    }

    /// Name for people.
    pub fn name(&self) -> String {
        let Ground {
            nodes,
            external,
            underlay,
            mld_snooping,
        } = self.ground;
        let nodes = match nodes {
            Nodes::Many => "many",
            Nodes::One => "one",
        };
        let external = match external {
            ExternalLink::NodeSegment => "node_segment",
            ExternalLink::OwnInterface => "own_interface",
        };
        let underlay = match underlay {
            Underlay::Dual => "dual",
            Underlay::Ipv6 => "ipv6",
        };
        let snooping = if mld_snooping { "snooping" } else { "flooding" };
        format!("{nodes}_{external}_{underlay}_{snooping}_{}", self.number)
    }

    /// One line for each cell.
    pub fn describe(&self) -> Vec<String> {
        let lines = self.nodes.iter().flat_map(|plan| {
            plan.pods.iter().map(move |pod| {
                let Node {
                    cni,
                    forward,
                    rp_filter,
                    src_valid_mark,
                } = plan.node;
                format!(
                    "{}/{}: {cni:?}, forward {forward:?}, rp_filter {rp_filter:?}, src_valid_mark {}, marks {:?}, policy {:?}",
                    plan.name, pod.name, u8::from(src_valid_mark), pod.marks, pod.policy
                )
            })
        });
        lines.collect()
    }

    /// Pods with their nodes.
    pub fn pods(&self) -> impl Iterator<Item = (&NodePlan, &PodPlan)> {
        let nodes = self.nodes.iter();
        nodes.flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }

    /// Gateways.
    pub fn gateways(&self) -> Vec<String> {
        match self.ground.nodes {
            Nodes::Many => (1..=GATEWAYS).map(|n| format!("gateway{n}")).collect(),
            Nodes::One => vec![self.nodes[0].name.clone()],
        }
    }

    /// Every node with an agent.
    pub fn agents(&self) -> Vec<String> {
        let mut names: Vec<String> = self.nodes.iter().map(|plan| plan.name.clone()).collect();
        names.extend(self.gateways());
        names.sort();
        names.dedup();
        names
    }

    /// Egress addresses of a policy; with `edited` other ones, for a policy that is changed.
    pub fn addresses(&self, policy: Policy, edited: bool) -> Vec<IpAddr> {
        let networks = match self.ground.external {
            ExternalLink::NodeSegment => ["192.168.122.", "fd00:122::"],
            ExternalLink::OwnInterface => ["198.51.100.", "2001:db8:2::"],
        };
        let (families, number): (&[usize], u8) = match policy {
            Policy::Dual => (&[0, 1], 222),
            Policy::Ipv4 => (&[0], 223),
            Policy::Ipv6 => (&[1], 224),
        };
        let number = number + if edited { 10 } else { 0 };
        let text = families.iter().map(|n| format!("{}{number}", networks[*n]));
        text.map(|text| text.parse().expect("an address")).collect()
    }

    /// Policies of the lab's pods.
    pub fn policies(&self) -> Vec<Policy> {
        let mut policies: Vec<Policy> = self.pods().map(|(_, pod)| pod.policy).collect();
        policies.sort();
        policies.dedup();
        policies
    }

    /// The lab's topology. Gateways have the settings of the first nodes: theirs matter as well.
    pub fn topology(&self) -> Topology {
        let is_one = self.ground.nodes == Nodes::One;
        let mut hosts: Vec<Host> = Vec::new();
        for (n, plan) in (1..).zip(&self.nodes) {
            let mut host = configured(&plan.name, Role::Worker, plan.node);
            host.pod_cidrs = [format!("10.244.{n}.0/24"), format!("fd00:244:{n}::/64")]
                .map(|text| text.parse().expect("a prefix"))
                .to_vec();
            let app = |policy: Policy| format!("{policy:?}");
            let pods = plan.pods.iter();
            host.pods = pods.map(|one| pod(&one.name, &app(one.policy))).collect();
            host.pods.push(pod(&plan.unselected().0, "Other"));
            if is_one {
                host.roles.push(Role::Gateway);
            }
            hosts.push(host);
        }
        if !is_one {
            for (n, name) in self.gateways().iter().enumerate() {
                let node = self.nodes[n % self.nodes.len()].node;
                hosts.push(configured(name, Role::Gateway, node));
            }
        }
        if self.ground.external == ExternalLink::OwnInterface {
            for host in hosts.iter_mut().filter(|host| host.has(Role::Gateway)) {
                host.links.push(Link {
                    external: true,
                    ..Link::to("edge")
                });
            }
        }
        hosts.push(Host::plain("router", Role::Router, &[]));
        let mut server = Host::plain("server", Role::Server, &["outside"]);
        let policies = [Policy::Dual, Policy::Ipv4, Policy::Ipv6].into_iter();
        server.links[0].addresses = policies.flat_map(servers).collect();
        hosts.push(server);
        Topology {
            segments: self.segments(),
            hosts,
        }
    }

    fn segments(&self) -> Vec<Segment> {
        let segment = |name: &str, cidrs: &[&str], mld_snooping: bool| Segment {
            name: name.to_owned(),
            cidrs: cidrs
                .iter()
                .map(|text| text.parse().expect("a prefix"))
                .collect(),
            mld_snooping,
        };
        let nodes: &[&str] = match self.ground.underlay {
            Underlay::Dual => &["192.168.122.0/24", "fd00:122::/64"],
            Underlay::Ipv6 => &["fd00:122::/64"],
        };
        let snooping = self.ground.mld_snooping;
        let mut segments = vec![
            segment("nodes", nodes, snooping),
            segment("outside", &["203.0.113.0/24", "2001:db8:1::/64"], false),
        ];
        if self.ground.external == ExternalLink::OwnInterface {
            let edge = ["198.51.100.0/24", "2001:db8:2::/64"];
            segments.push(segment("edge", &edge, snooping));
        }
        segments
    }
}

/// The server's addresses that only pods of this policy talk to: a packet at the router identifies its policy by its
/// destination, whatever its protocol.
pub fn servers(policy: Policy) -> [IpAddr; 2] {
    let number = match policy {
        Policy::Dual => 10,
        Policy::Ipv4 => 11,
        Policy::Ipv6 => 12,
    };
    [
        format!("203.0.113.{number}"),
        format!("2001:db8:1::{number}"),
    ]
    .map(|text| text.parse().expect("an address"))
}

fn configured(name: &str, role: Role, node: Node) -> Host {
    Host {
        cni: node.cni,
        forward: node.forward,
        rp_filter: node.rp_filter,
        src_valid_mark: node.src_valid_mark,
        ..Host::plain(name, role, &["nodes"])
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;

    #[test]
    fn every_cell_has_a_pod_and_every_lab_can_be_built() {
        for cells in [cells::pairwise(), cells::all()] {
            let labs = of(&cells);
            let pods: usize = labs.iter().map(|lab| lab.pods().count()).sum();
            assert_eq!(pods, cells.len());
            let mut names: Vec<String> = labs.iter().map(LabPlan::name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), labs.len());
            for lab in &labs {
                lab.topology().validate().unwrap();
                assert!(lab.pods().count() <= PODS_MAX, "{}", lab.name());
            }
        }
    }

    #[test]
    fn the_pairs_need_few_labs() {
        let labs = of(&cells::pairwise());
        assert!(labs.len() <= 12, "{} labs", labs.len());
    }
}
