//! Compiled destinations, compared with an evaluator that checks policies one packet at a time.

use crate::scene::*;
use egret_core::model::*;
use egret_core::node::{DestinationRange, Profile, Verdict, WorkerState};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `None`: a protocol without ports.
type Packet = (IpAddr, Option<Protocol>, u16);

/// Handling of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Untouched,
    From(IpAddr),
    Refused,
    /// Protocols without ports.
    Portless,
}

fn entry_matches(entry: &Destination, (to, protocol, port): Packet) -> bool {
    let same = entry.cidr.addr().is_ipv4() == to.is_ipv4();
    let excepted = entry
        .except
        .iter()
        .any(|e| e.addr().is_ipv4() == to.is_ipv4() && e.contains(&to));
    let ports = entry.ports.is_empty()
        || entry.ports.iter().any(|p| {
            let any_port = p.protocol == Protocol::Icmp;
            Some(p.protocol) == protocol && (any_port || (p.first..=p.last).contains(&port))
        });
    same && entry.cidr.contains(&to) && !excepted && ports
}

/// Longest prefix by which the policy covers the packet.
fn covering_prefix(policy: &Policy, packet: Packet) -> Option<u8> {
    match &policy.destinations {
        None => Some(0),
        Some(all) => all
            .iter()
            .filter(|entry| entry_matches(entry, packet))
            .map(|entry| entry.cidr.prefix_len())
            .max(),
    }
}

fn naive(policies: &[Policy], packet: Packet) -> Fate {
    let mut best: Option<(&Policy, u8)> = None;
    for policy in policies {
        let Some(prefix) = covering_prefix(policy, packet) else {
            continue;
        };
        let wins = best.is_none_or(|(other, other_prefix)| {
            let strong = |p: &Policy| p.object.kind == Kind::ClusterEgress && !p.overridable;
            let weak = |p: &Policy| p.object.kind == Kind::ClusterEgress && p.overridable;
            if strong(policy) != strong(other) {
                strong(policy)
            } else if policy.priority != other.priority {
                policy.priority > other.priority
            } else if prefix != other_prefix {
                prefix > other_prefix
            } else if weak(policy) != weak(other) {
                weak(other)
            } else if policy.created_secs != other.created_secs {
                policy.created_secs < other.created_secs
            } else {
                let name = |p: &Policy| (p.object.namespace.clone(), p.object.name.clone());
                name(policy) < name(other)
            }
        });
        if wins {
            best = Some((policy, prefix));
        }
    }
    let Some((winner, _)) = best else {
        return Fate::Untouched;
    };
    if packet.1.is_none() {
        return Fate::Portless;
    }
    let AddressRequest::Fixed(addresses) = &winner.addresses else {
        panic!("fixed here")
    };
    match addresses.iter().find(|a| a.is_ipv4() == packet.0.is_ipv4()) {
        Some(address) => Fate::From(*address),
        None => Fate::Refused,
    }
}

fn compiled(worker: &WorkerState, profile: &Profile, (to, protocol, port): Packet) -> Fate {
    let Some(protocol) = protocol else {
        let refused = profile
            .portless
            .iter()
            .any(|(a, b)| a.is_ipv4() == to.is_ipv4() && *a <= to && to <= *b);
        return if refused {
            Fate::Portless
        } else {
            Fate::Untouched
        };
    };
    let hits: Vec<&DestinationRange> = profile
        .ranges
        .iter()
        .filter(|b| b.first.is_ipv4() == to.is_ipv4() && b.first <= to && to <= b.last)
        .filter(|b| b.protocol.is_none_or(|p| p == protocol))
        .filter(|b| b.port_first <= port && port <= b.port_last)
        .collect();
    assert!(hits.len() <= 1, "{to} {protocol:?} {port} is in {hits:?}");
    match hits.first().map(|b| b.verdict) {
        None => Fate::Untouched,
        Some(Verdict::Target(id)) => Fate::From(worker.targets[&id].address),
        Some(Verdict::FamilyNotCovered | Verdict::Unavailable | Verdict::NextHop(_)) => {
            Fate::Refused
        }
    }
}

/// Prefixes from a small address range, so that they often overlap.
fn net() -> impl Strategy<Value = ipnet::IpNet> {
    let v4 = (0u8..8, 29u8..=32).prop_map(|(last, length)| format!("198.51.100.{last}/{length}"));
    let wide = prop_oneof![
        Just("198.51.96.0/20"),
        Just("0.0.0.0/0"),
        Just("::/0"),
        Just("255.255.255.248/29")
    ];
    let v6 = (0u8..8, 125u8..=128).prop_map(|(last, length)| format!("2001:db8::{last}/{length}"));
    let top = Just("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125".to_owned());
    prop_oneof![4 => v4, 1 => wide.prop_map(str::to_owned), 3 => v6, 1 => top]
        .prop_map(|text| text.parse::<ipnet::IpNet>().unwrap().trunc())
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let protocol = prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp),
        Just(Protocol::Icmp)
    ];
    let ports = prop_oneof![
        Just((0, 65_535)),
        (0u16..6, 0u16..6),
        Just((65_530, 65_535))
    ];
    (protocol, ports).prop_map(|(protocol, (a, b))| {
        let (first, last) = if protocol == Protocol::Icmp {
            (0, 65_535)
        } else {
            (a.min(b), a.max(b))
        };
        PortMatch {
            protocol,
            first,
            last,
        }
    })
}

