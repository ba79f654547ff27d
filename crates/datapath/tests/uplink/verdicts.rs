//! One packet at a time through the programs by BPF_PROG_TEST_RUN: verdict, counter, and changes of the packet.

use crate::packets::{fragments, frame, icmp, udp};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use egret_core::node::ProfileId;
use egret_core::numbers::{GROUP_LEFT_ALONE, MARK_SHIFT};
use egret_datapath::gateway::abi::address;
use egret_datapath::uplink::abi::{self, Config};
use egret_datapath::uplink::{COUNTERS, OBJECT};
use etherparse::PacketBuilder;
use std::net::IpAddr;

const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

const POD: [&str; 2] = ["10.244.1.10", "fd00:244:1::10"];
const UNSELECTED: [&str; 2] = ["10.244.1.11", "fd00:244:1::11"];
const NODE: [&str; 2] = ["192.168.122.11", "fd00:122::11"];
const SERVER: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const ELSEWHERE: [&str; 2] = ["198.51.100.9", "2001:db8:f::9"];
/// In a selected prefix, and never egress traffic.
const NEVER: [&str; 2] = ["203.0.113.99", "2001:db8:1::99"];

/// Index of the loopback device, on which test runs arrive.
const REINJECT: u32 = 1;
const REINJECT_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 9];
/// MAC address of the loopback device: the packet is for this host.
const HOST: [u8; 6] = [0; 6];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

struct Uplink(Ebpf);

fn prefixes(object: &mut Ebpf, map: &str, all: &[&str]) {
    let mut map: LpmTrie<_, abi::Prefix, u32> = object.map_mut(map).unwrap().try_into().unwrap();
    for text in all {
        let (bits, data) = abi::prefix(text.parse().unwrap());
        map.insert(&Key::new(bits, data), 1, 0).unwrap();
    }
}

impl Uplink {
    fn new() -> Self {
        Self::reinjecting_to(REINJECT)
    }

    fn reinjecting_to(ifindex: u32) -> Self {
        let mut object = EbpfLoader::new().btf(None).load(OBJECT).unwrap();
        for (_, program) in object.programs_mut() {
            let program: &mut SchedClassifier = program.try_into().unwrap();
            program.load().unwrap();
        }
        let config = Config::of(ifindex, REINJECT_MAC, &Config::default());
        let map = object.map_mut("uplink_config").unwrap();
        let mut map: Array<_, Config> = map.try_into().unwrap();
        map.set(0, config, 0).unwrap();
        let map = object.map_mut("uplink_chosen").unwrap();
        let mut map: LpmTrie<_, abi::Destination, u32> = map.try_into().unwrap();
        for text in ["203.0.113.0/24", "2001:db8:1::/64"] {
            let (bits, key) = abi::destination(ProfileId(7), Some(text.parse().unwrap()));
            map.insert(&Key::new(bits, key), 1, 0).unwrap();
        }
        let local = ["10.244.1.0/24", "fd00:244:1::/64"];
        prefixes(&mut object, "uplink_local", &local);
        let never = [
            "10.0.0.0/8",
            "fd00::/8",
            "203.0.113.99/32",
            "2001:db8:1::99/128",
        ];
        prefixes(&mut object, "uplink_never", &never);
        let mut uplink = Uplink(object);
        POD.iter().for_each(|pod| uplink.select(pod));
        uplink
    }

    fn select(&mut self, pod: &str) {
        let map = self.0.map_mut("uplink_pods").unwrap();
        let mut map: HashMap<_, [u8; 16], [u8; 8]> = map.try_into().unwrap();
        let key = address(pod.parse().unwrap());
        map.insert(key, abi::profile(ProfileId(7)), 0).unwrap();
    }

