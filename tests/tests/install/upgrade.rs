//! An upgrade from the previous version on a real cluster: its chart and programs, built from the repository's history,
//! serve pods with open connections when this version takes over. Versions differ in names that one reads and the other
//! writes: fields of statuses, and files of nodes. Needs root and a built Kubernetes.

use anyhow::{Context, ensure};
use egret_lab::Place;
use egret_lab::capture::Packet;
use egret_lab::traffic::server::{DOWNLOAD_PORT, ECHO_PORTS, UPLOAD_PORT};
use egret_lab::traffic::source::tcp_source_within;
use egret_lab::traffic::{BusyFlows, IdleFlows, UdpProbe};
use egret_tests::chart::NAMESPACE;
use egret_tests::cluster::{EGRESS, SERVERS, ip};
use egret_tests::installed::{Installed, NODES, TIMEOUT};
use egret_tests::kubernetes::until;
use egret_tests::matrix::left_to_full;
use egret_tests::previous::Previous;
use egret_tests::steps::{Group, lab_name};
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Outcome, steps};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Port of the server for pods with a policy only.
const SELECTED: u16 = ECHO_PORTS[4];
/// Port for the pod that no policy selects only.
const PLAIN: u16 = ECHO_PORTS[3];
/// Connections that each pod keeps open to each server address.
const FLOWS: usize = 10;
/// Rate of each busy connection: two for each pod and server address.
const BUSY_BYTES_PER_SECOND: u64 = 200_000;
/// A new connection that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// The plugin, because of the agents' files about it.
const VALUES: [&str; 1] = ["cni.enabled=true"];
/// The plugin's entry in the runtime's configuration, and what the agents write down.
const CONFIGURATION: &str = "etc/cni/net.d/10-pods.conflist";
const GROUPS: &str = "var/lib/egret/groups.json";
const ANNOUNCED: &str = "var/lib/egret/cni/announced.json";
const WORKERS: [&str; 2] = ["worker1", "worker2"];

/// Two gateway groups: their numbers are in the agents' files, in the order in which they came.
const OBJECTS: &str = r#"
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: main}
spec: {nodeSelector: {matchLabels: {egret.dev/gateway: "true"}}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: fixed, namespace: default}
spec: {selector: {app: fixed}, ips: [192.168.122.222, "fd00:122::222"], gateway: main}
"#;
/// Sorts before the first one, so an agent that does not know its predecessor's numbers gives it the other's.
const SECOND: &str = r#"
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: another}
spec: {nodeSelector: {matchLabels: {egret.dev/gateway: "true"}}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: second, namespace: default}
spec: {selector: {app: second}, ips: [192.168.122.223, "fd00:122::223"], gateway: another}
"#;
const SECOND_IPS: [&str; 2] = ["192.168.122.223", "fd00:122::223"];

pub fn groups() -> Vec<Group> {
    let all = steps![
        the_previous_version_serves_pods,
        an_upgrade_under_load_loses_nothing,
        nodes_report_under_the_names_of_this_version,
        nothing_wrong_was_seen_meanwhile,
    ];
    let is_omitted = || left_to_full("upgrade") || egret_cluster::programs::skipped("upgrade");
    vec![Group::new("upgrade", up, all).unless(is_omitted)]
}

struct Scene {
    installed: Installed,
    load: RefCell<Option<Load>>,
}

/// Pods, and traffic during all steps.
struct Load {
    idle: Vec<IdleFlows>,
    busy: Vec<BusyFlows>,
    router: Leaving,
    /// Pods with a policy and their sources.
    selected: Vec<(Place, [IpAddr; 2])>,
}

fn up() -> anyhow::Result<Scene> {
    let previous = Previous::built()?;
    let installed = Installed::up_previous(&lab_name("upgrade"), &previous, &VALUES)?;
    Ok(Scene {
        installed,
        load: RefCell::new(None),
    })
}

fn servers(port: u16) -> [SocketAddr; 2] {
    SERVERS.map(|server| SocketAddr::new(ip(server), port))
}

/// Whether a pod must not send this packet.
fn is_wrong(packet: &Packet) -> bool {
    let is_egress = EGRESS
        .iter()
        .chain(&SECOND_IPS)
        .any(|address| ip(address) == packet.source);
    match packet.ports {
        Some((_, SELECTED | UPLOAD_PORT | DOWNLOAD_PORT)) => !is_egress,
        Some((_, PLAIN)) => is_egress,
        _ => false,
    }
}

