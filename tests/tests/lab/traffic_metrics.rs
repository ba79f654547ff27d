//! Traffic per sender: `/metrics` shows the sent traffic by policy, address and gateway.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::{Cluster, Outcome, steps};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}, {name: b1, labels: {app: Other}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "ebpf_gateway",
            || up("traffic", &[]),
            steps![
                what_is_served_is_in_the_docs_and_traffic_is_among_it,
                datagrams_are_counted_for_their_policy_and_address,
                a_connection_is_counted_once,
                what_a_gateway_drops_is_counted_by_address,
                counters_go_on_where_policies_change_and_agents_start_anew,
            ],
        ),
        Group::new(
            "nftables_gateway",
            || up("trafficnft", &["--gateway-datapath", "nftables"]),
            steps![datagrams_are_counted_for_their_policy_and_address],
        ),
    ]
}

/// Two policies that share addresses.
fn policies() -> Vec<String> {
    vec![
        egress("main", "MyApp", &EGRESS, ""),
        egress("other", "Other", &EGRESS, ""),
    ]
}

fn up(test: &str, agent_args: &[&str]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::up_with(test, &Topology::from_yaml(TOPOLOGY)?, agent_args)?;
    cluster.apply(&policies())?;
    Ok(cluster)
}

/// One sample; 0 if it does not exist yet.
fn sample(cluster: &Cluster, host: &str, series: &str) -> anyhow::Result<u64> {
    let text = cluster.metrics(host)?;
    let found = (text.lines()).find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map_or(Ok(0), |value| {
        value.parse().with_context(|| format!("{series} {value}"))
    })
}

/// Packets, bytes and connections of a policy at an address, from its worker's metrics.
fn sent(cluster: &Cluster, policy: &str, address: &str) -> anyhow::Result<[u64; 3]> {
    let labels = format!("{{policy=\"Egress default/{policy}\",address=\"{address}\"}}");
    let one = |name: &str| sample(cluster, "w1", &format!("egret_agent_{name}_total{labels}"));
    Ok([
        one("sent_packets")?,
        one("sent_bytes")?,
        one("connections")?,
    ])
}

/// Packets and bytes of an address, from its gateway's metrics.
fn carried(cluster: &Cluster, address: &str, direction: &str) -> anyhow::Result<[u64; 2]> {
    let labels = format!("{{address=\"{address}\",direction=\"{direction}\"}}");
    let one = |name: &str| sample(cluster, "g1", &format!("egret_agent_{name}_total{labels}"));
    Ok([one("carried_packets")?, one("carried_bytes")?])
}

/// Waits until the value is as expected; the error contains the actual one.
fn becomes<T: PartialEq + std::fmt::Debug>(
    what: &str,
    wanted: &T,
    mut now: impl FnMut() -> anyhow::Result<T>,
) -> Outcome {
    let mut last = None;
    let waited = wait_for(what, DEADLINE, || {
        last = now().ok();
        last.as_ref() == Some(wanted)
    });
    waited.with_context(|| format!("{what}: {last:?} instead of {wanted:?}"))
}

const SOCKETS: u64 = 3;
const DATAGRAMS: u64 = 5;
const PAYLOAD: usize = 100;

/// Datagrams by several sockets, each answered before the next. Returns the bytes that came back.
fn exchange(target: SocketAddr) -> std::io::Result<u64> {
    let any = ["0.0.0.0:0", "[::]:0"][usize::from(target.is_ipv6())];
    let mut back = 0;
    for _ in 0..SOCKETS {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect(target)?;
        for _ in 0..DATAGRAMS {
            socket.send(&[b'x'; PAYLOAD])?;
            back += socket.recv(&mut [0; 2048])? as u64;
        }
    }
    Ok(back)
}

fn datagrams_are_counted_for_their_policy_and_address(cluster: &Cluster) -> Outcome {
    for (family, headers) in [(0, 28), (1, 48)] {
        let (address, target) = (EGRESS[family], echo(ip(SERVERS[family])));
        let before = sent(cluster, "main", address)?;
        let other = sent(cluster, "other", address)?;
        let (out, back) = (
            carried(cluster, address, "out")?,
            carried(cluster, address, "in")?,
        );
        let answered = cluster.pod("a1")?.run(|| exchange(target))??;
        let packets = SOCKETS * DATAGRAMS;
        let bytes = packets * (PAYLOAD as u64 + headers);
        let now = [before[0] + packets, before[1] + bytes, before[2] + SOCKETS];
        becomes("what the worker sent", &now, || {
            sent(cluster, "main", address)
        })?;
        let now = [out[0] + packets, out[1] + bytes];
        becomes("what the gateway carried out", &now, || {
            carried(cluster, address, "out")
        })?;
        let now = [back[0] + packets, back[1] + answered + packets * headers];
        becomes("what the gateway carried in", &now, || {
            carried(cluster, address, "in")
        })?;
        let now = sent(cluster, "other", address)?;
        ensure!(now == other, "the other policy: {other:?}, now {now:?}");
    }
    Ok(())
}

