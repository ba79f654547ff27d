//! The chart on a real cluster, as an operator uses it: install, policies, upgrade with the CNI plugin and the
//! front-ends, a gateway's power cut, uninstall. Meanwhile two pods with a policy keep connections open, and packets
//! are captured at the router. Needs root and a built Kubernetes.

mod plugin;
mod rights;
mod stories;
mod walks;

use anyhow::{Context, ensure};
use egret_cluster::Kubectl;
use egret_cluster::programs::skipped;
use egret_lab::capture::Packet;
use egret_lab::process::run as run_command;
use egret_lab::traffic::server::ECHO_PORTS;
use egret_lab::traffic::source::tcp_source_within;
use egret_lab::traffic::{IdleFlows, UdpProbe};
use egret_lab::{Hurt, Place};
use egret_tests::chart::NAMESPACE;
use egret_tests::installed::{Installed, NODES, TIMEOUT};
use egret_tests::kubernetes::until;
use egret_tests::matrix::left_to_full;
use egret_tests::steps::{Group, lab_name};
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Outcome, steps};
use plugin::{
    an_upgrade_brought_the_plugin_to_every_node, pods_start_after_uninstalling,
    the_first_connection_of_every_start_has_the_egress_address,
    without_an_agent_only_pods_that_may_be_selected_wait,
};
use rights::{
    no_request_of_controller_and_agents_was_refused, the_uninstalling_hook_used_all_that_it_may,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use stories::{
    a_label_added_to_and_removed_from_a_running_pod,
    a_pod_recreated_on_another_node_keeps_its_address, stories_of_the_proposal,
};
use walks::{a_walk_with_a_mapper, a_walk_with_kube_egress, a_walk_with_static_egress_ips};

/// The server's addresses.
const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
/// The egress addresses of the pods that send all the time.
const FIXED: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// The addresses of worker1, which its other pods use.
const WORKER1: [&str; 2] = ["192.168.122.11", "fd00:122::11"];
/// Port of the server for pods with [`FIXED`] only.
const SELECTED: u16 = ECHO_PORTS[4];
/// Port for a pod of worker1 that no policy selects only.
const PLAIN: u16 = ECHO_PORTS[3];
/// Connections that each pod keeps open to each server address.
const FLOWS: usize = 5;
/// A new connection that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A gateway, and a pod with an egress address on every worker.
const OBJECTS: &str = r#"
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: main}
spec: {nodeSelector: {matchLabels: {egret.dev/gateway: "true"}}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: fixed, namespace: default}
spec: {selector: {app: fixed}, ips: [192.168.122.222, "fd00:122::222"]}
"#;

pub fn groups() -> Vec<Group> {
    let all = steps![
        agents_have_four_capabilities_and_forward_by_ebpf,
        an_egress_covers_its_pods_on_both_workers_in_both_families_and_no_others,
        stories_of_the_proposal,
        a_label_added_to_and_removed_from_a_running_pod,
        a_pod_recreated_on_another_node_keeps_its_address,
        a_drop_in_forward_keeps_its_effect,
        status_and_explain_answer_in_the_agents_pods,
        an_upgrade_under_load_loses_nothing,
        an_upgrade_brought_the_plugin_to_every_node,
        the_first_connection_of_every_start_has_the_egress_address,
        without_an_agent_only_pods_that_may_be_selected_wait,
        a_walk_with_static_egress_ips,
        a_walk_with_a_mapper,
        a_walk_with_kube_egress,
        a_gateway_without_power_costs_no_connection,
        nothing_wrong_was_seen_meanwhile,
        no_request_of_controller_and_agents_was_refused,
        uninstalling_names_the_node_that_is_away_and_can_be_taken_back,
        uninstalling_leaves_nothing_on_any_node,
        pods_start_after_uninstalling,
        the_uninstalling_hook_used_all_that_it_may,
    ];
    let is_omitted = || left_to_full("install") || skipped("install");
    vec![Group::new("install", up, all).unless(is_omitted)]
}

struct Scene {
    installed: Installed,
    talk: RefCell<Option<Talk>>,
}

/// Traffic during all steps.
struct Talk {
    flows: Vec<IdleFlows>,
    router: Leaving,
    /// The pods with [`FIXED`], one on each worker.
    fixed: Vec<Place>,
    plain: Place,
}

