//! The fallback's nftables table as a value.

use super::super::GatewayConfig;
use super::super::external_routes::ExternalRoute;
use super::answers::{arp, solicitation};
use super::matches::*;
use super::traffic;
use egret_core::node::{GatewayState, Steering, TunnelIndex};
use egret_core::numbers::{BLOCK_PORTS, TUNNEL_VNI};
use egret_kernel::nft::{
    Base, Chain, Checksum, ElementKey, Expression as E, Hook, MetaKey, Rule, Set, SetType, Table,
    TunnelKey, Value,
};
use nix::libc;
use std::net::IpAddr;

/// Facts about the node that the rules need.
pub(super) struct Site<'a> {
    pub config: &'a GatewayConfig,
    pub external: &'a str,
    pub tunnel: &'a str,
    pub tunnel_mac: [u8; 6],
    pub own: TunnelIndex,
    pub routes: &'a [ExternalRoute],
}

/// The chain on the external device.
pub(super) const EXTERNAL_IN: &str = "external_in";

const COUNTED: &[&str] = &[
    "in_forwarded",
    "in_self",
    "in_arp_answered",
    "in_nd_answered",
    "in_no_block",
    "in_echo_request",
    "in_fragment_unknown",
    "in_unserved",
    "out_forwarded",
    "out_self",
    "out_spoofed",
    "out_not_ours",
    "out_foreign_tunnel",
    "failed",
];

/// The whole table.
pub(super) fn table(site: &Site<'_>, state: &GatewayState) -> Table {
    let mut table = Table {
        counters: COUNTED.to_vec(),
        ..Table::default()
    };
    for family in [&V4, &V6] {
        constant_sets(&mut table, family);
        address_sets(&mut table, family, site, state);
        traffic::maps(&mut table, family, state);
        plain(&mut table, &family.named("in"), inward(family));
        plain(&mut table, &family.named("out"), outward(family));
        plain(&mut table, &family.named("way"), way(family, site));
    }
    plain(&mut table, "arp", arp(site));
    plain(&mut table, "nd", solicitation(site));
    let mut own = traffic_back();
    own.push(ends(vec![], "in_self", ACCEPT));
    plain(&mut table, "self", own);
    for (index, underlay) in state.workers.iter().filter(|(i, _)| **i != site.own) {
        let tunnel = format!("to_{underlay}");
        let mut rules = traffic_back();
        rules.push(into_tunnel(site, *index, &tunnel));
        plain(&mut table, &worker_chain(*index), rules);
        let key = TunnelKey {
            network_identifier: TUNNEL_VNI,
            to: *underlay,
        };
        table.tunnels.insert(tunnel, key);
    }
    base(&mut table, EXTERNAL_IN, site.external, external_in());
    base(&mut table, "egress_in", site.tunnel, egress_in());
    table
}

/// Counts in both families, since the workers' chains serve both.
fn traffic_back() -> Vec<Rule> {
    [&V4, &V6].map(traffic::back).into()
}

fn plain(table: &mut Table, name: &str, rules: Vec<Rule>) {
    let chain = Chain { hook: None, rules };
    table.chains.insert(name.into(), chain);
}

fn base(table: &mut Table, name: &str, device: &str, rules: Vec<Rule>) {
    let mut padded = [0; 16];
    padded[..device.len()].copy_from_slice(device.as_bytes());
    let hook = Hook {
        number: 0,
        priority: 0,
        nat: false,
        device: Some(padded),
    };
    let hook = Some(hook);
    table.chains.insert(name.into(), Chain { hook, rules });
}

fn constant_sets(table: &mut Table, family: &Family) {
    let transport: &[u8] = &[6, 17, 132];
    for (name, numbers) in [
        ("transport", transport),
        ("errors", family.errors),
        ("queries", family.queries),
        ("replies", family.replies),
    ] {
        let mut set = Set::new(&[SetType::Protocol]);
        for number in numbers {
            let key = ElementKey::single(&[&[*number]]);
            set.elements.insert(key, Value::Member);
        }
        table.sets.insert(family.named(name), set);
    }
}

