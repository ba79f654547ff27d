//! Traces that are found, and objects that must not be. `tests/tests/lab/doctor.rs` tests real kernels.

use super::*;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn rule(table: &str, chain: &str, handle: u64, target: Target) -> Rule {
    let mut rule = Rule::empty(Backend::Nft, table, chain, handle);
    rule.target = target;
    rule
}

fn chain(table: &str, name: &str) -> Chain {
    Chain {
        backend: Backend::Nft,
        table: table.into(),
        name: name.into(),
    }
}

fn device(index: u32, name: &str, kind: &str, remote: Option<[u8; 4]>) -> Device {
    Device {
        index,
        name: name.into(),
        kind: kind.into(),
        remote: remote.map(Ipv4Addr::from),
        ..Device::default()
    }
}

fn objects(node: &Node) -> Vec<String> {
    find(node).into_iter().map(|found| found.object).collect()
}

fn policy(priority: u32, mark: u32, mask: u32, table: u32) -> PolicyRule {
    PolicyRule {
        priority,
        mark,
        mask,
        table,
        is_plain: true,
        raw: vec![priority as u8, mark as u8],
    }
}

#[test]
fn an_empty_node_has_nothing() {
    assert_eq!(find(&Node::default()), []);
}

#[test]
fn a_gre_device_is_theirs_only_by_the_address_in_its_name() {
    let remote = Some([192, 168, 122, 1]);
    let mut node = Node {
        devices: vec![device(7, "tun1921681221", "gre", remote)],
        ..Node::default()
    };
    let route = |device| Route {
        table: 99,
        to: Some(net("198.51.100.0/24")),
        device,
        ..Route::default()
    };
    node.routes = vec![route(7), route(8)];
    assert_eq!(
        objects(&node),
        [
            "ip route add 198.51.100.0/24 dev tun1921681221 table 99",
            "ip link add tun1921681221 type gre",
        ],
        "a route of the same table by another device is somebody else's"
    );
    for other in [
        device(7, "tun0", "tun", None),
        device(7, "tun1921681221", "tun", remote),
        device(7, "tun1921681221", "gre", Some([192, 168, 12, 2])),
        device(7, "tun1", "gre", remote),
    ] {
        node.devices = vec![other];
        assert_eq!(objects(&node), [""; 0], "{:?}", node.devices);
    }
    // Device names are cut off after 15 characters.
    node.devices = vec![device(
        7,
        "tun192168122110",
        "gre",
        Some([192, 168, 122, 110]),
    )];
    assert_eq!(objects(&node).len(), 2);
    node.devices = vec![device(
        7,
        "tun192168122100",
        "gre",
        Some([192, 168, 122, 110]),
    )];
    assert_eq!(objects(&node), [""; 0]);
}

#[test]
fn marks_priorities_and_tables_alone_name_nobody() {
    let mut node = Node {
        policy: vec![
            policy(32764, 1000, 0xffff, 99),
            policy(32764, 64, u32::MAX, 64),
            policy(32764, 1000, u32::MAX, 100),
            policy(100, 1000, u32::MAX, 99),
        ],
        ..Node::default()
    };
    let mut marks = rule("mangle", "PREROUTING", 1, Target::Mark(1000, u32::MAX));
    marks.source = Some(net("198.51.100.0/24"));
    marks.destination = Some(net("192.0.2.1/32"));
    node.rules = vec![marks];
    assert_eq!(objects(&node), [""; 0]);
    node.policy.push(policy(32764, 1000, u32::MAX, 99));
    assert_eq!(
        objects(&node),
        [
            "iptables-nft -t mangle -A PREROUTING -s 198.51.100.0/24 -d 192.0.2.1/32 -j MARK --set-xmark 0x3e8/0xffffffff",
            "ip rule add fwmark 0x3e8 lookup 99 priority 32764",
        ]
    );
    let mut more = node.policy.pop().unwrap();
    more.is_plain = false;
    node.policy.push(more);
    assert_eq!(objects(&node), [""; 0], "it looks at more than the mark");
}

