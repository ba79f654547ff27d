//! Pods reach each other with any kind of address management, and an address of two pods leaves by no policy.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_lab::traffic::Server;
use egret_lab::traffic::source::udp_echo;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::steps::Group;
use egret_tests::watch::{expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Long enough for an answer if the path is open.
const SHORT: Duration = Duration::from_millis(300);
/// From a pod's address in the objects to every node that knows it; the machine may be busy.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "pod_addresses",
        up,
        steps![
            a_node_without_pod_cidrs_keeps_its_pods_within_reach,
            pods_that_a_router_leads_to_are_within_reach_too,
            a_pod_is_known_to_other_nodes_at_once,
            what_a_network_plugin_publishes_is_never_egress,
            a_pod_that_nobody_tells_others_of_is_told_by_its_node,
            an_address_of_two_pods_leaves_by_no_policy_and_is_told,
            status_says_what_becomes_of_a_policy,
        ],
    )]
}

fn up() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("podaddr", &Topology::built_in())?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn apply(cluster: &Cluster, text: &str) -> Outcome {
    let path = cluster.lab().dir().path().join("part.yaml");
    std::fs::write(&path, text)?;
    cluster.lab().apply(&path)?;
    Ok(())
}

/// The Node of a worker, from an API without `spec.podCIDRs`.
fn node_without_cidrs(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let file = cluster
        .lab()
        .dir()
        .objects()
        .join(format!("node.{name}.yaml"));
    let mut node: Value = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
    node["spec"] = serde_json::json!({});
    Ok(serde_saphyr::to_string(&node)?)
}

/// Waits until a selected pod of worker1 reaches another pod with its own address, in both families.
fn wait_reached(cluster: &Cluster, from: &str, to: &str) -> Outcome {
    for like in SERVERS.map(ip) {
        let (own, target) = (
            cluster.pod_address(from, like)?,
            cluster.pod_address(to, like)?,
        );
        let place = cluster.pod(from)?;
        let mut last = String::new();
        let waited = wait_for("a pod to be reached", DEADLINE, || {
            let seen = udp_echo(&place, echo(target), 32, SHORT);
            last = format!("{seen:?}");
            seen.is_ok_and(|source| source.ip() == own)
        });
        waited.with_context(|| format!("{from} to {to} at {target}: {last}"))?;
    }
    Ok(())
}

/// Destinations outside are still egress traffic.
fn outside_as_before(cluster: &Cluster) -> Outcome {
    for (server, address) in SERVERS.into_iter().zip(EGRESS) {
        expect_source(&cluster.pod("a1")?, ip(server), ip(address))?;
    }
    Ok(())
}

/// The node's own routes to other nodes show it.
fn a_node_without_pod_cidrs_keeps_its_pods_within_reach(cluster: &Cluster) -> Outcome {
    let _server = Server::start(&cluster.pod("other2")?)?;
    wait_reached(cluster, "a1", "other2")?;
    apply(cluster, &node_without_cidrs(cluster, "worker2")?)?;
    // Long enough for every agent to have processed it.
    wait_record(cluster, |told| !told.is_empty())?;
    wait_reached(cluster, "a1", "other2")?;
    outside_as_before(cluster)
}

