//! Findings, and matching code that all systems share.

use super::{Action, Chain, Finding, Kind, Node, Rule, System};
use super::{Address, Device, FileLine, IpSet, PolicyRule, Route};
use super::{kube_egress, kube_egress_gateway, static_egress_ip};

/// Traces of earlier systems on the node, in the order of removal.
pub fn find(node: &Node) -> Vec<Finding> {
    let mut found = static_egress_ip::find(node);
    found.extend(kube_egress::find(node));
    found.extend(kube_egress_gateway::find(node));
    found.sort_by(|a, b| (a.system, &a.action, &a.object).cmp(&(b.system, &b.action, &b.object)));
    found.dedup();
    found
}

/// Chains of one system, with their rules and the rules that jump to them.
pub(super) fn chains(
    node: &Node,
    system: System,
    is_theirs: impl Fn(&Chain) -> bool,
) -> (Vec<Finding>, Vec<&Rule>) {
    let theirs: Vec<&Chain> = node.chains.iter().filter(|one| is_theirs(one)).collect();
    let touches = |rule: &&Rule| {
        theirs.iter().any(|chain| {
            let same = (chain.backend, &chain.table) == (rule.backend, &rule.table);
            let leads = matches!(&rule.target, super::Target::Jump(to) if *to == chain.name);
            same && (leads || rule.chain() == chain.name)
        })
    };
    let rules: Vec<&Rule> = node.rules.iter().filter(touches).collect();
    let mut found: Vec<Finding> = rules.iter().map(|rule| of_rule(system, rule)).collect();
    found.extend(theirs.iter().map(|chain| of_chain(system, chain)));
    (found, rules)
}

pub(super) fn of_rule(system: System, rule: &Rule) -> Finding {
    Finding {
        system,
        kind: Kind::Rule,
        object: rule.command('A'),
        packets: Some(rule.packets),
        note: String::new(),
        removal: rule.command('D'),
        action: Action::Rule(rule.backend, rule.table.clone(), rule.id.clone()),
    }
}

fn of_chain(system: System, chain: &Chain) -> Finding {
    let command = |verb| {
        format!(
            "{} -t {} -{verb} {}",
            chain.backend.program(),
            chain.table,
            chain.name
        )
    };
    Finding {
        system,
        kind: Kind::Chain,
        object: command('N'),
        packets: None,
        note: String::new(),
        removal: command('X'),
        action: Action::Chain(chain.backend, chain.table.clone(), chain.name.clone()),
    }
}

pub(super) fn of_set(system: System, set: &IpSet) -> Finding {
    Finding {
        system,
        kind: Kind::Set,
        object: format!("ipset create {} {}", set.name, set.kind),
        packets: None,
        note: format!("{} entries, {} references", set.entries, set.references),
        removal: format!("ipset destroy {}", set.name),
        action: Action::Set(set.name.clone()),
    }
}

pub(super) fn of_policy(system: System, rule: &PolicyRule) -> Finding {
    let text = format!(
        "fwmark {:#x} lookup {} priority {}",
        rule.mark, rule.table, rule.priority
    );
    Finding {
        system,
        kind: Kind::RoutingRule,
        object: format!("ip rule add {text}"),
        packets: None,
        note: String::new(),
        removal: format!("ip rule del {text}"),
        action: Action::RoutingRule(rule.raw.clone()),
    }
}

pub(super) fn of_route(system: System, node: &Node, route: &Route) -> Finding {
    let to = match route.to {
        Some(to) if to.prefix_len() == 0 => "default".to_owned(),
        Some(to) if to.prefix_len() == 32 => to.addr().to_string(),
        Some(to) => to.to_string(),
        None => String::new(),
    };
    let via = route
        .via
        .map_or_else(String::new, |via| format!(" via {via}"));
    let device = node.device_name(route.device);
    let text = format!("{to}{via} dev {device} table {}", route.table);
    Finding {
        system,
        kind: Kind::Route,
        object: format!("ip route add {text}"),
        packets: None,
        note: String::new(),
        removal: format!("ip route del {text}"),
        action: Action::Route(route.raw.clone()),
    }
}

pub(super) fn of_device(system: System, device: &Device) -> Finding {
    let ends = match (device.remote, device.local) {
        (Some(remote), Some(local)) => format!(" remote {remote} local {local}"),
        _ => String::new(),
    };
    Finding {
        system,
        kind: Kind::Device,
        object: format!("ip link add {} type {}{ends}", device.name, device.kind),
        packets: Some(device.packets),
        note: String::new(),
        removal: format!("ip link del {}", device.name),
        action: Action::Device(device.index, device.name.clone()),
    }
}

pub(super) fn of_address(system: System, node: &Node, address: &Address) -> Finding {
    let device = node.device_name(address.device);
    let text = format!("{} dev {device}", address.address);
    let label = match address.label == device || address.label.is_empty() {
        true => String::new(),
        false => format!(" label {}", address.label),
    };
    Finding {
        system,
        kind: Kind::Address,
        object: format!("ip address add {text}{label}"),
        packets: None,
        note: String::new(),
        removal: format!("ip address del {text}"),
        action: Action::Address(address.raw.clone()),
    }
}

pub(super) fn of_line(system: System, line: &FileLine) -> Finding {
    Finding {
        system,
        kind: Kind::TableName,
        object: format!("{}: {}", line.file, line.text),
        packets: None,
        note: String::new(),
        removal: format!("sed -i '/^{}$/d' {}", line.text, line.file),
        action: Action::Line(line.file.clone(), line.text.clone()),
    }
}

pub(super) fn of_file(system: System, path: &str) -> Finding {
    Finding {
        system,
        kind: Kind::File,
        object: path.to_owned(),
        packets: None,
        note: String::new(),
        removal: format!("rm {path}"),
        action: Action::File(path.to_owned()),
    }
}

/// A changed setting: its earlier value is not known, so it is only reported.
pub(super) fn of_setting(system: System, name: &str, value: &str, note: &str) -> Finding {
    Finding {
        system,
        kind: Kind::Setting,
        object: format!("sysctl -w {name}={value}"),
        packets: None,
        note: note.to_owned(),
        removal: format!("sysctl -w {name}=VALUE"),
        action: Action::Nothing,
    }
}
