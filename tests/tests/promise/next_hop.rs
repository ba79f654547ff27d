//! `StaticEgressIP` of the fork with a routing table: `egressip` is a router on a network that only the gateways are
//! attached to. Tested from outside: real packets, captures at that router.

use anyhow::{Context, ensure};
use egret_lab::capture::{Capture, Direction, Packet};
use egret_lab::process::wait_for;
use egret_lab::topology::{Link, RpFilter, Segment};
use egret_lab::traffic::source::tcp_source_within;
use egret_lab::{Hurt, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, ip, pod};
use egret_tests::foreign::{condition, message, service, static_egress_ip};
use egret_tests::steps::Group;
use egret_tests::watch::{expect_source, seen_sources};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const FORK: &str = "staticegressips.io";
/// The router's addresses on the gateways' own network.
const NEXT_HOPS: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
const SERVER: [&str; 2] = ["203.0.113.10/32", "2001:db8:1::10/128"];
/// Another server, which no rule names.
const ELSEWHERE: &str = "203.0.113.20";
/// Long enough for an answer in the lab.
const TRY: Duration = Duration::from_secs(2);

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "next_hop",
        up,
        steps![
            f2_a_next_hop_is_used_with_the_gateways_own_source_on_every_node,
            other_destinations_and_other_pods_keep_their_way,
            a_next_hop_that_no_gateway_has_is_said_and_harms_nobody,
            one_socket_moves_with_the_policy_and_nothing_leaves_wrong_between,
            rules_of_others_leak_nothing,
            what_others_remove_comes_back,
            flows_go_by_another_gateway_when_one_dies_and_nowhere_when_all_do,
        ],
    )]
}

/// Gateways 1 and 2 have the label and a network of their own with the router; gateway 1 has pods too.
fn up() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology.segments.push(Segment {
        name: "vlan".to_owned(),
        cidrs: vec!["10.9.0.0/24".parse()?, "fd00:9::/64".parse()?],
        mld_snooping: false,
    });
    for host in &mut topology.hosts {
        if ["gateway1", "gateway2"].contains(&host.name.as_str()) {
            host.labels.insert("egress".to_owned(), String::new());
            host.links.push(Link::to("vlan"));
        }
        // Answers arrive by another device than the main routes use.
        if ["gateway2", "worker1"].contains(&host.name.as_str()) {
            host.rp_filter = RpFilter::Strict;
        }
        if host.name == "gateway1" {
            host.pod_cidrs = vec!["10.244.101.0/24".parse()?, "fd00:244:101::/64".parse()?];
            host.pods = vec![pod("vlang", "Vlan"), pod("otherg", "Other")];
        }
    }
    let settings = ["--front-end", "staticegressip"];
    let cluster = Cluster::up_set("hop", &topology, &settings)?;
    for number in 1..=2 {
        let host = format!("worker{number}");
        cluster
            .lab()
            .add_pod(&host, pod(&format!("vlan{number}"), "Vlan"))?;
    }
    cluster.apply(&[
        service("frontend", "MyApp"),
        service("vlan", "Vlan"),
        static_egress_ip(FORK, "eip", &[(EGRESS[0], "frontend", SERVER[0])]),
        routed("vlan", NEXT_HOPS),
    ])?;
    programmed(&cluster, 3)?;
    Ok(cluster)
}

/// One rule for each family, with the tables that the fork asks for.
fn routed(name: &str, next_hops: [&str; 2]) -> String {
    let rules = [0, 1].map(|family| (next_hops[family], "vlan", SERVER[family]));
    let object = static_egress_ip(FORK, name, &rules);
    object
        .replace("spec:\n", "spec:\n  gateway-label: egress\n")
        .replace(
            "  - egressip",
            "  - routing-table-id: 100\n    routing-table: vlan100\n    egressip",
        )
}

fn programmed(cluster: &Cluster, pods: u64) -> anyhow::Result<Value> {
    cluster.wait_foreign("StaticEgressIP", "vlan", "it is served", |status| {
        let policies = status["policies"].as_array().cloned().unwrap_or_default();
        condition(status, "Ready") == "True/Programmed"
            && policies.len() == 2
            && policies.iter().all(|one| one["pods"]["programmed"] == pods)
    })
}

