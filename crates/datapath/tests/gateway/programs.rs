//! One packet at a time through the programs by BPF_PROG_TEST_RUN: verdict, counter and every byte.
//!
//! The kernel gives such packets no tunnel, so that of egress_in only the refusal of them can be seen here; the rest of
//! it is in `lan.rs`.

use crate::packets::{Seen, dont_fragment, fragments, frame, icmp, seen, udp};
use aya::maps::{Array, HashMap, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use egret_core::node::Steering;
use egret_datapath::gateway::abi::{self, Address, Config, SteeringValue, Worker};
use egret_datapath::gateway::{COUNTERS, OBJECT};
use std::cell::RefCell;
use std::net::IpAddr;

const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

const EGRESS: [&str; 2] = ["203.0.113.100", "2001:db8:e::100"];
const REMOTE: [&str; 2] = ["198.51.100.9", "2001:db8:f::9"];
const ROUTER: [&str; 2] = ["192.0.2.77", "2001:db8:77::1"];
const GATEWAY: [&str; 2] = ["203.0.113.2", "2001:db8:e::2"];
/// That of the loopback device, on which test runs arrive: the packet is for this host.
const HOST: [u8; 6] = [0; 6];
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const EXTERNAL_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 2];
const OWN: u16 = 2;
const MTU: usize = 1430;

thread_local! {
    /// Loaded programs for the next use in this test: the verifier takes its time.
    static LOADED: RefCell<Vec<Ebpf>> = const { RefCell::new(Vec::new()) };
}

/// The programs with empty counters and no fragment remembered.
struct Programs {
    object: Option<Ebpf>,
}

impl Drop for Programs {
    fn drop(&mut self) {
        LOADED.with_borrow_mut(|loaded| loaded.extend(self.object.take()));
    }
}

fn load() -> Ebpf {
    let mut object = EbpfLoader::new().btf(None).load(OBJECT).unwrap();
    for (_, program) in object.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
    }
    object
}

