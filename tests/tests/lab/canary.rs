//! Egret's own packets take the path of pods' packets and report where it is broken: each hook of the path is broken in
//! turn and must be named within 15 s.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::capture::{Capture, Packet};
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::expect_source;
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "canary",
            up,
            steps![
                a_healthy_path_is_measured_and_not_broken,
                each_broken_hook_is_named_within_fifteen_seconds,
                a_firewall_that_lets_only_small_packets_through_is_found,
                what_is_broken_is_not_ready_and_nobody_says_that_it_leaves,
                a_canary_device_that_is_removed_comes_back,
                canaries_in_quick_succession_do_not_use_up_their_ports,
                canaries_take_no_ports_from_the_lease_that_pods_are_judged_by,
                nothing_of_a_canary_is_seen_outside,
            ],
        ),
        Group::new(
            "ends_at_guard",
            up_where_nobody_turns_them_round,
            steps![
                where_nobody_turns_them_round_they_are_measured_up_to_the_guard,
                what_is_broken_before_the_guard_is_named,
                nothing_of_them_leaves_the_node,
            ],
        ),
    ]
}

/// Longest time until the finding, as promised to operators.
const FOUND_WITHIN: Duration = Duration::from_secs(15);

fn up() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("canary", &Topology::built_in())?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    cluster.wait_ready()?;
    Ok(cluster)
}

/// A worker whose gateways have no eBPF, and a node that is its own gateway.
const NOBODY_TURNS_ROUND: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: worker1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: both1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64],
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";
const ENDS_AT_GUARD: [&str; 2] = ["worker1", "both1"];

fn up_where_nobody_turns_them_round() -> anyhow::Result<Cluster> {
    let arguments = ["--gateway-datapath", "nftables"];
    let topology = Topology::from_yaml(NOBODY_TURNS_ROUND)?;
    let cluster = Cluster::up_with("canaryguard", &topology, &arguments)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    cluster.wait_ready()?;
    Ok(cluster)
}

/// Reason and message of `PathBroken` at a node.
fn broken(cluster: &Cluster, node: &str) -> Option<(String, String)> {
    let object = cluster.object("EgressNode", None, node)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let found = conditions
        .iter()
        .find(|one| one["type"] == "PathBroken" && one["status"] == "True")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("reason"), text("message")))
}

/// Number of canaries that all gateways have returned.
fn turned(cluster: &Cluster) -> anyhow::Result<u64> {
    let mut all = 0;
    for gateway in ["gateway1", "gateway2", "gateway3"] {
        all += cluster.gateway_counter(gateway, "canary_turned")?;
    }
    Ok(all)
}

fn a_healthy_path_is_measured_and_not_broken(cluster: &Cluster) -> Outcome {
    let before = turned(cluster)?;
    wait_for("canaries to be turned round", DEADLINE, || {
        turned(cluster).is_ok_and(|now| now >= before + 8)
    })?;
    for worker in ["worker1", "worker2", "worker3"] {
        ensure!(
            broken(cluster, worker).is_none(),
            "{worker}: {:?}",
            broken(cluster, worker)
        );
        paths_are_whole(cluster, worker)?;
    }
    let explained = explain(cluster)?;
    ensure!(
        explained.contains("packets of our own came back from it, measured"),
        "{explained}"
    );
    for command in ["status", "doctor"] {
        let answer = asked(cluster, command)?;
        let paths = answer["paths"].as_array().context("no paths")?;
        ensure!(paths.len() == 2, "{command}: {answer}");
        for path in paths {
            let whole = path["broken"].is_null() && path["measuredTo"] == "gateway";
            let recent = path["measuredSecsAgo"]
                .as_u64()
                .is_some_and(|ago| ago <= 15);
            ensure!(whole && recent, "{command}: {path}");
        }
    }
    Ok(())
}

/// Output of a CLI command on worker1.
fn asked(cluster: &Cluster, command: &str) -> anyhow::Result<Value> {
    let program = egret_tests::egret()?;
    let line = format!("{} {command} -o json || true", program.display());
    let said = cluster.exec(&cluster.host("worker1")?, &["sh", "-c", &line])?;
    serde_json::from_str(&said).with_context(|| said)
}

/// Waits until the metrics of a node show both families as measured and not broken.
fn paths_are_whole(cluster: &Cluster, node: &str) -> Outcome {
    wait_for("the paths in the metrics", DEADLINE, || {
        let metrics = cluster.metrics(node).unwrap_or_default();
        let paths = metrics
            .lines()
            .filter(|line| line.starts_with("egret_agent_path_broken{"));
        let all: Vec<&str> = paths.collect();
        all.len() == 2 && all.iter().all(|line| line.ends_with(" 0"))
    })?;
    Ok(())
}

