//! Egress addresses work with any CNI, forward policy and filter of the nodes, and in clusters of one family.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::capture::{Capture, Direction};
use egret_lab::process::wait_for;
use egret_lab::topology::{Cni, Forward, Host, Role, RpFilter};
use egret_lab::traffic::source::udp_echo;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use std::net::IpAddr;

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "other_cnis",
            other_cnis,
            steps![
                pods_of_every_cni_leave_with_the_egress_address,
                a_gateway_forwards_whatever_its_own_settings,
                the_accept_comes_after_the_rules_of_others,
                an_accept_that_others_flush_comes_back,
                an_old_table_that_drops_is_reported_with_its_remedy,
                without_policies_others_chains_are_as_before,
            ],
        ),
        Group::new("ipv6_only", ipv6_only, steps![an_ipv6_only_cluster_works]),
        Group::new("ipv4_only", ipv4_only, steps![an_ipv4_only_cluster_works]),
    ]
}

/// Every pair of server and egress address, one per family.
fn families() -> [(IpAddr, IpAddr); 2] {
    [0, 1].map(|family| (ip(SERVERS[family]), ip(EGRESS[family])))
}

/// Each worker with another CNI, dropping forward policies, strict filters; the last gateway runs pods as well.
fn other_cnis() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    for host in &mut topology.hosts {
        (host.cni, host.forward, host.rp_filter, host.src_valid_mark) = match host.name.as_str() {
            "worker1" => (Cni::IptablesNft, Forward::Drop, RpFilter::Strict, true),
            "worker2" => (Cni::Nft, Forward::Drop, RpFilter::Strict, false),
            "worker3" => (Cni::IptablesLegacy, Forward::Accept, RpFilter::Strict, true),
            "gateway1" => (Cni::None, Forward::Drop, RpFilter::Strict, true),
            "gateway3" => (Cni::Nft, Forward::Drop, RpFilter::Strict, true),
            _ => continue,
        };
        if host.name == "gateway3" {
            host.roles.push(Role::Worker);
            host.pods.push(pod("g3", "MyApp"));
            host.pod_cidrs = vec![
                "10.244.4.0/24".parse().expect("a literal prefix"),
                "fd00:244:4::/64".parse().expect("a literal prefix"),
            ];
        }
    }
    // Only the policy of the legacy tables cannot be changed.
    let old = Host {
        pod_cidrs: vec![
            "10.244.5.0/24".parse().expect("a literal prefix"),
            "fd00:244:5::/64".parse().expect("a literal prefix"),
        ],
        pods: vec![pod("old", "MyApp")],
        cni: Cni::IptablesLegacy,
        forward: Forward::Drop,
        ..Host::plain("worker4", Role::Worker, &["nodes"])
    };
    topology.hosts.insert(3, old);
    let cluster = Cluster::up("cnis", &topology)?;
    cluster.put(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    // The packets of worker4's pod are dropped at first, so the policy is not ready.
    wait_for("all pods but one", DEADLINE, || {
        let status = cluster.status().unwrap_or_default();
        let pods = &status["policies"][0]["pods"];
        pods["selected"] == 8
            && pods["programmed"] == 7
            && is_blocked(&cluster, "worker4").is_some()
    })?;
    Ok(cluster)
}

/// Cases: N15, N18, S6.
fn pods_of_every_cni_leave_with_the_egress_address(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    for (server, address) in families() {
        for name in ["a1", "a2", "a3", "g3"] {
            expect_source(&cluster.pod(name)?, server, address)?;
        }
    }
    watch.clean()
}

/// Cases: N14.
fn a_gateway_forwards_whatever_its_own_settings(cluster: &Cluster) -> Outcome {
    for gateway in ["gateway1", "gateway3"] {
        let leaves = |packet: &egret_lab::capture::Packet| {
            packet.direction == Direction::Out && EGRESS.map(ip).contains(&packet.source)
        };
        let capture = Capture::start(&cluster.host(gateway)?, "eth0", leaves)?;
        for (server, address) in families() {
            for _ in 0..20 {
                let seen = egret_lab::traffic::udp_source(&cluster.pod("a1")?, echo(server))?;
                ensure!(seen.ip() == address, "{seen}");
            }
        }
        ensure!(
            capture.stop()?.offending_count > 0,
            "{gateway} carried nothing"
        );
    }
    Ok(())
}

/// The built-in lab with one family, also below the tunnel.
fn one_family(name: &str, is_v4: bool) -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    for segment in &mut topology.segments {
        segment.cidrs.retain(|cidr| cidr.addr().is_ipv4() == is_v4);
    }
    for host in &mut topology.hosts {
        host.pod_cidrs.retain(|cidr| cidr.addr().is_ipv4() == is_v4);
        for link in &mut host.links {
            link.addresses.retain(|address| address.is_ipv4() == is_v4);
        }
    }
    let cluster = Cluster::up(name, &topology)?;
    let address = EGRESS[usize::from(!is_v4)];
    cluster.apply(&[egress("myapp", "MyApp", &[address], "")])?;
    Ok(cluster)
}

fn ipv6_only() -> anyhow::Result<Cluster> {
    one_family("six", false)
}

fn ipv4_only() -> anyhow::Result<Cluster> {
    one_family("four", true)
}

