//! Network plugins whose pods' packets bypass the host stack, by a stand-in: pods' packets are reinjected into it at
//! the uplink, flows that others opened stay unchanged, and an unsupported path is reported and never served partially.

use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use egret_lab::traffic::{BusyFlows, IdleFlows, Server, ping_source, tcp_source, udp_source};
use egret_lab::{Hurt, Snapshot, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::standin::Standin;
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, seen_sources};
use egret_tests::{Cluster, Outcome, steps};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const WORKER: &str = "w1";
/// Bytes that must pass while a gateway is dead: about two seconds of the busy connections.
const MEANWHILE_BYTES: u64 = 2_000_000;
const PACE: u64 = 400_000;

/// The nodes' stacks do not masquerade, so a packet that was not checked shows its pod's address.
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64], cni: none,
   pods: [{name: a1, labels: {app: MyApp}}, {name: b1, labels: {app: Other}}, {name: c1, labels: {app: OnePort}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: none,
   forward: drop,
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "told_that_all_is_well",
            || up("upno", &["--cni-path", "netfilter"]),
            steps![the_stand_in_takes_packets_past_the_stack],
        ),
        Group::new(
            "bypassed",
            || up("up", &[]),
            steps![
                the_nodes_say_so,
                selected_pods_leave_with_the_egress_address,
                other_pods_keep_their_fast_path,
                other_ports_leave_as_they_were,
                flows_towards_selected_pods_are_left_alone,
                fragments_follow_their_first,
                flows_live_when_a_policy_starts_or_end_cleanly,
                a_lost_gateway_breaks_no_connection,
                what_others_remove_comes_back,
                a_dead_agent_changes_nothing,
                without_the_ruleset_nothing_leaves,
                cleanup_leaves_nothing,
            ],
        ),
        Group::new(
            "clsact",
            || up_with_filters("upcls"),
            steps![
                selected_pods_leave_with_the_egress_address,
                cleanup_leaves_nothing,
            ],
        ),
        Group::new(
            "unknown",
            || unknown("upxdp"),
            steps![an_unknown_way_is_reported_and_refused],
        ),
    ]
}

thread_local! {
    /// The programs must exist for as long as hosts may load them.
    static STANDINS: RefCell<Vec<Standin>> = const { RefCell::new(Vec::new()) };
}

fn keep(standin: Standin) {
    STANDINS.with_borrow_mut(|all| all.push(standin));
}

/// A lab whose workers' pods bypass the host stack, with a policy for `MyApp` and one for a single port.
fn up(test: &str, arguments: &[&str]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::up_with(test, &Topology::from_yaml(TOPOLOGY)?, arguments)?;
    let standin = Standin::compile(test)?;
    for host in ["w1", "wg1"] {
        standin.take_over(cluster.lab(), host)?;
    }
    keep(standin);
    if arguments.is_empty() {
        for host in ["w1", "wg1"] {
            wait_able(&cluster, host, "cni-path-bpf")?;
        }
    }
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, ""), one_port()])?;
    Ok(cluster)
}

/// The programs as filters, as in kernels before 6.6.
fn up_with_filters(test: &str) -> anyhow::Result<Cluster> {
    up(test, &["--cni-path", "bpf", "--gateway-datapath", "clsact"])
}

fn one_port() -> String {
    let one =
        |cidr: &str| format!("- {{cidr: \"{cidr}\", ports: [{{protocol: TCP, port: 5000}}]}}");
    let (v4, v6) = (one("203.0.113.0/24"), one("2001:db8:1::/64"));
    let rest = format!("destinations:\n{v4}\n{v6}");
    egress("one-port", "OnePort", &EGRESS, &rest)
}

fn wait_able(cluster: &Cluster, host: &str, capability: &str) -> Outcome {
    let mut last = None;
    let said = wait_for(capability, DEADLINE, || {
        last = cluster.object("egressnode", None, host);
        let capabilities = last.as_ref().map(|node| &node["status"]["capabilities"]);
        let capabilities = capabilities.and_then(|all| all.as_array());
        capabilities.is_some_and(|all| all.iter().any(|one| one == capability))
    });
    ensure!(said.is_ok(), "{host} does not say {capability}: {last:#?}");
    Ok(())
}

