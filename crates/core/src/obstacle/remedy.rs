//! Names of refusals and their remedies, in the syntax of the tool that wrote them.

use super::firewall::{Action, Condition, Refusal, Rule, Test};
use super::{Base, Hook, Obstacle, ObstacleKind, Table, Tool};
use crate::numbers::{REINJECT_DEVICE, TUNNEL_DEVICE, TUNNEL_PORT};

pub(super) fn obstacle(
    table: &Table,
    base: &Base,
    refusal: &Refusal,
    (is_v4, reinjected): (bool, bool),
) -> Obstacle {
    let rule = refusal
        .rule
        .and_then(|position| table.chains.get(&refusal.chain)?.get(position));
    let kind = match (base.hook, rule) {
        (Hook::Forward, None) => ObstacleKind::ForwardPolicy,
        (Hook::Forward, Some(_)) => ObstacleKind::ForwardRule,
        (Hook::Prerouting, _) if refusal.by_reverse_path => ObstacleKind::ReversePathRule,
        (Hook::Prerouting, _) => ObstacleKind::PreroutingRule,
        (Hook::Input, _) => ObstacleKind::TunnelPort,
    };
    let chain = chain(table, &refusal.chain, is_v4);
    let what = match rule {
        Some(rule) => format!("the rule `{}` of {chain}", rule_text(table, rule)),
        None => format!("the policy of {chain}"),
    };
    let (refuses, drops) = match refusal.is_certain {
        true => ("refuses", "drops"),
        false => ("may refuse", "may drop"),
    };
    let text = match kind {
        ObstacleKind::ForwardPolicy => {
            format!("{what} is drop: it {refuses} what passes through the tunnel")
        }
        ObstacleKind::ForwardRule => format!("{what} {refuses} what passes through the tunnel"),
        ObstacleKind::ReversePathRule => format!(
            "{what} {drops} answers that come out of {TUNNEL_DEVICE}, since routes lead to their sources by other devices"
        ),
        ObstacleKind::PreroutingRule => format!("{what} {drops} what comes out of {TUNNEL_DEVICE}"),
        _ => format!(
            "{what} may keep out the tunnel's packets from other nodes (UDP port {TUNNEL_PORT})"
        ),
    };
    let remedy = match base.hook {
        Hook::Input => input(table, refusal, is_v4),
        _ => ways(table, refusal, rule, (kind, is_v4, reinjected)),
    };
    Obstacle {
        kind,
        place: match rule {
            Some(rule) => format!("{chain}: {}", rule_text(table, rule)),
            None => format!("{chain}: policy drop"),
        },
        text,
        remedy,
        v4: is_v4,
        v6: !is_v4,
        certain: refusal.is_certain,
    }
}

fn program(tool: Tool, is_v4: bool) -> &'static str {
    match (tool, is_v4) {
        (Tool::IptablesLegacy, true) => "iptables-legacy",
        (Tool::IptablesLegacy, false) => "ip6tables-legacy",
        (_, true) => "iptables-nft",
        (_, false) => "ip6tables-nft",
    }
}

fn chain(table: &Table, chain: &str, is_v4: bool) -> String {
    match table.tool {
        Tool::Nft => format!(
            "the nftables chain {} {} {chain}",
            family(table),
            table.name
        ),
        tool => format!(
            "the chain {chain} of table {} of {}",
            table.name,
            program(tool, is_v4)
        ),
    }
}

fn family(table: &Table) -> &'static str {
    match (table.v4, table.v6) {
        (true, false) => "ip",
        (false, true) => "ip6",
        _ => "inet",
    }
}

/// Commands or settings that let the packets pass.
fn ways(
    table: &Table,
    refusal: &Refusal,
    rule: Option<&Rule>,
    (kind, is_v4, reinjected): (ObstacleKind, bool, bool),
) -> String {
    if let Some(text) = by_owner(table, refusal, kind) {
        return text;
    }
    if table.owned {
        return format!(
            "its owner lets nobody else add rules: have it accept the device {TUNNEL_DEVICE} there"
        );
    }
    let forwards = matches!(
        kind,
        ObstacleKind::ForwardPolicy | ObstacleKind::ForwardRule
    );
    let mut ways = vec![("-i", TUNNEL_DEVICE)];
    if forwards {
        ways.push(("-o", TUNNEL_DEVICE));
    }
    if forwards && reinjected {
        ways.push(("-i", REINJECT_DEVICE));
    }
    let chain = &refusal.chain;
    let commands = ways.into_iter().map(|(way, device)| match table.tool {
        Tool::Nft => {
            let way = if way == "-i" { "iifname" } else { "oifname" };
            let at = (family(table), &table.name);
            let verb = match rule {
                Some(rule) => format!(
                    "insert rule {} {} {chain} position {}",
                    at.0, at.1, rule.handle
                ),
                None => format!("add rule {} {} {chain}", at.0, at.1),
            };
            format!("nft {verb} {way} {device} accept")
        }
        tool => {
            let of_table = match table.name.as_str() {
                "filter" => String::new(),
                name => format!("-t {name} "),
            };
            let verb = match refusal.rule {
                Some(position) => format!("-I {chain} {}", position + 1),
                None => format!("-A {chain}"),
            };
            let program = program(tool, is_v4);
            format!("{program} {of_table}{verb} {way} {device} -j ACCEPT")
        }
    });
    commands.collect::<Vec<_>>().join("; ")
}