/// Addresses of a gateway on the network of the next hop.
fn attached(cluster: &Cluster, gateway: &str, like: IpAddr) -> anyhow::Result<IpAddr> {
    let layout = cluster.lab().layout()?;
    let host = layout.host(gateway).context("the gateway")?;
    let links = host.links.iter().filter(|link| link.bridge == "br-vlan");
    let mut addresses = links.flat_map(|link| &link.addresses);
    let found = addresses.find(|net| net.addr().is_ipv4() == like.is_ipv4());
    Ok(found.context("an address on its network")?.addr())
}

/// Captures at the router of packets to the servers of the rules.
struct AtRouter {
    /// Packets to the next hop, from a gateway's address there.
    right: Capture,
    /// All others, on every device.
    wrong: Vec<Capture>,
}

impl AtRouter {
    fn watch(cluster: &Cluster) -> anyhow::Result<Self> {
        let layout = cluster.lab().layout()?;
        let router = layout.host("router").context("the router")?;
        let own = router.links.iter().find(|link| link.bridge == "br-vlan");
        let own = own.context("the router's link to the gateways' network")?;
        let mac: Vec<u8> = own
            .mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()?;
        let mut sources = BTreeSet::new();
        for gateway in ["gateway1", "gateway2"] {
            for like in SERVERS {
                sources.insert(attached(cluster, gateway, ip(like))?);
            }
        }
        let asked = |packet: &Packet| {
            packet.direction == Direction::In && SERVERS.map(ip).contains(&packet.destination)
        };
        let good = move |packet: &Packet| {
            packet.bytes.get(..6) == Some(&mac[..]) && sources.contains(&packet.source)
        };
        let place = cluster.host("router")?;
        let is_right = good.clone();
        let right = Capture::start(&place, &own.device, move |packet| {
            asked(packet) && is_right(packet)
        })?;
        let mut wrong = Vec::new();
        for link in router
            .links
            .iter()
            .filter(|link| link.bridge != "br-outside")
        {
            let (good, here) = (good.clone(), link.bridge == "br-vlan");
            let is_wrong = move |packet: &Packet| asked(packet) && !(here && good(packet));
            wrong.push(Capture::start(&place, &link.device, is_wrong)?);
        }
        Ok(Self { right, wrong })
    }

    /// Checks that no packet took another path; returns the number of right ones.
    fn clean(self) -> anyhow::Result<u64> {
        for capture in self.wrong {
            capture.stop()?.clean().map_err(anyhow::Error::msg)?;
        }
        Ok(self.right.stop()?.offending_count)
    }
}

/// Checks that the server sees a pod with the addresses of these gateways on the network of the next hop.
fn expect_by(cluster: &Cluster, name: &str, gateways: &[&str]) -> Outcome {
    for server in SERVERS.map(ip) {
        let may = gateways.iter().map(|one| attached(cluster, one, server));
        let may = may.collect::<anyhow::Result<Vec<_>>>()?;
        let seen = seen_sources(&cluster.pod(name)?, server)?;
        ensure!(
            seen.iter().all(|source| may.contains(source)),
            "{name} to {server}: TCP, UDP and ping came from {seen:?}, not from {may:?}"
        );
    }
    Ok(())
}

/// Cases: F2. TCP, UDP and ping, both families, pods on workers and on a gateway; frames go to the next hop's MAC.
fn f2_a_next_hop_is_used_with_the_gateways_own_source_on_every_node(cluster: &Cluster) -> Outcome {
    let watch = AtRouter::watch(cluster)?;
    for name in ["vlan1", "vlan2"] {
        expect_by(cluster, name, &["gateway1", "gateway2"])?;
    }
    expect_by(cluster, "vlang", &["gateway1"])?;
    ensure!(watch.clean()? > 0, "the captures saw nothing at all");
    let sent = |gateway: &str| {
        let count = cluster.gateway_counter(gateway, "out_next_hop");
        count.is_ok_and(|count| count > 0)
    };
    wait_for("the gateways' programs to count it", DEADLINE, || {
        ["gateway1", "gateway2"].iter().any(|gateway| sent(gateway))
    })?;
    let status = cluster.foreign_status("StaticEgressIP", "vlan");
    let gateways = status["gateways"].as_array().map_or(0, Vec::len);
    ensure!(gateways == 2, "{status:#}");
    Ok(())
}

