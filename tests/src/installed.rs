//! Egret as an operator installs it: a real cluster, an image with the program, `helm install`, pods with policies.

use crate::chart::{CHART, NAMESPACE};
use crate::kubernetes::until;
use crate::previous::Previous;
use anyhow::{Context, ensure};
use egret_cluster::topology::topology;
use egret_cluster::{Cluster, Kubectl, OwnedCluster};
use egret_lab::process::run;
use egret_lab::traffic::{Server, tcp_source};
use egret_lab::{Place, Snapshot};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The nodes of the cluster.
pub const NODES: [&str; 4] = ["worker1", "worker2", "gateway1", "gateway2"];
/// Longest wait for any action of Kubernetes.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// Number of a program's last warnings that are printed.
const COMPLAINTS: usize = 10;
/// Script that builds images; see there.
const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/image");
/// An archive as `./dev image` writes it, to be installed instead of the program under test.
const OWN_IMAGE: &str = "EGRET_IMAGE";
/// Tag of the previous version's image: the chart's own tag may be the same for both versions.
const PREVIOUS_TAG: &str = "previous";
/// Label of nodes; where a test sets it in `agent.nodeSelector`, nodes without it lose their agent.
pub const AGENTS: &str = "test/agents";
/// Values of every installation of the tests. Agents must not need kube-proxy.
const VALUES: [&str; 4] = [
    "image.pullPolicy=Never",
    "settings.unpooledAddresses=Allow",
    "apiServer.host=192.168.122.2",
    "apiServer.port=6443",
];

/// A cluster with Egret installed by helm.
pub struct Installed {
    /// The cluster, which goes down with the value.
    pub cluster: OwnedCluster,
    /// Its administrator.
    pub kubectl: Kubectl,
    /// Initial snapshot of each node, before the installation.
    pub before: BTreeMap<&'static str, Snapshot>,
    /// Archive of the image that was installed.
    pub image: PathBuf,
    /// The server outside.
    pub server: Server,
    _folder: tempfile::TempDir,
}

impl Installed {
    /// Brings the cluster up and installs the chart.
    ///
    /// # Errors
    /// A part of it fails.
    pub fn up(name: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let image = image(folder.path())?;
        Self::up_from(name, folder, image, Path::new(CHART), &[])
    }

