//! Performance of a pod's traffic by each path to a fixed source address ([`crate::ways`]), in runs that alternate.

use crate::cluster::{self, SERVER};
use crate::endpoints::{self, Direction, Endpoints};
use crate::figure::Report;
use crate::idle;
use crate::ways::{GATEWAY, classic, plain, tunnel_at_gateway};
use anyhow::{Context, Result};
use egret_lab::Place;
use egret_tests::chaos::{Scene, ip, wait};
use std::time::Duration;

const PART: &str = "traffic";
/// Baseline variant for all others.
pub const PLAIN: &str = "plain tunnel";
/// Second baseline.
pub const CLASSIC: &str = "classic";
/// Pods of the policy on the worker that has many.
const MANY: usize = 10_000;
/// Numbers of rules of the oldest variant.
const RULES: [usize; 3] = [10, 1_000, 10_000];
const ROUND_TRIPS: usize = 3_000;
const TIME: Duration = Duration::from_millis(700);

/// A variant: its name, and the pod that uses it.
struct Variant {
    name: String,
    pod: Place,
}

/// Runs every measurement for every variant, in turn.
pub fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let scene = main_scene()?;
    let with_many = small_scene("bench-many", &[], &many_pods())?;
    let without_bpf = small_scene("bench-nft", &["--gateway-datapath", "nftables"], "")?;
    let mut variants = vec![
        variant(&scene, PLAIN, "b1")?,
        variant(&scene, CLASSIC, "k6")?,
        variant(&scene, "ours", "a1")?,
        variant(&with_many, &format!("ours, {MANY} pods"), "a1")?,
        variant(&without_bpf, "ours, nftables gateway", "a1")?,
    ];
    for (index, rules) in RULES.into_iter().enumerate() {
        let name = format!("gateway NAT, {rules} pods");
        variants.push(variant(&scene, &name, &format!("c{}", 3 + index))?);
    }
    let servers = [&scene, &with_many, &without_bpf].map(|scene| scene.host("server"));
    let servers: Vec<Place> = servers.into_iter().collect::<Result<_>>()?;
    let endpoints = servers.iter().map(Endpoints::start);
    let endpoints: Vec<Endpoints> = endpoints.collect::<Result<_>>()?;
    for way in &variants {
        wait(&format!("an answer by {}", way.name), || {
            endpoints::round_trip_us(&way.pod, ip(SERVER), 1).is_ok()
        })?;
    }
    // The agents process the many pods first, with the CPUs that the traffic needs.
    idle::wait()?;
    for round in 0..rounds {
        eprintln!("   round {} of {rounds}", round + 1);
        // Each round begins with another variant, so that none always inherits the effects of the same predecessor.
        for index in 0..variants.len() {
            let way = &variants[(index + round) % variants.len()];
            run(report, way).with_context(|| way.name.clone())?;
        }
    }
    for (endpoints, server) in endpoints.into_iter().zip(&servers) {
        endpoints.stop(server)?;
    }
    Ok(())
}

fn main_scene() -> Result<Scene> {
    let mut hosts = vec![cluster::worker(
        "w1",
        1,
        &[("a1", "MyApp"), ("b1", "Plain")],
    )];
    let numbers = 3..3 + RULES.len();
    for number in numbers.clone() {
        let pod = format!("c{number}");
        hosts.push(cluster::worker(
            &format!("w{number}"),
            number,
            &[(&pod, "Old")],
        ));
    }
    hosts.push(cluster::worker("w6", 6, &[("k6", "Classic")]));
    hosts.push(cluster::gateway(GATEWAY));
    let scene = cluster::up("bench-traffic", &hosts)?;
    cluster::be_patient(&scene, hosts.len() - 1)?;
    cluster::start_policy(&scene, &[GATEWAY])?;
    tunnel_at_gateway(&scene)?;
    plain(&scene, 1, "b1", None)?;
    classic(&scene, 6, "k6")?;
    for (number, rules) in numbers.zip(RULES) {
        plain(&scene, number, &format!("c{number}"), Some(rules))?;
    }
    Ok(scene)
}

/// Brings up one worker and a gateway, with these arguments for the agents, and these objects.
fn small_scene(name: &str, arguments: &[&str], objects: &str) -> Result<Scene> {
    let hosts = [
        cluster::worker("w1", 1, &[("a1", "MyApp")]),
        cluster::gateway(GATEWAY),
    ];
    let scene = cluster::up_with(name, &hosts, arguments)?;
    if !objects.is_empty() {
        scene.put(objects)?;
    }
    cluster::be_patient(&scene, 1)?;
    cluster::start_policy(&scene, &[GATEWAY])?;
    Ok(scene)
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
        (1, Direction::Up, "1 stream up"),
        (1, Direction::Down, "1 stream down"),
        (8, Direction::Up, "8 streams up"),
        (8, Direction::Down, "8 streams down"),
    ] {
        let rate = endpoints::gigabits(pod, server, streams, direction, TIME)?;
        add(name, "Gbit/s", rate);
    }
    let rate = endpoints::connections_per_second(pod, server, TIME)?;
    add("new connections", "k/s", rate / 1e3);
    Ok(())
}

/// Pods of the worker that exist as objects only.
fn many_pods() -> String {
    let pod = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: many-{number}, namespace: default, labels: {{app: MyApp}}}}\n\
             spec: {{nodeName: w1}}\nstatus: {{podIPs: [{{ip: 10.200.{high}.{low}}}]}}\n"
        )
    };
    let all: Vec<String> = (0..MANY).map(pod).collect();
    all.join("---\n")
}