    /// Verdict, and the frame afterwards.
    fn run(&self, name: &str, frame: &[u8], (mark, came_by): (u32, u32)) -> (i32, Vec<u8>) {
        /// Size of `struct __sk_buff`, and offsets of its mark and ingress_ifindex.
        const CONTEXT: (usize, usize, usize) = (192, 8, 36);
        let mut context = [0; CONTEXT.0];
        context[CONTEXT.1..CONTEXT.1 + 4].copy_from_slice(&mark.to_ne_bytes());
        context[CONTEXT.2..CONTEXT.2 + 4].copy_from_slice(&came_by.to_ne_bytes());
        let program: &SchedClassifier = self.0.program(name).unwrap().try_into().unwrap();
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value as i32, out)
    }

    /// Verdict on a packet that leaves, and its counter.
    fn leaves(&self, packet: &[u8]) -> (i32, Option<&'static str>) {
        self.leaves_with(packet, (0, 5))
    }

    fn leaves_with(&self, packet: &[u8], context: (u32, u32)) -> (i32, Option<&'static str>) {
        let before = self.counted();
        let sent = frame(ROUTER, HOST, packet);
        let (verdict, out) = self.run("uplink_out", &sent, context);
        let expected = match verdict {
            REDIRECT => frame(REINJECT_MAC, HOST, packet),
            _ => sent,
        };
        assert_eq!(out, expected, "only the destination MAC address may differ");
        let after = self.counted();
        let changed = (0..COUNTERS.len()).find(|index| after[*index] != before[*index]);
        (verdict, changed.map(|index| COUNTERS[index].name))
    }

    /// A packet from outside; it always passes unchanged.
    fn comes(&self, packet: &[u8]) {
        let sent = frame(HOST, ROUTER, packet);
        assert_eq!(self.run("uplink_in", &sent, (0, 0)), (PASS, sent));
    }

    fn counted(&self) -> Vec<u64> {
        let map = self.0.map("uplink_counters").unwrap();
        let map: PerCpuArray<_, u64> = map.try_into().unwrap();
        let sum = |index: usize| map.get(&(index as u32), 0).unwrap().iter().sum();
        (0..COUNTERS.len()).map(sum).collect()
    }
}

const REINJECTED: (i32, Option<&str>) = (REDIRECT, Some("reinjected"));
const ANSWERED: (i32, Option<&str>) = (PASS, Some("answered"));
const UNTOUCHED: (i32, Option<&str>) = (PASS, None);

fn tcp(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = match (from.0.parse().unwrap(), to.0.parse().unwrap()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("one family"),
    };
    let mut builder = builder.tcp(from.1, to.1, 1, 1000);
    if flags & SYN != 0 {
        builder = builder.syn();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    if flags & ACK != 0 {
        builder = builder.ack(1);
    }
    builder.write(&mut bytes, &[]).unwrap();
    bytes
}

fn out(family: usize, port: u16, to: u16) -> Vec<u8> {
    udp((POD[family], port), (SERVER[family], to), 64, b"question")
}

fn back(family: usize, from: u16, port: u16) -> Vec<u8> {
    udp((SERVER[family], from), (POD[family], port), 64, b"answer")
}

/// Types of an echo request, its reply, and an error, by family.
const ICMP: [[u8; 3]; 2] = [[8, 0, 3], [128, 129, 1]];

#[test]
fn what_a_selected_pod_opens_is_reinjected() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        assert_eq!(uplink.leaves(&out(family, 1000, 53)), REINJECTED);
        let (pod, server) = ((POD[family], 1000), (SERVER[family], 80));
        for flags in [SYN, ACK, ACK | RST] {
            assert_eq!(
                uplink.leaves(&tcp(pod, server, flags)),
                REINJECTED,
                "{flags}"
            );
        }
        let ping = icmp(pod.0, server.0, ICMP[family][0], 0, [0, 7, 0, 1], b"");
        assert_eq!(uplink.leaves(&ping), REINJECTED);
    }
}

