//! Firewalls as distributions and plugins write them, and the obstacles that are reported for them.

use super::firewall::{Action, Condition, Rule, Test, state};
use super::*;
use crate::numbers::RULE_PRIORITY;

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a literal prefix")
}

fn rule(conditions: Vec<Condition>, action: Action) -> Rule {
    Rule {
        conditions,
        action,
        handle: 7,
    }
}

fn all(action: Action) -> Rule {
    rule(Vec::new(), action)
}

fn when(test: Test, action: Action) -> Rule {
    rule(vec![test.into()], action)
}

fn unless(test: Test) -> Condition {
    Condition {
        test,
        negated: true,
    }
}

fn jump(to: &str) -> Rule {
    all(Action::Jump(to.into()))
}

fn input(name: &str) -> Test {
    Test::Input(name.into())
}

fn output(name: &str) -> Test {
    Test::Output(name.into())
}

fn established() -> Test {
    Test::State(state::ESTABLISHED | state::RELATED)
}

fn mark(bit: u32) -> Test {
    Test::Mark {
        value: bit,
        mask: bit,
    }
}

/// A table of IPv4 with one base chain, and others that it jumps to.
fn table(
    tool: Tool,
    (hook, priority, drops): (Hook, i32, bool),
    chains: &[(&str, Vec<Rule>)],
) -> Table {
    Table {
        tool,
        v4: true,
        v6: false,
        name: "filter".into(),
        owned: false,
        bases: vec![Base {
            chain: chains[0].0.into(),
            hook,
            priority,
            policy_drops: drops,
        }],
        chains: chains
            .iter()
            .map(|(name, rules)| ((*name).to_owned(), rules.clone()))
            .collect(),
    }
}

fn forward(drops: bool, chains: &[(&str, Vec<Rule>)]) -> Table {
    table(Tool::IptablesLegacy, (Hook::Forward, 0, drops), chains)
}

fn prerouting(priority: i32, rules: Vec<Rule>) -> Table {
    table(
        Tool::Nft,
        (Hook::Prerouting, priority, false),
        &[("PREROUTING", rules)],
    )
}

fn samples() -> Samples {
    let v4 = Sample {
        pod: Some("10.244.1.10".parse().unwrap()),
        egress: Some("192.168.122.222".parse().unwrap()),
        outside: Some("203.0.113.10".parse().unwrap()),
        ..Sample::default()
    };
    Samples {
        v4: Some(v4),
        v6: None,
        tunnel: true,
    }
}

fn found(tables: &[Table]) -> Vec<Obstacle> {
    of_firewalls(tables, &samples()).expect("everything is read")
}

/// Kind of the only obstacle, and whether it is certain.
fn only(table: Table) -> Option<(ObstacleKind, bool)> {
    let found = found(&[table]);
    assert!(found.len() < 2, "{found:#?}");
    found.first().map(|one| (one.kind, one.certain))
}

const RULE: Option<(ObstacleKind, bool)> = Some((ObstacleKind::ForwardRule, true));