#[test]
fn the_forks_tables_are_those_that_its_sets_mark_for() {
    let set = "EGRESS-IP-ABCDEFGHIJKLMNOP";
    let mut marks = rule("mangle", "OUTPUT", 4, Target::Mark(200, u32::MAX));
    marks.source = Some(net("10.244.1.5/32"));
    marks.matches = vec![Match::Set(set.into(), "src".into())];
    let line = |id, name: &str| FileLine {
        file: "/etc/iproute2/rt_tables".into(),
        text: format!("{id} {name}"),
        id,
        name: name.into(),
        is_alone: false,
    };
    let node = Node {
        rules: vec![marks],
        policy: vec![
            policy(32764, 200, u32::MAX, 200),
            policy(32764, 201, u32::MAX, 201),
        ],
        routes: vec![Route {
            table: 200,
            to: Some(net("0.0.0.0/0")),
            via: Some(Ipv4Addr::new(192, 0, 2, 9)),
            device: 2,
            raw: vec![1],
        }],
        tables: vec![
            line(200, "vlan200"),
            line(201, "vlan201"),
            line(99, "kube-static"),
        ],
        ..Node::default()
    };
    let found = objects(&node);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(
        found
            .iter()
            .all(|one| !one.contains("201") && !one.contains("kube-static"))
    );
    assert!(found.contains(&"ip route add default via 192.0.2.9 dev if2 table 200".into()));
}

#[test]
fn set_names_are_whole_hashes() {
    let set = |name: &str, kind: &str| IpSet {
        name: name.into(),
        kind: kind.into(),
        is_v4: true,
        entries: 2,
        references: 0,
    };
    let mut node = Node::default();
    for other in [
        "EGRESS-IP-ABCDEFGHIJKLMNO",
        "EGRESS-IP-ABCDEFGHIJKLMNO1",
        "EGRESS-IP-abcdefghijklmnop",
        "cali40all-ipam-pools",
    ] {
        node.sets = vec![set(other, "hash:ip")];
        assert_eq!(objects(&node), [""; 0], "{other}");
    }
    node.sets = vec![set("EGRESS-IP-ABCDEFGHIJKLMNO7", "hash:net")];
    assert_eq!(objects(&node), [""; 0]);
    node.sets = vec![set("EGRESS-IP-ABCDEFGHIJKLMNO7", "hash:ip")];
    assert_eq!(find(&node)[0].note, "2 entries, 0 references");
}

#[test]
fn a_chain_of_the_name_egress_is_somebody_elses_if_anything_in_it_is_foreign() {
    let mut marks = rule("mangle", "EGRESS", 1, Target::Mark(64, 64));
    marks.source = Some(net("10.32.0.0/12"));
    let mut returns = rule("mangle", "EGRESS", 2, Target::Verdict("RETURN"));
    returns.destination = Some(net("10.96.0.0/12"));
    let jump = rule("mangle", "PREROUTING", 3, Target::Jump("EGRESS".into()));
    let mut node = Node {
        chains: vec![chain("mangle", "EGRESS")],
        rules: vec![marks.clone(), returns.clone(), jump],
        ..Node::default()
    };
    assert_eq!(objects(&node).len(), 4);
    for foreign in [
        rule("mangle", "EGRESS", 4, Target::Verdict("ACCEPT")),
        rule("mangle", "EGRESS", 4, Target::Jump("cali-x".into())),
        Rule {
            matches: vec![Match::Other("-m tcp".into())],
            ..marks.clone()
        },
        Rule {
            target: Target::Mark(64, 0xff),
            ..marks.clone()
        },
    ] {
        node.rules.push(foreign);
        assert_eq!(objects(&node), [""; 0], "{:?}", node.rules.last());
        node.rules.pop();
    }
    node.rules.remove(0);
    assert_eq!(objects(&node), [""; 0], "nothing marks");
}