fn families() -> [(usize, IpAddr); 2] {
    [(0, ip(SERVERS[0])), (1, ip(SERVERS[1]))]
}

/// Without the programs these tests would prove nothing.
fn the_stand_in_takes_packets_past_the_stack(cluster: &Cluster) -> Outcome {
    for pod in ["a1", "a2"] {
        for (_, server) in families() {
            let own = cluster.pod_address(pod, server)?;
            let seen = seen_sources(&cluster.pod(pod)?, server)?;
            ensure!(seen == [own; 3], "{pod} came from {seen:?}, not from {own}");
        }
    }
    Ok(())
}

fn the_nodes_say_so(cluster: &Cluster) -> Outcome {
    wait_able(cluster, "w1", "cni-path-bpf")?;
    wait_able(cluster, "wg1", "cni-path-bpf")?;
    wait_able(cluster, "g1", "cni-path-netfilter")
}

/// Captures packets that leave with neither an egress address nor the address of an unselected pod.
fn watch_selected(cluster: &Cluster) -> anyhow::Result<Leaving> {
    let mut right = EGRESS.map(ip).to_vec();
    for pod in ["b1", "c1"] {
        for (_, server) in families() {
            right.push(cluster.pod_address(pod, server)?);
        }
    }
    Leaving::watch(cluster, move |packet| !right.contains(&packet.source))
}

fn selected_pods_leave_with_the_egress_address(cluster: &Cluster) -> Outcome {
    let watch = watch_selected(cluster)?;
    for pod in ["a1", "a2"] {
        for (family, server) in families() {
            expect_source(&cluster.pod(pod)?, server, ip(EGRESS[family]))?;
        }
    }
    watch.clean()
}

/// They keep their own address, and bypass the host stack.
fn other_pods_keep_their_fast_path(cluster: &Cluster) -> Outcome {
    for (_, server) in families() {
        let own = cluster.pod_address("b1", server)?;
        expect_source(&cluster.pod("b1")?, server, own)?;
        let family = if server.is_ipv4() { "ipv4" } else { "ipv6" };
        let words = ["conntrack", "-L", "-f", family, "-s", &own.to_string()];
        let flows = cluster.exec(&cluster.host(WORKER)?, &words)?;
        ensure!(flows.trim().is_empty(), "the stack saw {flows}");
    }
    Ok(())
}

/// A policy for one port: other traffic passes the stack and leaves unchanged, exactly once.
fn other_ports_leave_as_they_were(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("c1")?;
    for (family, server) in families() {
        let own = cluster.pod_address("c1", server)?;
        let selected = tcp_source(&pod, SocketAddr::new(server, 5000))?.ip();
        ensure!(
            selected == ip(EGRESS[family]),
            "port 5000 came from {selected}"
        );
        let other = tcp_source(&pod, SocketAddr::new(server, 5001))?.ip();
        ensure!(other == own, "port 5001 came from {other}");
        let datagram = udp_source(&pod, echo(server))?.ip();
        ensure!(datagram == own, "UDP came from {datagram}");
        ensure!(
            ping_source(&pod, server)? == own,
            "a ping came from elsewhere"
        );
    }
    Ok(())
}