fn other_destinations_and_other_pods_keep_their_way(cluster: &Cluster) -> Outcome {
    let server = ip(SERVERS[0]);
    expect_source(&cluster.pod("a1")?, server, ip(EGRESS[0]))?;
    for (name, node) in [("other1", "worker1"), ("otherg", "gateway1")] {
        let node = cluster.node_address(node, server)?;
        expect_source(&cluster.pod(name)?, server, node)?;
    }
    for (name, node) in [("vlan1", "worker1"), ("vlang", "gateway1")] {
        let node = cluster.node_address(node, server)?;
        expect_source(&cluster.pod(name)?, ip(ELSEWHERE), node)?;
    }
    Ok(())
}

fn a_next_hop_that_no_gateway_has_is_said_and_harms_nobody(cluster: &Cluster) -> Outcome {
    // An address behind a router, one that no host can have, and a text that is no address.
    let rules = [
        ("198.51.100.1", "frontend", "198.51.100.0/24"),
        ("224.0.0.1", "frontend", "198.51.100.0/25"),
        ("tenth", "frontend", "198.51.100.0/26"),
    ];
    for (name, rule, kind, wanted) in [
        ("far", rules[0], "Ready", "False/NextHopNotAttached"),
        ("many", rules[1], "Accepted", "False/Invalid"),
        ("word", rules[2], "Accepted", "False/Invalid"),
    ] {
        let object = static_egress_ip(FORK, name, &[rule])
            .replace("  - egressip", "  - routing-table-id: 101\n    egressip");
        let path = cluster.lab().dir().path().join("bad.yaml");
        std::fs::write(&path, object)?;
        cluster.lab().apply(&path)?;
        let said = |status: &Value| condition(status, kind) == wanted;
        let status = cluster.wait_foreign("StaticEgressIP", name, wanted, said)?;
        let text = message(&status, kind);
        ensure!(text.contains(rule.0), "{text}");
        expect_by(cluster, "vlan1", &["gateway1", "gateway2"])?;
        expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
        cluster.lab().delete(&path)?;
    }
    cluster.wait_ready()
}

/// The source that the server sees of this socket; `None` without an answer.
fn answered(socket: &UdpSocket) -> Option<IpAddr> {
    socket.send(b"question").ok()?;
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let source: SocketAddr = text.lines().next()?.parse().ok()?;
    Some(source.ip())
}

/// A socket that continues with its ports retains no path and no translation of the policy that ended or began.
fn one_socket_moves_with_the_policy_and_nothing_leaves_wrong_between(cluster: &Cluster) -> Outcome {
    let server = ip(SERVERS[0]);
    let sockets = ["vlan1", "vlang"].map(|name| -> anyhow::Result<UdpSocket> {
        let socket = cluster
            .pod(name)?
            .run(|| UdpSocket::bind("0.0.0.0:40000"))??;
        socket.connect(echo(server))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    });
    let [worker, gateway] = sockets;
    let sockets = [(worker?, "worker1"), (gateway?, "gateway1")];
    let routers = [
        attached(cluster, "gateway1", server)?,
        attached(cluster, "gateway2", server)?,
    ];
    let layout = cluster.lab().layout()?;
    let router = layout.host("router").context("the router")?;
    let mut captures = Vec::new();
    for link in router
        .links
        .iter()
        .filter(|link| link.bridge != "br-outside")
    {
        let here = link.bridge == "br-vlan";
        let wrong = move |packet: &Packet| {
            let asked = packet.direction == Direction::In && packet.destination == server;
            let of_router = routers.contains(&packet.source);
            asked && (packet.source.to_string().starts_with("10.244.") || of_router != here)
        };
        let place = cluster.host("router")?;
        captures.push(Capture::start(&place, &link.device, wrong)?);
    }
    let by_router = || {
        let mut all = sockets.iter();
        all.all(|(socket, _)| answered(socket).is_some_and(|source| routers.contains(&source)))
    };
    wait_for("answers by the next hop", DEADLINE, by_router)?;
    cluster.delete(&[routed("vlan", NEXT_HOPS)])?;
    for (socket, node) in &sockets {
        let node = cluster.node_address(node, server)?;
        wait_for("the node's address", DEADLINE, || {
            answered(socket) == Some(node)
        })?;
    }
    cluster.apply(&[routed("vlan", NEXT_HOPS)])?;
    wait_for("answers by the next hop again", DEADLINE, by_router)?;
    for capture in captures {
        capture.stop()?.clean().map_err(anyhow::Error::msg)?;
    }
    programmed(cluster, 3).map(drop)
}

