//! Others delete what Egret put into a node's kernel: it comes back. Two nodes, so that it also runs on emulated machines
//! (`./dev kernels`); more damage, under traffic, is in `promise::damage`.

use anyhow::ensure;
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::expect_source;
use egret_tests::{Cluster, Outcome, steps};

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "small",
        up,
        steps![
            pods_leave_with_their_egress_address,
            a_deleted_routing_rule_comes_back,
            a_flushed_ruleset_is_there_again,
        ],
    )]
}

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: worker1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64], cni: nft,
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: gateway1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

fn up() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("repair", &Topology::from_yaml(TOPOLOGY)?)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn pods_leave_with_their_egress_address(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("a1")?;
    expect_source(&pod, ip(SERVERS[0]), ip(EGRESS[0]))?;
    expect_source(&pod, ip(SERVERS[1]), ip(EGRESS[1]))
}

/// What a command prints in the worker.
fn shown(cluster: &Cluster, line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    cluster.exec(&cluster.host("worker1")?, &words)
}

fn a_deleted_routing_rule_comes_back(cluster: &Cluster) -> Outcome {
    let rules = || shown(cluster, "ip rule show");
    let before = rules()?;
    ensure!(before.contains("79:"), "no rule of ours: {before}");
    shown(cluster, "ip rule delete priority 79")?;
    wait_for("the rules to be as before", DEADLINE, || {
        rules().is_ok_and(|now| now == before)
    })?;
    pods_leave_with_their_egress_address(cluster)
}

/// From Linux 6.9 on the table has an owner, and others cannot flush it.
fn a_flushed_ruleset_is_there_again(cluster: &Cluster) -> Outcome {
    let tables = || shown(cluster, "nft list tables");
    ensure!(tables()?.contains("table inet egret"), "no table of ours");
    shown(cluster, "nft flush ruleset")?;
    wait_for("the table", DEADLINE, || {
        tables().is_ok_and(|now| now.contains("table inet egret"))
    })?;
    pods_leave_with_their_egress_address(cluster)
}