#[test]
fn nobody_else_and_no_other_destination_is_touched() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        for (from, to) in [
            (UNSELECTED, SERVER),
            (NODE, SERVER),
            (POD, ELSEWHERE),
            (POD, NEVER),
            (POD, UNSELECTED),
        ] {
            let packet = udp((from[family], 1000), (to[family], 53), 64, b"x");
            assert_eq!(uplink.leaves(&packet), UNTOUCHED, "{from:?} to {to:?}");
            let segment = tcp((from[family], 1000), (to[family], 80), SYN);
            assert_eq!(uplink.leaves(&segment), UNTOUCHED, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_prefix_of_one_family_says_nothing_of_the_other() {
    let mut uplink = Uplink::new();
    // `::/0` of IPv6 contains no IPv4 address, whatever the tables' format.
    prefixes(&mut uplink.0, "uplink_never", &["::/0"]);
    assert_eq!(uplink.leaves(&out(0, 1000, 53)), REINJECTED);
    assert_eq!(uplink.leaves(&out(1, 1000, 53)), UNTOUCHED);

    let mut uplink = Uplink::new();
    let map = uplink.0.map_mut("uplink_chosen").unwrap();
    let mut map: LpmTrie<_, abi::Destination, u32> = map.try_into().unwrap();
    let (bits, key) = abi::destination(ProfileId(7), Some("::/0".parse().unwrap()));
    map.insert(&Key::new(bits, key), 1, 0).unwrap();
    let elsewhere = |family| udp((POD[family], 1000), (ELSEWHERE[family], 53), 64, b"x");
    assert_eq!(uplink.leaves(&elsewhere(0)), UNTOUCHED);
    assert_eq!(uplink.leaves(&elsewhere(1)), REINJECTED);

    let mut uplink = Uplink::new();
    let map = uplink.0.map_mut("uplink_chosen").unwrap();
    let mut map: LpmTrie<_, abi::Destination, u32> = map.try_into().unwrap();
    let (bits, key) = abi::destination(ProfileId(7), None);
    map.insert(&Key::new(bits, key), 1, 0).unwrap();
    for family in [0, 1] {
        assert_eq!(uplink.leaves(&elsewhere(family)), REINJECTED);
    }
}

#[test]
fn a_packet_is_reinjected_once_and_goes_only_by_the_rulesets_word() {
    let uplink = Uplink::new();
    let mark = |group: u8| u32::from(group) << MARK_SHIFT;
    for family in [0, 1] {
        let packet = out(family, 1000, 53);
        let left = mark(GROUP_LEFT_ALONE);
        let goes = (PASS, Some("left_alone"));
        assert_eq!(uplink.leaves_with(&packet, (left, REINJECT)), goes);
        assert_eq!(
            uplink.leaves_with(&packet, (left | 0xff00_ffff, REINJECT)),
            goes
        );
        for wrong in [0, mark(1), mark(254), 0xff00_ffff] {
            let verdict = uplink.leaves_with(&packet, (wrong, REINJECT));
            assert_eq!(verdict, (DROP, Some("no_ruleset")), "{wrong:#x}");
        }
        // The ruleset's mark counts only for reinjected packets.
        assert_eq!(uplink.leaves_with(&packet, (left, 5)), REINJECTED);
    }
}

#[test]
fn without_a_device_to_reinject_to_nothing_leaves() {
    let uplink = Uplink::reinjecting_to(0);
    for came_by in [0, 5] {
        let verdict = uplink.leaves_with(&out(0, 1000, 53), (0, came_by));
        assert_eq!(verdict, (DROP, Some("failed")));
    }
}

#[test]
fn who_sends_the_first_datagram_opens_the_flow() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        uplink.comes(&back(family, 9000, 1000));
        for _ in 0..2 {
            assert_eq!(uplink.leaves(&out(family, 1000, 9000)), ANSWERED);
        }
        assert_eq!(uplink.leaves(&out(family, 1000, 9001)), REINJECTED);
        assert_eq!(uplink.leaves(&out(family, 1001, 9000)), REINJECTED);
        // The pod's own flow stays its own, whatever packets come in it.
        uplink.comes(&back(family, 9001, 1000));
        assert_eq!(uplink.leaves(&out(family, 1000, 9001)), REINJECTED);
    }
}

#[test]
fn a_tcp_flow_is_others_from_the_answer_to_their_syn_until_the_pods_own() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        let (pod, other) = ((POD[family], 80), (SERVER[family], 40_000));
        assert_eq!(uplink.leaves(&tcp(pod, other, SYN | ACK)), REINJECTED);
        // A load balancer of this node gets it next: it is not for the pod yet.
        uplink.comes(&tcp(other, (NODE[family], 30_080), SYN));
        assert_eq!(uplink.leaves(&tcp(pod, other, ACK)), REINJECTED);
        assert_eq!(uplink.leaves(&tcp(pod, other, SYN | ACK)), ANSWERED);
        assert_eq!(uplink.leaves(&tcp(pod, other, ACK)), ANSWERED);
        assert_eq!(uplink.leaves(&tcp(pod, other, ACK | RST)), ANSWERED);
        let third = (SERVER[family], 40_001);
        assert_eq!(uplink.leaves(&tcp(pod, third, SYN | ACK)), REINJECTED);
        assert_eq!(uplink.leaves(&tcp(pod, other, SYN)), REINJECTED);
        assert_eq!(uplink.leaves(&tcp(pod, other, ACK)), REINJECTED);
        // A packet of the pod's own flow opens nothing.
        uplink.comes(&tcp(third, pod, SYN | ACK));
        assert_eq!(uplink.leaves(&tcp(pod, third, ACK | RST)), REINJECTED);
    }
}