fn a_connection_is_counted_once(cluster: &Cluster) -> Outcome {
    let before = sent(cluster, "other", EGRESS[0])?;
    let main = sent(cluster, "main", EGRESS[0])?;
    cluster.pod("b1")?.run(|| -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&echo(ip(SERVERS[0])), DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        for _ in 0..5 {
            stream.write_all(b"again\n")?;
            stream.read_exact(&mut [0])?;
        }
        Ok(())
    })??;
    becomes("connections", &(before[2] + 1), || {
        Ok(sent(cluster, "other", EGRESS[0])?[2])
    })?;
    let now = sent(cluster, "other", EGRESS[0])?;
    // At least SYN, ACK and five data packets.
    ensure!(now[0] >= before[0] + 7, "{before:?}, now {now:?}");
    let unmoved = sent(cluster, "main", EGRESS[0])?;
    ensure!(
        unmoved == main,
        "the other policy: {main:?}, now {unmoved:?}"
    );
    Ok(())
}

fn what_a_gateway_drops_is_counted_by_address(cluster: &Cluster) -> Outcome {
    let series = |direction: &str| {
        let labels = format!("{{address=\"{}\",direction=\"{direction}\"}}", EGRESS[0]);
        format!("egret_agent_dropped_packets_total{labels}")
    };
    let before = sample(cluster, "g1", &series("in"))?;
    // A port that is never leased: the well-known ones.
    let target = SocketAddr::new(ip(EGRESS[0]), 9);
    cluster.host("server")?.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"stray", target)
    })??;
    becomes("dropped packets", &(before + 1), || {
        sample(cluster, "g1", &series("in"))
    })?;
    ensure!(sample(cluster, "g1", &series("out"))? == 0, "dropped out");
    Ok(())
}

/// Changed policies have other rulesets; a restarted agent replaces the whole table.
fn counters_go_on_where_policies_change_and_agents_start_anew(cluster: &Cluster) -> Outcome {
    let before = sent(cluster, "main", EGRESS[0])?;
    let mut changed = policies();
    let rest = format!("destinations: [{{cidr: {}/32}}]", SERVERS[0]);
    changed[0] = egress("main", "MyApp", &EGRESS, &rest);
    changed.push(egress("third", "Nobody", &["192.168.122.223"], ""));
    cluster.apply(&changed)?;
    becomes("the counters after the change", &before, || {
        sent(cluster, "main", EGRESS[0])
    })?;
    cluster.end_agent("w1")?;
    cluster.lab().start("w1")?;
    let ready = || cluster.agent_ready("w1");
    wait_for("the agent of w1 to be ready", DEADLINE, ready)?;
    becomes("the counters after the restart", &before, || {
        sent(cluster, "main", EGRESS[0])
    })?;
    let target = echo(ip(SERVERS[0]));
    cluster.pod("a1")?.run(|| exchange(target))??;
    let now = before[0] + SOCKETS * DATAGRAMS;
    becomes("the counters after more traffic", &now, || {
        Ok(sent(cluster, "main", EGRESS[0])?[0])
    })
}

/// A metric without a sample is not served, so the list contains those that have one here.
fn what_is_served_is_in_the_docs_and_traffic_is_among_it(cluster: &Cluster) -> Outcome {
    let docs = include_str!("../../../docs/metrics.md");
    let worker = "sent_packets sent_bytes connections insert_failed programming_seconds apply_seconds \
                  worker_packets ports_leased gateway_live";
    let gateway = "carried_packets carried_bytes dropped_packets takeovers gateway_packets";
    for (host, wanted) in [("w1", worker), ("g1", gateway)] {
        becomes(&format!("metrics of {host}"), &Vec::new(), || {
            let text = cluster.metrics(host)?;
            let missing = |name: &&str| !text.contains(&format!("# TYPE egret_agent_{name} "));
            Ok(wanted
                .split_whitespace()
                .map(str::to_owned)
                .filter(|name| missing(&&**name))
                .collect())
        })?;
        let text = cluster.metrics(host)?;
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for name in types.filter_map(|line| line.split(' ').next()) {
            let told = docs.contains(&format!("| `{name}` |"))
                || docs.contains(&format!("| `{name}_total` |"));
            ensure!(told, "{name} of {host} is not in the docs");
        }
    }
    let programmed = sample(cluster, "w1", "egret_agent_programming_seconds_count")?;
    ensure!(programmed > 0, "no programming delay");
    let takeovers = format!("egret_agent_takeovers_total{{address=\"{}\"}}", EGRESS[0]);
    becomes("the gateway's take-over", &1, || {
        sample(cluster, "g1", &takeovers)
    })
}