fn address_sets(table: &mut Table, family: &Family, site: &Site<'_>, state: &GatewayState) {
    let mut egress = Set::new(&[family.address]);
    let mut announce = Set::new(&[family.address]);
    let mut members = Set::new(&[SetType::Ethernet, family.address]);
    let mut steer = Set::new(&[family.address, SetType::Port]);
    (steer.interval, steer.verdicts) = (true, true);
    let mut owners = Set::new(&[SetType::Ethernet, family.address, SetType::Port]);
    owners.interval = true;
    for (address, steering) in state.addresses.iter().filter(|(ip, _)| family.is(ip)) {
        let bytes = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let key = ElementKey::address(*address);
        egress.elements.insert(key.clone(), Value::Member);
        if steering.announce {
            announce.elements.insert(key, Value::Member);
        }
        for (first, last, index) in ranges(steering) {
            let chain = match index {
                own if own == site.own => "self".to_owned(),
                // A worker that is not in the table is unreachable.
                other if !state.workers.contains_key(&other) => continue,
                other => worker_chain(other),
            };
            let (first, last) = (first.to_be_bytes(), last.to_be_bytes());
            let key = ElementKey::range(&[&bytes, &first], &[&bytes, &last]);
            steer
                .elements
                .insert(key, Value::Verdict(GOTO, Some(chain)));
            if index != site.own {
                let mac = egret_wire::tunnel_mac(index);
                let key = ElementKey::range(&[&mac, &bytes, &first], &[&mac, &bytes, &last]);
                owners.elements.insert(key, Value::Member);
                let key = ElementKey::single(&[&mac, &bytes]);
                members.elements.insert(key, Value::Member);
            }
        }
    }
    for (name, set) in [
        ("egress", egress),
        ("announce", announce),
        ("members", members),
        ("steer", steer),
        ("owners", owners),
    ] {
        table.sets.insert(family.named(name), set);
    }
}

/// First port, last port and worker of each run of consecutive blocks with the same worker.
fn ranges(steering: &Steering) -> Vec<(u16, u16, TunnelIndex)> {
    let mut ranges: Vec<(u16, u16, TunnelIndex)> = Vec::new();
    for (block, index) in &steering.blocks {
        let first = block * BLOCK_PORTS;
        let last = first + (BLOCK_PORTS - 1);
        match ranges.last_mut() {
            Some(before) if before.2 == *index && before.1.checked_add(1) == Some(first) => {
                before.1 = last;
            }
            _ => ranges.push((first, last, *index)),
        }
    }
    ranges
}

fn worker_chain(index: TunnelIndex) -> String {
    format!("worker_{index}")
}

fn external_in() -> Vec<Rule> {
    vec![
        goes(ethertype(&[0x08, 0x06]), "arp"),
        goes(ethertype(&V4.ethertype), "in4"),
        goes(ethertype(&V6.ethertype), "nd"),
    ]
}

fn inward(family: &Family) -> Vec<Rule> {
    let width = family.width();
    let steer = || E::VerdictMap {
        set: family.named("steer"),
        register: 0,
    };
    let by = |mut rule: Rule, port: u32| {
        rule.extend([
            family.load(family.destination, 0),
            transport(port, 2, width),
            steer(),
        ]);
        rule
    };
    let icmp = |set: &str| {
        let mut rule = protocol(family.icmp);
        rule.extend([transport(0, 1, 0), inside(family.named(set), 0)]);
        rule
    };
    let quoted = |mut rule: Rule, port: u32| {
        rule.extend([
            transport(family.quoted_source, family.length, 0),
            transport(port, 2, width),
            steer(),
        ]);
        rule
    };
    let mut unknown = has_ports(family);
    unknown.push(transport(0, 4, 0));
    let mut rules = vec![
        // Not for this host: frames that a switch floods.
        vec![
            E::Meta(MetaKey::PacketType, 0),
            differs(0, &[libc::PACKET_HOST]),
            E::Verdict(ACCEPT, None),
        ],
        vec![
            family.load(family.destination, 0),
            E::InSet {
                set: family.named("egress"),
                register: 0,
                negated: true,
            },
            E::Verdict(ACCEPT, None),
        ],
        ends(later_fragment(family), "in_fragment_unknown", DROP),
        by(has_ports(family), 2),
        ends(unknown, "in_no_block", DROP),
        by(icmp("replies"), 4),
        ends(icmp("replies"), "in_no_block", DROP),
        ends(icmp("queries"), "in_echo_request", DROP),
    ];
    let transport_at = family.quoted_transport;
    rules.push(quoted(
        quote(family, icmp("errors"), "transport"),
        transport_at,
    ));
    let echo = quote_echo(family, icmp("errors"), "queries");
    rules.push(quoted(echo, transport_at + 4));
    rules.push(ends(vec![], "in_unserved", DROP));
    rules
}