/// Opened from outside: answered from the pod's own address, TCP, UDP and ping, while the pod's own flows differ.
fn flows_towards_selected_pods_are_left_alone(cluster: &Cluster) -> Outcome {
    let answering = Server::start(&cluster.pod("a1")?)?;
    let outside = cluster.host("server")?;
    for (family, server) in families() {
        let own = cluster.pod_address("a1", server)?;
        let target = SocketAddr::new(own, 5001);
        let idle = IdleFlows::start(&outside, target, 3)?;
        for _ in 0..3 {
            ensure!(
                tcp_source(&outside, target)?.ip() == server,
                "TCP towards the pod"
            );
            ensure!(
                udp_source(&outside, target)?.ip() == server,
                "UDP towards the pod"
            );
            ensure!(ping_source(&outside, own)? == server, "ping of the pod");
            expect_source(&cluster.pod("a1")?, server, ip(EGRESS[family]))?;
        }
        // A closed port is refused by the pod itself.
        let refused = tcp_source(&outside, SocketAddr::new(own, 5999));
        let refused = refused.err().and_then(|error| error.kind());
        ensure!(
            refused == Some(std::io::ErrorKind::ConnectionRefused),
            "a closed port: {refused:?}"
        );
        let report = idle.stop();
        ensure!(report.broken.is_empty(), "{:?}", report.broken);
    }
    drop(answering);
    Ok(())
}

fn fragments_follow_their_first(cluster: &Cluster) -> Outcome {
    use egret_lab::traffic::source::udp_echo;
    const LARGE: usize = 4000;
    let answering = Server::start(&cluster.pod("a1")?)?;
    let outside = cluster.host("server")?;
    for (family, server) in families() {
        let out = udp_echo(&cluster.pod("a1")?, echo(server), LARGE, DEADLINE)?;
        ensure!(out.ip() == ip(EGRESS[family]), "fragments came from {out}");
        let own = cluster.pod_address("a1", server)?;
        let back = udp_echo(&outside, echo(own), LARGE, DEADLINE)?;
        ensure!(
            back.ip() == server,
            "fragments towards the pod came from {back}"
        );
    }
    drop(answering);
    Ok(())
}

/// Flows towards a pod survive a new policy for it; its own ones end at once.
fn flows_live_when_a_policy_starts_or_end_cleanly(cluster: &Cluster) -> Outcome {
    let policy = egress("late", "Other", &EGRESS, "");
    let pod = cluster.pod("b1")?;
    let outside = cluster.host("server")?;
    let answering = Server::start(&pod)?;
    let mut inward = Vec::new();
    let mut outward = Vec::new();
    for (_, server) in families() {
        let own = cluster.pod_address("b1", server)?;
        inward.push(IdleFlows::start(&outside, SocketAddr::new(own, 5001), 3)?);
        outward.push(IdleFlows::start(&pod, SocketAddr::new(server, 5001), 3)?);
    }
    cluster.apply(std::slice::from_ref(&policy))?;
    let watch = Leaving::watch(cluster, {
        let own: Vec<IpAddr> = families()
            .iter()
            .map(|(_, server)| cluster.pod_address("b1", *server))
            .collect::<Result<_, _>>()?;
        // Answers of the flows towards the pod have the source port 5001.
        move |packet| {
            own.contains(&packet.source) && packet.ports.is_none_or(|(from, _)| from != 5001)
        }
    })?;
    let ended = || outward.iter().map(IdleFlows::broken).sum::<usize>() == 6;
    wait_for("the pod's old flows to end", DEADLINE, ended)?;
    for (family, server) in families() {
        expect_source(&pod, server, ip(EGRESS[family]))?;
    }
    watch.clean()?;
    for flows in inward {
        let report = flows.stop();
        ensure!(report.broken.is_empty(), "{:?}", report.broken);
    }
    drop(outward);
    drop(answering);
    cluster.delete(std::slice::from_ref(&policy))?;
    let own = cluster.pod_address("b1", ip(SERVERS[0]))?;
    wait_for(
        "the pod to leave by its own address again",
        DEADLINE,
        || udp_source(&pod, echo(ip(SERVERS[0]))).is_ok_and(|source| source.ip() == own),
    )?;
    Ok(())
}

fn a_lost_gateway_breaks_no_connection(cluster: &Cluster) -> Outcome {
    let watch = watch_selected(cluster)?;
    let pod = cluster.pod("a1")?;
    let mut busy = Vec::new();
    for (_, server) in families() {
        busy.push(BusyFlows::start_paced(&pod, server, 1, 1, Some(PACE))?);
    }
    cluster.lab().kill("g1", Hurt::Power)?;
    let bytes = || busy.iter().map(BusyFlows::bytes).sum::<u64>();
    let goal = bytes() + MEANWHILE_BYTES;
    wait_for("the connections to carry data", DEADLINE, || {
        bytes() >= goal
    })?;
    for flows in busy {
        let report = flows.stop();
        ensure!(report.broken.is_empty(), "{:?}", report.broken);
    }
    cluster.lab().start("g1")?;
    cluster.wait_ready()?;
    watch.clean()
}

