//! Answers that external_in makes by itself, by BPF_PROG_TEST_RUN: ICMP errors, ARP, neighbour solicitations.

use crate::packets::{dont_fragment, frame, icmp, seen, udp};
use crate::programs::{
    EGRESS, EXTERNAL_MAC, GATEWAY, HOST, ICMP, MTU, PASS, Programs, REDIRECT, REMOTE, ROUTER,
    SENDER, ip,
};
use std::net::IpAddr;

#[test]
fn at_the_end_of_its_hops_the_sender_is_told() {
    for family in [0, 1] {
        for external in [[Some(GATEWAY[0]), Some(GATEWAY[1])], [None, None]] {
            let programs = Programs::with_external(external);
            let packet = udp((REMOTE[family], 53), (EGRESS[family], 1024), 1, b"trace");
            let (verdict, out) = programs.inward(&packet);
            assert_eq!(
                (verdict, programs.counted()),
                (REDIRECT, vec![("in_ttl_expired", 1)])
            );
            let seen = seen(&out);
            let from = external[family].unwrap_or(EGRESS[family]);
            assert_eq!(
                (seen.source, seen.destination),
                (ip(from), ip(REMOTE[family]))
            );
            assert_eq!(seen.macs, (SENDER, EXTERNAL_MAC));
            assert_eq!(
                (seen.ports, seen.payload),
                ((ICMP[family][4].into(), 0), packet)
            );
        }
    }
}

#[test]
fn what_is_larger_than_the_tunnel_is_answered_with_its_mtu() {
    for family in [0, 1] {
        let headers = [28, 48][family];
        let packet = |size: usize| {
            let packet = udp(
                (REMOTE[family], 53),
                (EGRESS[family], 1024),
                60,
                &vec![9; size - headers],
            );
            if family == 0 {
                dont_fragment(packet)
            } else {
                packet
            }
        };
        Programs::new().steered(&packet(MTU));
        let programs = Programs::new();
        let (verdict, out) = programs.inward(&packet(MTU + 1));
        assert_eq!(
            (verdict, programs.counted()),
            (REDIRECT, vec![("in_too_big", 1)])
        );
        let seen = seen(&out);
        assert_eq!(
            (seen.source, seen.destination),
            (ip(GATEWAY[family]), ip(REMOTE[family]))
        );
        assert_eq!(seen.macs, (SENDER, EXTERNAL_MAC));
        assert_eq!(seen.ports, [(3, 4), (2, 0)][family]);
        assert_eq!(u32::from_be_bytes(seen.word), MTU as u32);
        assert_eq!(seen.payload[..], packet(MTU + 1)[..128]);
    }
    // without DF the tunnel fragments it
    Programs::new().steered(&udp((REMOTE[0], 53), (EGRESS[0], 1024), 60, &[9; 1450]));
}

#[test]
fn a_packet_that_the_kernel_will_cut_is_judged_by_its_pieces() {
    let packet = dont_fragment(udp((REMOTE[0], 53), (EGRESS[0], 1024), 60, &[9; 3000]));
    let bytes = frame(HOST, SENDER, &packet);
    for (piece, verdict) in [(MTU - 28, REDIRECT), (MTU - 27, REDIRECT)] {
        let programs = Programs::new();
        assert_eq!(programs.run("external_in", &bytes, piece as u32).0, verdict);
        let reason = if piece <= MTU - 28 {
            "in_forwarded"
        } else {
            "in_too_big"
        };
        assert_eq!(programs.counted(), [(reason, 1)]);
    }
}

#[test]
fn no_error_is_sent_about_an_error_nor_to_nobody() {
    let sent = udp((EGRESS[0], 1025), (REMOTE[0], 53), 3, b"question");
    let mut error = icmp(ROUTER[0], EGRESS[0], 3, 1, [0; 4], &sent);
    error[8] = 1;
    let [high, low] = ipv4_checksum(&error);
    (error[10], error[11]) = (high, low);
    Programs::new().dropped(&error, "in_ttl_expired");
    for nobody in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        Programs::new().dropped(
            &udp((nobody, 53), (EGRESS[0], 1024), 1, b"x"),
            "in_ttl_expired",
        );
    }
    for nobody in ["::", "ff02::1"] {
        Programs::new().dropped(
            &udp((nobody, 53), (EGRESS[1], 1024), 1, b"x"),
            "in_ttl_expired",
        );
    }
}

