//! kube-egress, its version with mappings (which egress-mapper deploys), and the keepalived that moves its addresses.

use super::find::{chains, of_address, of_file, of_line, of_policy, of_route, of_rule, of_setting};
use super::{Chain, FileLine, Finding, Match, Node, PolicyRule, Route, Rule, System, Target};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

const SYSTEM: System = System::KubeEgress;
const MARKING: &str = "EGRESS";
const FORWARD_PREFIX: &str = "EGRESS_FWD_";
const POST: &str = "EGRESS_POST";
const POST_PREFIX: &str = "EGRESS_POST_";
/// Mask of marks in the version with mappings.
const MAPPED_MASK: u32 = 255;

pub(super) fn find(node: &Node) -> Vec<Finding> {
    let (mut found, mut rules) = chains(node, SYSTEM, |chain| is_chain(node, chain));
    let lines: Vec<&FileLine> = node.tables.iter().filter(|line| is_line(line)).collect();
    let mut ids: BTreeSet<u32> = lines.iter().map(|line| line.id).collect();
    ids.extend(rules.iter().filter_map(|rule| match rule.target {
        Target::Mark(mark, _) => Some(mark),
        _ => None,
    }));
    ids.remove(&0);
    let is_primarys = |rule: &&Rule| ids.iter().any(|id| is_of_primary(rule, *id));
    let single: Vec<&Rule> = node.rules.iter().filter(is_primarys).collect();
    found.extend(single.iter().map(|rule| of_rule(SYSTEM, rule)));
    rules.extend(single);
    let is_plain = |rule: &&PolicyRule| rule.is_plain && rule.mask == u32::MAX;
    let mut tables: BTreeSet<u32> = lines.iter().map(|line| line.id).collect();
    for rule in node.policy.iter().filter(is_plain) {
        if rule.mark == rule.table && ids.contains(&rule.table) {
            tables.insert(rule.table);
            found.push(of_policy(SYSTEM, rule));
        }
    }
    let is_default = |route: &&Route| {
        let everything = route.to.is_some_and(|to| to.prefix_len() == 0);
        tables.contains(&route.table) && everything && route.via.is_some()
    };
    let routes: Vec<&Route> = node.routes.iter().filter(is_default).collect();
    found.extend(routes.iter().map(|route| of_route(SYSTEM, node, route)));
    found.extend(lines.iter().map(|line| match line.is_alone {
        true => of_file(SYSTEM, &line.file),
        false => of_line(SYSTEM, line),
    }));
    let mut vips = addresses(node, &rules);
    vips.extend(routes.iter().filter_map(|route| route.via));
    found.extend(keepalived(node, &vips));
    found
}

fn is_chain(node: &Node, chain: &Chain) -> bool {
    let is_named = |prefix| address_after(&chain.name, prefix).is_some();
    match (chain.table.as_str(), chain.name.as_str()) {
        ("mangle", MARKING) => is_marking(node, chain),
        ("nat", POST) => is_post(node, chain),
        ("mangle", _) => is_named(FORWARD_PREFIX),
        ("nat", _) => is_named(POST_PREFIX),
        _ => false,
    }
}

/// Addresses that its rules translate to and that its chains are named after.
fn addresses(node: &Node, rules: &[&Rule]) -> BTreeSet<Ipv4Addr> {
    let translated = rules.iter().filter_map(|rule| match rule.target {
        Target::Snat(address) => Some(address),
        _ => None,
    });
    let chains = node.chains.iter().filter(|chain| is_chain(node, chain));
    let named = chains.filter_map(|chain| {
        let forward = address_after(&chain.name, FORWARD_PREFIX);
        forward.or(address_after(&chain.name, POST_PREFIX))
    });
    translated.chain(named).collect()
}