/// Sends the packet to its worker: MAC addresses, tunnel key, redirect to the tunnel device.
fn into_tunnel(site: &Site<'_>, index: TunnelIndex, tunnel: &str) -> Rule {
    let macs = [egret_wire::tunnel_mac(index), site.tunnel_mac].concat();
    let device = site.config.tunnel_ifindex.to_ne_bytes().to_vec();
    vec![
        E::Count("in_forwarded".into()),
        E::Load(0, macs),
        store(Base::Link, 0, 12, 0, Checksum::None),
        E::Tunnel(tunnel.into()),
        E::Load(4, device),
        E::Redirect(4),
    ]
}

fn egress_in() -> Vec<Rule> {
    const LINK_LOCAL: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
    let mut rules = vec![ends(
        vec![
            E::Meta(MetaKey::PacketType, 0),
            differs(0, &[libc::PACKET_HOST]),
        ],
        "out_foreign_tunnel",
        DROP,
    )];
    // Probes and their answers go up: the agent checks who may send them.
    let mut probe = ethertype(&V6.ethertype);
    for offset in [V6.source, V6.destination] {
        probe.extend([network(offset, 8, 0), equals(0, &LINK_LOCAL)]);
    }
    probe.push(E::Verdict(ACCEPT, None));
    rules.push(probe);
    for family in [&V4, &V6] {
        for (offset, to) in [(family.source, Some("out")), (family.destination, None)] {
            let mut rule = ethertype(&family.ethertype);
            rule.extend([family.load(offset, 0), inside(family.named("egress"), 0)]);
            rules.push(match to {
                Some(chain) => goes(rule, &family.named(chain)),
                // For this node as a worker; its connection tracking decides.
                None => ends(rule, "out_self", ACCEPT),
            });
        }
    }
    rules.push(ends(vec![], "out_not_ours", DROP));
    rules
}

fn outward(family: &Family) -> Vec<Rule> {
    let width = family.width();
    let way = family.named("way");
    let owned = |mut rule: Rule, address: E, port: u32| {
        rule.extend([link(6, 6, 0), address, transport(port, 2, 2 + width)]);
        rule.push(inside(family.named("owners"), 0));
        goes(rule, &way)
    };
    let member = |mut rule: Rule| {
        rule.extend([link(6, 6, 0), family.load(family.source, 2)]);
        rule.push(inside(family.named("members"), 0));
        rule
    };
    let icmp = |set: &str| {
        let mut rule = protocol(family.icmp);
        rule.extend([transport(0, 1, 0), inside(family.named(set), 0)]);
        rule
    };
    let source = || family.load(family.source, 2);
    let quoted = || transport(family.quoted_destination, family.length, 2);
    let ports = family.quoted_transport;
    vec![
        goes(member(later_fragment(family)), &way),
        owned(has_ports(family), source(), 0),
        owned(icmp("queries"), source(), 4),
        owned(
            member(quote(family, icmp("errors"), "transport")),
            quoted(),
            ports + 2,
        ),
        owned(
            member(quote_echo(family, icmp("errors"), "replies")),
            quoted(),
            ports + 4,
        ),
        ends(vec![], "out_spoofed", DROP),
    ]
}

/// Sends to the neighbour of the destination's longest prefix; without a route the packet does not leave.
fn way(family: &Family, site: &Site<'_>) -> Vec<Rule> {
    let mut rules = vec![traffic::out(family)];
    let device = site.config.external_ifindex.to_ne_bytes().to_vec();
    let here = |route: &&ExternalRoute| family.is(&route.to.addr());
    for route in site.routes.iter().filter(here) {
        let (mask, prefix) = match route.to {
            ipnet::IpNet::V4(net) => (
                net.netmask().octets().to_vec(),
                net.network().octets().to_vec(),
            ),
            ipnet::IpNet::V6(net) => (
                net.netmask().octets().to_vec(),
                net.network().octets().to_vec(),
            ),
        };
        let mut rule = vec![family.load(family.destination, 0)];
        if route.to.prefix_len() > 0 {
            rule.extend([masked(0, &mask), equals(0, &prefix)]);
        }
        rule.push(match route.via {
            Some(via) => E::load_address(0, via),
            None => family.load(family.destination, 0),
        });
        rule.extend([
            E::Count("out_forwarded".into()),
            E::Load(4, device.clone()),
            E::Forward {
                device: 4,
                address: 0,
                family: family.protocol as u32,
            },
        ]);
        rules.push(rule);
    }
    rules.push(ends(vec![], "failed", DROP));
    rules
}
