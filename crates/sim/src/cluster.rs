//! Objects of the simulated cluster by their numbers.

use crate::script::Cluster;
use egret_core::model::*;
use egret_core::numbers::{BLOCK_PORTS, LEASE_PORT_FIRST};
use std::net::{IpAddr, Ipv4Addr};

/// Seconds that a released block rests.
pub const HOLD_DOWN_SECS: u64 = 120;

pub fn node_name(node: usize) -> NodeName {
    NodeName(format!("node{node}"))
}

pub fn egress_address(address: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, octet(10 + address)))
}

pub fn destination(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, octet(number)))
}

/// Address of a machine; every machine that ever was has another.
pub fn underlay(machine: usize) -> IpAddr {
    let machine = u16::try_from(machine).expect("few machines");
    let [high, low] = machine.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 1, high, low))
}

pub fn pod_key(pod: usize) -> (String, String) {
    ("default".to_owned(), format!("pod{pod}"))
}

/// Address of the pod on this node.
pub fn pod_address(pod: usize, node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, octet(node), octet(10 + pod)))
}

/// The policy that selects the pod.
pub fn policy_of(cluster: &Cluster, pod: usize) -> usize {
    pod % cluster.policies()
}

fn octet(number: usize) -> u8 {
    u8::try_from(number).expect("scripts name few objects")
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector(vec![Requirement::In(
        key.to_owned(),
        [value.to_owned()].into(),
    )])
}

pub fn node(cluster: &Cluster, node: usize, machine: usize) -> Node {
    let role = if cluster.is_gateway(node) {
        "gateway"
    } else {
        "worker"
    };
    Node {
        name: node_name(node),
        labels: [("role".to_owned(), role.to_owned())].into(),
        addresses: vec![underlay(machine)],
        pod_cidrs: vec![format!("10.244.{node}.0/24").parse().expect("a prefix")],
        maintenance: Maintenance::default(),
    }
}

/// The pod; `life` tells pods of one name apart.
pub fn pod(cluster: &Cluster, pod: usize, node: usize, life: usize) -> Pod {
    let (namespace, name) = pod_key(pod);
    Pod {
        namespace,
        uid: format!("{name}-{life}"),
        name,
        labels: [(
            "app".to_owned(),
            format!("policy{}", policy_of(cluster, pod)),
        )]
        .into(),
        node: node_name(node),
        addresses: vec![pod_address(pod, node)],
        owner: None,
        host_network: false,
        finished: false,
    }
}

pub fn policy(number: usize, address: usize, generation: i64) -> Policy {
    let object = ObjectRef {
        kind: Kind::Egress,
        namespace: "default".to_owned(),
        name: format!("policy{number}"),
    };
    let selection = Selection::Labels {
        namespaces: Namespaces::Names(["default".to_owned()].into()),
        pods: selector("app", &format!("policy{number}")),
        nodes: None,
    };
    let addresses = AddressRequest::Fixed(vec![egress_address(address)]);
    Policy {
        uid: format!("policy{number}"),
        generation,
        ..Policy::new(object, selection, addresses)
    }
}

/// The objects of a cluster at its beginning: no pods, no records. Policy n has address n; the last one shares the first.
pub fn snapshot(cluster: &Cluster) -> Snapshot {
    let settings = Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: Vec::new(),
        hold_down_secs: HOLD_DOWN_SECS,
    };
    let mut snapshot = Snapshot::empty(settings);
    let name = GatewayName("main".to_owned());
    let outbound = match cluster.announcer_only {
        true => Outbound::Announcer,
        false => Outbound::AnyGateway,
    };
    let gateway = Gateway {
        outbound,
        initial_ports: cluster.ports,
        ..Gateway::new(name.clone(), selector("role", "gateway"))
    };
    snapshot.gateways.insert(name, gateway);
    for number in 0..cluster.nodes() {
        let node = node(cluster, number, number);
        snapshot.nodes.insert(node.name.clone(), node);
    }
    if cluster.free > 0 {
        let elsewhere = elsewhere();
        snapshot.nodes.insert(elsewhere.name.clone(), elsewhere);
        for address in 0..cluster.addresses {
            let record = full_record(egress_address(address), cluster.free);
            snapshot.addresses.insert(record.address, record);
        }
    }
    let policies = (0..cluster.policies()).map(|n| policy(n, n % cluster.addresses, 1));
    for policy in policies {
        snapshot.policies.push(policy);
    }
    snapshot
}

/// Name of a node without a machine, whose ports drain for ever.
pub const ELSEWHERE: &str = "elsewhere";

fn elsewhere() -> Node {
    Node {
        name: NodeName(ELSEWHERE.to_owned()),
        labels: Labels::new(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1))],
        pod_cidrs: Vec::new(),
        maintenance: Maintenance::default(),
    }
}

/// A record whose blocks are all the node's elsewhere, but for the last ones.
fn full_record(address: IpAddr, free: usize) -> AddressRecord {
    let free = u16::try_from(free).expect("fewer than all");
    let ranges = vec![PortRange {
        first: LEASE_PORT_FIRST,
        last: u16::MAX - free * BLOCK_PORTS,
    }];
    let lease = Lease {
        node: NodeName(ELSEWHERE.to_owned()),
        ranges,
        epoch: 1,
        withdrawn: Some(1),
        state: LeaseState::Draining,
        since_secs: 0,
    };
    AddressRecord {
        epoch: 1,
        leases: vec![lease],
        resource_version: 1,
        ..AddressRecord::new(address, GatewayName("main".to_owned()))
    }
}