fn explain(cluster: &Cluster) -> anyhow::Result<String> {
    let program = egret_tests::egret()?;
    let program = program.to_string_lossy();
    let place = cluster.host("worker1")?;
    // Exit code 1 means that there is a problem; here only the output counts.
    let line = format!("{program} explain default/a1 --to {} || true", SERVERS[0]);
    cluster.exec(&place, &["sh", "-c", &line])
}

/// A command that breaks a hook at worker1, its reversal, and the expected message.
struct Break {
    rules: &'static str,
    reason: &'static str,
}

const BREAKS: &[Break] = &[
    Break {
        rules: "chain c { type filter hook prerouting priority -300; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 drop; }",
        reason: "LostInPrerouting",
    },
    Break {
        rules: "chain c { type filter hook prerouting priority 0; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 drop; }",
        reason: "LostInPrerouting",
    },
    Break {
        rules: "chain c { type filter hook forward priority 0; ip saddr 10.244.0.0/16 oifname \"egret0\" reject with icmp host-prohibited; }",
        reason: "NotForwarded",
    },
    Break {
        rules: "chain c { type filter hook postrouting priority 0; ip saddr 10.244.0.0/16 oifname \"egret0\" drop; }",
        reason: "LostInPostrouting",
    },
    Break {
        rules: "chain c { type nat hook postrouting priority 50; ip saddr 10.244.0.0/16 oifname \"egret0\" masquerade; }",
        reason: "NotTranslated",
    },
    Break {
        rules: "chain c { type filter hook prerouting priority -150; iifname \"egret0\" meta nfproto ipv4 fib saddr . mark . iif oif missing drop; }",
        reason: "AnswerLostOnReversePath",
    },
    Break {
        rules: "chain c { type filter hook forward priority 0; iifname \"egret0\" ip daddr 10.244.0.0/16 drop; }",
        reason: "AnswerNotForwarded",
    },
];

fn rules(cluster: &Cluster, host: &str, table: &str) -> anyhow::Result<()> {
    let table = table.replace("} ", "}\n");
    cluster.exec(
        &cluster.host(host)?,
        &["nft", &format!("table inet broken {{\n{table}\n}}")],
    )?;
    Ok(())
}

fn mend(cluster: &Cluster, host: &str) -> anyhow::Result<()> {
    cluster.exec(&cluster.host(host)?, &["nft", "delete table inet broken"])?;
    wait_for("the path to be whole again", DEADLINE, || {
        broken(cluster, host).is_none()
    })
    .with_context(|| format!("{:?}", broken(cluster, host)))
}

/// Waits until the broken hook is named correctly. Gateways that come back meanwhile change the path once more.
fn found(cluster: &Cluster, reason: &str) -> anyhow::Result<(String, String)> {
    found_at(cluster, "worker1", reason)
}

fn found_at(cluster: &Cluster, node: &str, reason: &str) -> anyhow::Result<(String, String)> {
    let mut last = None;
    wait_for("the broken hook to be named", FOUND_WITHIN, || {
        last = broken(cluster, node);
        last.as_ref().is_some_and(|(said, _)| said == reason)
    })
    .with_context(|| format!("{reason}: what was said last is {last:?}"))?;
    last.context("waited for it")
}

fn each_broken_hook_is_named_within_fifteen_seconds(cluster: &Cluster) -> Outcome {
    for one in BREAKS {
        rules(cluster, "worker1", one.rules)?;
        let outcome = found(cluster, one.reason).with_context(|| one.rules.to_owned());
        mend(cluster, "worker1")?;
        let (_, text) = outcome?;
        ensure!(text.contains("IPv4") && !text.contains("IPv6"), "{text}");
        ensure!(
            broken(cluster, "worker2").is_none(),
            "another node is blamed"
        );
    }
    the_input_of_the_tunnel(cluster)
}

/// The node's own input hook: probes are lost there, too, so the gateways are dead for it, and canaries show why.
fn the_input_of_the_tunnel(cluster: &Cluster) -> Outcome {
    let table = "chain c { type filter hook input priority 0; udp dport 14789 drop; }";
    rules(cluster, "worker1", table)?;
    let outcome = found(cluster, "LostInTunnelInput");
    mend(cluster, "worker1")?;
    outcome?;
    cluster.wait_ready()
}

