//! A container runtime's part of a pod's start and end in a lab: it calls the real CNI plugin as the specification and
//! go-cni do, after the network exists and before the first process.

use crate::Cluster;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The plugin under test: beside the program under test.
///
/// # Errors
/// It is not built.
pub fn plugin() -> anyhow::Result<PathBuf> {
    let path = crate::egret()?.with_file_name("egret-cni");
    ensure!(path.is_file(), "{} is not built", path.display());
    Ok(path)
}

/// A pod's sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its host.
    pub host: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Container id, which no two sandboxes share.
    pub container: String,
    /// Device at the host's end.
    pub device: String,
    /// Addresses that the previous plugins assigned.
    pub addresses: Vec<IpAddr>,
}

/// Result of a plugin.
#[derive(Clone, Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub good: bool,
    /// Its output; null if there is none.
    pub json: Value,
    /// Duration, with the start of the program.
    pub took: Duration,
}

impl Said {
    /// Fails unless the plugin succeeded.
    ///
    /// # Errors
    /// It failed; with its output.
    pub fn expect_good(self) -> anyhow::Result<Self> {
        ensure!(self.good, "the plugin failed: {}", self.json);
        Ok(self)
    }
}

impl Sandbox {
    /// The sandbox of a pod of the lab.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn of(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<Self> {
        let layout = cluster.lab().layout()?;
        let (host, pod) = layout.pod(namespace, name).context("no such pod")?;
        Ok(Self {
            host: host.name.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            container: format!("sandbox-{namespace}-{name}"),
            device: pod.device.clone(),
            addresses: pod.addresses.clone(),
        })
    }

    /// Path of the network namespace on the host.
    pub fn netns(&self) -> String {
        format!("/run/netns/{}.{}", self.namespace, self.name)
    }

    /// Result of the previous plugins.
    pub fn result(&self, version: &str) -> Value {
        let ips = self.addresses.iter().map(|address| {
            let mut ip = json!({"address": ipnet_text(*address), "interface": 1});
            if version < "1.0.0" {
                ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
            }
            ip
        });
        json!({
            "cniVersion": version,
            "interfaces": [{"name": self.device}, {"name": "eth0", "sandbox": self.netns()}],
            "ips": ips.collect::<Vec<_>>(), "dns": {},
        })
    }

    /// Calls a plugin for this sandbox; `config` is its entry in the runtime's configuration.
    ///
    /// # Errors
    /// It cannot be started, or its output is not JSON.
    pub fn call(
        &self,
        cluster: &Cluster,
        plugin: &Path,
        command: &str,
        config: &Value,
    ) -> anyhow::Result<Said> {
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
            self.namespace, self.name, self.container
        );
        let host = cluster.host(&self.host)?;
        let started = Instant::now();
        let mut child = cluster
            .lab()
            .exec(&host, plugin)?
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", self.netns())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("standard input was asked for")?;
        stdin.write_all(config.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let took = started.elapsed();
        let json = match output.stdout.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())?,
        };
        Ok(Said {
            good: output.status.success(),
            json,
            took,
        })
    }

    /// Calls the plugin under test with a configuration of this version and the result of the previous plugins.
    ///
    /// # Errors
    /// As [`Sandbox::call`].
    pub fn cni(&self, cluster: &Cluster, command: &str, version: &str) -> anyhow::Result<Said> {
        let config = json!({
            "cniVersion": version, "name": "lab", "type": "egret-cni", "waitSeconds": 1,
            "prevResult": self.result(version),
        });
        self.call(cluster, &plugin()?, command, &config)
    }
}

fn ipnet_text(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