#[test]
fn a_refused_syn_is_refused_by_the_pod_itself() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        let (pod, other) = ((POD[family], 81), (SERVER[family], 40_000));
        uplink.comes(&tcp(other, pod, SYN));
        assert_eq!(uplink.leaves(&tcp(pod, other, RST | ACK)), ANSWERED);
    }
}

#[test]
fn replies_and_errors_belong_to_the_flow_that_they_answer() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        let [request, reply, error] = ICMP[family];
        let (pod, server) = (POD[family], SERVER[family]);
        let answer = icmp(pod, server, reply, 0, [0, 7, 0, 1], b"");
        assert_eq!(uplink.leaves(&answer), REINJECTED);
        uplink.comes(&icmp(server, pod, request, 0, [0, 7, 0, 1], b""));
        assert_eq!(uplink.leaves(&answer), ANSWERED);
        // A request belongs to the pod, also with the same id.
        let own = icmp(pod, server, request, 0, [0, 7, 0, 2], b"");
        assert_eq!(uplink.leaves(&own), REINJECTED);

        let quoted = back(family, 9000, 2000);
        let unreachable = icmp(pod, server, error, 3, [0; 4], &quoted);
        assert_eq!(uplink.leaves(&unreachable), REINJECTED);
        uplink.comes(&quoted);
        assert_eq!(uplink.leaves(&unreachable), ANSWERED);
        let foreign = udp((server, 9000), (UNSELECTED[family], 2000), 64, b"x");
        uplink.comes(&foreign);
        let unreachable = icmp(pod, server, error, 3, [0; 4], &foreign);
        assert_eq!(uplink.leaves(&unreachable), REINJECTED);
    }
}

#[test]
fn later_fragments_follow_their_first() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        let answer = udp((POD[family], 1000), (SERVER[family], 9000), 64, &[7; 100]);
        let own = udp((POD[family], 1000), (SERVER[family], 53), 64, &[7; 100]);
        uplink.comes(&back(family, 9000, 1000));
        let pieces = fragments(&answer, 40, 77);
        assert_eq!(
            uplink.leaves(&pieces[1]),
            REINJECTED,
            "its first is not known yet"
        );
        for piece in &pieces {
            assert_eq!(uplink.leaves(piece), ANSWERED);
        }
        for piece in fragments(&own, 40, 78) {
            assert_eq!(uplink.leaves(&piece), REINJECTED);
        }
    }
}

#[test]
fn a_policy_that_starts_finds_the_flows_of_its_pods_known() {
    let mut uplink = Uplink::new();
    for family in [0, 1] {
        let (pod, server) = (UNSELECTED[family], SERVER[family]);
        uplink.comes(&tcp((server, 40_000), (pod, 80), SYN));
        let syn_ack = tcp((pod, 80), (server, 40_000), SYN | ACK);
        assert_eq!(uplink.leaves(&syn_ack), UNTOUCHED);
        uplink.comes(&udp((server, 9000), (pod, 1000), 64, b"x"));
        let own = udp((pod, 1001), (server, 53), 64, b"x");
        assert_eq!(uplink.leaves(&own), UNTOUCHED);
        uplink.comes(&udp((server, 53), (pod, 1001), 64, b"x"));

        uplink.select(pod);
        let data = tcp((pod, 80), (server, 40_000), ACK);
        assert_eq!(uplink.leaves(&data), ANSWERED);
        let answer = udp((pod, 1000), (server, 9000), 64, b"x");
        assert_eq!(uplink.leaves(&answer), ANSWERED);
        assert_eq!(
            uplink.leaves(&own),
            REINJECTED,
            "an answer to it came before"
        );
    }
}

#[test]
fn what_cannot_be_read_is_reinjected() {
    let uplink = Uplink::new();
    for family in [0, 1] {
        let packet = out(family, 1000, 53);
        let header = if family == 0 { 20 } else { 40 };
        let mut cut = packet[..header].to_vec();
        if family == 0 {
            cut[3] = 20;
        } else {
            cut[5] = 0;
        }
        assert_eq!(uplink.leaves(&cut), REINJECTED);
    }
}