/// Addresses that keepalived holds for it. keepalived removes its address when it ends, unless it was killed.
fn keepalived(node: &Node, vips: &BTreeSet<Ipv4Addr>) -> Vec<Finding> {
    const SYSTEM: System = System::KeepalivedVip;
    const BIND: &str = "net.ipv4.ip_nonlocal_bind";
    let mut found = Vec::new();
    for vip in vips {
        if let Some(address) = node.extra_address(IpAddr::V4(*vip)) {
            let mut finding = of_address(SYSTEM, node, address);
            finding.note = "known by the rules of kube-egress only: clean both at once, \
                            and end keepalived first, which would put it back"
                .into();
            found.push(finding);
        }
    }
    if !found.is_empty() && node.sysctls.get(BIND).is_some_and(|value| value == "1") {
        let note = "keepalived-vip sets this; others may need it; left as it is";
        found.push(of_setting(SYSTEM, BIND, "1", note));
    }
    found
}

fn address_after(name: &str, prefix: &str) -> Option<Ipv4Addr> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// `mangle EGRESS`: others could use this name too, so every rule in it must be as kube-egress writes it, and one must
/// set a mark.
fn is_marking(node: &Node, chain: &Chain) -> bool {
    let rules = || inside(node, chain);
    let returns = |rule: &Rule| {
        rule.target == Target::Verdict("RETURN")
            && rule.destination.is_some()
            && rule.source.is_none()
    };
    let marks = |rule: &Rule| {
        let own = |mark, mask| mark == mask || (mask == u32::MAX && (1..=252).contains(&mark));
        matches!(rule.target, Target::Mark(mark, mask) if mark != 0 && own(mark, mask))
            && rule.source.is_some()
            && rule.destination.is_none()
    };
    let is_theirs =
        |rule: &Rule| rule.is_simple() && rule.no_device() && (returns(rule) || marks(rule));
    rules().all(is_theirs) && rules().any(marks)
}

/// `nat EGRESS_POST`: jumps to chains named after an address, and accepts by a mark under the mask 255.
fn is_post(node: &Node, chain: &Chain) -> bool {
    let is_theirs = |rule: &Rule| match &rule.target {
        Target::Jump(to) => address_after(to, POST_PREFIX).is_some(),
        Target::Verdict("ACCEPT") => {
            matches!(rule.matches.as_slice(), [Match::Mark(mark, MAPPED_MASK)] if *mark != 0)
        }
        _ => false,
    };
    inside(node, chain).all(is_theirs) && inside(node, chain).next().is_some()
}

fn inside<'a>(node: &'a Node, chain: &'a Chain) -> impl Iterator<Item = &'a Rule> {
    node.rules.iter().filter(move |rule| {
        (rule.backend, &rule.table, rule.chain())
            == (chain.backend, &chain.table, chain.name.as_str())
    })
}

/// The two rules of the first version in built-in chains of the node that has the address.
fn is_of_primary(rule: &Rule, id: u32) -> bool {
    let addresses = rule.source.is_some() || rule.destination.is_some();
    if addresses || rule.protocol.is_some() {
        return false;
    }
    match (rule.table.as_str(), rule.chain()) {
        ("mangle", "FORWARD") => {
            rule.target == Target::Mark(id, id)
                && rule.is_simple()
                && rule.input.is_some()
                && rule.input == rule.output
        }
        ("nat", "POSTROUTING") => {
            matches!(rule.target, Target::Snat(_))
                && rule.matches == [Match::Mark(id, id)]
                && rule.output.is_some()
                && rule.input.is_none()
        }
        _ => false,
    }
}

/// `64 egress` in `rt_tables.d/egress.conf`, or `64 egress_64` in `rt_tables.d/egress_64.conf`.
fn is_line(line: &FileLine) -> bool {
    let file = |name: &str| line.file.ends_with(&format!("/rt_tables.d/{name}.conf"));
    let mapped = format!("egress_{}", line.id);
    (line.name == "egress" && file("egress")) || (line.name == mapped && file(&mapped))
}
