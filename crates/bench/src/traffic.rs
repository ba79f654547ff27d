//! What a pod gets by each way to a fixed source address, in one lab, in runs that alternate.
//!
//! Baselines: *plain* is routing through a tunnel of the same kind to the same gateway, without any translation.
//! *Gateway NAT* is what the oldest scripts do: a rule for each pod marks its packets at the worker, one for each pod
//! translates at the gateway (iptables), which keeps the connections.

use crate::cluster::{self, SERVER};
use crate::endpoints::{self, Endpoints, Way};
use crate::figure::Report;
use anyhow::{Context, Result};
use egret_lab::Place;
use egret_tests::chaos::{Scene, ip, wait};
use std::time::Duration;

const PART: &str = "traffic";
/// Variant that all others are compared with.
pub const PLAIN: &str = "plain tunnel";
/// Pods of the policy on the worker that has many.
const MANY: usize = 10_000;
const ROUND_TRIPS: usize = 3_000;
const TIME: Duration = Duration::from_millis(700);
const GATEWAY: &str = "g1";

/// One way: its name, and the pod that uses it.
struct Variant {
    name: String,
    pod: Place,
}

/// Runs every measurement for every way, in turn.
pub fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let rules = [10, 1_000, 10_000];
    let mut hosts = vec![
        cluster::worker("w1", 1, &[("a1", "MyApp"), ("b1", "Plain")]),
        cluster::worker("w2", 2, &[("a2", "MyApp")]),
    ];
    for (index, _) in rules.iter().enumerate() {
        let number = 3 + index;
        let pod = format!("c{number}");
        hosts.push(cluster::worker(
            &format!("w{number}"),
            number,
            &[(&pod, "Old")],
        ));
    }
    hosts.push(cluster::gateway(GATEWAY));
    let scene = cluster::up("bench-traffic", &hosts)?;
    scene.put(&many_pods())?;
    cluster::start_policy(&scene, &[GATEWAY])?;

    let mut variants = vec![
        variant(&scene, PLAIN, "b1")?,
        variant(&scene, "ours", "a1")?,
        variant(&scene, &format!("ours, {MANY} pods"), "a2")?,
    ];
    tunnel_at_gateway(&scene)?;
    plain(&scene, 1, "b1", None)?;
    for (index, rules) in rules.into_iter().enumerate() {
        let number = 3 + index;
        let pod = format!("c{number}");
        plain(&scene, number, &pod, Some(rules))?;
        variants.push(variant(
            &scene,
            &format!("gateway NAT, {rules} pods"),
            &pod,
        )?);
    }
    let server = scene.host("server")?;
    let endpoints = Endpoints::start(&server)?;
    for way in &variants {
        wait(&format!("an answer by {}", way.name), || {
            endpoints::round_trip_us(&way.pod, ip(SERVER), 1).is_ok()
        })?;
    }
    for round in 0..rounds {
        eprintln!("   round {} of {rounds}", round + 1);
        for way in &variants {
            run(report, way).with_context(|| way.name.clone())?;
        }
    }
    endpoints.stop(&server)
}

fn variant(scene: &Scene, name: &str, pod: &str) -> Result<Variant> {
    Ok(Variant {
        name: name.into(),
        pod: scene.pod(pod)?,
    })
}

fn run(report: &mut Report, way: &Variant) -> Result<()> {
    let (pod, server) = (&way.pod, ip(SERVER));
    let mut add = |name: &str, unit: &str, value| report.add(PART, name, &way.name, unit, value);
    let us = endpoints::round_trip_us(pod, server, ROUND_TRIPS)?;
    add("round trip", "us", us);
    let rate = endpoints::packets_per_second(pod, server, TIME)?;
    add("packets", "k/s", rate / 1e3);
    for (streams, direction, name) in [
        (1, Way::Up, "1 stream up"),
        (1, Way::Down, "1 stream down"),
        (8, Way::Up, "8 streams up"),
        (8, Way::Down, "8 streams down"),
    ] {
        let rate = endpoints::gigabits(pod, server, streams, direction, TIME)?;
        add(name, "Gbit/s", rate);
    }
    let rate = endpoints::connections_per_second(pod, server, TIME)?;
    add("new connections", "k/s", rate / 1e3);
    Ok(())
}