    /// As [`Self::up`], with chart and programs of the previous version.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_previous(name: &str, previous: &Previous, values: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let programs = [previous.program("egret"), previous.program("egret-cni")];
        let image = image_of(folder.path(), PREVIOUS_TAG, &programs)?;
        let tag = format!("image.tag={PREVIOUS_TAG}");
        let values = [&[tag.as_str()], values].concat();
        Self::up_from(name, folder, image, &previous.chart(), &values)
    }

    fn up_from(
        name: &str,
        folder: tempfile::TempDir,
        image: PathBuf,
        chart: &Path,
        values: &[&str],
    ) -> anyhow::Result<Self> {
        let cluster = Cluster::up(name, &topology(2, 2), None)?.owned();
        cluster.load_image(&image)?;
        let server = Server::start(&cluster.lab().place("server")?)?;
        let mut installed = Self {
            kubectl: cluster.kubectl()?,
            cluster,
            before: BTreeMap::new(),
            image,
            server,
            _folder: folder,
        };
        let label = format!("{AGENTS}=here");
        let nodes = ["label", "nodes", "--all", &label];
        installed.kubectl.run(&nodes)?;
        installed.before = installed.snapshots()?;
        installed.helm_of(chart, &["install"], values)?;
        installed.rolled_out()?;
        Ok(installed)
    }

    /// Brings the image of the program under test to every node.
    ///
    /// # Errors
    /// It cannot be made or loaded.
    pub fn load_current_image(&self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let image = image(folder.path())?;
        Ok(self.cluster.load_image(&image)?)
    }

    /// Snapshots of all nodes, without the state that Kubernetes itself writes.
    ///
    /// # Errors
    /// A node is off.
    pub fn snapshots(&self) -> anyhow::Result<BTreeMap<&'static str, Snapshot>> {
        let take = |node: &&'static str| {
            let place = self.cluster.lab().place(node)?;
            let mut snapshot = Snapshot::take(&place)?;
            for lines in snapshot.sections.values_mut() {
                lines.retain(|line| !is_kubernetes(line));
            }
            snapshot.sections.insert("cni", cni(&place.root()?)?);
            Ok((*node, snapshot))
        };
        NODES.iter().map(take).collect()
    }

    /// Runs `helm VERB egret CHART`, with more values.
    ///
    /// # Errors
    /// helm fails.
    pub fn helm(&self, verb: &[&str], values: &[&str]) -> anyhow::Result<String> {
        self.helm_of(Path::new(CHART), verb, values)
    }

    fn helm_of(&self, chart: &Path, verb: &[&str], values: &[&str]) -> anyhow::Result<String> {
        let chart = chart.to_str().context("a path of text")?;
        let mut words = verb.to_vec();
        words.extend(["egret", chart, "--create-namespace"]);
        for value in VALUES.iter().chain(values) {
            words.extend(["--set", value]);
        }
        self.helm_raw(&words)
    }

    /// Runs helm for the namespace of the installation.
    ///
    /// # Errors
    /// It fails.
    pub fn helm_raw(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = self.cluster.helm()?.command();
        let output = command.args(words).args(["-n", NAMESPACE]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "helm {words:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until all agents and controllers of the newest version are ready.
    ///
    /// # Errors
    /// They are not in time.
    pub fn rolled_out(&self) -> anyhow::Result<()> {
        for object in ["daemonset/egret-agent", "deployment/egret-controller"] {
            let status = ["rollout", "status", object, "--timeout=120s"];
            let result = self
                .kubectl
                .run(&[&status[..], &["-n", NAMESPACE]].concat());
            result.with_context(|| self.logs())?;
        }
        Ok(())
    }

    /// The last lines of every pod of Egret, the states of the pods, and the last warnings of kubelets and runtimes.
    pub fn logs(&self) -> String {
        let logs = ["logs", "-n", NAMESPACE, "--prefix", "--tail=20"];
        let which = ["-l", "app.kubernetes.io/part-of=egret"];
        let pods = ["get", "pods", "-A", "-o", "wide"];
        let events = ["get", "events", "-A", "--sort-by=.lastTimestamp"];
        let ask = |words: &[&str]| {
            let said = self.kubectl.run(words);
            said.unwrap_or_else(|error| error.to_string())
        };
        let mut text = [ask(&[&logs[..], &which].concat()), ask(&pods), ask(&events)].join("\n");
        for node in NODES {
            for program in ["kubelet", "containerd"] {
                let log = self.cluster.lab().dir().log();
                let log = log.join(format!("{node}.{program}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let complains = |line: &&str| line.starts_with('E') || line.contains("level=error");
                let complaints: Vec<&str> = log.lines().filter(complains).collect();
                for line in complaints.iter().rev().take(COMPLAINTS).rev() {
                    let _ = write!(text, "\n{node} {program}: {line}");
                }
            }
        }
        text
    }

    /// Waits for a condition of an object in the namespace `default`.
    ///
    /// # Errors
    /// It is not there in time.
    pub fn wait(&self, condition: &str, object: &str) -> anyhow::Result<()> {
        let condition = format!("--for={condition}");
        let wait = ["wait", &condition, object, "--timeout=120s"];
        let waited = self.kubectl.run(&wait);
        waited.with_context(|| self.logs())?;
        Ok(())
    }

    /// Waits until a policy is programmed for this number of pods.
    ///
    /// # Errors
    /// It does not in time.
    pub fn programmed(&self, policy: &str, pods: usize) -> anyhow::Result<()> {
        self.wait("condition=Ready", &format!("egresses.egret.dev/{policy}"))?;
        let form = "jsonpath={.status.pods.selected} {.status.pods.programmed}";
        let get = ["get", "egresses.egret.dev", policy, "-o", form];
        let wanted = format!("{pods} {pods}");
        let what = format!("{policy} for {pods} pods");
        let waited = self
            .kubectl
            .wait_until(&what, TIMEOUT, &get, |said| said.out == wanted);
        waited.with_context(|| self.logs())?;
        Ok(())
    }

    /// Starts a pod on a node and returns its network.
    ///
    /// # Errors
    /// It does not run in time.
    pub fn pod(&self, name: &str, app: &str, node: &str) -> anyhow::Result<Place> {
        self.kubectl.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {app}}}}}\n\
             spec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - {{name: a, image: \"egret.dev/busybox:1\", imagePullPolicy: Never}}\n"
        ))?;
        self.wait("condition=Ready", &format!("pod/{name}"))?;
        Ok(self.cluster.pod("default", name)?)
    }

    /// Deletes pods of the namespace `default` and waits for their end.
    ///
    /// # Errors
    /// They do not end.
    pub fn delete_pods(&self, names: &[&str]) -> anyhow::Result<()> {
        let delete = ["delete", "pod", "--timeout=60s"];
        self.kubectl.run(&[&delete[..], names].concat())?;
        Ok(())
    }

    /// Waits until the server sees new connections of a pod from this source.
    ///
    /// # Errors
    /// It does not in time.
    pub fn leaves_as(&self, pod: &Place, server: SocketAddr, source: IpAddr) -> anyhow::Result<()> {
        let mut last = String::new();
        let seen = until("the source", TIMEOUT, || {
            let seen = tcp_source(pod, server).map(|seen| seen.ip());
            last = format!("{seen:?}");
            Ok(matches!(seen, Ok(seen) if seen == source))
        });
        seen.with_context(|| format!("{} to {server}: {source} wanted, {last} seen", pod.name()))
    }
}

