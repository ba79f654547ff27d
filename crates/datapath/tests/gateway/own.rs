//! The programs together with the node's own ruleset: packets for the gateway itself, and flows of the gateway's own
//! pods, by a plain external device and by a bridge whose frames netfilter sees.
//!
//! ```text
//!  pod 10.244.2.5 --pp/pg-- [gateway: ruleset, programs] ge 203.0.113.2 (or: br0, of which ge is a port) -- outside
//! ```

use crate::namespaces::{Net, wait};
use crate::packets::{tunnelled, udp, untunnelled};
use crate::site::{EGRESS, GATEWAY, OUTSIDE, OWN, Site, receive, state, underlay};
use egret_core::model::PortRange;
use egret_core::node::*;
use egret_datapath::gateway::GatewayDriver;
use egret_datapath::worker;
use egret_kernel::nft::Nftables;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};

const POD: [&str; 2] = ["10.244.2.5", "fd00:244:2::5"];
/// Addresses of the gateway on another device than the external one: on a loopback, as keepalived and others use them.
const FURTHER: [&str; 2] = ["198.51.100.77", "2001:db8:77::77"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The gateway's own ruleset; its pod is selected for everything outside, with the ports of its own block.
fn ruleset(device: &str) -> NodeState {
    let targets = [0, 1].map(|family| Target {
        address: ip(EGRESS[family]),
        group: 1,
        ranges: vec![PortRange {
            first: 1152,
            last: 1215,
        }],
        traffic_key: TrafficKeyId(family as u64 + 1),
        quotas: Default::default(),
    });
    let all = |family: usize| DestinationRange {
        first: ip(["0.0.0.0", "::"][family]),
        last: ip(["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"][family]),
        protocol: None,
        port_first: 0,
        port_last: 65535,
        verdict: Verdict::Target(TargetId(family as u64 + 1)),
    };
    let profile = Profile {
        ranges: vec![all(0), all(1)],
        portless: Vec::new(),
    };
    let peers = [11, 12, 13].map(|index| {
        let peer = Peer::new(format!("worker{index}"), underlay(false, index));
        (index, peer)
    });
    let mut gateway = state(false);
    gateway.external_device = device.to_owned();
    NodeState {
        tunnel: Tunnel::new(OWN, underlay(false, OWN), crate::site::MTU),
        peers: BTreeMap::from(peers),
        node_addresses: BTreeSet::from([underlay(false, OWN)]),
        worker: WorkerState {
            groups: BTreeMap::from([(
                1,
                Group::Local {
                    device: device.to_owned(),
                },
            )]),
            targets: (1..).map(TargetId).zip(targets).collect(),
            profiles: BTreeMap::from([(ProfileId(9), profile)]),
            pods: POD.map(|pod| (ip(pod), ProfileId(9))).into_iter().collect(),
            egress_addresses: EGRESS.map(ip).into(),
            ..WorkerState::default()
        },
        gateway: Some(gateway),
    }
}

struct Node {
    site: Site,
    pod: Net,
    nft: Nftables,
}

impl Node {
    fn new(bridge: bool) -> Self {
        let mut site = Site::new();
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/egret0/rp_filter", "0"),
            ("ipv4/conf/ge/rp_filter", "0"),
        ] {
            let path = format!("/proc/sys/net/{setting}");
            site.gateway.write(&path, value);
        }
        let pod = Net::new();
        let gateway = &site.gateway;
        gateway.ip(&format!(
            "link add pg type veth peer name pp netns {}",
            pod.path()
        ));
        gateway.ip("link set pg up");
        pod.ip("link set pp up");
        for (family, bits) in [(0, 32), (1, 128)] {
            let (own, beside) = (POD[family], ["10.244.2.1", "fd00:244:2::1"][family]);
            gateway.ip(&format!("address add {beside}/{bits} dev pg"));
            gateway.ip(&format!("route add {own} dev pg"));
            gateway.ip(&format!("address add {}/{bits} dev lo", FURTHER[family]));
            pod.ip(&format!("address add {own}/{bits} dev pp"));
            pod.ip(&format!("route add {beside} dev pp"));
            pod.ip(&format!("route add default via {beside}"));
        }
        if bridge {
            under_a_bridge(&mut site);
        }
        let mut nft = Nftables::open("egret").unwrap();
        let device = if bridge { "br0" } else { "ge" };
        nft.apply(&worker::table(&ruleset(device))).unwrap();
        Self { site, pod, nft }
    }

    fn dropped(&mut self, name: &str) -> u64 {
        self.nft.counters().unwrap()[name]
    }

    fn socket(&self, net: &Net, address: SocketAddr) -> UdpSocket {
        let socket = net.run(|| wait("a socket", || UdpSocket::bind(address).ok()));
        let patience = Some(crate::namespaces::PATIENCE);
        socket.set_read_timeout(patience).unwrap();
        socket
    }
}

/// Makes the external device a port of a bridge that has its addresses, and netfilter sees the bridge's frames.
fn under_a_bridge(site: &mut Site) {
    let gateway = &site.gateway;
    gateway.ip("link add br0 address 02:00:00:00:ee:02 type bridge");
    gateway.ip("address flush dev ge");
    gateway.ip("link set ge address 02:00:00:00:ee:03 master br0");
    gateway.ip("link set br0 up");
    for (address, bits) in GATEWAY.into_iter().zip([24, 64]) {
        gateway.ip(&format!("address add {address}/{bits} dev br0"));
    }
    for family in ["iptables", "ip6tables"] {
        let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
        gateway.write(&setting, "1");
    }
    gateway.write("/proc/sys/net/ipv4/conf/br0/rp_filter", "0");
    site.config.external_ifindex = nix::net::if_::if_nametoindex("br0").unwrap();
    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    site.driver.apply(&state(false), OWN).unwrap();
}

