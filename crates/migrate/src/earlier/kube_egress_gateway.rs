//! kube-egress-gateway: traces of its daemon and its CNI plugin in a node's own network namespace and files.

use super::find::{chains, of_address, of_device, of_file, of_route};
use super::{Action, Chain, Finding, Kind, Node, Rule, System, Target};
use std::net::Ipv4Addr;

const SYSTEM: System = System::KubeEgressGateway;
const SNAT: &str = "EGRESS-GATEWAY-SNAT";
const ADDRESS_PREFIX: &str = "EGRESS-";
/// Suffix of the label of the load balancer's address.
const LABEL_END: &str = ":egress";
const NAMESPACE: &str = "ns-static-egress-gateway";
const HOST_DEVICE: &str = "host-gateway";
const PLUGINS: [&str; 2] = ["kube-egress-cni", "kube-egress-cni-ipam"];

pub(super) fn find(node: &Node) -> Vec<Finding> {
    let (mut found, _) = chains(node, SYSTEM, |chain| is_chain(node, chain));
    let label = |label: &str| {
        label
            .strip_suffix(LABEL_END)
            .is_some_and(|device| !device.is_empty())
    };
    let labelled = node
        .addresses
        .iter()
        .filter(|one| one.address.prefix_len() == 32 && label(&one.label));
    found.extend(labelled.map(|address| of_address(SYSTEM, node, address)));
    let veth = node
        .devices
        .iter()
        .filter(|one| one.name == HOST_DEVICE && one.kind == "veth");
    for device in veth {
        let routes = node.routes.iter().filter(|route| {
            route.device == device.index && route.to.is_some_and(|to| to.prefix_len() == 32)
        });
        let main = |route: &&super::Route| route.table == 254;
        found.extend(
            routes
                .filter(main)
                .map(|route| of_route(SYSTEM, node, route)),
        );
        found.push(of_device(SYSTEM, device));
    }
    let stranded = node
        .devices
        .iter()
        .filter(|one| one.kind == "wireguard" && is_wireguard_name(&one.name));
    found.extend(stranded.map(|device| of_device(SYSTEM, device)));
    if let Some(path) = node.namespaces.get(NAMESPACE) {
        found.push(Finding {
            system: SYSTEM,
            kind: Kind::Namespace,
            object: format!("ip netns add {NAMESPACE}"),
            packets: None,
            note: "with the WireGuard devices, addresses and rules in it".into(),
            removal: format!("ip netns del {NAMESPACE}"),
            action: Action::Namespace(path.clone()),
        });
    }
    found.extend(cni(node));
    found
}

/// `wg-6000` to `wg-6999`: a device that was never moved into their namespace.
fn is_wireguard_name(name: &str) -> bool {
    let port = name
        .strip_prefix("wg-")
        .and_then(|port| port.parse::<u16>().ok());
    port.is_some_and(|port| (6000..=6999).contains(&port))
}

fn is_chain(node: &Node, chain: &Chain) -> bool {
    if chain.table != "nat" {
        return false;
    }
    if chain.name == SNAT {
        return true;
    }
    let Some(address) = chain.name.strip_prefix(ADDRESS_PREFIX) else {
        return false;
    };
    let Ok(address) = address.replace('-', ".").parse::<Ipv4Addr>() else {
        return false;
    };
    let inside = |rule: &&Rule| {
        (rule.backend, &rule.table, rule.chain())
            == (chain.backend, &chain.table, chain.name.as_str())
    };
    let accepts = |rule: &Rule| {
        rule.target == Target::Verdict("ACCEPT")
            && rule
                .source
                .is_some_and(|net| net.addr() == address && net.prefix_len() == 32)
    };
    node.rules.iter().filter(inside).all(accepts)
}

/// The configuration list with their plugin, which is a copy of another one, and the plugins. The only configuration of
/// a node is never removed: no pod could start.
fn cni(node: &Node) -> Vec<Finding> {
    let theirs = |types: &[String]| types.iter().any(|one| one == PLUGINS[0]);
    let others = node.cni.iter().any(|file| !theirs(&file.types));
    let mut found = Vec::new();
    for file in node.cni.iter().filter(|file| theirs(&file.types)) {
        let mut finding = of_file(SYSTEM, &file.path);
        if !others {
            finding.note = "the node has no other CNI configuration: take the plugin kube-egress-cni out by hand".into();
            finding.removal = "edit it".into();
            finding.action = Action::Nothing;
        }
        found.push(finding);
    }
    let in_use = found.iter().any(|finding| !finding.is_removable());
    for path in PLUGINS.iter().filter_map(|name| node.plugins.get(*name)) {
        let mut finding = of_file(SYSTEM, path);
        if in_use {
            finding.note = "a CNI configuration that stays names it".into();
            finding.action = Action::Nothing;
        }
        found.push(finding);
    }
    found
}
