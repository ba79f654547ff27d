//! The CNI plugin, called by a real runtime: the first action of a pod's first process is a connection.
//!
//! Steps of `install.rs`, in its order:
//! - [`an_upgrade_brought_the_plugin_to_every_node`]
//! - [`the_first_connection_of_every_start_has_the_egress_address`]
//! - [`without_an_agent_only_pods_that_may_be_selected_wait`]
//! - [`pods_start_after_uninstalling`]

use super::{FIXED, SELECTED, SERVERS, Scene, WORKER1, ip, servers};
use anyhow::{Context, ensure};
use egret_lab::process::run as run_command;
use egret_lab::traffic::source::tcp_source_within;
use egret_tests::Outcome;
use egret_tests::chart::NAMESPACE;
use egret_tests::installed::{AGENTS, NODES, TIMEOUT};
use egret_tests::kubernetes::until;
use egret_tests::matrix::is_full;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Values of the upgrade that installs the plugin. A node without the label has no agent.
pub const VALUES: [&str; 2] = ["cni.enabled=true", "agent.nodeSelector.test/agents=here"];
/// The runtime's configuration file on the test's nodes.
const CONFIGURATION: &str = "etc/cni/net.d/10-pods.conflist";
/// The agent's file of announcements.
const ANNOUNCED: &str = "var/lib/egret/cni/announced.json";
/// Number of pods that are started, and with `./dev test --full`.
const STARTS: [usize; 2] = [40, 200];
/// Pods that start at once.
const BATCH: usize = 20;
/// Nodes that they start on.
const WORKERS: [&str; 2] = ["worker1", "worker2"];
/// A first connection that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod that connects, writes down the source that the server saw, and ends or stays.
fn first_act(name: &str, namespace: &str, app: &str, node: &str, server: IpAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}, first: act}}}}\n\
         spec:\n  nodeName: {node}\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  \
         automountServiceAccountToken: false\n  containers:\n  - name: a\n    image: \"egret.dev/busybox:1\"\n    \
         imagePullPolicy: Never\n    \
         command: [sh, -c, 'echo | nc -w 20 {server} {SELECTED} | head -n 1 >/dev/termination-log']\n---\n"
    )
}

/// The source that the server saw for every such pod that has ended, by the pod's name.
fn answers(scene: &Scene) -> anyhow::Result<BTreeMap<String, Option<IpAddr>>> {
    let form = "jsonpath={range .items[*]}{.metadata.name}{\" \"}\
                {.status.containerStatuses[0].state.terminated.message}{\"\\n\"}{end}";
    let get = ["get", "pods", "-l", "first=act", "-o", form];
    let said = scene.installed.kubectl.run(&get)?;
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    let answer = lines.map(|line| {
        let (name, source) = line.split_once(' ').unwrap_or((line, ""));
        let source = source.trim().parse::<SocketAddr>();
        (name.to_owned(), source.ok().map(|source| source.ip()))
    });
    Ok(answer.collect())
}

/// The plugin is in the configuration of every node, and the runtimes have read it.
pub fn an_upgrade_brought_the_plugin_to_every_node(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let lab = installed.cluster.lab();
    let mut last = String::new();
    let chained = until("the plugin is everywhere", TIMEOUT, || {
        for node in NODES {
            let file = lab.place(node)?.root()?.join(CONFIGURATION);
            last = format!("{node}: {}", std::fs::read_to_string(file)?);
            if !last.contains("\"egret-cni\"") {
                return Ok(false);
            }
        }
        Ok(true)
    });
    chained.with_context(|| format!("{last}\n{}", installed.logs()))?;
    for node in WORKERS {
        let file = lab.place(node)?.root()?.join(ANNOUNCED);
        until("the runtime calls the plugin", TIMEOUT, || {
            installed.pod("called", "none", node)?;
            let told = std::fs::read_to_string(&file).unwrap_or_default();
            installed.delete_pods(&["called"])?;
            Ok(told.contains("called"))
        })?;
    }
    Ok(())
}

/// Checked at the server, in its log, at the router, and by the answers to the pods.
pub fn the_first_connection_of_every_start_has_the_egress_address(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let starts = STARTS[usize::from(is_full())];
    let before = installed.server.accepted(SELECTED).len();
    let mut took = Vec::new();
    for batch in 0..starts.div_ceil(BATCH) {
        let numbers = batch * BATCH..starts.min((batch + 1) * BATCH);
        let pods: String = numbers
            .clone()
            .map(|number| {
                let name = format!("start{number}");
                // Workers alternate, and families alternate on each of them.
                let server = ip(SERVERS[number / WORKERS.len() % SERVERS.len()]);
                let node = WORKERS[number % WORKERS.len()];
                first_act(&name, "default", "fixed", node, server)
            })
            .collect();
        let started = Instant::now();
        installed.kubectl.apply(&pods)?;
        ended(scene)?;
        took.push(started.elapsed());
        let answers = answers(scene)?;
        ensure!(answers.len() == numbers.len(), "{answers:?}");
        for (name, source) in &answers {
            let good = source.is_some_and(|source| FIXED.map(ip).contains(&source));
            ensure!(good, "{name} left as {source:?}");
        }
        let delete = ["delete", "pod", "-l", "first=act", "--timeout=60s"];
        installed.kubectl.run(&delete)?;
    }
    let log = installed.server.accepted(SELECTED);
    let wrong: Vec<_> = log.iter().filter(|seen| !is_fixed(seen)).collect();
    ensure!(wrong.is_empty(), "the server saw {wrong:?}");
    ensure!(
        log.len() >= before + starts,
        "{} of {starts}",
        log.len() - before
    );
    let talk = scene.talk.borrow();
    let talk = talk.as_ref().context("an earlier step failed")?;
    let wrong = talk.router.wrong();
    ensure!(wrong == 0, "{wrong} wrong packets at the router");
    println!(
        "     {starts} starts, {BATCH} at once in {took:.1?}: {} connections at the server, none from a wrong source",
        log.len() - before
    );
    Ok(())
}

