//! A lab with agents, controller, policies and an answering server.

use crate::Cluster;
use crate::cluster::PROGRAM_PAUSE;
use anyhow::{Context, bail};
use egret_lab::process::{run, wait_for, wait_for_every};
use egret_lab::{Hurt, Lab, Place, Snapshot, Topology};
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest wait for any condition; generous, since the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The program under test.
///
/// # Errors
/// It is not built.
pub fn program() -> anyhow::Result<PathBuf> {
    crate::egret()
}

/// Waits for a condition within [`DEADLINE`].
///
/// # Errors
/// It does not become true.
pub fn wait(what: &str, condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    Ok(wait_for(what, DEADLINE, condition)?)
}

/// Manifest of an `Egress` in the namespace `default` for the pods labelled `app: MyApp`; no destinations: all.
pub fn egress(name: &str, ips: &[IpAddr], destinations: &[&str]) -> String {
    let ips: Vec<String> = ips.iter().map(|ip| format!("\"{ip}\"")).collect();
    let mut text = format!(
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  selector: {{app: MyApp}}\n  ips: [{}]\n",
        ips.join(", ")
    );
    if !destinations.is_empty() {
        let list: Vec<String> = destinations
            .iter()
            .map(|cidr| format!("{{cidr: \"{cidr}\"}}"))
            .collect();
        text += &format!("  destinations: [{}]\n", list.join(", "));
    }
    text
}

/// A [`Cluster`] for long histories: single policies, agents that stop and start, logs after a failure.
pub struct Scene {
    cluster: Cluster,
}

impl Scene {
    /// Brings a lab up.
    ///
    /// # Errors
    /// The program is not built, or the lab does not come up.
    pub fn up(test: &str, topology: &Topology) -> anyhow::Result<Self> {
        Self::up_with(test, topology, &[])
    }