#[test]
fn rules_of_the_primary_are_theirs_by_the_number_of_their_own_chain() {
    let eth0 = || Some("eth0".to_owned());
    let mut snat = rule(
        "nat",
        "POSTROUTING",
        5,
        Target::Snat(Ipv4Addr::new(192, 0, 2, 222)),
    );
    (snat.output, snat.matches) = (eth0(), vec![Match::Mark(64, 64)]);
    let mut forward = rule("mangle", "FORWARD", 6, Target::Mark(64, 64));
    (forward.input, forward.output) = (eth0(), eth0());
    let mut node = Node {
        rules: vec![snat, forward],
        policy: vec![policy(32765, 64, u32::MAX, 64)],
        ..Node::default()
    };
    assert_eq!(objects(&node), [""; 0], "kube-vip marks so too");
    let mut marks = rule("mangle", "EGRESS", 1, Target::Mark(64, 64));
    marks.source = Some(net("10.32.0.0/12"));
    node.rules.push(marks.clone());
    node.chains = vec![chain("mangle", "EGRESS")];
    assert_eq!(objects(&node).len(), 5);
    marks.target = Target::Mark(32, 32);
    node.rules.pop();
    node.rules.push(marks);
    assert_eq!(objects(&node).len(), 2, "another number");
}

#[test]
fn the_only_cni_configuration_of_a_node_stays() {
    let file = |path: &str, types: &[&str]| CniFile {
        path: path.into(),
        types: types.iter().map(ToString::to_string).collect(),
    };
    let theirs = file(
        "/etc/cni/net.d/01-egressgateway.conflist",
        &["ptp", "kube-egress-cni"],
    );
    let mut node = Node {
        cni: vec![theirs],
        plugins: [(
            "kube-egress-cni".into(),
            "/opt/cni/bin/kube-egress-cni".into(),
        )]
        .into(),
        ..Node::default()
    };
    let found = find(&node);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|one| !one.is_removable()), "{found:#?}");
    node.cni
        .push(file("/etc/cni/net.d/10-calico.conflist", &["calico"]));
    let found = find(&node);
    assert_eq!(found.len(), 2, "the other configuration is nobody's");
    assert!(found.iter().all(Finding::is_removable));
}

#[test]
fn an_address_is_extra_only_beside_another_of_its_network() {
    let vip = Ipv4Addr::new(192, 0, 2, 222);
    let address = |text: &str| Address {
        device: 2,
        address: net(text),
        label: "eth0".into(),
        raw: text.bytes().collect(),
    };
    let mut node = Node {
        devices: vec![device(2, "eth0", "", None)],
        chains: vec![chain("nat", "STATIC-EGRESS-NAT-CHAIN")],
        rules: vec![rule("nat", "STATIC-EGRESS-NAT-CHAIN", 1, Target::Snat(vip))],
        addresses: vec![address("192.0.2.222/32")],
        ..Node::default()
    };
    let addresses = |node: &Node| {
        objects(node)
            .iter()
            .filter(|one| one.contains("address"))
            .count()
    };
    assert_eq!(addresses(&node), 0, "the node's only address");
    node.addresses.push(address("192.0.2.11/24"));
    assert_eq!(addresses(&node), 1);
    node.addresses = vec![address("192.0.2.222/24"), address("192.0.2.11/24")];
    assert_eq!(addresses(&node), 0, "the node's own address");
}

#[test]
fn what_leads_to_an_object_goes_before_it() {
    let jump = rule(
        "nat",
        "POSTROUTING",
        9,
        Target::Jump("STATIC-EGRESS-NAT-CHAIN".into()),
    );
    let mut by_set = rule(
        "nat",
        "STATIC-EGRESS-NAT-CHAIN",
        3,
        Target::Verdict("ACCEPT"),
    );
    let set = "EGRESS-IP-ABCDEFGHIJKLMNO7";
    by_set.matches = vec![Match::Set(set.into(), "src".into())];
    let node = Node {
        chains: vec![chain("nat", "STATIC-EGRESS-NAT-CHAIN")],
        rules: vec![jump, by_set],
        sets: vec![IpSet {
            name: set.into(),
            kind: "hash:ip".into(),
            is_v4: true,
            entries: 1,
            references: 1,
        }],
        ..Node::default()
    };
    let kinds: Vec<Kind> = find(&node).iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [Kind::Rule, Kind::Rule, Kind::Chain, Kind::Set]);
}