/// `spec.podPrefixes` of the record of a gateway.
fn told(cluster: &Cluster, gateway: &str) -> Vec<String> {
    let record = cluster.object("EgressNode", None, gateway);
    let told = record.map(|record| record["spec"]["podPrefixes"].clone());
    let told = told.and_then(|told| told.as_array().cloned());
    let texts = told.into_iter().flatten();
    texts
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

/// Both gateways that carry it must report it: nodes accept either report.
fn wait_record(cluster: &Cluster, wanted: impl Fn(&[String]) -> bool) -> Outcome {
    Ok(wait_for("what is told of pods", DEADLINE, || {
        ["gateway1", "gateway2"]
            .iter()
            .all(|gateway| wanted(&told(cluster, gateway)))
    })?)
}

/// As in clouds whose router knows the pods, and a node's table does not. Stand-in for VPC networks with pods'
/// addresses.
fn pods_that_a_router_leads_to_are_within_reach_too(cluster: &Cluster) -> Outcome {
    let (worker, router) = (cluster.host("worker1")?, cluster.host("router")?);
    for (there, back, way) in [
        ("10.244.2.0/24", "10.244.1.0/24", "192.168.122.1"),
        ("fd00:244:2::/64", "fd00:244:1::/64", "fd00:122::1"),
    ] {
        for (prefix, node) in [(there, "worker2"), (back, "worker1")] {
            let via = cluster.node_address(node, ip(way))?.to_string();
            cluster.exec(&router, &["ip", "route", "replace", prefix, "via", &via])?;
        }
        cluster.exec(&worker, &["ip", "route", "replace", there, "via", way])?;
    }
    let _server = Server::start(&cluster.pod("other2")?)?;
    wait_reached(cluster, "a1", "other2")?;
    outside_as_before(cluster)
}

fn a_pod_is_known_to_other_nodes_at_once(cluster: &Cluster) -> Outcome {
    let place = cluster.lab().begin_pod("worker2", pod("late", "Plain"))?;
    let _server = Server::start(&place)?;
    let address = cluster.pod_address("late", ip(SERVERS[0]))?;
    let own = cluster.pod_address("a1", address)?;
    cluster.lab().publish_pod("default", "late")?;
    let published = Instant::now();
    let from = cluster.pod("a1")?;
    wait_for("the pod to be known", DEADLINE, || {
        udp_echo(&from, echo(address), 32, SHORT).is_ok_and(|seen| seen.ip() == own)
    })?;
    let took = published.elapsed();
    ensure!(took < KNOWN_WITHIN, "{took:?}");
    Ok(())
}

/// Stand-in for Calico's IPPool, which its own controller writes.
fn what_a_network_plugin_publishes_is_never_egress(cluster: &Cluster) -> Outcome {
    let pool = "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: pods}\n\
                spec: {cidr: 10.244.0.0/16, ipipMode: Always}\n";
    apply(cluster, pool)?;
    wait_record(cluster, |told| {
        told.iter().any(|one| one == "10.244.0.0/16")
    })?;
    wait_record(cluster, |told| !told.iter().any(|one| one.ends_with("/32")))?;
    outside_as_before(cluster)?;
    let path = cluster.lab().dir().path().join("part.yaml");
    cluster.lab().delete(&path)?;
    wait_record(cluster, |told| {
        !told.iter().any(|one| one == "10.244.0.0/16")
    })
}

/// Type and reason of a condition of a node.
fn condition(cluster: &Cluster, node: &str, kind: &str) -> Option<(String, String)> {
    let record = cluster.object("EgressNode", None, node)?;
    let all = record["status"]["conditions"].as_array().cloned()?;
    let found = all.into_iter().find(|one| one["type"] == kind)?;
    let text = |field: &str| found[field].as_str().map(str::to_owned);
    Some((text("reason")?, text("message")?))
}

fn a_pod_that_nobody_tells_others_of_is_told_by_its_node(cluster: &Cluster) -> Outcome {
    let degraded = || condition(cluster, "worker2", "Degraded");
    ensure!(degraded().is_none(), "{:?}", degraded());
    cluster.lab().kill("control", egret_lab::Hurt::Agent)?;
    cluster.lab().add_pod("worker2", pod("alone", "Plain"))?;
    let address = cluster.pod_address("alone", ip(SERVERS[0]))?.to_string();
    let waited = wait_for("NoPodCidr", DEADLINE, || {
        degraded().is_some_and(|(reason, text)| reason == "NoPodCidr" && text.contains(&address))
    });
    waited.with_context(|| {
        format!(
            "{address}: {:#?}",
            cluster.object("EgressNode", None, "worker2")
        )
    })?;
    cluster.lab().start("control")?;
    wait_for("the pod to be covered", DEADLINE, || degraded().is_none())?;
    cluster.wait_ready()
}

fn an_address_of_two_pods_leaves_by_no_policy_and_is_told(cluster: &Cluster) -> Outcome {
    let addresses = SERVERS.map(ip).map(|like| cluster.pod_address("a1", like));
    let addresses: Vec<IpAddr> = addresses.into_iter().collect::<Result<_, _>>()?;
    let ips: Vec<String> = addresses
        .iter()
        .map(|one| format!("{{ip: \"{one}\"}}"))
        .collect();
    let stale = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: stale, namespace: default, labels: {{app: Plain}}}}\n\
         spec: {{nodeName: worker1}}\nstatus: {{phase: Running, podIP: \"{}\", podIPs: [{}]}}\n",
        addresses[0],
        ips.join(", ")
    );
    apply(cluster, &stale)?;
    wait_for("PodAddressConflict", DEADLINE, || {
        let degraded = condition(cluster, "worker1", "Degraded");
        degraded.is_some_and(|(reason, text)| {
            reason == "PodAddressConflict"
                && text.contains("default/stale")
                && text.contains("default/a1")
        })
    })?;
    for server in SERVERS.map(ip) {
        let seen = udp_echo(&cluster.pod("a1")?, echo(server), 32, SHORT);
        ensure!(seen.is_err(), "it left: {seen:?}");
        // Other pods of the node are unchanged.
        let own = cluster.node_address("worker1", server)?;
        wait_source(&cluster.pod("other1")?, server, own)?;
    }
    for name in ["default/stale", "default/a1"] {
        let said = ask(cluster, &["explain", name, "--to", SERVERS[0]])?;
        ensure!(said.contains("has its address too"), "{said}");
        ensure!(
            !said.contains("untouched") && !said.contains("leaves from"),
            "{said}"
        );
    }
    let path = cluster.lab().dir().path().join("part.yaml");
    cluster.lab().delete(&path)?;
    cluster.wait_ready()?;
    outside_as_before(cluster)
}