#[test]
fn errors_are_limited_per_second() {
    let programs = Programs::new();
    let packet = udp((REMOTE[0], 53), (EGRESS[0], 1024), 1, b"x");
    let start = std::time::Instant::now();
    let mut made = 0;
    for _ in 0..3000 {
        made += usize::from(programs.inward(&packet).0 == REDIRECT);
    }
    // the limit for this many seconds on this many CPUs
    let windows = start.elapsed().as_secs() as usize + 1;
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(
        made >= 1000 && made <= 1000 * cpus * (windows + 1),
        "{made}"
    );
    let limited = programs
        .counted()
        .iter()
        .find(|(name, _)| *name == "icmp_limited")
        .map(|c| c.1);
    assert_eq!(limited.unwrap_or(0) as usize, 3000 - made);
}

#[test]
fn arp_is_answered_for_announced_addresses_alone() {
    let arp = |operation: u8, sender: &str, target: &str| {
        let (IpAddr::V4(sender), IpAddr::V4(target)) = (ip(sender), ip(target)) else {
            panic!()
        };
        let head = [
            &[0xff; 6][..],
            &SENDER,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
        ]
        .concat();
        [
            &head[..],
            &SENDER,
            &sender.octets(),
            &[0; 6],
            &target.octets(),
            &[0; 18],
        ]
        .concat()
    };
    for asker in [REMOTE[0], "0.0.0.0"] {
        let programs = Programs::new();
        let (verdict, out) = programs.run("external_in", &arp(1, asker, EGRESS[0]), 0);
        assert_eq!(
            (verdict, programs.counted()),
            (REDIRECT, vec![("in_arp_answered", 1)])
        );
        let mut reply = arp(2, EGRESS[0], asker);
        reply[..6].copy_from_slice(&SENDER);
        reply[6..12].copy_from_slice(&EXTERNAL_MAC);
        reply[22..28].copy_from_slice(&EXTERNAL_MAC);
        reply[32..38].copy_from_slice(&SENDER);
        assert_eq!(out, reply);
    }
    for quiet in [
        arp(1, REMOTE[0], ROUTER[0]),
        arp(1, EGRESS[0], EGRESS[0]),
        arp(2, REMOTE[0], EGRESS[0]),
    ] {
        let programs = Programs::new();
        assert_eq!(
            programs.run("external_in", &quiet, 0),
            (PASS, quiet.clone())
        );
        assert_eq!(programs.counted(), []);
    }
}

/// A neighbour solicitation, with the sender's own MAC address as an option or without.
fn solicitation(from: &str, target: &str, hops: u8, option: bool) -> Vec<u8> {
    let IpAddr::V6(asked) = ip(target) else {
        panic!()
    };
    let group = egret_datapath::presence::l2::solicited_node(asked);
    let mut rest = asked.octets().to_vec();
    if option {
        rest.extend([1, 1]);
        rest.extend(SENDER);
    }
    let mut packet = icmp(from, &group.to_string(), 135, 0, [0; 4], &rest);
    packet[7] = hops;
    let [.., a, b, c] = asked.octets();
    frame([0x33, 0x33, 0xff, a, b, c], SENDER, &packet)
}

#[test]
fn a_solicitation_is_answered_for_announced_addresses_alone() {
    for (from, option) in [(REMOTE[1], true), (REMOTE[1], false), ("::", false)] {
        let programs = Programs::new();
        let (verdict, out) = programs.run(
            "external_in",
            &solicitation(from, EGRESS[1], 255, option),
            0,
        );
        assert_eq!(
            (verdict, programs.counted()),
            (REDIRECT, vec![("in_nd_answered", 1)])
        );
        let seen = seen(&out);
        let detection = from == "::";
        let to = if detection { "ff02::1" } else { from };
        assert_eq!((seen.source, seen.destination), (ip(EGRESS[1]), ip(to)));
        let to_mac = if detection {
            [0x33, 0x33, 0, 0, 0, 1]
        } else {
            SENDER
        };
        assert_eq!((seen.macs, seen.hops), ((to_mac, EXTERNAL_MAC), 255));
        let flags = if detection { 0x20 } else { 0x60 };
        assert_eq!((seen.ports, seen.word), ((136, 0), [flags, 0, 0, 0]));
        let IpAddr::V6(egress) = ip(EGRESS[1]) else {
            panic!()
        };
        assert_eq!(
            seen.payload,
            [&egress.octets()[..], &[2, 1], &EXTERNAL_MAC].concat()
        );
    }
    for quiet in [
        solicitation(REMOTE[1], ROUTER[1], 255, true),
        solicitation(REMOTE[1], EGRESS[1], 254, true), // came through a router
    ] {
        let programs = Programs::new();
        assert_eq!(
            programs.run("external_in", &quiet, 0),
            (PASS, quiet.clone())
        );
        assert_eq!(programs.counted(), []);
    }
}

fn ipv4_checksum(packet: &[u8]) -> [u8; 2] {
    etherparse::Ipv4Header::from_slice(packet)
        .unwrap()
        .0
        .calc_header_checksum()
        .to_be_bytes()
}
