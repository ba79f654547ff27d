//! A worker's state and a cluster of any size.

use egret_core::model::*;
use egret_core::node::{
    DestinationRange, Group, NodeState, Peer, Profile, ProfileId, Target, TargetId, TrafficKeyId,
    Tunnel, Verdict, WorkerState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Address of the pod with this number.
pub fn pod_address(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + number as u32))
}

/// State of a worker with this number of selected pods.
pub fn worker(pods: usize) -> NodeState {
    let any = |verdict| DestinationRange {
        first: ip("0.0.0.0"),
        last: ip("255.255.255.255"),
        protocol: None,
        port_first: 0,
        port_last: 65_535,
        verdict,
    };
    let profile = Profile {
        ranges: vec![any(Verdict::Target(TargetId(1)))],
        portless: vec![(ip("0.0.0.0"), ip("255.255.255.255"))],
    };
    let target = Target {
        address: ip("192.168.122.222"),
        group: 1,
        ranges: vec![PortRange {
            first: 1024,
            last: 2047,
        }],
        traffic_key: TrafficKeyId(1),
        quotas: Default::default(),
    };
    NodeState {
        tunnel: Tunnel::new(1, ip("192.168.122.11"), 1450),
        peers: BTreeMap::from([(
            7,
            Peer {
                gateway: true,
                ..Peer::new("gateway1", ip("192.168.122.21"))
            },
        )]),
        node_addresses: BTreeSet::from([ip("192.168.122.11"), ip("192.168.122.21")]),
        worker: WorkerState {
            never: ["10.96.0.0/12", "127.0.0.0/8"]
                .iter()
                .map(|net| net.parse().expect("a literal prefix"))
                .collect(),
            throw: BTreeSet::new(),
            next_hops: BTreeMap::new(),
            groups: BTreeMap::from([(1, Group::Tunnel(BTreeSet::from([7])))]),
            targets: BTreeMap::from([(TargetId(1), target)]),
            profiles: BTreeMap::from([(ProfileId(1), profile)]),
            pods: (0..pods).map(|n| (pod_address(n), ProfileId(1))).collect(),
            egress_addresses: BTreeSet::from([ip("192.168.122.222")]),
            reinject: BTreeSet::new(),
            keep_uplinks: false,
            devices: BTreeMap::new(),
            unknown: None,
            namespaces: BTreeMap::new(),
            flow_ports: None,
            canary: None,
        },
        gateway: None,
    }
}

fn labels(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into_iter().collect()
}

fn with_label(key: &str, value: &str) -> LabelSelector {
    let one = Requirement::In(key.into(), [value.to_owned()].into());
    LabelSelector([one].into_iter().collect())
}

/// Cluster of `nodes` nodes with `pods_per_node` pods each, three gateways, and a policy for each of `policies` sets of
/// pods.
pub fn cluster(nodes: usize, pods_per_node: usize, policies: usize) -> Snapshot {
    let settings = Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a literal prefix")],
        hold_down_secs: 120,
    };
    let all: Vec<Policy> = (0..policies).map(policy).collect();
    let mut snapshot = Snapshot {
        policies: all.into(),
        gateways: BTreeMap::from([(GatewayName("main".into()), gateway())]),
        ..Snapshot::empty(settings)
    };
    for number in 0..nodes + 3 {
        let role = if number < nodes { "worker" } else { "gateway" };
        let name = NodeName(format!("node{number:05}"));
        let address = Ipv4Addr::from(0xac10_0001 + number as u32);
        let node = Node {
            name: name.clone(),
            labels: labels("role", role),
            addresses: vec![address.into()],
            pod_cidrs: Vec::new(),
            maintenance: Maintenance::default(),
        };
        snapshot.nodes.insert(name.clone(), node);
        let mine = if number < nodes { pods_per_node } else { 0 };
        for index in 0..mine {
            let pod = pod(&name, number * pods_per_node + index, policies);
            let key = (pod.namespace.clone(), pod.name.clone());
            snapshot.pods.insert(key, pod);
        }
    }
    snapshot
}

/// Pod with this number, in namespace and set `number modulo policies`.
pub fn pod(node: &NodeName, number: usize, policies: usize) -> Pod {
    let set = number % policies;
    Pod {
        namespace: format!("ns{}", set % 100),
        name: format!("pod-{number}"),
        uid: format!("uid-{number}"),
        labels: labels("app", &format!("app{set}")),
        node: node.clone(),
        addresses: vec![pod_address(number)],
        owner: None,
        host_network: false,
        finished: false,
    }
}

fn policy(number: usize) -> Policy {
    let namespace = format!("ns{}", number % 100);
    let object = ObjectRef {
        kind: Kind::Egress,
        namespace: namespace.clone(),
        name: format!("p{number}"),
    };
    let selection = Selection::Labels {
        namespaces: Namespaces::Names([namespace].into()),
        pods: with_label("app", &format!("app{number}")),
        nodes: None,
    };
    let address = Ipv4Addr::from(0xc612_0001 + number as u32).into();
    Policy {
        uid: format!("uid-p{number}"),
        generation: 1,
        created_secs: 100,
        ..Policy::new(object, selection, AddressRequest::Fixed(vec![address]))
    }
}

fn gateway() -> Gateway {
    Gateway {
        generation: 1,
        default: true,
        ..Gateway::new(GatewayName("main".into()), with_label("role", "gateway"))
    }
}