/// A black hole for large packets, as a tunnel below a tunnel makes it.
fn a_firewall_that_lets_only_small_packets_through_is_found(cluster: &Cluster) -> Outcome {
    rules(
        cluster,
        "worker1",
        "chain c { type filter hook output priority 0; udp dport 14789 meta length > 1400 drop; }",
    )?;
    let outcome = found(cluster, "NotAnsweredByGateway");
    mend(cluster, "worker1")?;
    let (_, text) = outcome?;
    ensure!(
        text.contains("full-size UDP") && !text.contains("TCP"),
        "{text}"
    );
    Ok(())
}

fn what_is_broken_is_not_ready_and_nobody_says_that_it_leaves(cluster: &Cluster) -> Outcome {
    rules(
        cluster,
        "worker1",
        "chain c { type filter hook forward priority 0; oifname \"egret0\" drop; }",
    )?;
    let check = || -> Outcome {
        found(cluster, "NotForwarded")?;
        wait_for("the policy not to be ready", DEADLINE, || {
            let status = cluster.status().unwrap_or(Value::Null);
            status["policies"][0]["ready"] == false
        })?;
        let explained = explain(cluster)?;
        ensure!(!explained.contains("leaves from"), "{explained}");
        ensure!(
            explained.contains("packets do not come back"),
            "{explained}"
        );
        for command in ["status", "doctor"] {
            let answer = asked(cluster, command)?;
            let paths = answer["paths"].as_array().context("no paths")?;
            let named = |path: &Value| {
                let broken = path["broken"].as_str().unwrap_or_default();
                broken.contains("not forwarded")
            };
            ensure!(paths.iter().any(named), "{command}: {answer}");
        }
        Ok(())
    };
    let outcome = check();
    mend(cluster, "worker1")?;
    outcome?;
    cluster.wait_ready()
}

fn a_canary_device_that_is_removed_comes_back(cluster: &Cluster) -> Outcome {
    let place = cluster.host("worker1")?;
    cluster.exec(&place, &["ip", "link", "delete", "egret-canary"])?;
    let before = turned(cluster)?;
    wait_for("the canary device", DEADLINE, || {
        cluster
            .exec(&place, &["ip", "link", "show", "egret-canary"])
            .is_ok()
    })?;
    wait_for("canaries after that", DEADLINE, || {
        turned(cluster).is_ok_and(|now| now > before + 8) && broken(cluster, "worker1").is_none()
    })?;
    Ok(())
}

/// Every round opens new flows, and a canary has 16 source ports: more rounds than that within the 30 seconds that the
/// kernel remembers a UDP flow.
fn canaries_in_quick_succession_do_not_use_up_their_ports(cluster: &Cluster) -> Outcome {
    const ROUNDS: usize = 20;
    const CANARIES_OF_A_ROUND: u64 = 8;
    let place = cluster.host("worker1")?;
    for round in 0..ROUNDS {
        let before = sent(cluster, "worker1")?;
        // Any change of anybody's rules asks for a round.
        let word = if round % 2 == 0 { "add" } else { "delete" };
        cluster.exec(&place, &["nft", &format!("{word} table inet harmless")])?;
        wait_for("another round", DEADLINE, || {
            sent(cluster, "worker1").is_ok_and(|now| now >= before + CANARIES_OF_A_ROUND)
        })?;
        let found = broken(cluster, "worker1");
        ensure!(found.is_none(), "after {round} rounds: {found:?}");
    }
    paths_are_whole(cluster, "worker1")
}

fn canaries_take_no_ports_from_the_lease_that_pods_are_judged_by(cluster: &Cluster) -> Outcome {
    for address in EGRESS {
        let leased = leased(cluster, address, "worker1")?;
        let line = format!("egret_agent_ports_leased{{address=\"{address}\"}} {leased}");
        let metrics = cluster.metrics("worker1")?;
        let mut shown = metrics.lines().filter(|one| one.contains("ports_leased{"));
        ensure!(
            shown.any(|one| one == line),
            "no {line:?} in {:?}",
            metrics
                .lines()
                .filter(|one| one.contains("ports_leased"))
                .collect::<Vec<_>>()
        );
    }
    Ok(())
}

/// Number of ports of an egress address that a node has leased.
fn leased(cluster: &Cluster, address: &str, node: &str) -> anyhow::Result<u32> {
    let object = cluster.object("EgressNode", None, node);
    let object = object.context("no EgressNode")?;
    let grants = object["spec"]["grants"].as_array().context("no grants")?;
    let grant = grants.iter().find(|one| one["address"] == address);
    let ranges = grant.context("no grant")?["ranges"]
        .as_array()
        .context("no ranges")?;
    let mut all = 0;
    for range in ranges {
        let (first, last) = range
            .as_str()
            .and_then(|text| text.split_once('-'))
            .context("a range")?;
        all += last.parse::<u32>()? - first.parse::<u32>()? + 1;
    }
    Ok(all)
}