fn up() -> anyhow::Result<Scene> {
    let installed = Installed::up(&lab_name("install"))?;
    Ok(Scene {
        installed,
        talk: RefCell::new(None),
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

fn servers(port: u16) -> [SocketAddr; 2] {
    SERVERS.map(|server| SocketAddr::new(ip(server), port))
}

/// Runs a shell command on a node.
fn shell(scene: &Scene, node: &str, script: &str) -> anyhow::Result<String> {
    let lab = scene.installed.cluster.lab();
    let mut command = lab.exec(&lab.place(node)?, "sh")?;
    Ok(run_command(command.args(["-c", script]), "")?)
}

fn agents_have_four_capabilities_and_forward_by_ebpf(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    installed.kubectl.apply(OBJECTS)?;
    for node in ["gateway1", "gateway2"] {
        let status = "cat /proc/$(pgrep -o -f '^/egret agent')/status";
        let status = shell(scene, node, status)?;
        for line in [
            // NET_ADMIN, NET_RAW, PERFMON, BPF.
            "CapEff:\t000000c000003000",
            "CapBnd:\t000000c000003000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            ensure!(status.contains(line), "{node}: {line} wanted: {status}");
        }
        let datapath = [
            "get",
            "egressnode",
            node,
            "-o",
            "jsonpath={.status.datapath}",
        ];
        let waited = installed
            .kubectl
            .wait_until("a data path", TIMEOUT, &datapath, |said| {
                !said.out.is_empty()
            });
        let datapath = waited.with_context(|| installed.logs())?.out;
        ensure!(datapath == "ebpf", "{node} forwards by {datapath}");
    }
    Ok(())
}

fn an_egress_covers_its_pods_on_both_workers_in_both_families_and_no_others(
    scene: &Scene,
) -> Outcome {
    let installed = &scene.installed;
    let fixed = vec![
        installed.pod("fixed1", "fixed", "worker1")?,
        installed.pod("fixed2", "fixed", "worker2")?,
    ];
    let plain = installed.pod("plain", "plain", "worker1")?;
    installed.programmed("fixed", 2)?;
    // Ready means that it works now, not soon.
    for pod in &fixed {
        for (server, source) in SERVERS.into_iter().zip(FIXED) {
            expect_source(pod, ip(server), ip(source))?;
        }
    }
    for (server, source) in SERVERS.into_iter().zip(WORKER1) {
        expect_source(&plain, ip(server), ip(source))?;
    }
    // From here on, until the uninstallation.
    let router = Leaving::of(installed.cluster.lab(), is_wrong)?;
    let mut flows = Vec::new();
    for (pod, port) in [
        (&fixed[0], SELECTED),
        (&fixed[1], SELECTED),
        (&plain, PLAIN),
    ] {
        for server in servers(port) {
            flows.push(IdleFlows::start(pod, server, FLOWS)?);
        }
    }
    *scene.talk.borrow_mut() = Some(Talk {
        flows,
        router,
        fixed,
        plain,
    });
    Ok(())
}

/// Whether a selected or an unselected pod must not send this packet.
fn is_wrong(packet: &Packet) -> bool {
    match packet.ports {
        Some((_, SELECTED)) => !FIXED.map(ip).contains(&packet.source),
        Some((_, PLAIN)) => !WORKER1.map(ip).contains(&packet.source),
        _ => false,
    }
}

/// Cases: N19.
/// As network plugins implement NetworkPolicy.
fn a_drop_in_forward_keeps_its_effect(scene: &Scene) -> Outcome {
    let talk = scene.talk.borrow();
    let talk = talk.as_ref().context("an earlier step failed")?;
    let (blocked, open) = (ECHO_PORTS[2], ECHO_PORTS[1]);
    let [server, _] = servers(blocked);
    ensure!(tcp_source_within(&talk.fixed[0], server, PATIENCE)?.ip() == ip(FIXED[0]));
    let rules = format!(
        "nft 'add table ip deny; add chain ip deny forward {{ type filter hook forward priority 0; }}; \
         add rule ip deny forward ip daddr {} tcp dport {blocked} drop'",
        SERVERS[0]
    );
    shell(scene, "worker1", &rules)?;
    let refused = tcp_source_within(&talk.fixed[0], server, Duration::from_secs(2));
    let [server, _] = servers(open);
    let allowed = tcp_source_within(&talk.fixed[0], server, PATIENCE);
    shell(scene, "worker1", "nft delete table ip deny")?;
    ensure!(refused.is_err(), "not dropped: {refused:?}");
    ensure!(allowed?.ip() == ip(FIXED[0]));
    Ok(())
}

fn status_and_explain_answer_in_the_agents_pods(scene: &Scene) -> Outcome {
    let kubectl = &scene.installed.kubectl;
    let get = ["get", "pods", "-n", NAMESPACE, "-o", "name"];
    let which = [
        "-l",
        "app.kubernetes.io/component=agent",
        "--field-selector=spec.nodeName=worker1",
    ];
    let pod = kubectl.run(&[&get[..], &which].concat())?;
    let ask = |words: &[&str]| {
        let exec = ["exec", "-n", NAMESPACE, pod.trim(), "--", "/egret"];
        kubectl.run(&[&exec[..], words].concat())
    };
    let explained = ask(&["explain", "default/fixed1", "--to", SERVERS[0]])?;
    ensure!(explained.contains(FIXED[0]), "{explained}");
    let status = ask(&["status"])?;
    ensure!(
        status.contains("fixed") && status.contains(FIXED[0]),
        "{status}"
    );
    kubectl_egret(kubectl)
}

/// The same queries from outside, as a plugin of kubectl.
fn kubectl_egret(kubectl: &Kubectl) -> Outcome {
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink(egret_tests::egret()?, folder.path().join("kubectl-egret"))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let ask = |words: &[&str]| -> anyhow::Result<String> {
        let mut command = kubectl.command();
        command.env("PATH", format!("{}:{path}", folder.path().display()));
        let said = command.arg("egret").args(words).output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(
            said.status.code().is_some_and(|code| code <= 1),
            "{words:?}: {text}{}",
            String::from_utf8_lossy(&said.stderr)
        );
        Ok(text)
    };
    let explained = ask(&["explain", "fixed1", "--to", SERVERS[0]])?;
    ensure!(explained.contains(FIXED[0]), "{explained}");
    let status = ask(&["status"])?;
    let line = status.lines().find(|line| line.contains("default/fixed "));
    let line = line.with_context(|| status.clone())?;
    ensure!(line.contains("yes") && line.contains(FIXED[0]), "{line}");
    Ok(())
}

/// Names of all pods of Egret.
fn pods_of_egret(scene: &Scene) -> anyhow::Result<BTreeSet<String>> {
    let get = ["get", "pods", "-n", NAMESPACE, "-o", "name"];
    let names = scene.installed.kubectl.run(&get)?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn an_upgrade_under_load_loses_nothing(scene: &Scene) -> Outcome {
    let talk = scene.talk.borrow();
    let talk = talk.as_ref().context("an earlier step failed")?;
    let before = pods_of_egret(scene)?;
    let mut probes = Vec::new();
    for pod in &talk.fixed {
        for server in servers(SELECTED) {
            probes.push(UdpProbe::start(pod, server)?);
        }
    }
    let rolled = [
        "agent.podAnnotations.rolled=again",
        "controller.podAnnotations.rolled=again",
    ];
    let values = [&rolled[..], &plugin::VALUES, &walks::VALUES].concat();
    scene.installed.helm(&["upgrade"], &values)?;
    scene.installed.rolled_out()?;
    let mut opened = 0;
    until("the old pods are gone", TIMEOUT, || {
        for pod in &talk.fixed {
            let seen = tcp_source_within(pod, servers(SELECTED)[0], PATIENCE)?.ip();
            ensure!(seen == ip(FIXED[0]), "a new connection came from {seen}");
            opened += 1;
        }
        Ok(pods_of_egret(scene)?.is_disjoint(&before))
    })?;
    ensure!(opened > 0);
    for probe in probes {
        let report = probe.stop();
        ensure!(
            report.lost == 0 && report.errors.is_empty(),
            "datagrams were lost: {report:?}"
        );
    }
    let broken: usize = talk.flows.iter().map(IdleFlows::broken).sum();
    ensure!(broken == 0, "{broken} connections broke");
    Ok(())
}

/// The gateway that announces the address, possibly with the leading controller.
fn a_gateway_without_power_costs_no_connection(scene: &Scene) -> Outcome {
    let (installed, cluster) = (&scene.installed, &scene.installed.cluster);
    let talk = scene.talk.borrow();
    let talk = talk.as_ref().context("an earlier step failed")?;
    let form = "jsonpath={range .items[*]}{.metadata.name} {.status.announcing}{\"\\n\"}{end}";
    let said = installed.kubectl.run(&["get", "egressnodes", "-o", form])?;
    let announcer = said.lines().find(|line| line.contains(FIXED[0]));
    let announcer = announcer.and_then(|line| line.split(' ').next());
    let announcer = announcer.with_context(|| format!("nobody announces: {said}"))?;
    cluster.lab().kill(announcer, Hurt::Power)?;
    for pod in &talk.fixed {
        for (server, source) in servers(SELECTED).into_iter().zip(FIXED) {
            installed.leaves_as(pod, server, ip(source))?;
        }
    }
    let gone = ["get", "node", announcer, "-o"];
    let form = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let ready = [&gone[..], &[form]].concat();
    let what = "Kubernetes notices";
    installed
        .kubectl
        .wait_until(what, TIMEOUT, &ready, |said| said.out == "Unknown")?;
    cluster.lab().start(announcer)?;
    cluster.start_node(announcer)?;
    cluster.load_image(&installed.image)?;
    cluster.wait_ready(&NODES)?;
    installed.rolled_out()?;
    let broken: usize = talk.flows.iter().map(IdleFlows::broken).sum();
    ensure!(broken == 0, "{broken} connections broke");
    Ok(())
}

fn nothing_wrong_was_seen_meanwhile(scene: &Scene) -> Outcome {
    let talk = scene.talk.take().context("an earlier step failed")?;
    for flows in talk.flows {
        let report = flows.stop();
        ensure!(
            report.flows == FLOWS && report.broken.is_empty(),
            "{report:?}"
        );
        ensure!(report.exchanges > 10 * FLOWS, "{report:?}");
    }
    talk.router.clean()
}

/// Runs the command of the chart's hook, without helm.
fn uninstalling_names_the_node_that_is_away_and_can_be_taken_back(scene: &Scene) -> Outcome {
    let (installed, cluster) = (&scene.installed, &scene.installed.cluster);
    let place = cluster.lab().place("controlplane")?;
    let kubeconfig = std::fs::read_to_string(installed.kubectl.kubeconfig())?;
    std::fs::write(place.root()?.join("run/uninstall.kubeconfig"), kubeconfig)?;
    cluster.lab().kill("worker2", Hurt::Links)?;
    let mut command = cluster.lab().exec(&place, egret_tests::egret()?)?;
    let output = command
        .args(["uninstall", "--timeout-secs", "15"])
        .args(["--kubeconfig", "/run/uninstall.kubeconfig"])
        .output()?;
    cluster.lab().start("worker2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("worker2: its agent is "), "{said}");
    let delete = ["delete", "daemonset", "egret-agent", "-n", NAMESPACE];
    installed.kubectl.run(&delete)?;
    installed.helm(&["upgrade"], &[plugin::VALUES, walks::VALUES].concat())?;
    installed.rolled_out()?;
    let pod = cluster.pod("default", "fixed2")?;
    installed.leaves_as(&pod, servers(SELECTED)[0], ip(FIXED[0]))
}

/// Cases: M6, N11.
/// With policies in force and their pods running: then there is most to clean up.
fn uninstalling_leaves_nothing_on_any_node(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let uninstalled = installed.helm_raw(&["uninstall", "egret", "--timeout=4m"]);
    uninstalled.with_context(|| installed.logs())?;
    let policy = installed
        .kubectl
        .run(&["get", "egresses.egret.dev", "fixed", "-o", "name"])?;
    ensure!(policy.contains("fixed"), "policies stay: {policy}");
    // Links and routes of pods belong to Kubernetes.
    installed.delete_pods(&["fixed1", "fixed2", "plain"])?;
    let mut left = Vec::new();
    let same = until("nodes are as before", Duration::from_secs(60), || {
        let after = installed.snapshots()?;
        left.clear();
        for (node, before) in &installed.before {
            let differences = before.diff(&after[node]);
            // The kubelet creates the folders that pods name, and leaves them; they are empty.
            let differences = differences
                .iter()
                .filter(|line| *line != "+ files: /run/egret");
            left.extend(differences.map(|line| format!("{node} {line}")));
        }
        Ok(left.is_empty() && pods_of_egret(scene)?.is_empty())
    });
    same.with_context(|| left.join("\n"))
}