/// Output of the program on worker1.
fn ask(cluster: &Cluster, words: &[&str]) -> anyhow::Result<String> {
    let program = egret_tests::egret()?;
    let program = program.to_str().context("a path that is text")?;
    let mut command = cluster.lab().exec(&cluster.host("worker1")?, program)?;
    let output = command.args(words).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn status_says_what_becomes_of_a_policy(cluster: &Cluster) -> Outcome {
    let first = egress("first", "MyApp", &["192.168.122.223"], "priority: 5");
    cluster.apply(std::slice::from_ref(&first))?;
    wait_for("the loser to be told", DEADLINE, || {
        ask(cluster, &["status"]).is_ok_and(|text| text.contains("nothing leaves by it"))
    })?;
    let text = ask(cluster, &["status"])?;
    ensure!(
        text.contains("FamilyNotCovered: it has no IPv6 address"),
        "{text}"
    );
    // A pod of another node, whose agent has better information.
    let said = ask(cluster, &["explain", "default/a2", "--to", SERVERS[0]])?;
    ensure!(said.contains("is not at hand: ask its agent"), "{said}");
    cluster.delete(&[first])?;
    let nowhere = "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: lost, namespace: nowhere}\n\
                   spec: {selector: {app: MyApp}, ip: 192.168.122.223}\n";
    apply(cluster, nowhere)?;
    wait_for("the namespace to be missed", DEADLINE, || {
        ask(cluster, &["status"]).is_ok_and(|text| text.contains("there is no namespace nowhere"))
    })?;
    let odd = "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: odd, namespace: default}\n\
               spec: {selector: {app: MyApp}, ip: ' 192.168.122.224', destinations: [{cidr: 203.0.113.010/32}]}\n";
    apply(cluster, odd)?;
    wait_for("the findings", DEADLINE, || {
        ask(cluster, &["status"]).is_ok_and(|text| {
            text.contains("\" 192.168.122.224\"") && text.contains("leave leading zeros out")
        })
    })?;
    Ok(())
}