fn input(table: &Table, refusal: &Refusal, is_v4: bool) -> String {
    if table.name == "firewalld" {
        return format!(
            "firewall-cmd --permanent --add-port={TUNNEL_PORT}/udp && firewall-cmd --reload"
        );
    }
    let chain = &refusal.chain;
    match table.tool {
        Tool::Nft => format!(
            "accept UDP port {TUNNEL_PORT} from the other nodes: nft insert rule {} {} {chain} udp dport {TUNNEL_PORT} accept",
            family(table),
            table.name
        ),
        tool => format!(
            "accept UDP port {TUNNEL_PORT} from the other nodes: {} -I {chain} -p udp --dport {TUNNEL_PORT} -j ACCEPT",
            program(tool, is_v4)
        ),
    }
}

/// Remedy for firewalls that regenerate their rules: their own setting.
fn by_owner(table: &Table, refusal: &Refusal, kind: ObstacleKind) -> Option<String> {
    let reverse = kind == ObstacleKind::ReversePathRule;
    let is_nixos = table.name.starts_with("nixos") || refusal.chain.starts_with("nixos-fw");
    Some(match (table.name.as_str(), reverse) {
        ("firewalld", true) => {
            "set IPv6_rpfilter=loose (before firewalld 2.0: no) in /etc/firewalld/firewalld.conf and restart firewalld".into()
        }
        ("firewalld", false) => format!(
            "firewall-cmd --permanent --zone=trusted --add-interface={TUNNEL_DEVICE} && firewall-cmd --reload"
        ),
        (_, true) if is_nixos => {
            "set networking.firewall.checkReversePath = \"loose\"".into()
        }
        _ => return None,
    })
}

fn rule_text(table: &Table, rule: &Rule) -> String {
    let words = rule.conditions.iter().map(|one| condition(table, one));
    let action = action(table, &rule.action);
    words.chain([action]).collect::<Vec<_>>().join(" ")
}

fn condition(table: &Table, condition: &Condition) -> String {
    let nft = table.tool == Tool::Nft;
    let not = match (condition.negated, nft) {
        (false, _) => "",
        (true, true) => "!= ",
        (true, false) => "! ",
    };
    let of = |test: &Condition| match &test.test {
        Test::Source(net) | Test::Destination(net) if net.addr().is_ipv4() => "ip",
        _ => "ip6",
    };
    match (&condition.test, nft) {
        (Test::Input(name), true) => format!("iifname {not}\"{name}\""),
        (Test::Input(name), false) => format!("{not}-i {}", name.replace('*', "+")),
        (Test::Output(name), true) => format!("oifname {not}\"{name}\""),
        (Test::Output(name), false) => format!("{not}-o {}", name.replace('*', "+")),
        (Test::IsV4, _) if condition.negated => "meta nfproto ipv6".into(),
        (Test::IsV4, _) => "meta nfproto ipv4".into(),
        (Test::Source(net), true) => format!("{} saddr {not}{net}", of(condition)),
        (Test::Source(net), false) => format!("{not}-s {net}"),
        (Test::Destination(net), true) => format!("{} daddr {not}{net}", of(condition)),
        (Test::Destination(net), false) => format!("{not}-d {net}"),
        (Test::Protocol(number), true) => format!("meta l4proto {not}{number}"),
        (Test::Protocol(number), false) => format!("{not}-p {number}"),
        (Test::DestinationPort(first, last), true) => format!("th dport {not}{first}-{last}"),
        (Test::DestinationPort(first, last), false) => format!("{not}--dport {first}:{last}"),
        (Test::State(bits), true) => {
            format!("ct state {not}{}", states(*bits).join(",").to_lowercase())
        }
        (Test::State(bits), false) => {
            format!("-m conntrack {not}--ctstate {}", states(*bits).join(","))
        }
        (Test::Mark { value, mask }, true) => format!("meta mark & {mask:#x} == {not}{value:#x}"),
        (Test::Mark { value, mask }, false) => format!("-m mark {not}--mark {value:#x}/{mask:#x}"),
        (Test::ReversePath { loose }, true) => {
            let iif = if *loose { "" } else { " . iif" };
            let missing = if condition.negated {
                "missing"
            } else {
                "exists"
            };
            format!("fib saddr{iif} oif {missing}")
        }
        (Test::ReversePath { loose }, false) => {
            let loose = if *loose { " --loose" } else { "" };
            let invert = if condition.negated { " --invert" } else { "" };
            format!("-m rpfilter{loose}{invert}")
        }
        (Test::Other(text) | Test::Never(text), _) => format!("{not}{text}"),
    }
}

fn states(bits: u32) -> Vec<&'static str> {
    use super::firewall::state::{ESTABLISHED, INVALID, NEW, RELATED, UNTRACKED};
    let all = [
        (INVALID, "INVALID"),
        (ESTABLISHED, "ESTABLISHED"),
        (RELATED, "RELATED"),
        (NEW, "NEW"),
        (UNTRACKED, "UNTRACKED"),
    ];
    let set = all.into_iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| name).collect()
}

fn action(table: &Table, action: &Action) -> String {
    let nft = table.tool == Tool::Nft;
    let (for_nft, for_iptables) = match action {
        Action::Accept => ("accept", "ACCEPT"),
        Action::Drop => ("drop", "DROP"),
        Action::Reject => ("reject", "REJECT"),
        Action::Return => ("return", "RETURN"),
        Action::Continue => ("continue", "LOG"),
        Action::Mark(_) => ("meta mark set", "MARK"),
        Action::Other(text) => (text.as_str(), text.as_str()),
        Action::Jump(to) => {
            return if nft {
                format!("jump {to}")
            } else {
                format!("-j {to}")
            };
        }
        Action::Goto(to) => {
            return if nft {
                format!("goto {to}")
            } else {
                format!("-g {to}")
            };
        }
    };
    match nft {
        true => for_nft.to_owned(),
        false => format!("-j {for_iptables}"),
    }
}
