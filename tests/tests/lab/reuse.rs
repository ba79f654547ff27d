//! Without the plugin: an address that is reused by another pod before the API shows it inherits nothing of the first
//! one.

use anyhow::ensure;
use egret_lab::Topology;
use egret_lab::capture::Packet;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_lab::traffic::{IdleFlows, ping_source};
use egret_tests::cluster::{EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use std::time::{Duration, Instant};

/// Address of a second policy.
const SECOND: [&str; 2] = ["192.168.122.223", "fd00:122::223"];
/// Shortest time until an address may be reused by another pod.
const REUSED_WITHIN: Duration = Duration::from_secs(1);
/// Long enough for an answer if the path is open.
const SHORT: Duration = Duration::from_millis(200);

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "reuse",
        up,
        steps![
            nobody_gets_the_egress_address_of_a_pod_whose_device_is_gone,
            the_next_pod_gets_what_its_own_policy_says,
        ],
    )]
}

fn up() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("reuse", &Topology::built_in())?;
    cluster.apply(&[
        egress("first", "First", &EGRESS, ""),
        egress("second", "Second", &SECOND, ""),
    ])?;
    Ok(cluster)
}

fn has_the_firsts_address(packet: &Packet) -> bool {
    EGRESS.map(ip).contains(&packet.source)
}

/// A selected pod ends and another one has its address, before the API shows it.
fn swap(cluster: &Cluster, number: usize, app: &str) -> Outcome {
    let (first, next) = (format!("first{number}"), format!("next{number}"));
    let place = cluster.lab().add_pod("worker1", pod(&first, "First"))?;
    let mut flows = Vec::new();
    for (server, address) in SERVERS.into_iter().zip(EGRESS) {
        wait_source(&place, ip(server), ip(address))?;
        flows.push(IdleFlows::start(&place, echo(ip(server)), 2)?);
    }
    cluster.lab().end_last_pod("worker1")?;
    let ended = Instant::now();
    let place = cluster.lab().begin_pod("worker1", pod(&next, app))?;
    let watch = Leaving::watch(cluster, has_the_firsts_address)?;
    let mut tried = 0;
    while ended.elapsed() < REUSED_WITHIN || tried < 4 {
        for server in SERVERS.map(ip) {
            let udp = udp_echo(&place, echo(server), 32, SHORT);
            ensure!(udp.is_err(), "UDP came from {udp:?}");
            let tcp = tcp_source_within(&place, echo(server), SHORT);
            ensure!(tcp.is_err(), "TCP came from {tcp:?}");
            // Another pod: the captures see its packets.
            ping_source(&cluster.pod("other1")?, server)?;
        }
        tried += 1;
    }
    watch.clean()?;
    drop(flows);
    // The API shows the next one, and still the first.
    cluster.lab().publish_pod("default", &next)?;
    Ok(())
}

fn nobody_gets_the_egress_address_of_a_pod_whose_device_is_gone(cluster: &Cluster) -> Outcome {
    let refused = cluster.worker_counter("worker1", "unavailable")?;
    swap(cluster, 1, "Plain")?;
    let now = cluster.worker_counter("worker1", "unavailable")?;
    ensure!(now > refused, "nothing was refused: {refused} and {now}");
    for server in SERVERS.map(ip) {
        let node = cluster.node_address("worker1", server)?;
        wait_source(&cluster.pod("next1")?, server, node)?;
    }
    remove(cluster, "first1")
}

fn the_next_pod_gets_what_its_own_policy_says(cluster: &Cluster) -> Outcome {
    swap(cluster, 2, "Second")?;
    for (server, address) in SERVERS.into_iter().zip(SECOND) {
        wait_source(&cluster.pod("next2")?, ip(server), ip(address))?;
    }
    remove(cluster, "first2")?;
    for (server, address) in SERVERS.into_iter().zip(SECOND) {
        wait_source(&cluster.pod("next2")?, ip(server), ip(address))?;
    }
    Ok(())
}

/// The object of a pod that has ended.
fn remove(cluster: &Cluster, name: &str) -> Outcome {
    let objects = cluster.lab().dir().objects();
    Ok(std::fs::remove_file(
        objects.join(format!("pod.default.{name}.yaml")),
    )?)
}