/// Pods of the second worker that exist as objects only.
fn many_pods() -> String {
    let pod = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: many-{number}, namespace: default, labels: {{app: MyApp}}}}\n\
             spec: {{nodeName: w2}}\nstatus: {{podIPs: [{{ip: 10.200.{high}.{low}}}]}}\n"
        )
    };
    let all: Vec<String> = (0..MANY).map(pod).collect();
    all.join("---\n")
}

/// Address of a host or pod, IPv4.
fn address(scene: &Scene, place: &str) -> Result<String> {
    let layout = scene.lab().layout()?;
    let found = match layout.pod("default", place) {
        Some((_, pod)) => pod.addresses.iter().copied().find(|a| a.is_ipv4()),
        None => {
            let host = layout.hosts.iter().find(|host| host.name == place);
            host.and_then(|host| host.addresses().into_iter().find(|a| a.is_ipv4()))
        }
    };
    Ok(found
        .with_context(|| format!("{place} has no address"))?
        .to_string())
}

fn tunnel_at_gateway(scene: &Scene) -> Result<()> {
    let local = address(scene, GATEWAY)?;
    scene.shell(
        GATEWAY,
        &format!(
            "ip link add plain type vxlan id 77 dstport 4790 local {local}; ip link set plain up
            ip address add 10.99.0.100/24 dev plain
            sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.plain.rp_filter=0"
        ),
    )?;
    Ok(())
}

/// The way of one pod through a tunnel that the kernel alone serves; with rules: translated at the gateway, behind as
/// many rules of other pods at both ends.
fn plain(scene: &Scene, number: usize, pod: &str, rules: Option<usize>) -> Result<()> {
    let worker = format!("w{number}");
    let (local, remote) = (address(scene, &worker)?, address(scene, GATEWAY)?);
    let pod = address(scene, pod)?;
    let select = match rules {
        None => format!("from {pod}"),
        // The tunnel's own packets carry the mark too, and must not be led into the tunnel.
        Some(_) => format!("to {SERVER} fwmark 0x64"),
    };
    scene.shell(
        &worker,
        &format!(
            "ip link add plain type vxlan id 77 dstport 4790 local {local} remote {remote}; ip link set plain up
            ip address add 10.99.0.{number}/24 dev plain
            sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.plain.rp_filter=0
            ip rule add {select} lookup 100 priority 50; ip route add default via 10.99.0.100 dev plain table 100"
        ),
    )?;
    scene.shell(
        GATEWAY,
        &format!(
            "bridge fdb append 00:00:00:00:00:00 dev plain dst {local}
            ip route add {pod}/32 via 10.99.0.{number} dev plain"
        ),
    )?;
    let Some(rules) = rules else {
        scene.shell("router", &format!("ip route add {pod}/32 via {remote}"))?;
        return Ok(());
    };
    let virtual_address = format!("192.168.122.{}", 230 + number);
    let others = |rule: &str| {
        format!(
            "awk 'BEGIN {{ for (i = 1; i < {rules}; i++) printf \"{rule}\\n\", i / 250, i % 250 + 1 }}'"
        )
    };
    let mark = others("-A PREROUTING -s 10.201.%d.%d/32 -j MARK --set-mark 0x64");
    scene.shell(
        &worker,
        &format!(
            "(echo '*mangle'; {mark}; echo '-A PREROUTING -s {pod}/32 -d {SERVER}/32 -j MARK --set-mark 0x64'; echo COMMIT) \
            | iptables-legacy-restore --noflush"
        ),
    )?;
    let translate = others(&format!(
        "-A POSTROUTING -s 10.{}.%d.%d/32 -j SNAT --to-source {virtual_address}",
        201 + number
    ));
    scene.shell(
        GATEWAY,
        &format!(
            "ip address add {virtual_address}/32 dev eth0
            iptables-legacy -t nat -N to{number}
            iptables-legacy -t nat -A POSTROUTING -s {pod}/32 -j to{number}
            (echo '*nat'; {translate} | sed 's/POSTROUTING/to{number}/'
            echo '-A to{number} -s {pod}/32 -j SNAT --to-source {virtual_address}'; echo COMMIT) \
            | iptables-legacy-restore --noflush"
        ),
    )?;
    Ok(())
}
