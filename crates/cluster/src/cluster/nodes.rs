//! The nodes: their programs and images.

use super::{Cluster, folder, in_parallel};
use crate::ClusterError;
use crate::api_server::tail;
use crate::error::io;
use crate::node::{self, BUSYBOX_IMAGE, HERE};
use egret_lab::LabError;
use egret_lab::layout::{HostLayout, Layout};
use egret_lab::process::{run, wait_for};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Longest wait for containerd to listen.
const CONTAINERD_TIMEOUT: Duration = Duration::from_secs(60);
/// Prepares a host.
const NODE_SCRIPT: &str = include_str!("../node.sh");

impl Cluster {
    /// Loads a container image on every node that is on; `archive` is in the format of `tests/kubernetes/image` or
    /// `docker save`.
    ///
    /// # Errors
    /// containerd refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        let layout = self.lab.layout()?;
        let nodes: Vec<&HostLayout> = layout.hosts.iter().filter(|host| host.is_node()).collect();
        in_parallel(&nodes, |node| self.import(&node.name, archive))
    }

    /// Starts the programs of a node whose host was switched off and on again (`Lab::start`).
    ///
    /// # Errors
    /// No such node, its host is off, or a program ends.
    pub fn start_node(&self, name: &str) -> Result<(), ClusterError> {
        let layout = self.lab.layout()?;
        let node = layout.host(name).filter(|host| host.is_node());
        let node = node.ok_or_else(|| LabError::NoSuchHost {
            host: name.to_owned(),
            known: names_of(&layout),
        })?;
        self.start_node_of(node)
    }

    /// Waits until these nodes are ready.
    ///
    /// # Errors
    /// A node is not ready after three minutes.
    pub fn wait_ready(&self, nodes: &[&str]) -> Result<(), ClusterError> {
        let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=180s"];
        let names: Vec<String> = nodes.iter().map(|node| format!("node/{node}")).collect();
        arguments.extend(names.iter().map(String::as_str));
        self.kubectl()?.run(&arguments)?;
        Ok(())
    }

    pub(super) fn start_node_of(&self, node: &HostLayout) -> Result<(), ClusterError> {
        let name = node.name.as_str();
        let place = self.place(name)?;
        let mut prepare = self.lab.exec(&place, "sh")?;
        prepare
            .args([
                "-c",
                NODE_SCRIPT,
                "prepare-node",
                &node::group(self.lab.name(), name),
            ])
            .arg(self.programs.cni());
        run(&mut prepare, "")?;
        let url = self.url()?;
        let authority = std::fs::read_to_string(self.credentials.path("ca.crt"));
        self.put(&place, "ca.crt", &authority.map_err(io("reading ca.crt"))?)?;
        self.put(
            &place,
            "containerd.toml",
            &node::containerd(&self.programs.others()),
        )?;
        self.put(
            &place,
            "kubelet.yaml",
            &node::kubelet(self.lab.name(), node),
        )?;
        self.put(&place, "kube-proxy.yaml", &node::proxy(node))?;
        let kubeconfig = self
            .credentials
            .kubeconfig(&format!("system:node:{name}"), &url)?;
        self.put(&place, "kubelet.kubeconfig", &kubeconfig)?;
        let kubeconfig = self.credentials.kubeconfig("system:kube-proxy", &url)?;
        self.put(&place, "kube-proxy.kubeconfig", &kubeconfig)?;
        let network = place.root()?.join("etc/cni/net.d/10-pods.conflist");
        std::fs::write(&network, node::network(node))
            .map_err(io("writing the CNI configuration"))?;

        let containerd = self.programs.other("containerd");
        let configuration = format!("--config={HERE}/containerd.toml");
        self.start(name, "containerd", &containerd, &[configuration])?;
        self.wait_for_containerd(name)?;
        self.import(name, &folder(&self.lab).join("busybox.tar"))?;
        let kubelet = self.programs.kubernetes("kubelet");
        self.start(name, "kubelet", &kubelet, &node::kubelet_arguments(node))?;
        let proxy = self.programs.kubernetes("kube-proxy");
        let configuration = format!("--config={HERE}/kube-proxy.yaml");
        self.start(name, "kube-proxy", &proxy, &[configuration])
    }

    fn wait_for_containerd(&self, host: &str) -> Result<(), ClusterError> {
        let place = self.place(host)?;
        let control = self.programs.other("ctr");
        let mut refused = String::new();
        let answers = wait_for("containerd", CONTAINERD_TIMEOUT, || {
            let version = self
                .lab
                .exec(&place, &control)
                .map(|mut command| run(command.arg("version"), ""));
            match version {
                Ok(Ok(_)) => return true,
                Ok(Err(error)) | Err(error) => refused = error.to_string(),
            }
            false
        });
        let log = self.log(host, "containerd");
        answers.map_err(|_| ClusterError::Ended {
            what: format!("containerd on {host} ({refused})"),
            tail: tail(&log),
            log,
        })
    }

    pub(super) fn make_image(&self, archive: &Path) -> Result<(), ClusterError> {
        let mut command = Command::new(crate::programs::script("image"));
        command.arg(BUSYBOX_IMAGE).arg(archive);
        command.args(["--run", "/bin/sleep", "--run", "2147483647"]);
        let busybox = self.programs.other("busybox");
        run(
            command.arg(format!("{}=/bin/busybox", busybox.display())),
            "",
        )?;
        Ok(())
    }

    fn import(&self, host: &str, archive: &Path) -> Result<(), ClusterError> {
        // The host has a /run of its own, and the archive may be below the machine's.
        let file = File::open(archive).map_err(io(format!("opening {}", archive.display())))?;
        let mut command = self
            .lab
            .exec(&self.place(host)?, self.programs.other("ctr"))?;
        command
            .args(["-n", "k8s.io", "images", "import", "-"])
            .stdin(file);
        let output = command.output().map_err(io("running ctr"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("importing {} on {host}", archive.display());
        let input = String::new();
        Err(LabError::Command { what, said, input }.into())
    }
}

fn names_of(layout: &Layout) -> String {
    let names: Vec<&str> = layout.hosts.iter().map(|host| host.name.as_str()).collect();
    names.join(", ")
}