/// At the gateways and at a pod's node. Without the mark of the gateway's program the main routes lead elsewhere, and
/// untracked packets are not translated: the guard drops them. At the pod's node no foreign rule can change our mark.
fn rules_of_others_leak_nothing(cluster: &Cluster) -> Outcome {
    let rules = [
        "type filter hook prerouting priority -50; meta mark set 0;",
        "type filter hook prerouting priority -290; iifname egret0 notrack; ip saddr 10.244.0.0/16 notrack;",
    ];
    for (hosts, rules) in [
        (&["gateway1", "gateway2"][..], rules[0]),
        (&["gateway1", "gateway2"], rules[1]),
        (&["worker1"], rules[1]),
    ] {
        let watch = AtRouter::watch(cluster)?;
        let meddler = format!("table inet meddler {{ chain meddling {{ {rules} }}; }}");
        for host in hosts {
            cluster.exec(&cluster.host(host)?, &["nft", &meddler])?;
        }
        let seen = tcp_source_within(&cluster.pod("vlan1")?, echo(ip(SERVERS[0])), TRY);
        ensure!(
            seen.is_err(),
            "the server saw {seen:?} in spite of: {rules}"
        );
        for host in hosts {
            let words = ["nft", "delete", "table", "inet", "meddler"];
            cluster.exec(&cluster.host(host)?, &words)?;
        }
        expect_by(cluster, "vlan1", &["gateway1", "gateway2"])?;
        watch.clean()?;
    }
    let worker = cluster.host("worker1")?;
    let meddler = format!(
        "table inet meddler {{ chain meddling {{ {} }}; }}",
        rules[0]
    );
    cluster.exec(&worker, &["nft", &meddler])?;
    let outcome = expect_by(cluster, "vlan1", &["gateway1", "gateway2"]);
    cluster.exec(&worker, &["nft", "delete", "table", "inet", "meddler"])?;
    outcome
}

/// Routes, rules, next hop objects and the programs' table of next hops are repaired.
fn what_others_remove_comes_back(cluster: &Cluster) -> Outcome {
    const TABLE: &str = "/sys/fs/bpf/egret/gateway/next_hops";
    let remove = [
        "ip nexthop flush proto 79",
        "for t in $(ip rule | sed -n 's/.*lookup \\(147[0-9]*\\|14[89][0-9]*\\).*/\\1/p'); do \
         for f in -4 -6; do while ip $f route delete default table $t 2>/dev/null; do :; done; done; done",
        "while ip -4 rule delete priority 79 2>/dev/null; do :; done; \
         while ip -6 rule delete priority 79 2>/dev/null; do :; done",
    ];
    for host in ["worker1", "gateway1", "gateway2"] {
        let place = cluster.host(host)?;
        for words in remove {
            cluster.exec(&place, &["sh", "-c", words])?;
        }
    }
    for host in ["gateway1", "gateway2"] {
        let words = format!(
            "for k in $(bpftool -j map dump pinned {TABLE} | grep -o '\"key\":\\[[^]]*' | tr -d '\"key:[' | tr ',' '_'); do \
             bpftool map delete pinned {TABLE} key hex $(echo $k | sed 's/0x//g; s/_/ /g'); done"
        );
        cluster.exec(&cluster.host(host)?, &["sh", "-c", &words])?;
    }
    wait_for("ways to come back", DEADLINE, || {
        ["vlan1", "vlang"]
            .iter()
            .all(|name| expect_by(cluster, name, &["gateway1", "gateway2"]).is_ok())
    })?;
    Ok(())
}

fn flows_go_by_another_gateway_when_one_dies_and_nowhere_when_all_do(cluster: &Cluster) -> Outcome {
    let watch = AtRouter::watch(cluster)?;
    cluster.lab().kill("gateway1", Hurt::Power)?;
    wait_for("pods to go by the other gateway", DEADLINE, || {
        expect_by(cluster, "vlan1", &["gateway2"]).is_ok()
    })?;
    cluster.lab().kill("gateway2", Hurt::Power)?;
    let lost = |status: &Value| condition(status, "Ready").starts_with("False/");
    cluster.wait_foreign("StaticEgressIP", "vlan", "no gateway", lost)?;
    for server in SERVERS.map(ip) {
        let seen = tcp_source_within(&cluster.pod("vlan2")?, echo(server), TRY);
        ensure!(seen.is_err(), "{server} saw {seen:?} without a gateway");
    }
    // Other pods are served as before.
    expect_source(
        &cluster.pod("other1")?,
        ip(ELSEWHERE),
        cluster.node_address("worker1", ip(ELSEWHERE))?,
    )?;
    watch.clean()?;
    Ok(())
}
