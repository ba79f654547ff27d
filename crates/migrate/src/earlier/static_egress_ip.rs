//! kube-static-egress-ip and its fork: both use the same chain and set names, with GRE or VLAN devices behind them.

use super::find::{
    chains, of_address, of_device, of_line, of_policy, of_route, of_rule, of_set, of_setting,
};
use super::{Chain, Device, Finding, IpSet, Node, Rule, System, Target};
use std::collections::BTreeSet;
use std::net::IpAddr;

const SYSTEM: System = System::StaticEgressIp;
const CHAINS: [(&str, &str); 3] = [
    ("filter", "STATIC-EGRESS-FORWARD-CHAIN"),
    ("nat", "STATIC-EGRESS-NAT-CHAIN"),
    ("nat", "STATIC-EGRESS-BYPASS-CNI"),
];
/// Prefix of set names; the first 16 characters of a base32 hash follow.
const SET_PREFIX: &str = "EGRESS-IP-";
const SET_HASH: usize = 16;
/// Mark, table and priority of the original; the fork has the last one only.
const MARK: u32 = 1000;
const TABLE: u32 = 99;
const TABLE_NAME: &str = "kube-static-egress-ip";
const PRIORITY: u32 = 32764;
/// Prefix of tunnel names; the digits of the remote address follow, as many as fit.
const TUNNEL_PREFIX: &str = "tun";
const NAME_MAX: usize = 15;

pub(super) fn find(node: &Node) -> Vec<Finding> {
    let (mut found, rules) = chains(node, SYSTEM, is_chain);
    found.extend(
        node.sets
            .iter()
            .filter(|set| is_set(set))
            .map(|set| of_set(SYSTEM, set)),
    );
    let by_set: Vec<&Rule> = node
        .rules
        .iter()
        .filter(|rule| rule.sets().any(is_set_name))
        .collect();
    found.extend(by_set.iter().map(|rule| of_rule(SYSTEM, rule)));
    found.extend(routing(node, &by_set));
    if found.is_empty() {
        return found;
    }
    // An object without a name of theirs is attributed only beside one that has such a name.
    let replies = node.rules.iter().filter(|rule| is_reply_mark(rule));
    found.extend(replies.map(|rule| of_rule(SYSTEM, rule)));
    let translated = rules.iter().filter_map(|rule| match rule.target {
        Target::Snat(address) => Some(IpAddr::V4(address)),
        _ => None,
    });
    for address in translated.collect::<BTreeSet<_>>() {
        let extra = node.extra_address(address);
        found.extend(extra.map(|extra| of_address(SYSTEM, node, extra)));
    }
    for name in [
        "net.ipv4.conf.all.rp_filter",
        "net.ipv4.conf.default.rp_filter",
    ] {
        if node.sysctls.get(name).is_some_and(|value| value == "0") {
            let note = "it sets this and does not keep what was there before; left as it is";
            found.push(of_setting(SYSTEM, name, "0", note));
        }
    }
    found
}

fn is_chain(chain: &Chain) -> bool {
    CHAINS.contains(&(chain.table.as_str(), chain.name.as_str()))
}

fn is_set(set: &IpSet) -> bool {
    is_set_name(&set.name) && set.kind == "hash:ip" && set.is_v4
}

fn is_set_name(name: &str) -> bool {
    let base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
    name.strip_prefix(SET_PREFIX)
        .is_some_and(|hash| hash.len() == SET_HASH && hash.chars().all(base32))
}

/// `-s CIDR -d EGRESSIP -j MARK --set-mark 1000`: replies that go back into a tunnel.
fn is_reply_mark(rule: &Rule) -> bool {
    (rule.table.as_str(), rule.chain()) == ("mangle", "PREROUTING")
        && rule.is_simple()
        && rule.no_device()
        && rule.source.is_some()
        && rule.destination.is_some_and(|net| net.prefix_len() == 32)
        && rule.target == Target::Mark(MARK, u32::MAX)
}

/// A GRE device whose name is made from its remote address.
fn is_tunnel(device: &Device) -> bool {
    let Some(remote) = device.remote.filter(|_| device.kind == "gre") else {
        return false;
    };
    let mut name = format!("{TUNNEL_PREFIX}{}", remote.to_string().replace('.', ""));
    name.truncate(NAME_MAX);
    device.name == name
}

fn routing(node: &Node, by_set: &[&Rule]) -> Vec<Finding> {
    let mut found = Vec::new();
    // The fork's tables: those whose number its rules mark packets with.
    let marks = by_set.iter().filter_map(|rule| match rule.target {
        Target::Mark(mark, u32::MAX) if mark != MARK => Some(mark),
        _ => None,
    });
    let forks: BTreeSet<u32> = marks.collect();
    for rule in node
        .policy
        .iter()
        .filter(|rule| rule.is_plain && rule.mask == u32::MAX)
    {
        let original = (rule.mark, rule.table) == (MARK, TABLE);
        let fork = rule.mark == rule.table && forks.contains(&rule.table);
        if rule.priority == PRIORITY && (original || fork) {
            found.push(of_policy(SYSTEM, rule));
        }
    }
    let tunnels: BTreeSet<u32> = node
        .devices
        .iter()
        .filter(|device| is_tunnel(device))
        .map(|device| device.index)
        .collect();
    for route in &node.routes {
        let original = route.table == TABLE && tunnels.contains(&route.device);
        let fork = forks.contains(&route.table) && route.via.is_some();
        if original || fork {
            found.push(of_route(SYSTEM, node, route));
        }
    }
    let devices = node
        .devices
        .iter()
        .filter(|device| tunnels.contains(&device.index));
    found.extend(devices.map(|device| of_device(SYSTEM, device)));
    for line in &node.tables {
        let original = (line.id, line.name.as_str()) == (TABLE, TABLE_NAME);
        let fork = forks.contains(&line.id) && !line.file.contains("rt_tables.d");
        if original || fork {
            found.push(of_line(SYSTEM, line));
        }
    }
    found
}