fn is_canary(packet: &Packet) -> bool {
    let canaries: [IpAddr; 2] = [ip("198.18.79.0"), ip("100::79:0:0")];
    [packet.source, packet.destination]
        .iter()
        .any(|address| match (address, canaries) {
            (IpAddr::V4(a), [IpAddr::V4(b), _]) => a.octets()[..3] == b.octets()[..3],
            (IpAddr::V6(a), [_, IpAddr::V6(b)]) => a.octets()[..15] == b.octets()[..15],
            _ => false,
        })
}

fn nothing_of_a_canary_is_seen_outside(cluster: &Cluster) -> Outcome {
    let mut captures = Vec::new();
    for host in ["router", "gateway1", "gateway2", "gateway3", "worker1"] {
        captures.push((
            host,
            Capture::start(&cluster.host(host)?, "eth0", is_canary)?,
        ));
    }
    let before = turned(cluster)?;
    wait_for("two rounds of canaries", DEADLINE, || {
        turned(cluster).is_ok_and(|now| now >= before + 48)
    })?;
    for family in 0..2 {
        expect_source(&cluster.pod("a1")?, ip(SERVERS[family]), ip(EGRESS[family]))?;
    }
    for (host, capture) in captures {
        let report = capture.stop()?;
        ensure!(report.offending_count == 0, "{host}: {report:?}");
    }
    Ok(())
}

fn where_nobody_turns_them_round_they_are_measured_up_to_the_guard(cluster: &Cluster) -> Outcome {
    for node in ENDS_AT_GUARD {
        paths_are_whole(cluster, node)?;
        ensure!(broken(cluster, node).is_none(), "{node}");
    }
    let explained = explain(cluster)?;
    ensure!(
        explained.contains("packets of our own passed every hook of this node"),
        "{explained}"
    );
    Ok(())
}

fn what_is_broken_before_the_guard_is_named(cluster: &Cluster) -> Outcome {
    let ways = [
        (
            "chain c { type filter hook forward priority 0; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 drop; }",
            "NotForwarded",
        ),
        (
            "chain c { type nat hook postrouting priority 50; ip saddr 10.244.0.0/16 masquerade; }",
            "NotTranslated",
        ),
    ];
    for node in ENDS_AT_GUARD {
        for (table, reason) in ways {
            rules(cluster, node, table)?;
            let outcome = found_at(cluster, node, reason).with_context(|| table.to_owned());
            mend(cluster, node)?;
            let (_, text) = outcome?;
            ensure!(text.contains("IPv4") && !text.contains("IPv6"), "{text}");
        }
    }
    cluster.wait_ready()
}

/// Neither into the tunnel nor by its own device.
fn nothing_of_them_leaves_the_node(cluster: &Cluster) -> Outcome {
    let mut captures = Vec::new();
    for (host, device) in [
        ("worker1", "eth0"),
        ("worker1", "egret0"),
        ("both1", "eth0"),
        ("router", "eth0"),
    ] {
        let capture = Capture::start(&cluster.host(host)?, device, is_canary)?;
        captures.push((host, device, capture));
    }
    // A new measurement, with the normal result.
    for node in ENDS_AT_GUARD {
        rules(
            cluster,
            node,
            "chain c { type filter hook forward priority 0; ip daddr 192.0.2.1 drop; }",
        )?;
        let before = sent(cluster, node)?;
        wait_for("two rounds of canaries", DEADLINE, || {
            sent(cluster, node).is_ok_and(|now| now >= before + 16)
        })?;
        mend(cluster, node)?;
    }
    for (host, device, capture) in captures {
        let report = capture.stop()?;
        ensure!(report.offending_count == 0, "{host} {device}: {report:?}");
    }
    Ok(())
}

/// Canaries that the guard of a node has let through.
fn sent(cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
    let words = [
        "nft",
        "-j",
        "list",
        "counter",
        "inet",
        "egret",
        "canary_sent",
    ];
    let shown: Value = serde_json::from_str(&cluster.exec(&cluster.host(node)?, &words)?)?;
    let counters = shown["nftables"].as_array().into_iter().flatten();
    let mut packets = counters.filter_map(|one| one["counter"]["packets"].as_u64());
    packets.next().context("no counter")
}