/// Flows of another node's pods, and of the gateway's own.
fn all_flows_go_there_and_back(bridge: bool) {
    let node = Node::new(bridge);
    let site = &node.site;
    for family in [0, 1] {
        let (worker, server) = (site.worker(11), site.server(family, 9000));
        let question = udp(
            (EGRESS[family], 1024),
            (OUTSIDE[family], 9000),
            64,
            b"question",
        );
        let tunnel = site.tunnel();
        worker
            .send_to(&tunnelled(11, OWN, &question), tunnel)
            .unwrap();
        let (_, from) = receive(&server);
        assert_eq!((from.ip(), from.port()), (ip(EGRESS[family]), 1024));
        server.send_to(b"answer", from).unwrap();
        assert_eq!(untunnelled(&receive(&worker).0).payload, b"answer");

        let own = node.socket(&node.pod, SocketAddr::new(ip(POD[family]), 4000));
        own.send_to(b"own", (OUTSIDE[family], 9000)).unwrap();
        let (bytes, from) = receive(&server);
        assert_eq!((&bytes[..], from.ip()), (&b"own"[..], ip(EGRESS[family])));
        assert!((1152..1216).contains(&from.port()), "{from}");
        server.send_to(b"for it", from).unwrap();
        assert_eq!(receive(&own).0, b"for it");
    }
}

#[test]
fn flows_of_every_node_come_back_by_a_plain_device() {
    all_flows_go_there_and_back(false);
}

#[test]
fn flows_of_every_node_come_back_by_a_bridge_that_netfilter_sees() {
    all_flows_go_there_and_back(true);
}

/// Packets for a block of the gateway's own that belong to no flow of its pods are dropped.
fn what_belongs_to_no_flow_is_dropped(bridge: bool) {
    let mut node = Node::new(bridge);
    for family in [0, 1] {
        let server = node.site.server(family, 9000);
        server.send_to(b"nobody's", (EGRESS[family], 1152)).unwrap();
        wait("the drop", || {
            (node.dropped("unsolicited") == 1 + family as u64).then_some(())
        });
    }
    assert_eq!(node.site.counter("in_self"), 2);
    assert_eq!(node.site.counter("out_forwarded"), 0);
}

#[test]
fn unsolicited_packets_are_dropped_at_a_plain_device() {
    what_belongs_to_no_flow_is_dropped(false);
}

#[test]
fn unsolicited_packets_are_dropped_at_a_bridge() {
    what_belongs_to_no_flow_is_dropped(true);
}

#[test]
fn what_is_for_the_gateway_itself_goes_to_its_stack() {
    let mut node = Node::new(false);
    let mut times = 0;
    for (address, family) in [
        (GATEWAY[0], 0),
        (GATEWAY[1], 1),
        (FURTHER[0], 0),
        (FURTHER[1], 1),
    ] {
        let server = node.socket(&node.site.gateway, SocketAddr::new(ip(address), 9000));
        let worker = node.site.worker(11);
        // With hop limit 1 it is not forwarded.
        let question = udp((EGRESS[family], 1024), (address, 9000), 1, b"question");
        let tunnel = node.site.tunnel();
        worker
            .send_to(&tunnelled(11, OWN, &question), tunnel)
            .unwrap();
        let (bytes, from) = receive(&server);
        assert_eq!(
            (&bytes[..], from.ip()),
            (&b"question"[..], ip(EGRESS[family]))
        );
        times += 1;
        assert_eq!(node.site.counter("out_local"), times);

        // Only with a port of its own block.
        let forged = udp((EGRESS[family], 1088), (address, 9000), 64, b"forged");
        worker
            .send_to(&tunnelled(11, OWN, &forged), tunnel)
            .unwrap();
        node.site.wait_counter("out_spoofed", times);
    }
    assert_eq!(node.site.counter("out_forwarded"), 0);
    assert_eq!(node.dropped("unsolicited"), 0);
}

#[test]
fn packets_to_a_neighbour_that_nobody_is_are_told_of() {
    let node = Node::new(false);
    let site = &node.site;
    for (family, nobody) in ["203.0.113.77", "2001:db8:e::77"].into_iter().enumerate() {
        let lost = udp((EGRESS[family], 1024), (nobody, 9000), 64, b"lost");
        let lost = tunnelled(11, OWN, &lost);
        site.worker(11).send_to(&lost, site.tunnel()).unwrap();
        site.wait_counter("out_unresolved", 1 + family as u64);
    }
    // Where the neighbour is known no ICMP error is sent.
    let server = site.server(0, 9000);
    let before = |site: &Site| site.counter("out_unresolved");
    let send = |bytes: &[u8]| {
        let question = udp((EGRESS[0], 1024), (OUTSIDE[0], 9000), 64, bytes);
        let question = tunnelled(11, OWN, &question);
        site.worker(11).send_to(&question, site.tunnel()).unwrap();
        assert_eq!(receive(&server).0, bytes);
    };
    send(b"first");
    let known = before(site);
    send(b"second");
    assert_eq!(before(site), known);
}