    /// As [`Self::up`], with more arguments for every agent.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_with(test: &str, topology: &Topology, agent_args: &[&str]) -> anyhow::Result<Self> {
        let cluster = Cluster::up_with(test, topology, agent_args)?;
        Ok(Self { cluster })
    }

    /// Starts the program in a host with these arguments; it ends with the lab. Its output goes to a log of this name.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, host: &str, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let log = self
            .cluster
            .lab()
            .dir()
            .log()
            .join(format!("{name}-{host}.log"));
        let log = std::fs::File::create(log)?;
        let mut command = self.cluster.lab().exec(&self.host(host)?, program()?)?;
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(log).spawn()?;
        Ok(())
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        self.cluster.lab()
    }

    /// A host.
    ///
    /// # Errors
    /// There is no such host.
    pub fn host(&self, name: &str) -> anyhow::Result<Place> {
        self.cluster.host(name)
    }

    /// A pod of the namespace `default`.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn pod(&self, name: &str) -> anyhow::Result<Place> {
        self.cluster.pod(name)
    }

    /// Puts manifests into the source directory.
    ///
    /// # Errors
    /// A bad manifest.
    pub fn put(&self, manifest: &str) -> anyhow::Result<()> {
        let file = self.file(manifest)?;
        self.cluster.lab().apply(&file)?;
        Ok(())
    }

    /// Removes the objects of manifests from the source directory.
    ///
    /// # Errors
    /// A bad manifest.
    pub fn take(&self, manifest: &str) -> anyhow::Result<()> {
        let file = self.file(manifest)?;
        self.cluster.lab().delete(&file)?;
        Ok(())
    }

    fn file(&self, manifest: &str) -> anyhow::Result<PathBuf> {
        let path = self.cluster.lab().dir().path().join("manifest.yaml");
        std::fs::write(&path, manifest)?;
        Ok(path)
    }

    /// Egret's copy of an object, if it exists.
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let folder = self.cluster.lab().dir().objects().join("status").join(kind);
        let text = std::fs::read_to_string(folder.join(format!("{name}.yaml"))).ok()?;
        serde_saphyr::from_str(&text).ok()
    }

    /// The generation of a policy of `default` whose status is Ready; 0 if it is not.
    pub fn ready_generation(&self, policy: &str) -> i64 {
        let object = self.object("Egress", &format!("default.{policy}"));
        let object = object.unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array();
        let mut ready = conditions.into_iter().flatten();
        let is_ready = ready.any(|one| one["type"] == "Ready" && one["status"] == "True");
        let generation = &object["status"]["observedGeneration"];
        let current = *generation == object["metadata"]["generation"];
        match generation.as_i64() {
            Some(generation) if is_ready && current => generation,
            _ => 0,
        }
    }

    /// Waits until a policy is Ready in a generation above `after`, and returns it.
    ///
    /// # Errors
    /// It does not become Ready; the error contains the object's last status.
    pub fn wait_ready(&self, policy: &str, after: i64) -> anyhow::Result<i64> {
        let mut generation = 0;
        let result = wait(&format!("policy {policy} to be Ready"), || {
            generation = self.ready_generation(policy);
            generation > after
        });
        result.with_context(|| {
            let object = self.object("Egress", &format!("default.{policy}"));
            format!("{}", object.unwrap_or_default())
        })?;
        Ok(generation)
    }

    /// Applies a policy (new or changed) and waits until it is Ready.
    ///
    /// # Errors
    /// A bad manifest, or it does not become Ready.
    pub fn put_ready(&self, policy: &str, manifest: &str) -> anyhow::Result<i64> {
        let before = self.ready_generation(policy);
        self.put(manifest)?;
        self.wait_ready(policy, before)
    }

    /// Whether the agent of a host reports that its state is applied.
    pub fn agent_ready(&self, host: &str) -> bool {
        self.cluster.agent_ready(host)
    }

    /// Waits until the agents of these hosts report that their state is applied.
    ///
    /// # Errors
    /// One does not.
    pub fn wait_agents(&self, hosts: &[&str]) -> anyhow::Result<()> {
        for host in hosts {
            let result = wait(&format!("the agent of {host} to be ready"), || {
                self.agent_ready(host)
            });
            if result.is_err() {
                self.print_logs();
            }
            result?;
        }
        Ok(())
    }

    /// Ends agents (`SIGKILL`, or `SIGTERM` for an orderly end), starts new ones and waits until they are ready.
    ///
    /// # Errors
    /// An agent does not end or does not become ready.
    pub fn restart_agents(&self, hosts: &[&str], in_order: bool) -> anyhow::Result<()> {
        for host in hosts {
            match in_order {
                true => self.cluster.end_agent(host)?,
                false => self.cluster.lab().kill(host, Hurt::Agent)?,
            }
        }
        for host in hosts {
            self.cluster.lab().start(host)?;
        }
        self.wait_agents(hosts)
    }

    /// Ends the agent of a host by `SIGTERM` and waits until it has ended.
    ///
    /// # Errors
    /// There is none, or it does not end.
    pub fn end_agent(&self, host: &str) -> anyhow::Result<()> {
        self.cluster.end_agent(host)
    }

    /// Removes the label that makes a node a gateway from its object, or restores it.
    ///
    /// # Errors
    /// There is no such node.
    pub fn select_gateway(&self, host: &str, is_selected: bool) -> anyhow::Result<()> {
        let mut node = self.node(host)?;
        let labels = node["metadata"]["labels"].as_object_mut();
        let labels = labels.context("no labels")?;
        match is_selected {
            true => labels.insert("egret.dev/gateway".to_owned(), "true".into()),
            false => labels.remove("egret.dev/gateway"),
        };
        self.put(&node.to_string())
    }

    /// The Node object of a host, as it stands in the source directory.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, host: &str) -> anyhow::Result<Value> {
        self.manifest("node", host)
    }

    /// The user's manifest of an object without namespace; `kind` in small letters.
    ///
    /// # Errors
    /// There is none.
    pub fn manifest(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let objects = self.cluster.lab().dir().objects();
        let path = objects.join(format!("{kind}.{name}.yaml"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_saphyr::from_str(&text)?)
    }

    /// Content of `/metrics` of a host's agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn metrics(&self, host: &str) -> anyhow::Result<String> {
        self.cluster.metrics(host)
    }

    /// Pulls the cable of a host's external link alone, or plugs it in again.
    ///
    /// # Errors
    /// It has none of its own.
    pub fn plug_external(&self, host: &str, is_in: bool) -> anyhow::Result<()> {
        let layout = self.lab().layout()?;
        let found = layout.host(host).context("no such host")?;
        let mut links = found.links.iter();
        let link = links.find(|link| link.external).context("no such link")?;
        let state = if is_in { "up" } else { "down" };
        let line = format!("ip link set {} {state}", link.port);
        self.shell(egret_lab::layout::CONTROL, &line).map(drop)
    }

    /// Runs a shell line in a host; its output.
    ///
    /// # Errors
    /// It fails; the error contains its output.
    pub fn shell(&self, host: &str, line: &str) -> anyhow::Result<String> {
        let place = self.host(host)?;
        let mut command: Command = self.cluster.lab().exec(&place, "sh")?;
        Ok(run(command.args(["-c", line]), "")?)
    }

    /// The answer of a host's agent to `egret status -o json`.
    ///
    /// # Errors
    /// It does not run.
    pub fn status(&self, host: &str) -> anyhow::Result<Value> {
        let place = self.host(host)?;
        let mut command = self.cluster.lab().exec(&place, program()?)?;
        let output = command.args(["status", "-o", "json"]).output()?;
        if output.stdout.is_empty() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until the agent of a host sees exactly these gateways alive, with loaded tables if there is any address.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_live(&self, host: &str, gateways: &[&str]) -> anyhow::Result<()> {
        let mut last = Value::Null;
        let what = format!("{host} to see {gateways:?} alive");
        let result = wait_for_every(&what, DEADLINE, PROGRAM_PAUSE, || {
            last = self.status(host).unwrap_or_default();
            let list = last["gateways"].as_array().cloned().unwrap_or_default();
            let live = list.iter().filter(|g| g["live"] == true).filter(|g| {
                g["version"].as_u64() > Some(0) || last["addresses"] == Value::Array(Vec::new())
            });
            let mut live: Vec<&str> = live.filter_map(|g| g["node"].as_str()).collect();
            live.sort_unstable();
            live == gateways
        });
        result.with_context(|| last["gateways"].to_string())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

impl Scene {
    /// Prints the ends of all logs, for a test that failed.
    pub fn print_logs(&self) {
        self.cluster.print_logs();
    }
}

/// A snapshot without the tuples of ended flows, which agents remember for a while.
pub fn without_memory(mut snapshot: Snapshot) -> Snapshot {
    for line in snapshot.sections.values_mut() {
        let mut is_memory = false;
        line.retain(|line| {
            let trimmed = line.trim_start();
            if trimmed.starts_with("set ")
                || trimmed.starts_with("map ")
                || trimmed.starts_with("chain ")
            {
                is_memory = ["set late", "set ended", "set refused"]
                    .iter()
                    .any(|name| trimmed.starts_with(name));
            }
            !is_memory
        });
    }
    snapshot
}