#[test]
fn a_catch_all_reject_is_told_with_chain_rule_and_remedy() {
    // As CentOS, RHEL and Oracle images have it, with kube-proxy's chain before it.
    let kube_forward = vec![
        when(Test::State(state::INVALID), Action::Drop),
        when(mark(0x4000), Action::Accept),
        when(established(), Action::Accept),
    ];
    let rules = vec![jump("KUBE-FORWARD"), all(Action::Reject)];
    let found = found(&[forward(
        false,
        &[("FORWARD", rules), ("KUBE-FORWARD", kube_forward)],
    )]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].kind, found[0].certain),
        (ObstacleKind::ForwardRule, true)
    );
    let told = found[0].told();
    for part in [
        "`-j REJECT`",
        "the chain FORWARD of table filter of iptables-legacy",
        "iptables-legacy -I FORWARD 2 -i egret0 -j ACCEPT; iptables-legacy -I FORWARD 2 -o egret0 -j ACCEPT",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn what_accepts_the_packets_before_is_no_obstacle() {
    let flannel = vec![
        when(Test::Source(net("10.244.0.0/16")), Action::Accept),
        when(Test::Destination(net("10.244.0.0/16")), Action::Accept),
    ];
    let accepted = [
        ("FORWARD", vec![jump("FLANNEL-FWD")]),
        ("FLANNEL-FWD", flannel),
    ];
    assert_eq!(only(forward(true, &accepted)), None);
    let by_hand = vec![
        when(input("egret0"), Action::Accept),
        when(output("egret0"), Action::Accept),
        all(Action::Reject),
    ];
    assert_eq!(only(forward(true, &[("FORWARD", by_hand)])), None);
}

#[test]
fn one_way_that_is_closed_is_enough() {
    let only_out = vec![when(output("egret0"), Action::Accept), all(Action::Drop)];
    assert_eq!(only(forward(false, &[("FORWARD", only_out)])), RULE);
    let only_back = vec![when(established(), Action::Accept), all(Action::Drop)];
    assert_eq!(only(forward(false, &[("FORWARD", only_back)])), RULE);
}

#[test]
fn what_leaves_by_the_nodes_own_device_meets_the_tunnel_only_on_its_way_back() {
    let mut samples = samples();
    let leaves_here = samples.v4.as_mut().map(|sample| &mut sample.leaves_here);
    *leaves_here.expect("there is one") = true;
    let of = |rules: Vec<Rule>| {
        let table = forward(true, &[("FORWARD", rules)]);
        of_firewalls(&[table], &samples)
            .expect("everything is read")
            .len()
    };
    assert_eq!(of(vec![when(input("egret0"), Action::Accept)]), 0);
    assert_eq!(of(vec![when(output("egret0"), Action::Accept)]), 1);
}

#[test]
fn a_policy_that_rules_may_come_before_is_told_and_not_certain() {
    let calico = vec![when(Test::Other("-m set".into()), Action::Accept)];
    let told = only(forward(true, &[("FORWARD", calico)]));
    assert_eq!(told, Some((ObstacleKind::ForwardPolicy, false)));
}

#[test]
fn marks_that_nobody_sets_are_not_there_and_others_may_be() {
    let accept = when(mark(0x10000), Action::Accept);
    let rules = vec![accept.clone(), all(Action::Reject)];
    assert_eq!(only(forward(false, &[("FORWARD", rules.clone())])), RULE);
    let set = vec![
        when(established(), Action::Accept),
        when(input("cali*"), Action::Mark(0x10000)),
        accept,
        all(Action::Reject),
    ];
    let told = only(forward(false, &[("FORWARD", set)]));
    assert_eq!(told, Some((ObstacleKind::ForwardRule, false)));
    // Set in a base chain with an earlier priority.
    let earlier = forward(false, &[("FORWARD", vec![all(Action::Mark(0x10000))])]);
    let mut earlier = earlier;
    earlier.bases[0].priority = -150;
    let both = found(&[forward(false, &[("FORWARD", rules)]), earlier]);
    assert!(both.len() == 1 && !both[0].certain, "{both:#?}");
}

#[test]
fn a_network_policy_is_no_obstacle() {
    let pods = vec![
        when(
            Test::Source(net("10.244.1.10/32")),
            Action::Jump("KUBE-POD-FW".into()),
        ),
        when(
            Test::Source(net("10.244.1.11/32")),
            Action::Jump("UNREAD".into()),
        ),
    ];
    let refuses = vec![rule(vec![unless(mark(0x10000))], Action::Reject)];
    let chains = [("FORWARD", pods), ("KUBE-POD-FW", refuses)];
    assert_eq!(only(forward(false, &chains)), None);
    let by_destination = vec![when(
        Test::Destination(net("203.0.113.0/24")),
        Action::Reject,
    )];
    assert_eq!(only(forward(false, &[("FORWARD", by_destination)])), None);
}

#[test]
fn what_is_for_other_devices_is_no_obstacle() {
    let strict = || unless(Test::ReversePath { loose: false });
    let rules = vec![rule(vec![input("eth0").into(), strict()], Action::Drop)];
    assert_eq!(only(prerouting(10, rules)), None);
    let spared = vec![rule(vec![unless(input("egret0")), strict()], Action::Drop)];
    assert_eq!(only(prerouting(10, spared)), None);
    let forwards = vec![
        when(input("docker0"), Action::Accept),
        when(input("eth*"), Action::Drop),
    ];
    assert_eq!(only(forward(false, &[("FORWARD", forwards)])), None);
}

/// firewalld, NixOS by iptables and by nftables, and by hand.
#[test]
fn rules_that_filter_reverse_paths_are_told() {
    let is_told = Some((ObstacleKind::ReversePathRule, true));
    let strict = Test::ReversePath { loose: false };
    let missing = || rule(vec![unless(strict.clone())], Action::Drop);
    assert_eq!(only(prerouting(10, vec![missing()])), is_told);
    let returns = [
        ("PREROUTING", vec![jump("nixos-fw-rpfilter")]),
        (
            "nixos-fw-rpfilter",
            vec![when(strict.clone(), Action::Return), all(Action::Drop)],
        ),
    ];
    let nixos = table(Tool::IptablesNft, (Hook::Prerouting, -150, false), &returns);
    assert_eq!(only(nixos), is_told);
    let policy = [("rpfilter", vec![when(strict.clone(), Action::Accept)])];
    let nixos = table(Tool::Nft, (Hook::Prerouting, -140, true), &policy);
    let told = found(&[nixos]);
    assert_eq!(
        (told[0].kind, told[0].certain),
        (ObstacleKind::ReversePathRule, true)
    );
    let loose = rule(
        vec![unless(Test::ReversePath { loose: true })],
        Action::Drop,
    );
    assert_eq!(only(prerouting(-300, vec![loose])), None);
    let mut firewalld = prerouting(10, vec![missing()]);
    firewalld.name = "firewalld".into();
    assert!(found(&[firewalld])[0].remedy.contains("IPv6_rpfilter"));
}

/// Before translation an answer is addressed to the egress address, afterwards to the pod.
#[test]
fn an_answer_has_two_destinations() {
    let accept = |to: &str| {
        vec![
            when(Test::Destination(net(to)), Action::Accept),
            all(Action::Drop),
        ]
    };
    assert_eq!(only(prerouting(-300, accept("192.168.122.222/32"))), None);
    assert_eq!(only(prerouting(0, accept("10.244.0.0/16"))), None);
    let other = Some((ObstacleKind::PreroutingRule, true));
    assert_eq!(only(prerouting(0, accept("192.168.122.222/32"))), other);
}

#[test]
fn an_input_chain_that_lets_no_tunnel_in_may_be_in_the_way() {
    let table = |rules| {
        table(
            Tool::IptablesNft,
            (Hook::Input, 0, true),
            &[("INPUT", rules)],
        )
    };
    let closed = vec![
        when(established(), Action::Accept),
        when(input("lo"), Action::Accept),
    ];
    assert_eq!(only(table(closed)), Some((ObstacleKind::TunnelPort, false)));
    let open = vec![rule(
        vec![
            Test::Source(net("192.168.122.0/24")).into(),
            Test::Protocol(17).into(),
            Test::DestinationPort(14789, 14789).into(),
        ],
        Action::Accept,
    )];
    assert_eq!(only(table(open)), None);
}

#[test]
fn chains_are_read_only_where_the_packet_surely_comes() {
    let table = forward(false, &[("FORWARD", vec![jump("CALLED")])]);
    let unread = of_firewalls(&[table], &samples()).expect_err("a chain is missing");
    assert_eq!(
        unread,
        Unread {
            table: 0,
            chain: "CALLED".into()
        }
    );
    let maybe = vec![
        when(established(), Action::Accept),
        when(input("cali1*"), Action::Jump("PLUGIN".into())),
        all(Action::Reject),
    ];
    let told = only(forward(false, &[("FORWARD", maybe)]));
    assert_eq!(told, Some((ObstacleKind::ForwardRule, false)));
    // Evaluation of circular jumps ends.
    let circle = forward(
        false,
        &[("FORWARD", vec![jump("FORWARD"), all(Action::Drop)])],
    );
    assert_eq!(only(circle), Some((ObstacleKind::ForwardRule, false)));
}

#[test]
fn settings_in_the_way_are_told() {
    let rule = |priority, takes_all| RoutingRule {
        is_v4: true,
        priority,
        text: format!("{priority}: from all lookup 100"),
        takes_all,
    };
    let settings = Settings {
        tunnel_reverse_path: Some((1, 0)),
        filtered_bridge: Some(("br0".into(), true, false)),
        foreign_marks: vec![(100, 0x4_0000, 0xf_0000)],
        rules: vec![
            rule(0, true),
            rule(RULE_PRIORITY - 1, true),
            rule(RULE_PRIORITY + 1, true),
        ],
        missing_options: vec!["VXLAN".into()],
        ipvs: true,
        mtu: Some((1230, "eth0".into(), 1280, 50)),
    };
    let kinds: Vec<ObstacleKind> = of_settings(&settings).iter().map(|one| one.kind).collect();
    let wanted = [
        ObstacleKind::ReversePathSetting,
        ObstacleKind::BridgeNetfilter,
        ObstacleKind::MarkOverlap,
        ObstacleKind::RoutingRule,
        ObstacleKind::KernelOption,
        ObstacleKind::Ipvs,
        ObstacleKind::Mtu,
    ];
    assert_eq!(kinds, wanted);
    let good = Settings {
        tunnel_reverse_path: Some((1, 2)),
        mtu: Some((1450, "eth0".into(), 1500, 50)),
        ..Settings::default()
    };
    assert!(of_settings(&good).is_empty());
}