/// The runtime's plugins by name, and the parsed content of its CNI configuration.
fn cni(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for plugin in std::fs::read_dir(root.join("opt/cni/bin"))? {
        lines.push(format!("plugin {}", plugin?.file_name().display()));
    }
    for file in std::fs::read_dir(root.join("etc/cni/net.d"))? {
        let file = file?;
        let text = std::fs::read_to_string(file.path())?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        lines.push(format!("{}: {json}", file.file_name().display()));
    }
    lines.sort();
    Ok(lines)
}

/// Whether a line belongs to kubelet, containerd, CNI plugins or programs of the kubelet.
fn is_kubernetes(line: &str) -> bool {
    [
        "/run/containerd",
        "/run/kubernetes",
        "/run/cni",
        "/run/runc",
    ]
    .iter()
    .any(|folder| line.starts_with(folder))
}

/// An image with the program under test.
fn image(folder: &Path) -> anyhow::Result<PathBuf> {
    match std::env::var_os(OWN_IMAGE) {
        Some(own) => Ok(own.into()),
        None => {
            let programs = [crate::egret()?, crate::runtime::plugin()?];
            image_of(folder, env!("CARGO_PKG_VERSION"), &programs)
        }
    }
}

/// An image with egret and plugin, and the libraries that egret is linked to dynamically.
fn image_of(folder: &Path, tag: &str, built: &[PathBuf; 2]) -> anyhow::Result<PathBuf> {
    let archive = folder.join("egret.tar");
    let mut programs = Vec::new();
    for (name, built) in ["egret", "egret-cni"].into_iter().zip(built) {
        // Four nodes have it in memory.
        let program = folder.join(name);
        run(Command::new("strip").arg("-o").arg(&program).arg(built), "")?;
        programs.push(format!("{}=/{name}", program.display()));
    }
    // The plugin runs on the node, which has its libraries.
    let libraries = run(Command::new("ldd").arg(folder.join("egret")), "")?;
    let mut command = Command::new(IMAGE);
    command.arg(format!("egret.dev/egret:{tag}"));
    command.arg(&archive).args(["--run", "/egret"]);
    command.args(programs);
    for line in libraries.lines() {
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            command.arg(format!("{path}={path}"));
        }
    }
    run(&mut command, "")?;
    Ok(archive)
}
