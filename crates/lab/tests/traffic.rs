//! Traffic in the lab has the sources, sizes and paths that its topology defines. Needs root.

#[path = "fixture/raw_lab.rs"]
mod fixture;

use egret_lab::Topology;
use egret_lab::capture::{Capture, Direction};
use egret_lab::layout::Layout;
use egret_lab::process::wait_for;
use egret_lab::topology::{Cni, Forward, Link, Pod, Role, RpFilter, Segment};
use egret_lab::traffic::ping::{PingError, ping};
use egret_lab::traffic::{
    BusyFlows, IdleFlows, PingOptions, Server, UdpProbe, ping_source, source, tcp_source,
    udp_source,
};
use fixture::*;
use std::time::Duration;

#[test]
fn pods_reach_the_server_with_their_nodes_address_over_all_protocols() {
    let lab = raw("source", &Topology::built_in());
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    for (n, pod) in ["a1", "b2", "other3"].into_iter().enumerate() {
        let place = lab.place(&format!("pod/default/{pod}")).unwrap();
        let worker = lab.layout().unwrap().hosts[n].clone();
        for (server, node) in servers().into_iter().zip(worker.node_addresses()) {
            assert_eq!(tcp_source(&place, echo(server)).unwrap().ip(), node);
            assert_eq!(udp_source(&place, echo(server)).unwrap().ip(), node);
            assert_eq!(ping_source(&place, server).unwrap(), node);
        }
    }
    let place = lab.place("pod/default/a1").unwrap();
    for bytes in [1400, 3000, 20000] {
        for server in servers() {
            let seen = source::udp_echo(&place, echo(server), bytes, DEADLINE).unwrap();
            assert!(
                lab.layout().unwrap().hosts[0]
                    .node_addresses()
                    .any(|node| node == seen.ip())
            );
        }
    }
}

#[test]
fn every_cni_flavour_masquerades_and_a_dropping_forward_policy_lets_pods_through() {
    let mut topology = Topology::built_in();
    let flavours = [Cni::IptablesNft, Cni::IptablesLegacy, Cni::Nft];
    for (host, cni) in topology.hosts.iter_mut().zip(flavours) {
        host.cni = cni;
        host.forward = Forward::Drop;
        host.rp_filter = RpFilter::Strict;
        host.src_valid_mark = true;
    }
    let lab = raw("cni", &topology);
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    for n in 1..=3 {
        let place = lab.place(&format!("pod/default/a{n}")).unwrap();
        let node = format!("192.168.122.1{n}");
        assert_eq!(
            tcp_source(&place, echo(servers()[0])).unwrap().ip(),
            ip(&node)
        );
        let node = format!("fd00:122::1{n}");
        assert_eq!(
            udp_source(&place, echo(servers()[1])).unwrap().ip(),
            ip(&node)
        );
        // Traffic between pods is not translated.
        let other = lab.place(&format!("pod/default/b{}", n % 3 + 1)).unwrap();
        let _listener = Server::start(&other).unwrap();
        let layout = lab.layout().unwrap();
        let (_, pod) = layout.pod("default", &format!("b{}", n % 3 + 1)).unwrap();
        let (_, from) = layout.pod("default", &format!("a{n}")).unwrap();
        for (target, own) in pod.addresses.iter().zip(&from.addresses) {
            assert_eq!(tcp_source(&place, echo(*target)).unwrap().ip(), *own);
        }
    }
}

#[test]
fn without_masquerade_the_pods_own_address_is_captured_at_the_router() {
    let mut topology = Topology::built_in();
    topology.hosts[0].cni = Cni::None;
    let lab = raw("capture", &topology);
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let router = lab.place("router").unwrap();
    let pod_net: ipnet::IpNet = "10.244.1.0/24".parse().unwrap();
    let wrong = move |packet: &egret_lab::capture::Packet| pod_net.contains(&packet.source);
    let capture = Capture::start(&router, "eth0", wrong).unwrap();
    let masked = lab.place("pod/default/a2").unwrap();
    tcp_source(&masked, echo(servers()[0])).unwrap();
    assert_eq!(capture.so_far().clean(), Ok(()));
    let bare = lab.place("pod/default/a1").unwrap();
    let options = PingOptions {
        timeout: Duration::from_millis(200),
        ..PingOptions::default()
    };
    ping(&bare, servers()[0], &options).unwrap_err();
    let report = capture.stop().unwrap();
    assert_eq!(report.dropped, 0);
    assert!(report.offending_count >= 1, "{report:?}");
    assert_eq!(report.offending[0].source, ip("10.244.1.10"));
    assert!(report.clean().unwrap_err().contains("10.244.1.10"));
    assert!(
        report.from_source(ip("192.168.122.12"), Direction::In) >= 3,
        "{report:?}"
    );
}