/// A file of every worker, as JSON.
fn files(scene: &Scene, path: &str) -> anyhow::Result<BTreeMap<&'static str, Value>> {
    let read = |node: &&'static str| {
        let root = scene.installed.cluster.lab().place(node)?.root()?;
        let text = std::fs::read(root.join(path)).with_context(|| format!("{node}: {path}"))?;
        Ok((*node, serde_json::from_slice(&text)?))
    };
    WORKERS.iter().map(read).collect()
}

/// What the workers' agents remember of group numbers. Later versions remember other things in the same file.
fn group_numbers(scene: &Scene) -> anyhow::Result<BTreeMap<&'static str, [Value; 2]>> {
    let read = files(scene, GROUPS)?.into_iter();
    let numbers = |file: Value| ["groups", "members"].map(|field| file[field].clone());
    Ok(read.map(|(node, file)| (node, numbers(file))).collect())
}

/// All objects of a kind, as JSON.
fn objects(scene: &Scene, kind: &str) -> anyhow::Result<Vec<Value>> {
    let text = scene.installed.kubectl.run(&["get", kind, "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The ports of every worker by egress address, as the API has them.
fn leases(scene: &Scene) -> anyhow::Result<BTreeMap<String, Value>> {
    let all = objects(scene, "egressaddresses.egret.dev")?;
    let lease = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        (name.to_owned(), object["spec"]["leases"].clone())
    };
    Ok(all.iter().map(lease).collect())
}

/// Nodes whose status has a field.
fn nodes_with(scene: &Scene, field: &str) -> anyhow::Result<BTreeSet<String>> {
    let all = objects(scene, "egressnodes.egret.dev")?;
    let has = all.iter().filter(|node| node["status"][field].is_array());
    let name = |node: &Value| node["metadata"]["name"].as_str().map(str::to_owned);
    Ok(has.filter_map(name).collect())
}

fn the_previous_version_serves_pods(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let lab = installed.cluster.lab();
    installed.kubectl.apply(OBJECTS)?;
    until("the plugin is everywhere", TIMEOUT, || {
        let mut all = true;
        for node in NODES {
            let file = lab.place(node)?.root()?.join(CONFIGURATION);
            all &= std::fs::read_to_string(file)?.contains("\"egret-cni\"");
        }
        Ok(all)
    })?;
    let mut selected = Vec::new();
    for (name, node) in [("fixed1", WORKERS[0]), ("fixed2", WORKERS[1])] {
        selected.push((installed.pod(name, "fixed", node)?, EGRESS.map(ip)));
    }
    installed.programmed("fixed", 2)?;
    installed.kubectl.apply(SECOND)?;
    for (name, node) in [("second1", WORKERS[0]), ("second2", WORKERS[1])] {
        selected.push((installed.pod(name, "second", node)?, SECOND_IPS.map(ip)));
    }
    installed.programmed("second", 2)?;
    let plain = installed.pod("plain", "plain", WORKERS[0])?;
    // What the upgrade is about.
    let all = NODES.map(str::to_owned).into();
    let old = nodes_with(scene, "abilities")?;
    ensure!(old == all, "only {old:?} report as the previous version");
    ensure!(nodes_with(scene, "capabilities")?.is_empty());
    for (node, file) in files(scene, ANNOUNCED)? {
        ensure!(file.to_string().contains("10."), "{node}: {file}");
    }
    for (pod, sources) in &selected {
        for (server, source) in SERVERS.into_iter().zip(sources) {
            expect_source(pod, ip(server), *source)?;
        }
    }
    let router = Leaving::of(lab, is_wrong)?;
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for (pod, _) in &selected {
        for server in servers(SELECTED) {
            idle.push(IdleFlows::start(pod, server, FLOWS)?);
        }
        for server in SERVERS {
            let pace = Some(BUSY_BYTES_PER_SECOND);
            busy.push(BusyFlows::start_paced(pod, ip(server), 1, 1, pace)?);
        }
    }
    for server in servers(PLAIN) {
        idle.push(IdleFlows::start(&plain, server, FLOWS)?);
    }
    *scene.load.borrow_mut() = Some(Load {
        idle,
        busy,
        router,
        selected,
    });
    Ok(())
}

/// Names of all pods of Egret.
fn pods_of_egret(scene: &Scene) -> anyhow::Result<BTreeSet<String>> {
    let get = ["get", "pods", "-n", NAMESPACE, "-o", "name"];
    let names = scene.installed.kubectl.run(&get)?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Opens connections from every pod in turn until told to stop; returns their number and every failure.
fn open_until(stop: &AtomicBool, pods: &[(Place, [IpAddr; 2])]) -> (usize, Vec<String>) {
    let (mut opened, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::SeqCst) {
        for (pod, sources) in pods {
            for (server, source) in servers(SELECTED).into_iter().zip(sources) {
                opened += 1;
                match tcp_source_within(pod, server, PATIENCE) {
                    Ok(seen) if seen.ip() == *source => {}
                    Ok(seen) => failed.push(format!("{} left as {seen}", pod.name())),
                    Err(error) => failed.push(format!("{}: {error:?}", pod.name())),
                }
            }
        }
    }
    (opened, failed)
}

fn an_upgrade_under_load_loses_nothing(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let load = scene.load.borrow();
    let load = load.as_ref().context("an earlier step failed")?;
    let before = pods_of_egret(scene)?;
    let (groups, ports) = (group_numbers(scene)?, leases(scene)?);
    let mut probes = Vec::new();
    for (pod, _) in &load.selected {
        for server in servers(SELECTED) {
            probes.push(UdpProbe::start(pod, server)?);
        }
    }
    installed.load_current_image()?;
    let (stop, started) = (AtomicBool::new(false), Instant::now());
    let (result, (opened, failed)) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| open_until(&stop, &load.selected));
        let upgrade = || -> Outcome {
            installed.helm(&["upgrade"], &VALUES)?;
            installed.rolled_out()?;
            until("the old pods are gone", TIMEOUT, || {
                Ok(pods_of_egret(scene)?.is_disjoint(&before))
            })?;
            until("all nodes report anew", TIMEOUT, || {
                Ok(nodes_with(scene, "capabilities")?.len() == NODES.len())
            })
        };
        let result = upgrade();
        stop.store(true, Ordering::SeqCst);
        (result, opening.join().expect("opening does not panic"))
    });
    result.with_context(|| installed.logs())?;
    let (mut sent, mut lost, mut errors) = (0, 0, BTreeSet::new());
    for probe in probes {
        let report = probe.stop();
        sent += report.sent;
        lost += report.lost;
        errors.extend(report.errors);
    }
    let broken: usize = load.idle.iter().map(IdleFlows::broken).sum::<usize>()
        + load.busy.iter().map(BusyFlows::broken).sum::<usize>();
    println!(
        "     upgraded in {:.1?}: of {opened} new connections {} failed, of {} open ones {broken} broke, \
         of {sent} datagrams {lost} were lost, {} packets had a wrong source",
        started.elapsed(),
        failed.len(),
        FLOWS * load.idle.len() + 2 * load.busy.len(),
        load.router.wrong(),
    );
    ensure!(
        opened > load.selected.len() && failed.is_empty(),
        "{failed:?}"
    );
    ensure!(sent > 1000 && lost == 0 && errors.is_empty(), "{errors:?}");
    ensure!(broken == 0, "{broken} connections broke");
    // Adopted, and not made anew.
    let after = group_numbers(scene)?;
    ensure!(groups == after, "group numbers: {groups:?}, then {after:?}");
    let after = leases(scene)?;
    ensure!(ports == after, "leases: {ports:?}, then {after:?}");
    Ok(())
}

fn nodes_report_under_the_names_of_this_version(scene: &Scene) -> Outcome {
    let left = nodes_with(scene, "abilities")?;
    ensure!(left.is_empty(), "{left:?} keep the former name");
    // The announcements of the previous agent are still there: pods that started with it keep their entries.
    for (node, file) in files(scene, ANNOUNCED)? {
        ensure!(file.to_string().contains("10."), "{node}: {file}");
    }
    let installed = &scene.installed;
    let pod = installed.pod("later", "fixed", WORKERS[0])?;
    for (server, source) in SERVERS.into_iter().zip(EGRESS) {
        expect_source(&pod, ip(server), ip(source))?;
    }
    installed.programmed("fixed", 3)
}

fn nothing_wrong_was_seen_meanwhile(scene: &Scene) -> Outcome {
    let load = scene.load.take().context("an earlier step failed")?;
    for flows in load.idle {
        let report = flows.stop();
        ensure!(
            report.flows == FLOWS && report.broken.is_empty(),
            "{report:?}"
        );
        ensure!(report.exchanges > 10 * FLOWS, "{report:?}");
    }
    for flows in load.busy {
        let report = flows.stop();
        ensure!(report.broken.is_empty(), "{report:?}");
    }
    load.router.clean()
}
