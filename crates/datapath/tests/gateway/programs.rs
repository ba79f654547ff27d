//! One packet at a time through the programs by BPF_PROG_TEST_RUN: verdict, counter and every byte.
//!
//! The kernel gives such packets no tunnel key, so for egress_in only the drop of them is tested here; `lan.rs` tests
//! the rest.

use crate::packets::{Seen, fragments, frame, icmp, seen, udp};
use aya::maps::{Array, HashMap, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use egret_core::node::Steering;
use egret_datapath::gateway::abi::{self, Address, Config, SteeringValue, Worker};
use egret_datapath::gateway::{COUNTERS, OBJECT};
use std::cell::RefCell;
use std::net::IpAddr;

pub const PASS: i32 = -1;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const EGRESS: [&str; 2] = ["203.0.113.100", "2001:db8:e::100"];
pub const REMOTE: [&str; 2] = ["198.51.100.9", "2001:db8:f::9"];
pub const ROUTER: [&str; 2] = ["192.0.2.77", "2001:db8:77::1"];
pub const GATEWAY: [&str; 2] = ["203.0.113.2", "2001:db8:e::2"];
/// MAC address of the loopback device, on which test runs arrive: the packet is for this host.
pub const HOST: [u8; 6] = [0; 6];
pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const EXTERNAL_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 2];
const OWN: u16 = 2;
pub const MTU: usize = 1430;

thread_local! {
    /// Loaded programs for the next use in this test: verification is slow.
    static LOADED: RefCell<Vec<Ebpf>> = const { RefCell::new(Vec::new()) };
}

/// The programs with empty counters and no remembered fragment.
pub struct Programs {
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
    pub fn new() -> Self {
        Self::with_external([Some(GATEWAY[0]), Some(GATEWAY[1])])
    }

    pub fn with_external(external: [Option<&str>; 2]) -> Self {
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
            tunnel_mac: egret_wire::tunnel_mac(OWN),
            external_v4: address(external[0]),
            external_v6: address(external[1]),
            ..Config::default()
        };
        let mut map: Array<_, Config> = object.map_mut("config").unwrap().try_into().unwrap();
        map.set(0, config, 0).unwrap();
        let steering = Steering {
            blocks: [(16, 11), (17, 99), (18, OWN)].into(),
            announce: true,
            ..Steering::default()
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
    pub fn run(&self, name: &str, frame: &[u8], gso_size: u32) -> (i32, Vec<u8>) {
        /// Size of `struct __sk_buff`, and offset of its gso_size.
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

    /// A map.
    pub fn map(&self, name: &str) -> &aya::maps::Map {
        self.object().map(name).unwrap()
    }

    /// A frame from outside, for this host.
    pub fn inward(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        self.run("external_in", &frame(HOST, SENDER, packet), 0)
    }

    /// Counters that are not zero.
    pub fn counted(&self) -> Vec<(&'static str, u64)> {
        let map: PerCpuArray<_, u64> = self.object().map("counters").unwrap().try_into().unwrap();
        let sum = |index: usize| map.get(&(index as u32), 0).unwrap().iter().sum();
        let all = COUNTERS
            .iter()
            .enumerate()
            .map(|(index, counter)| (counter.name, sum(index)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    pub fn steered(&self, packet: &[u8]) -> Seen {
        let (verdict, out) = self.inward(packet);
        assert_eq!(
            (verdict, self.counted()),
            (REDIRECT, vec![("in_forwarded", 1)])
        );
        let seen = seen(&out);
        assert_eq!(
            seen.macs,
            (egret_wire::tunnel_mac(11), egret_wire::tunnel_mac(OWN))
        );
        // only MAC addresses, hop limit and IPv4 header checksum may differ
        let mut expected = frame(
            egret_wire::tunnel_mac(11),
            egret_wire::tunnel_mac(OWN),
            packet,
        );
        if packet[0] >> 4 == 4 {
            expected[22] -= 1;
            expected[24..26].copy_from_slice(&out[24..26]);
        } else {
            expected[21] -= 1;
        }
        assert_eq!(out, expected);
        seen
    }

    pub fn dropped(&self, packet: &[u8], reason: &'static str) {
        let (verdict, _) = self.inward(packet);
        assert_eq!((verdict, self.counted()), (DROP, vec![(reason, 1)]));
    }
}

/// By family: (echo request, echo reply, unreachable, too big, time exceeded, parameter problem).
pub const ICMP: [[u8; 6]; 2] = [[8, 0, 3, 3, 11, 12], [128, 129, 1, 2, 3, 4]];

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
        // of another datagram, of another sender
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

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