fn one_family_works(cluster: &Cluster, family: usize) -> Outcome {
    let (server, address) = families()[family];
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    for name in ["a1", "a2", "a3"] {
        let pod = cluster.pod(name)?;
        expect_source(&pod, server, address)?;
        let seen = udp_echo(&pod, echo(server), 3000, DEADLINE)?;
        ensure!(seen.ip() == address, "fragments came from {seen}");
    }
    watch.clean()?;
    let node = cluster.node_address("worker1", server)?;
    expect_source(&cluster.pod("other1")?, server, node)
}

fn an_ipv6_only_cluster_works(cluster: &Cluster) -> Outcome {
    one_family_works(cluster, 1)
}

fn an_ipv4_only_cluster_works(cluster: &Cluster) -> Outcome {
    one_family_works(cluster, 0)
}

/// Rules of a chain as `nft` shows them.
fn chain(cluster: &Cluster, host: &str, chain: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut words = vec!["nft", "-s", "list", "chain"];
    words.extend(chain);
    let text = cluster.exec(&cluster.host(host)?, &words)?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// The dropping forward chains of the lab: host, and the chain's family, table and name.
const DROPPING: [(&str, [&str; 3]); 4] = [
    ("worker1", ["ip", "filter", "FORWARD"]),
    ("worker1", ["ip6", "filter", "FORWARD"]),
    ("worker2", ["inet", "cni", "cni-forward"]),
    ("gateway3", ["inet", "cni", "cni-forward"]),
];

const OURS: [&str; 2] = [
    "iifname \"egret0\" accept comment \"egret\"",
    "oifname \"egret0\" accept comment \"egret\"",
];

fn the_accept_comes_after_the_rules_of_others(cluster: &Cluster) -> Outcome {
    for (host, place) in DROPPING {
        let lines = chain(cluster, host, &place)?;
        let rules: Vec<&String> = lines
            .iter()
            .take_while(|line| *line != "}")
            .skip(3)
            .collect();
        ensure!(
            rules.len() > 2 && rules[rules.len() - 2..] == OURS,
            "{host} {place:?}: {lines:#?}"
        );
    }
    // The operator's listing programs still understand the table.
    for program in ["iptables-nft", "ip6tables-nft"] {
        let listed = cluster.exec(&cluster.host("worker1")?, &[program, "-S", "FORWARD"])?;
        ensure!(listed.contains("-o egret0"), "{program}: {listed}");
    }
    Ok(())
}

fn an_accept_that_others_flush_comes_back(cluster: &Cluster) -> Outcome {
    let (host, place) = DROPPING[2];
    let handles = cluster.exec(
        &cluster.host(host)?,
        &["nft", "-a", "list", "chain", place[0], place[1], place[2]],
    )?;
    let ours = handles
        .lines()
        .find(|line| line.contains("oifname \"egret0\""))
        .context("our rule")?;
    let handle = ours.rsplit(' ').next().context("its handle")?;
    let delete = [
        "nft", "delete", "rule", place[0], place[1], place[2], "handle", handle,
    ];
    cluster.exec(&cluster.host(host)?, &delete)?;
    wait_for("the rule to come back", DEADLINE, || {
        chain(cluster, host, &place).is_ok_and(|lines| {
            OURS.iter()
                .all(|ours| lines.iter().filter(|line| line == ours).count() == 1)
        })
    })?;
    expect_source(&cluster.pod("a2")?, ip(SERVERS[0]), ip(EGRESS[0]))
}

fn is_blocked(cluster: &Cluster, host: &str) -> Option<String> {
    let object = cluster.object("egressnode", None, host)?;
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == "ForwardBlocked")?;
    (found["status"] == "True").then(|| found["message"].to_string())
}

fn an_old_table_that_drops_is_reported_with_its_remedy(cluster: &Cluster) -> Outcome {
    let reported = |host: &str| is_blocked(cluster, host);
    wait_for("the condition of worker4", DEADLINE, || {
        reported("worker4").is_some()
    })?;
    for host in ["worker1", "worker2", "worker3", "gateway3"] {
        ensure!(reported(host).is_none(), "{host}: {:?}", reported(host));
    }
    // Until then its pods' packets are dropped, and never leave with the node's address.
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    let pod = cluster.pod("old")?;
    for server in SERVERS.map(ip) {
        ensure!(
            egret_lab::traffic::tcp_source(&pod, echo(server)).is_err(),
            "not blocked at all"
        );
    }
    ensure!(watch.count()? == 0, "a packet left with another source");
    let said = reported("worker4").context("the condition")?;
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        for way in ["-i", "-o"] {
            let remedy = [program, "-A", "FORWARD", way, "egret0", "-j", "ACCEPT"];
            ensure!(
                said.contains(&remedy.join(" ")),
                "the remedy is not in {said}"
            );
            cluster.exec(&cluster.host("worker4")?, &remedy)?;
        }
    }
    for (server, address) in families() {
        expect_source(&pod, server, address)?;
    }
    wait_for("the condition of worker4 to end", DEADLINE, || {
        reported("worker4").is_none()
    })?;
    cluster.wait_ready()
}

fn without_policies_others_chains_are_as_before(cluster: &Cluster) -> Outcome {
    cluster.delete(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    for (host, place) in DROPPING {
        wait_for("our rules to be gone", DEADLINE, || {
            chain(cluster, host, &place)
                .is_ok_and(|lines| !lines.iter().any(|line| line.contains("egret")))
        })
        .context(host)?;
    }
    Ok(())
}