fn is_fixed(source: &IpAddr) -> bool {
    FIXED.map(ip).contains(source)
}

/// Waits until all pods with a first act have ended.
fn ended(scene: &Scene) -> Outcome {
    let wait = ["wait", "pod", "-l", "first=act", "--timeout=180s"];
    let phase = ["--for=jsonpath={.status.phase}=Succeeded"];
    let waited = scene.installed.kubectl.run(&[&wait[..], &phase].concat());
    waited.with_context(|| {
        let get = ["get", "pods,events", "-o", "wide"];
        scene.installed.kubectl.run(&get).unwrap_or_default()
    })?;
    Ok(())
}

/// Names of the agents' pods on a node.
fn agents_on(scene: &Scene, node: &str) -> anyhow::Result<String> {
    let which = format!("--field-selector=spec.nodeName={node}");
    let get = ["get", "pods", "-n", NAMESPACE, "-o", "name", &which];
    let agents = ["-l", "app.kubernetes.io/component=agent"];
    Ok(scene.installed.kubectl.run(&[&get[..], &agents].concat())?)
}

/// And they start automatically, with the right source, when the agent is back.
pub fn without_an_agent_only_pods_that_may_be_selected_wait(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let kubectl = &installed.kubectl;
    kubectl.run(&["create", "namespace", "other"])?;
    let account = ["get", "serviceaccount", "default", "-n", "other"];
    kubectl.wait_until("an account", TIMEOUT, &account, |said| said.success)?;
    kubectl.run(&["label", "node", "worker1", &format!("{AGENTS}-")])?;
    until("the agent is away", TIMEOUT, || {
        Ok(agents_on(scene, "worker1")?.is_empty())
    })?;
    let late = first_act("late", "default", "fixed", "worker1", ip(SERVERS[0]));
    kubectl.apply(&format!(
        "{late}apiVersion: v1\nkind: Pod\nmetadata: {{name: free, namespace: other}}\nspec:\n  nodeName: worker1\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: a, image: \"egret.dev/busybox:1\", imagePullPolicy: Never}}\n"
    ))?;
    let ready = ["wait", "--for=condition=Ready", "pod/free", "-n", "other"];
    kubectl.run(&[&ready[..], &["--timeout=120s"]].concat())?;
    let refused = refusals(scene, "other", "free")?;
    ensure!(refused.is_empty(), "it had to wait: {refused}");
    let free = installed.cluster.pod("other", "free")?;
    let seen = tcp_source_within(&free, servers(super::ECHO_PORTS[1])[0], PATIENCE)?.ip();
    ensure!(seen == ip(WORKER1[0]), "it left as {seen}");
    let mut said = String::new();
    let told = until("the selected pod is told why it waits", TIMEOUT, || {
        said = refusals(scene, "default", "late")?;
        Ok(!said.is_empty())
    });
    told.context("no event")?;
    for part in [
        "pod default/late has to wait: ",
        "the agent of Egret does not answer at /run/egret/cni.sock",
        "is its pod running on this node?",
    ] {
        ensure!(said.contains(part), "{part} is missing: {said}");
    }
    let phase = ["get", "pod", "late", "-o", "jsonpath={.status.phase}"];
    ensure!(kubectl.run(&phase)? == "Pending");
    kubectl.run(&["label", "node", "worker1", &format!("{AGENTS}=here")])?;
    ended(scene)?;
    let answers = answers(scene)?;
    ensure!(answers["late"] == Some(ip(FIXED[0])), "{answers:?}");
    installed.delete_pods(&["late"])?;
    kubectl.run(&["delete", "namespace", "other", "--timeout=60s"])?;
    installed.rolled_out()
}

/// Events of the kubelet about failed attempts to start a pod's sandbox.
fn refusals(scene: &Scene, namespace: &str, pod: &str) -> anyhow::Result<String> {
    let which = format!("--field-selector=involvedObject.name={pod},reason=FailedCreatePodSandBox");
    let form = "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
    let get = ["get", "events", "-n", namespace, &which, "-o", form];
    Ok(scene.installed.kubectl.run(&get)?)
}

/// The runtime starts pods with the remaining plugins.
pub fn pods_start_after_uninstalling(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let lab = installed.cluster.lab();
    let pods: Vec<String> = NODES.iter().map(|node| format!("after-{node}")).collect();
    for (node, pod) in NODES.iter().zip(&pods) {
        let place = installed.pod(pod, "fixed", node)?;
        let [server, _] = servers(super::ECHO_PORTS[1]);
        let seen = tcp_source_within(&place, server, PATIENCE)?.ip();
        ensure!(!is_fixed(&seen), "{node}: {seen}");
        let mut list = lab.exec(&lab.place(node)?, "ls")?;
        let files = run_command(list.args(["/opt/cni/bin", "/etc/cni/net.d"]), "")?;
        ensure!(!files.contains("egret"), "{node}: {files}");
    }
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    installed.delete_pods(&pods)
}