fn clean(object: &mut Ebpf) {
    let mut map: PerCpuArray<_, u64> = object.map_mut("counters").unwrap().try_into().unwrap();
    for index in 0..COUNTERS.len() as u32 {
        let zero = vec![0; map.get(&index, 0).unwrap().len()];
        map.set(index, PerCpuValues::try_from(zero).unwrap(), 0)
            .unwrap();
    }
    let mut map: HashMap<_, [u8; 40], [u8; 16]> =
        object.map_mut("fragments").unwrap().try_into().unwrap();
    let keys: Vec<[u8; 40]> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

impl Programs {
    /// Worker 11 has ports 1024..1088, 99 (which is in no table) 1088..1152, this node 1152..1216.
    fn new() -> Self {
        Self::with_external([Some(GATEWAY[0]), Some(GATEWAY[1])])
    }

    fn with_external(external: [Option<&str>; 2]) -> Self {
        let mut object = LOADED.with_borrow_mut(Vec::pop).unwrap_or_else(load);
        clean(&mut object);
        let address =
            |text: Option<&str>| text.map_or([0; 16], |text| abi::address(text.parse().unwrap()));
        let config = Config {
            external_ifindex: 1,
            tunnel_ifindex: 1,
            tunnel_mtu: MTU as u32,
            own_index: OWN,
            external_mac: EXTERNAL_MAC,
            tunnel_mac: abi::tunnel_mac(OWN),
            external_v4: address(external[0]),
            external_v6: address(external[1]),
            ..Config::default()
        };
        let mut map: Array<_, Config> = object.map_mut("config").unwrap().try_into().unwrap();
        map.set(0, config, 0).unwrap();
        let steering = Steering {
            blocks: [(16, 11), (17, 99), (18, OWN)].into(),
            announce: true,
        };
        let mut map: HashMap<_, Address, SteeringValue> =
            object.map_mut("steering").unwrap().try_into().unwrap();
        for egress in EGRESS {
            let egress: IpAddr = egress.parse().unwrap();
            map.insert(
                abi::address(egress),
                SteeringValue::new(egress, &steering, OWN),
                0,
            )
            .unwrap();
        }
        let mut map: HashMap<_, u32, Worker> =
            object.map_mut("workers").unwrap().try_into().unwrap();
        map.insert(11, Worker::new(11, "10.0.0.11".parse().unwrap()), 0)
            .unwrap();
        Self {
            object: Some(object),
        }
    }

    fn object(&self) -> &Ebpf {
        self.object.as_ref().expect("there until it is dropped")
    }

    /// Verdict, and the frame afterwards.
    fn run(&self, name: &str, frame: &[u8], gso_size: u32) -> (i32, Vec<u8>) {
        /// Size of `struct __sk_buff`, and place of its gso_size.
        const CONTEXT: (usize, usize) = (192, 176);
        let mut context = [0; CONTEXT.0];
        context[CONTEXT.1..CONTEXT.1 + 4].copy_from_slice(&gso_size.to_ne_bytes());
        let program: &SchedClassifier = self.object().program(name).unwrap().try_into().unwrap();
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value as i32, out)
    }

    /// A frame from outside, for this host.
    fn inward(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        self.run("external_in", &frame(HOST, SENDER, packet), 0)
    }

    /// Counters that are not zero.
    fn counted(&self) -> Vec<(&'static str, u64)> {
        let map: PerCpuArray<_, u64> = self.object().map("counters").unwrap().try_into().unwrap();
        let sum = |index: usize| map.get(&(index as u32), 0).unwrap().iter().sum();
        let all = COUNTERS
            .iter()
            .enumerate()
            .map(|(index, counter)| (counter.name, sum(index)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    fn steered(&self, packet: &[u8]) -> Seen {
        let (verdict, out) = self.inward(packet);
        assert_eq!(
            (verdict, self.counted()),
            (REDIRECT, vec![("in_forwarded", 1)])
        );
        let seen = seen(&out);
        assert_eq!(seen.macs, (abi::tunnel_mac(11), abi::tunnel_mac(OWN)));
        // only MAC addresses, hop limit and IPv4 header checksum may differ
        let mut expected = frame(abi::tunnel_mac(11), abi::tunnel_mac(OWN), packet);
        if packet[0] >> 4 == 4 {
            expected[22] -= 1;
            expected[24..26].copy_from_slice(&out[24..26]);
        } else {
            expected[21] -= 1;
        }
        assert_eq!(out, expected);
        seen
    }

    fn dropped(&self, packet: &[u8], reason: &'static str) {
        let (verdict, _) = self.inward(packet);
        assert_eq!((verdict, self.counted()), (DROP, vec![(reason, 1)]));
    }
}

/// By family: (echo request, echo reply, unreachable, too big, time exceeded, parameter problem).
const ICMP: [[u8; 6]; 2] = [[8, 0, 3, 3, 11, 12], [128, 129, 1, 2, 3, 4]];

#[test]
fn a_packet_is_steered_by_port_and_nothing_in_it_changes_but_its_hop_limit() {
    for family in [0, 1] {
        let packet = udp((REMOTE[family], 53), (EGRESS[family], 1087), 60, b"answer");
        assert_eq!(Programs::new().steered(&packet).hops, 59);
    }
}

#[test]
fn every_hop_limit_keeps_the_ipv4_checksum_right() {
    let programs = Programs::new();
    for hops in 2..=255 {
        let (_, out) = programs.inward(&udp((REMOTE[0], 53), (EGRESS[0], 1024), hops, b"x"));
        assert_eq!(seen(&out).hops, hops - 1); // with its checksum
    }
}

#[test]
fn an_echo_reply_is_steered_by_its_id() {
    for family in [0, 1] {
        let [_, reply, ..] = ICMP[family];
        let packet = icmp(
            REMOTE[family],
            EGRESS[family],
            reply,
            0,
            [4, 1, 0, 1],
            b"ping",
        );
        assert_eq!(Programs::new().steered(&packet).word, [4, 1, 0, 1]);
    }
}

#[test]
fn an_icmp_error_is_steered_by_what_it_quotes() {
    for family in [0, 1] {
        let [request, _, unreachable, big, exceeded, problem] = ICMP[family];
        let sent = udp((EGRESS[family], 1025), (REMOTE[family], 53), 3, b"question");
        for kind in [unreachable, big, exceeded, problem] {
            let error = icmp(
                ROUTER[family],
                EGRESS[family],
                kind,
                0,
                [0; 4],
                &sent[..sent.len() - 8],
            );
            Programs::new().steered(&error);
        }
        let ping = icmp(
            EGRESS[family],
            REMOTE[family],
            request,
            0,
            [4, 1, 0, 1],
            b"ping",
        );
        Programs::new().steered(&icmp(
            ROUTER[family],
            EGRESS[family],
            unreachable,
            1,
            [0; 4],
            &ping,
        ));

        let foreign = udp((REMOTE[family], 1025), (EGRESS[family], 53), 3, b"question");
        let error = icmp(
            ROUTER[family],
            EGRESS[family],
            unreachable,
            0,
            [0; 4],
            &foreign,
        );
        Programs::new().dropped(&error, "in_foreign_quote");
        let error = icmp(
            ROUTER[family],
            EGRESS[family],
            unreachable,
            0,
            [0; 4],
            &sent[..10],
        );
        Programs::new().dropped(&error, "in_malformed");
    }
    let sent = udp((EGRESS[0], 1025), (REMOTE[0], 53), 3, b"question");
    Programs::new().dropped(
        &icmp(ROUTER[0], EGRESS[0], 5, 1, [0; 4], &sent),
        "in_unserved",
    );
}

#[test]
fn extension_headers_are_walked_up_to_a_bound() {
    let plain = udp((REMOTE[1], 53), (EGRESS[1], 1024), 60, b"answer");
    let with = |headers: usize| {
        let mut packet = plain[..40].to_vec();
        for i in 0..headers {
            let next = if i + 1 == headers { 17 } else { 60 };
            packet.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        packet.extend(&plain[40..]);
        packet[6] = if headers == 0 { 17 } else { 60 };
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet
    };
    for headers in [0, 1, 6] {
        Programs::new().steered(&with(headers));
    }
    Programs::new().dropped(&with(7), "in_malformed");
}

#[test]
fn what_cannot_be_steered_is_dropped_with_its_reason() {
    for family in [0, 1] {
        let to = |port| udp((REMOTE[family], 53), (EGRESS[family], port), 60, b"answer");
        Programs::new().dropped(&to(40000), "in_no_block");
        Programs::new().dropped(&to(1023), "in_no_block");
        Programs::new().dropped(&to(1088), "in_no_worker");
        let [request, ..] = ICMP[family];
        let echo = icmp(
            REMOTE[family],
            EGRESS[family],
            request,
            0,
            [4, 1, 0, 1],
            b"ping",
        );
        Programs::new().dropped(&echo, "in_echo_request");
        let mut gre = to(1024);
        gre[if family == 0 { 9 } else { 6 }] = 47;
        Programs::new().dropped(&gre, "in_unserved");
        let cut = to(1024);
        Programs::new().dropped(&cut[..cut.len() - 1], "in_malformed");
        let parts = fragments(
            &udp((REMOTE[family], 53), (EGRESS[family], 1024), 60, &[0; 1000]),
            504,
            5,
        );
        Programs::new().dropped(&parts[1], "in_fragment_unknown");
    }
}

#[test]
fn fragments_follow_the_first_and_so_do_errors_about_them() {
    for family in [0, 1] {
        let programs = Programs::new();
        let parts = fragments(
            &udp((REMOTE[family], 53), (EGRESS[family], 1024), 60, &[7; 2000]),
            800,
            5,
        );
        for (at, part) in parts.iter().enumerate() {
            assert_eq!(programs.inward(part).0, REDIRECT, "fragment {at}");
        }
        assert_eq!(programs.counted(), [("in_forwarded", 3)]);
        // another datagram's, another sender's
        let other = fragments(
            &udp((REMOTE[family], 53), (EGRESS[family], 1024), 60, &[7; 2000]),
            800,
            6,
        );
        assert_eq!(programs.inward(&other[1]).0, DROP);
        let other = fragments(
            &udp((ROUTER[family], 53), (EGRESS[family], 1024), 60, &[7; 2000]),
            800,
            5,
        );
        assert_eq!(programs.inward(&other[2]).0, DROP);
        assert_eq!(
            programs.counted(),
            [("in_forwarded", 3), ("in_fragment_unknown", 2)]
        );
    }
}

#[test]
fn own_blocks_pass_untouched_with_all_their_fragments() {
    let programs = Programs::new();
    let packet = udp((REMOTE[0], 53), (EGRESS[0], 1152), 1, &[7; 2000]);
    for part in fragments(&packet, 800, 5) {
        let (verdict, out) = programs.inward(&part);
        assert_eq!((verdict, out), (PASS, frame(HOST, SENDER, &part)));
    }
    assert_eq!(programs.counted(), [("in_self", 3)]);
}

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
    // without DF it is the tunnel's to fragment
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
    // as many as there may be in so many seconds on so many CPUs
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
fn foreign_packets_pass_untouched() {
    for family in [0, 1] {
        let foreign = udp((REMOTE[family], 53), (ROUTER[family], 1024), 1, b"answer");
        let ours = udp((REMOTE[family], 53), (EGRESS[family], 1024), 60, b"answer");
        let mut broken = foreign.clone();
        match family {
            0 => broken[2..4].copy_from_slice(&[0, 5]), // shorter than its header
            _ => broken[6] = 60,                        // an extension header beyond its end
        }
        for bytes in [
            frame(HOST, SENDER, &foreign),
            frame([2, 0, 0, 0, 0, 9], SENDER, &ours), // for another machine
            frame([0xff; 6], SENDER, &ours),
            frame(HOST, SENDER, &broken),
            [&HOST[..], &SENDER, &[0x88, 0xcc], &[0; 46]].concat(), // LLDP
        ] {
            let programs = Programs::new();
            assert_eq!(
                programs.run("external_in", &bytes, 0),
                (PASS, bytes.clone())
            );
            assert_eq!(programs.counted(), []);
        }
    }
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

/// A neighbour solicitation, with the asker's own MAC address as an option or without.
fn solicitation(from: &str, target: &str, hops: u8, option: bool) -> Vec<u8> {
    let IpAddr::V6(asked) = ip(target) else {
        panic!()
    };
    let group = egret_datapath::gateway::announce::solicited_node(asked);
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

#[test]
fn what_did_not_come_through_the_tunnel_does_not_leave_the_tunnel_device() {
    for family in [0, 1] {
        let programs = Programs::new();
        let packet = udp(
            (EGRESS[family], 1024),
            (REMOTE[family], 53),
            60,
            b"question",
        );
        assert_eq!(
            programs
                .run("egress_in", &frame(HOST, SENDER, &packet), 0)
                .0,
            DROP
        );
        assert_eq!(programs.counted(), [("out_foreign_tunnel", 1)]);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ipv4_checksum(packet: &[u8]) -> [u8; 2] {
    etherparse::Ipv4Header::from_slice(packet)
        .unwrap()
        .0
        .calc_header_checksum()
        .to_be_bytes()
}
