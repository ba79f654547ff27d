//! Agents that drop packets of a pod before the API shows it: a running pod without an object is such a pod.

use anyhow::ensure;
use egret_lab::Topology;
use egret_lab::capture::Packet;
use egret_lab::process::wait_for;
use egret_lab::traffic::IdleFlows;
use egret_lab::traffic::ping_source;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::foreign::condition;
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::json;
use std::time::Duration;

/// Long enough for an answer if the path is open.
const SHORT: Duration = Duration::from_millis(300);
const POD: &str = "pod.default.other1.yaml";

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "unknown_pods",
        up,
        steps![
            known_pods_leave_as_ever,
            what_nobody_has_told_of_opens_nothing_to_outside,
            once_it_is_told_of_it_leaves,
            a_node_without_pod_cidrs_says_so,
        ],
    )]
}

fn up() -> anyhow::Result<Cluster> {
    let arguments = ["--unknown-pods", "drop"];
    let cluster = Cluster::up_with("unknown", &Topology::built_in(), &arguments)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn known_pods_leave_as_ever(cluster: &Cluster) -> Outcome {
    for (server, address) in SERVERS.into_iter().zip(EGRESS) {
        expect_source(&cluster.pod("a1")?, ip(server), ip(address))?;
        let node = cluster.node_address("worker1", ip(server))?;
        wait_source(&cluster.pod("other1")?, ip(server), node)?;
    }
    Ok(())
}

/// Whether a packet begins a flow: existing flows continue.
fn begins(packet: &Packet) -> bool {
    const TCP: u8 = 6;
    let header = 14 + if packet.source.is_ipv4() { 20 } else { 40 };
    let flags = packet.bytes.get(header + 13).copied().unwrap_or_default();
    packet.protocol != TCP || flags & 0x12 == 0x02
}

fn what_nobody_has_told_of_opens_nothing_to_outside(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("other1")?;
    let before = SERVERS.map(|server| IdleFlows::start(&pod, echo(ip(server)), 2));
    let objects = cluster.lab().dir().objects();
    let aside = cluster.lab().dir().path().join(POD);
    std::fs::rename(objects.join(POD), &aside)?;
    for server in SERVERS.map(ip) {
        wait_for("it to be unknown", DEADLINE, || {
            udp_echo(&pod, echo(server), 32, SHORT).is_err()
        })?;
    }
    let watch = Leaving::watch(cluster, begins)?;
    let dropped = cluster.worker_counter("worker1", "unknown_pod")?;
    for server in SERVERS.map(ip) {
        let udp = udp_echo(&pod, echo(server), 32, SHORT);
        ensure!(udp.is_err(), "UDP came from {udp:?}");
        let tcp = tcp_source_within(&pod, echo(server), SHORT);
        ensure!(tcp.is_err(), "TCP came from {tcp:?}");
        // Traffic inside the cluster is unchanged.
        let neighbour = cluster.pod_address("a2", server)?;
        cluster.exec(&pod, &["ping", "-c1", "-W2", &neighbour.to_string()])?;
    }
    let now = cluster.worker_counter("worker1", "unknown_pod")?;
    ensure!(now >= dropped + 4, "{dropped} dropped packets became {now}");
    for flows in before {
        let report = flows?.stop();
        ensure!(report.broken.is_empty(), "{:?}", report.broken);
    }
    watch.clean()?;
    Ok(std::fs::rename(&aside, objects.join(POD))?)
}

fn once_it_is_told_of_it_leaves(cluster: &Cluster) -> Outcome {
    for server in SERVERS.map(ip) {
        let node = cluster.node_address("worker1", server)?;
        wait_source(&cluster.pod("other1")?, server, node)?;
    }
    Ok(())
}

/// Then pods cannot be identified, and the operator who enabled the protection must be told.
fn a_node_without_pod_cidrs_says_so(cluster: &Cluster) -> Outcome {
    let file = "node.worker2.yaml";
    let degraded = || {
        let node = cluster.object("EgressNode", None, "worker2");
        condition(&node.unwrap_or_default()["status"], "Degraded")
    };
    let mut spec = json!(null);
    cluster.edit(file, |node| {
        spec = node["spec"].clone();
        node["spec"] = json!({});
    })?;
    wait_for("the node to say so", DEADLINE, || {
        degraded() == "True/NoPodCidr"
    })?;
    let server = ip(SERVERS[0]);
    ensure!(
        ping_source(&cluster.pod("other2")?, server)? != ip(EGRESS[0]),
        "other2 is not selected"
    );
    cluster.edit(file, |node| node["spec"] = spec.clone())?;
    wait_for("it to be over", DEADLINE, || degraded() != "True/NoPodCidr")?;
    Ok(())
}
