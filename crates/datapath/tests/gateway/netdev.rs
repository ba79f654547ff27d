//! Real packets through the nftables fallback, on the same site as the eBPF programs, which are removed first.

use crate::namespaces::wait;
use crate::packets::{fragments, icmp, tunnelled, udp, untunnelled};
use crate::site::{EGRESS, GATEWAY, OUTSIDE, OWN, Site, nothing_waits, ping, receive, state};
use egret_datapath::gateway::netdev::{NetdevError, NetdevGateway};
use egret_datapath::gateway::{Attachment, GatewayDriver};
use egret_wire::probe::{Kind, PORT, Probe};

struct Fallback {
    site: Site,
    gateway: NetdevGateway,
}

impl Fallback {
    fn new(underlay_v6: bool) -> Self {
        let site = Site::with(underlay_v6, Attachment::supported());
        assert!(GatewayDriver::remove(&site.pins).unwrap());
        let mut gateway = NetdevGateway::open(&site.config).unwrap();
        assert_eq!(gateway.version(), 0);
        let announced = gateway.apply(&state(underlay_v6), OWN).unwrap();
        assert_eq!((announced.len(), gateway.version()), (2, 77));
        Self { site, gateway }
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.gateway.counters().unwrap()[name]
    }

    fn wait_counter(&mut self, name: &str, value: u64) {
        wait(&format!("{name} = {value}"), || {
            (self.counter(name) == value).then_some(())
        });
    }

    fn send(&self, from: u16, claimed: u16, packet: &[u8]) {
        let bytes = tunnelled(claimed, OWN, packet);
        let worker = self.site.worker(from);
        worker.send_to(&bytes, self.site.tunnel()).unwrap();
    }
}

fn out_and_back(mut it: Fallback) {
    for family in [0, 1] {
        let (worker, server) = (it.site.worker(11), it.site.server(family, 9000));
        let request = udp(
            (EGRESS[family], 1024),
            (OUTSIDE[family], 9000),
            64,
            b"question",
        );
        worker
            .send_to(&tunnelled(11, OWN, &request), it.site.tunnel())
            .unwrap();
        let (bytes, from) = receive(&server);
        assert_eq!(&bytes[..], b"question");
        assert_eq!(
            (from.ip().to_string(), from.port()),
            (EGRESS[family].to_owned(), 1024)
        );
        server.send_to(b"answer", from).unwrap();
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!(
            seen.macs,
            (egret_wire::tunnel_mac(11), egret_wire::tunnel_mac(OWN))
        );
        assert_eq!(
            (seen.source, seen.ports),
            (OUTSIDE[family].parse().unwrap(), (9000, 1024))
        );
        assert_eq!(&seen.payload[..], b"answer");
    }
    assert_eq!(
        (it.counter("out_forwarded"), it.counter("in_forwarded")),
        (2, 2)
    );
    assert_eq!(
        (it.counter("in_arp_answered"), it.counter("in_nd_answered")),
        (1, 1)
    );
}

#[test]
fn without_bpf_a_packet_goes_out_and_its_answer_comes_back() {
    out_and_back(Fallback::new(false));
}

#[test]
fn without_bpf_the_same_over_an_ipv6_underlay() {
    out_and_back(Fallback::new(true));
}

/// Checks the tunnel's MAC address only: a node that forges it gets through, as `Degraded` states.
#[test]
fn without_bpf_ports_of_others_are_still_dropped() {
    let mut it = Fallback::new(false);
    let server = it.site.server(0, 9000);
    let packet = |port| udp((EGRESS[0], port), (OUTSIDE[0], 9000), 64, b"spoofed");
    for (from, port) in [
        (12, 1024),
        (11, 1088),
        (11, 40000),
        (13, 1024),
        (14, 1024),
        (11, 1152),
    ] {
        it.send(from, from, &packet(port));
    }
    it.wait_counter("out_spoofed", 6);
    for source in [GATEWAY[0], "10.244.1.7", OUTSIDE[0]] {
        it.send(
            11,
            11,
            &udp((source, 1024), (OUTSIDE[0], 9000), 64, b"spoofed"),
        );
    }
    it.wait_counter("out_not_ours", 3);
    nothing_waits(&server);
    it.send(11, 11, &packet(1024));
    assert_eq!(receive(&server).0, b"spoofed");
}

#[test]
fn without_bpf_echoes_and_errors_find_their_worker() {
    let mut it = Fallback::new(false);
    for family in [0, 1] {
        let (request, reply) = [(8, 0), (128, 129)][family];
        let worker = it.site.worker(11);
        let echo = icmp(
            EGRESS[family],
            OUTSIDE[family],
            request,
            0,
            [4, 1, 0, 1],
            b"ping",
        );
        worker
            .send_to(&tunnelled(11, OWN, &echo), it.site.tunnel())
            .unwrap();
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!((seen.ports, seen.word), ((reply, 0), [4, 1, 0, 1]));
        // no socket listens: the outside sends an error that quotes the packet
        let lost = udp((EGRESS[family], 1030), (OUTSIDE[family], 9), 64, b"lost");
        worker
            .send_to(&tunnelled(11, OWN, &lost), it.site.tunnel())
            .unwrap();
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!(seen.ports, [(3, 3), (1, 4)][family]);
        // errors of the pod, about a packet for it and about another one
        let (kind, code) = [(3, 3), (1, 4)][family];
        let before = it.counter("out_forwarded");
        for (port, counter, value) in [
            (1024, "out_forwarded", before + 1),
            (1088, "out_spoofed", 1 + family as u64),
        ] {
            let got = udp((OUTSIDE[family], 9), (EGRESS[family], port), 60, b"lost");
            let error = icmp(EGRESS[family], OUTSIDE[family], kind, code, [0; 4], &got);
            worker
                .send_to(&tunnelled(11, OWN, &error), it.site.tunnel())
                .unwrap();
            it.wait_counter(counter, value);
        }
    }
}