fn shell(cluster: &Cluster, host: &str, line: &str) -> anyhow::Result<String> {
    cluster.exec(&cluster.host(host)?, &["sh", "-c", line])
}

/// Until the device is back nothing leaves at all; a program that others detach from its device leaves a gap, and is
/// attached again.
fn what_others_remove_comes_back(cluster: &Cluster) -> Outcome {
    let pins = "/sys/fs/bpf/egret/uplink";
    for line in [
        "ip link delete egret-lift".to_owned(),
        "ip link set egret-lift down".to_owned(),
        format!("bpftool link detach pinned $(ls {pins}/out_* | head -1)"),
        format!("rm -r {pins}"),
    ] {
        shell(cluster, WORKER, &line)?;
        // Without its pin a program exists for another moment.
        wait_for("the programs' pins", DEADLINE, || {
            shell(cluster, WORKER, &format!("ls {pins}/out_*")).is_ok()
        })?;
        let watch = wait_reinjecting(cluster).with_context(|| line.clone())?;
        watch.clean().with_context(|| line.clone())?;
    }
    Ok(())
}

/// Waits until the pod leaves with its egress address again; returns a capture from then on.
fn wait_reinjecting(cluster: &Cluster) -> anyhow::Result<Leaving> {
    let server = ip(SERVERS[0]);
    let pod = cluster.pod("a1")?;
    let patience = Duration::from_secs(1);
    wait_for("the pod to be reinjected again", DEADLINE, || {
        let seen = egret_lab::traffic::source::udp_echo(&pod, echo(server), 8, patience);
        seen.is_ok_and(|source| source.ip() == ip(EGRESS[0]))
    })?;
    let watch = watch_selected(cluster)?;
    expect_source(&pod, server, ip(EGRESS[0]))?;
    Ok(watch)
}

fn a_dead_agent_changes_nothing(cluster: &Cluster) -> Outcome {
    let watch = watch_selected(cluster)?;
    let pod = cluster.pod("a1")?;
    let idle = IdleFlows::start(&pod, echo(ip(SERVERS[0])), 5)?;
    cluster.lab().kill(WORKER, Hurt::Agent)?;
    for (family, server) in families() {
        expect_source(&pod, server, ip(EGRESS[family]))?;
    }
    cluster.lab().start(WORKER)?;
    cluster.wait_ready()?;
    for (family, server) in families() {
        expect_source(&pod, server, ip(EGRESS[family]))?;
    }
    let report = idle.stop();
    ensure!(report.broken.is_empty(), "{:?}", report.broken);
    watch.clean()
}

/// The agent is dead and its tables are deleted (including the one that covers a replacement under way): reinjected
/// packets meet no ruleset.
fn without_the_ruleset_nothing_leaves(cluster: &Cluster) -> Outcome {
    cluster.lab().kill(WORKER, Hurt::Agent)?;
    // Tables are the agent's own until the last of its threads has ended.
    wait_for("the tables to go", DEADLINE, || {
        let tables = shell(cluster, WORKER, "nft flush ruleset; nft list tables");
        tables.is_ok_and(|tables| !tables.contains("egret"))
    })?;
    let own: Vec<IpAddr> = families()
        .iter()
        .map(|(_, server)| cluster.pod_address("a1", *server))
        .collect::<Result<_, _>>()?;
    let watch = Leaving::watch(cluster, move |packet| own.contains(&packet.source))?;
    for (_, server) in families() {
        let patience = Duration::from_millis(300);
        let seen =
            egret_lab::traffic::source::udp_echo(&cluster.pod("a1")?, echo(server), 8, patience);
        ensure!(seen.is_err(), "something came through: {seen:?}");
        // Other pods are unaffected, and this proves that the capture sees them.
        expect_source(
            &cluster.pod("b1")?,
            server,
            cluster.pod_address("b1", server)?,
        )?;
    }
    watch.clean()?;
    cluster.lab().start(WORKER)?;
    cluster.wait_ready()?;
    wait_reinjecting(cluster)?.clean()
}