fn destination() -> impl Strategy<Value = Destination> {
    let ports = prop_oneof![Just(Vec::new()), prop::collection::vec(port_match(), 1..4)];
    (net(), prop::collection::vec(net(), 0..3), ports).prop_map(|(cidr, except, ports)| {
        Destination {
            cidr,
            except,
            ports,
        }
    })
}

prop_compose! {
    fn policy()(
        kind in 0u8..3,
        number in 0u8..200,
        priority in 0i32..3,
        created_secs in 0i64..3,
        families in 1u8..4,
        destinations in prop::option::weighted(0.85, prop::collection::vec(destination(), 0..5)),
    ) -> Policy {
        let mut addresses = Vec::new();
        if families & 1 != 0 {
            addresses.push(format!("192.0.2.{number}"));
        }
        if families & 2 != 0 {
            addresses.push(format!("2001:db8:2::{number}"));
        }
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let mut policy = egress("default", &format!("p{number:03}"), &addresses);
        if kind > 0 {
            policy.object.kind = Kind::ClusterEgress;
            policy.object.namespace = String::new();
            policy.overridable = kind == 2;
        }
        policy.priority = priority;
        policy.created_secs = created_secs;
        policy.destinations = destinations;
        policy
    }
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    prop::collection::vec(policy(), 0..7).prop_map(|mut all| {
        let mut names = BTreeSet::new();
        all.retain(|p| names.insert(p.object.name.clone()));
        all
    })
}

fn packets(profile: &Profile) -> Vec<Packet> {
    let mut addresses: BTreeSet<IpAddr> = (0..9u8)
        .flat_map(|n| {
            [
                ip(&format!("198.51.100.{n}")),
                ip(&format!("2001:db8::{n}")),
            ]
        })
        .collect();
    for text in [
        "0.0.0.0",
        "8.8.8.8",
        "198.51.97.1",
        "255.255.255.255",
        "::",
        "2001:db8:ffff::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ] {
        addresses.insert(ip(text));
    }
    addresses.extend(profile.ranges.iter().flat_map(|b| [b.first, b.last]));
    let protocols = [
        None,
        Some(Protocol::Tcp),
        Some(Protocol::Udp),
        Some(Protocol::Sctp),
        Some(Protocol::Icmp),
    ];
    let mut packets = Vec::new();
    for address in addresses {
        for protocol in protocols {
            for port in [0, 1, 2, 3, 4, 5, 6, 80, 65_529, 65_530, 65_535] {
                packets.push((address, protocol, port));
            }
        }
    }
    packets
}

fn scene_of(policies: &[Policy]) -> Scene {
    let mut scene = Scene::new(1, 2);
    scene.add_pod("a1", "worker1", 10, &[("app", "MyApp")]);
    scene.snapshot.policies = policies.to_vec().into();
    scene.settle();
    scene
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn boxes_answer_like_the_policies_themselves(policies in policies()) {
        let scene = scene_of(&policies);
        let worker = scene.outcome("worker1").state.worker;
        let none = Profile::default();
        let profile = worker.pods.values().next().map_or(&none, |id| &worker.profiles[id]);
        let by_target = |fate| match fate {
            Fate::From(address) => address.to_string(),
            other => format!("{other:?}"),
        };
        for packet in packets(profile) {
            let expected = naive(&policies, packet);
            let got = compiled(&worker, profile, packet);
            prop_assert_eq!(by_target(got), by_target(expected), "{:?}", packet);
        }
    }

    #[test]
    fn editing_destinations_keeps_the_name_of_the_profile(policies in policies()) {
        prop_assume!(!policies.is_empty());
        let before = scene_of(&policies).outcome("worker1").state.worker.pods;
        let mut edited = policies;
        edited[0].destinations = Some(Vec::new());
        let after = scene_of(&edited).outcome("worker1").state.worker.pods;
        prop_assert_eq!(before, after);
    }
}

#[test]
fn equal_neighbours_are_merged() {
    let mut policy = egress("default", "p", &["192.0.2.1", "2001:db8:2::1"]);
    let net = |cidr: &str| Destination {
        cidr: cidr.parse().unwrap(),
        except: Vec::new(),
        ports: Vec::new(),
    };
    policy.destinations = Some(vec![
        net("10.0.0.0/25"),
        net("10.0.0.128/25"),
        net("10.0.0.64/26"),
    ]);
    let scene = scene_of(&[policy]);
    let worker = scene.outcome("worker1").state.worker;
    let profile = worker.profiles.values().next().unwrap();
    assert_eq!(profile.ranges.len(), 1, "{profile:?}");
    assert_eq!(profile.portless, [(ip("10.0.0.0"), ip("10.0.0.255"))]);
}