#[test]
fn without_bpf_what_cannot_be_steered_is_dropped_with_its_reason() {
    let mut it = Fallback::new(false);
    for family in [0, 1] {
        let server = it.site.server(family, 9000);
        let times = 1 + family as u64;
        server
            .send_to(b"nobody's", (EGRESS[family], 40000))
            .unwrap();
        it.wait_counter("in_no_block", times);
        server.send_to(b"own", (EGRESS[family], 1152)).unwrap();
        it.wait_counter("in_self", times);
        assert!(!ping(&it.site.outside, EGRESS[family]));
        it.wait_counter("in_echo_request", times);
    }
    // out, later fragments follow their sender; back they are dropped
    let server = it.site.server(0, 9000);
    let payload = vec![7; 2000];
    let question = udp((EGRESS[0], 1030), (OUTSIDE[0], 9000), 64, &payload);
    for part in fragments(&question, 1200, 7) {
        it.send(11, 11, &part);
    }
    let (bytes, from) = receive(&server);
    assert_eq!(bytes, payload);
    server.send_to(&payload, from).unwrap();
    it.wait_counter("in_fragment_unknown", 1);
}

#[test]
fn without_bpf_only_the_announcer_answers_for_the_address() {
    let mut it = Fallback::new(false);
    let mut quiet = state(false);
    for steering in quiet.addresses.values_mut() {
        steering.announce = false;
    }
    assert!(it.gateway.apply(&quiet, OWN).unwrap().is_empty());
    for address in EGRESS {
        assert!(!ping(&it.site.outside, address));
    }
    assert_eq!(
        (it.counter("in_arp_answered"), it.counter("in_nd_answered")),
        (0, 0)
    );
    assert_eq!(it.gateway.apply(&state(false), OWN).unwrap().len(), 2);
    for (family, address) in EGRESS.into_iter().enumerate() {
        let name = ["in_arp_answered", "in_nd_answered"][family];
        // Under emulation of Linux 6.12 the question of a first ping was not always counted; why is not known.
        wait(name, || {
            assert!(!ping(&it.site.outside, address), "no stack answers");
            (it.counter(name) > 0).then_some(())
        });
    }
}

#[test]
fn without_bpf_foreign_traffic_is_left_alone_and_probes_go_up() {
    let mut it = Fallback::new(false);
    assert!(ping(&it.site.outside, GATEWAY[0]) && ping(&it.site.outside, GATEWAY[1]));
    assert!(ping(&it.site.gateway, OUTSIDE[0]) && ping(&it.site.gateway, OUTSIDE[1]));
    let counted = it.gateway.counters().unwrap();
    assert_eq!(counted.values().sum::<u64>(), 0, "{counted:?}");
    let agent = std::net::UdpSocket::bind(("::", PORT)).unwrap();
    agent
        .set_read_timeout(Some(crate::namespaces::PATIENCE))
        .unwrap();
    let probe = Probe {
        kind: Kind::Request,
        sender: 11,
        nonce: 5,
        steering_version: 0,
    };
    let frame = probe.encode_frame(OWN, 40000, PORT);
    let worker = it.site.worker(11);
    worker.send_to(&frame, it.site.tunnel()).unwrap();
    assert_eq!(Probe::decode(&receive(&agent).0), Ok(probe));
}

#[test]
fn without_bpf_a_damaged_table_is_laid_anew_and_removal_leaves_nothing() {
    let mut it = Fallback::new(false);
    // Where the kernel supports owners (6.9) no other process can change the table; before, the driver repairs it.
    let damaged = NetdevGateway::remove().is_ok();
    assert!(damaged || matches!(NetdevGateway::remove(), Err(NetdevError::Nft(_))));
    it.gateway.apply(&state(false), OWN).unwrap();
    out_and_back_once(&mut it);
    // The next agent's table replaces this one's.
    let Fallback { site, gateway } = it;
    drop(gateway);
    let gateway = NetdevGateway::open(&site.config).unwrap();
    it = Fallback { site, gateway };
    it.gateway.apply(&state(false), OWN).unwrap();
    out_and_back_once(&mut it);
    let Fallback {
        site: _site,
        gateway,
    } = it;
    drop(gateway);
    assert!(NetdevGateway::remove().unwrap());
    assert!(!NetdevGateway::remove().unwrap());
}

fn out_and_back_once(it: &mut Fallback) {
    let server = it.site.server(0, 9001);
    it.send(
        11,
        11,
        &udp((EGRESS[0], 1024), (OUTSIDE[0], 9001), 64, b"again"),
    );
    assert_eq!(receive(&server).0, b"again");
}