#[test]
fn flows_report_when_they_break() {
    let lab = raw("broken", &Topology::built_in());
    let server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = lab.place("pod/default/a1").unwrap();
    let idle = IdleFlows::start(&pod, echo(servers()[0]), 3).unwrap();
    let busy = BusyFlows::start(&pod, servers()[0], 1, 1).unwrap();
    let probe = UdpProbe::start(&pod, echo(servers()[0])).unwrap();
    drop(server);
    let idle = idle.stop();
    assert_eq!(idle.broken.len(), 3, "{idle:?}");
    wait_for("transfers to break", DEADLINE, || busy.broken() == 2).unwrap();
    let probe = probe.stop();
    assert!(!probe.errors.is_empty(), "{probe:?}");
    assert_eq!(busy.stop().broken.len(), 2);
    assert!(UdpProbe::start(&pod, echo(servers()[0])).is_err());
    assert!(IdleFlows::start(&pod, echo(servers()[0]), 1).is_err());
}

#[test]
fn a_short_link_behind_the_router_is_reported_to_the_pod() {
    let mut topology = Topology::built_in();
    let router = topology
        .hosts
        .iter_mut()
        .find(|host| host.has(Role::Router))
        .unwrap();
    router.links = vec![Link {
        mtu: Some(1300),
        ..Link::to("outside")
    }];
    let lab = raw("mtu", &topology);
    let pod = lab.place("pod/default/a1").unwrap();
    let options = PingOptions {
        payload_bytes: 1400,
        ..PingOptions::default()
    };
    match ping(&pod, servers()[0], &options) {
        Err(PingError::Icmp {
            kind: 3,
            code: 4,
            rest: 1300,
            ..
        }) => {}
        other => panic!("no fragmentation needed: {other:?}"),
    }
    match ping(&pod, servers()[1], &options) {
        Err(PingError::Icmp {
            kind: 2,
            code: 0,
            rest: 1300,
            ..
        }) => {}
        other => panic!("no packet too big: {other:?}"),
    }
}

#[test]
fn one_host_with_both_roles_and_a_second_external_link_work() {
    let mut topology = Topology::built_in();
    topology
        .hosts
        .retain(|host| !host.name.ends_with(['2', '3']) && host.name != "gateway1");
    topology.segments.push(Segment {
        name: "edge".to_owned(),
        cidrs: vec![
            "198.51.100.0/24".parse().unwrap(),
            "2001:db8:2::/64".parse().unwrap(),
        ],
        mld_snooping: true,
    });
    let node = &mut topology.hosts[0];
    node.roles = vec![Role::Worker, Role::Gateway];
    node.links.push(Link {
        external: true,
        ..Link::to("edge")
    });
    node.pods.push(Pod {
        name: "b".to_owned(),
        namespace: "second".to_owned(),
        labels: Default::default(),
        number: None,
    });
    let lab = raw("single", &topology);
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = lab.place("pod/second/b").unwrap();
    assert_eq!(
        tcp_source(&pod, echo(servers()[0])).unwrap().ip(),
        ip("198.51.100.11")
    );
    assert_eq!(
        ping_source(&pod, servers()[1]).unwrap(),
        ip("2001:db8:2::11")
    );
}

#[test]
fn two_labs_with_the_same_addresses_do_not_meet() {
    let (one, two) = (
        raw("one", &Topology::built_in()),
        raw("two", &Topology::built_in()),
    );
    let _server = Server::start(&one.place("server").unwrap()).unwrap();
    let target = echo(servers()[0]);
    assert!(tcp_source(&one.place("pod/default/a1").unwrap(), target).is_ok());
    assert!(tcp_source(&two.place("pod/default/a1").unwrap(), target).is_err());
    assert_eq!(one.layout().unwrap(), Layout::of(&Topology::built_in()));
}
#[test]
fn a_snooping_segment_keeps_solicitations_from_hosts_that_did_not_join() {
    for snooping in [true, false] {
        let mut topology = Topology::built_in();
        topology.segments[0].mld_snooping = snooping;
        let lab = raw(if snooping { "snoop" } else { "flood" }, &topology);
        let asking = lab.place("worker1").unwrap();
        let other = lab.place("worker2").unwrap();
        let options = PingOptions {
            timeout: Duration::from_millis(50),
            ..PingOptions::default()
        };
        // No host has this address, so none joined its solicited-node group ff02::1:ff00:99.
        let group = ip("ff02::1:ff00:99");
        let is_heard = || {
            let capture = Capture::start(&other, "eth0", move |packet| packet.destination == group);
            ping(&asking, ip("fd00:122::99"), &options).unwrap_err();
            let report = capture.unwrap().stop().unwrap();
            assert_eq!(report.dropped, 0);
            report.offending_count > 0
        };
        // A snooping bridge floods until its querier has run for a second.
        wait_for("the bridge to do as it is told", DEADLINE, || {
            is_heard() != snooping
        })
        .unwrap();
        ping(&asking, ip("fd00:122::12"), &PingOptions::default()).unwrap();
    }
}