/// Whether a tcx program or a filter is attached at the uplink's egress.
fn is_attached(cluster: &Cluster) -> anyhow::Result<bool> {
    let sections = Snapshot::take(&cluster.host(WORKER)?)?.sections;
    let tcx = |line: &String| line.starts_with("eth0 tcx egress");
    let filters = shell(
        cluster,
        WORKER,
        "tc filter show dev eth0 egress 2>&1 || true",
    )?;
    Ok(filters.contains("uplink_out") || sections.values().flatten().any(tcx))
}

fn cleanup_leaves_nothing(cluster: &Cluster) -> Outcome {
    let look = || -> anyhow::Result<[bool; 3]> {
        Ok([
            shell(cluster, WORKER, "ip link show")?.contains("egret-lift"),
            shell(cluster, WORKER, "ls -R /sys/fs/bpf")?.contains("uplink"),
            is_attached(cluster)?,
        ])
    };
    ensure!(
        look()? == [true; 3],
        "this test looks at the wrong things: {:?}",
        look()?
    );
    cluster.lab().kill(WORKER, Hurt::Agent)?;
    let program = egret_tests::egret()?;
    shell(
        cluster,
        WORKER,
        &format!("{} agent --cleanup", program.display()),
    )?;
    ensure!(
        look()? == [false; 3],
        "{:?} stay: device, pins, programs",
        look()?
    );
    cluster.lab().start(WORKER)?;
    Ok(())
}

fn unknown(test: &str) -> anyhow::Result<Cluster> {
    let cluster = Cluster::up(test, &Topology::from_yaml(TOPOLOGY)?)?;
    let standin = Standin::compile(test)?;
    let layout = cluster.lab().layout()?;
    let (_, pod) = layout.pod("default", "a1").context("no such pod")?;
    standin.express(cluster.lab(), WORKER, &pod.device)?;
    keep(standin);
    Ok(cluster)
}

fn an_unknown_way_is_reported_and_refused(cluster: &Cluster) -> Outcome {
    let policy = egress("myapp", "MyApp", &EGRESS, "");
    let path = cluster.lab().dir().path().join("unknown.yaml");
    std::fs::write(&path, &policy)?;
    cluster.lab().apply(&path)?;
    let mut last = None;
    let said = wait_for("condition Unsupported", DEADLINE, || {
        last = cluster.object("egressnode", None, WORKER);
        let conditions = last.as_ref().map(|node| &node["status"]["conditions"]);
        let conditions = conditions.and_then(|all| all.as_array());
        conditions.is_some_and(|all| {
            all.iter().any(|one| {
                one["type"] == "Unsupported"
                    && one["status"] == "True"
                    && one["reason"] == "UnknownPath"
            })
        })
    });
    ensure!(said.is_ok(), "{WORKER} does not say it: {last:#?}");
    // The other node serves its pod; this one serves none, and lets nothing out.
    let watch = watch_selected(cluster)?;
    let mut last = None;
    let told = wait_for("one pod of two", DEADLINE, || {
        last = cluster.status().ok();
        let policy = last.as_ref().map(|status| &status["policies"][0]);
        policy.is_some_and(|policy| policy["ready"] == false && policy["pods"]["programmed"] == 1)
    });
    ensure!(told.is_ok(), "{last:#?}");
    for (family, server) in families() {
        expect_source(&cluster.pod("a2")?, server, ip(EGRESS[family]))?;
        let patience = Duration::from_millis(300);
        let seen =
            egret_lab::traffic::source::udp_echo(&cluster.pod("a1")?, echo(server), 8, patience);
        ensure!(seen.is_err(), "half-served: {seen:?}");
    }
    watch.clean()
}
