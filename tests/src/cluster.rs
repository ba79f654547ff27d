//! A lab with agents, controller, policies and an answering server.

mod agents;

use crate::steps::lab_name;
use anyhow::{Context, bail, ensure};
use egret_lab::process::{wait_for, wait_for_every};
use egret_lab::topology::Pod;
use egret_lab::traffic::Server;
use egret_lab::traffic::server::ECHO_PORTS;
use egret_lab::{Lab, OwnedLab, Place, Topology, UpOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Longest wait for any condition; generous, since the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two runs of a polled program: it takes processor time that agents need.
pub const PROGRAM_PAUSE: Duration = Duration::from_millis(50);
/// Port of the agent's metrics.
const METRICS_PORT: u16 = 9791;

/// The egress addresses of most tests.
pub const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// The server that policies select.
pub const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];

/// An address literal.
///
/// # Panics
/// It is none.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// An echo port of the server at an address.
pub fn echo(server: IpAddr) -> SocketAddr {
    SocketAddr::new(server, ECHO_PORTS[1])
}

/// A pod of the namespace `default` with the label `app`.
pub fn pod(name: &str, app: &str) -> Pod {
    Pod {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        number: None,
    }
}

/// Manifest of an `Egress` in the namespace `default` for the pods of an app; `rest` is further lines of its spec.
pub fn egress(name: &str, app: &str, ips: &[&str], rest: &str) -> String {
    let ips = ips.join(", ");
    let rest = rest.replace('\n', "\n  ");
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  selector: {{app: {app}}}\n  ips: [\"{}\"]\n  {rest}\n",
        ips.replace(", ", "\", \"")
    )
}

/// A lab that is up, with its server. Goes down with the value.
pub struct Cluster {
    // Sockets keep namespaces alive, so the server ends before the lab.
    server: Option<Server>,
    lab: OwnedLab,
    settings: Vec<String>,
}

impl Cluster {
    /// Brings a lab up, with a server in its host `server`.
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
        let options = UpOptions {
            egret: crate::egret()?,
            agent_args: agent_args.iter().map(|&one| one.to_owned()).collect(),
            agents: true,
            standing_server: false,
        };
        Self::up_by(test, topology, &options, &[])
    }

    /// As [`Self::up`], with settings that agents, controller and command line must share.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_set(test: &str, topology: &Topology, settings: &[&str]) -> anyhow::Result<Self> {
        let options = UpOptions {
            egret: crate::egret()?,
            agent_args: Vec::new(),
            agents: true,
            standing_server: false,
        };
        Self::up_by(test, topology, &options, settings)
    }

    /// Hosts, pods and the server, without Egret.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn without_agents(test: &str, topology: &Topology) -> anyhow::Result<Self> {
        let options = UpOptions {
            egret: crate::egret()?,
            agent_args: Vec::new(),
            agents: false,
            standing_server: false,
        };
        Self::up_by(test, topology, &options, &[])
    }

    fn up_by(
        test: &str,
        topology: &Topology,
        options: &UpOptions,
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        let name = lab_name(test);
        let lab = Lab::up_with(&name, topology, options, settings)?.owned();
        let server = Some(Server::start(&lab.place("server")?)?);
        let settings = settings.iter().map(ToString::to_string).collect();
        Ok(Self {
            server,
            lab,
            settings,
        })
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A host.
    ///
    /// # Errors
    /// There is no such host.
    pub fn host(&self, name: &str) -> anyhow::Result<Place> {
        Ok(self.lab.place(name)?)
    }

    /// A pod of the namespace `default`.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn pod(&self, name: &str) -> anyhow::Result<Place> {
        Ok(self.lab.place(&format!("pod/default/{name}"))?)
    }

    /// Address of a pod in the family of `like`.
    ///
    /// # Errors
    /// There is no such pod, or it has none.
    pub fn pod_address(&self, name: &str, like: IpAddr) -> anyhow::Result<IpAddr> {
        let layout = self.lab.layout()?;
        let (_, pod) = layout.pod("default", name).context("no such pod")?;
        let mut addresses = pod.addresses.iter();
        let found = addresses.find(|address| address.is_ipv4() == like.is_ipv4());
        found.copied().context("no address of this family")
    }

    /// Node address of a host in the family of `like`.
    ///
    /// # Errors
    /// There is no such host, or it has none.
    pub fn node_address(&self, name: &str, like: IpAddr) -> anyhow::Result<IpAddr> {
        let layout = self.lab.layout()?;
        let host = layout.host(name).context("no such host")?;
        let mut addresses = host.node_addresses();
        addresses
            .find(|address| address.is_ipv4() == like.is_ipv4())
            .context("no address of this family")
    }

    /// Applies manifests and waits until every policy is ready.
    ///
    /// # Errors
    /// A bad manifest, or the policies do not become ready in time.
    pub fn apply(&self, manifests: &[String]) -> anyhow::Result<()> {
        self.put(manifests)?;
        self.wait_ready()
    }

    /// Applies manifests without waiting.
    ///
    /// # Errors
    /// A bad manifest.
    pub fn put(&self, manifests: &[String]) -> anyhow::Result<()> {
        let path = self.lab.dir().path().join("apply.yaml");
        std::fs::write(&path, manifests.join("---\n"))?;
        self.lab.apply(&path)?;
        Ok(())
    }

    /// Deletes the objects of manifests; does not wait for the effects.
    ///
    /// # Errors
    /// A bad manifest.
    pub fn delete(&self, manifests: &[String]) -> anyhow::Result<()> {
        let path = self.lab.dir().path().join("delete.yaml");
        std::fs::write(&path, manifests.join("---\n"))?;
        self.lab.delete(&path)?;
        Ok(())
    }

    /// Waits until every policy is ready and every gateway has reported.
    ///
    /// # Errors
    /// They do not become ready in time; the error contains the status.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        let mut last = Ok(Value::Null);
        let waited = wait_for_every("policies to be ready", DEADLINE, PROGRAM_PAUSE, || {
            last = self.status();
            last.as_ref().is_ok_and(all_ready)
        });
        if waited.is_err() {
            self.print_logs();
            bail!("policies are not ready in time: {:#}", last?);
        }
        Ok(())
    }

    /// Prints the last lines of everybody's log, for failed tests.
    pub fn print_logs(&self) {
        let entries = std::fs::read_dir(self.lab.dir().log()).into_iter();
        for entry in entries.flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            eprintln!("-- {}\n{last}", entry.file_name().to_string_lossy());
        }
    }

    /// Waits until a policy is ready with this number of pods.
    ///
    /// # Errors
    /// It is not in time.
    pub fn wait_selected(&self, policy: &str, pods: u64) -> anyhow::Result<()> {
        let what = format!("{policy} to be ready with {pods} pods");
        wait_for_every(&what, DEADLINE, PROGRAM_PAUSE, || {
            let policies = self.status().map(|status| status["policies"].clone());
            let policies = policies.unwrap_or_default();
            let mut policies = policies.as_array().into_iter().flatten();
            policies.any(|found| {
                found["name"] == policy
                    && found["ready"] == true
                    && found["pods"]["programmed"] == pods
            })
        })?;
        Ok(())
    }

    /// `egret status -o json`, read from the directory.
    ///
    /// # Errors
    /// It cannot be run, or its output is not JSON.
    pub fn status(&self) -> anyhow::Result<Value> {
        let source = format!("dir:{}", self.lab.dir().objects().display());
        let output = std::process::Command::new(crate::egret()?)
            .args(["status", "--unpooled-addresses", "Allow", "-o", "json"])
            .args(["--source", &source])
            .args(&self.settings)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).with_context(|| format!("egret status: {said}"))
    }

    /// An object as Egret last wrote it, from the status folder of the directory; `None` if it does not exist.
    pub fn object(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        let file = match namespace {
            Some(namespace) => format!("{namespace}.{name}.yaml"),
            None => format!("{name}.yaml"),
        };
        let folder = self.lab.dir().objects().join("status");
        let kind_folder = std::fs::read_dir(folder).ok()?.flatten().find(|entry| {
            let name = entry.file_name();
            name.eq_ignore_ascii_case(kind)
        })?;
        let text = std::fs::read_to_string(kind_folder.path().join(file)).ok()?;
        serde_saphyr::from_str(&text).ok()
    }

    /// The first port range that a node may use of an egress address.
    ///
    /// # Errors
    /// It has none.
    pub fn lease(&self, address: IpAddr, node: &str) -> anyhow::Result<RangeInclusive<u16>> {
        let status = self.status()?;
        let entry = |list: &Value, field: &str, value: &str| {
            let entries = list.as_array().cloned().unwrap_or_default();
            entries.into_iter().find(|entry| entry[field] == value)
        };
        let record = entry(&status["addresses"], "address", &address.to_string());
        let lease = record.and_then(|record| entry(&record["leases"], "node", node));
        let range = lease.and_then(|lease| lease["ranges"][0].as_str().map(str::to_owned));
        let range =
            range.with_context(|| format!("{node} has no lease of {address}: {status:#}"))?;
        let (first, last) = range.split_once('-').context("a range")?;
        Ok(first.parse()?..=last.parse()?)
    }

    /// The gateway that announces an egress address.
    ///
    /// # Errors
    /// There is none.
    pub fn announcer(&self, address: IpAddr) -> anyhow::Result<String> {
        let status = self.status()?;
        let records = status["addresses"].as_array().cloned().unwrap_or_default();
        let record = records
            .iter()
            .find(|record| record["address"] == address.to_string());
        let announcer = record.and_then(|record| record["announcer"].as_str());
        Ok(announcer
            .with_context(|| format!("nobody announces {address}: {status:#}"))?
            .to_owned())
    }

    /// Runs a program in a place and returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, place: &Place, words: &[&str]) -> anyhow::Result<String> {
        let (program, arguments) = words.split_first().context("a program")?;
        let output = self.lab.exec(place, program)?.args(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A counter of a worker's ruleset, by its name, read from the kernel.
    ///
    /// # Errors
    /// There is none.
    pub fn worker_counter(&self, host: &str, name: &str) -> anyhow::Result<u64> {
        let words = ["nft", "-j", "list", "counter", "inet", "egret", name];
        let text = self.exec(&self.host(host)?, &words)?;
        let json: Value = serde_json::from_str(&text)?;
        let objects = json["nftables"].as_array().cloned().unwrap_or_default();
        let mut packets = objects
            .iter()
            .filter_map(|object| object["counter"]["packets"].as_u64());
        packets
            .next()
            .with_context(|| format!("no counter {name} on {host}: {text}"))
    }

    /// All counters of a worker's ruleset that are not zero, except those of traffic, read from the kernel.
    ///
    /// # Errors
    /// It has no ruleset.
    pub fn worker_counters(&self, host: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        let words = ["nft", "-j", "list", "counters", "table", "inet", "egret"];
        let json: Value = serde_json::from_str(&self.exec(&self.host(host)?, &words)?)?;
        let objects = json["nftables"].as_array().cloned().unwrap_or_default();
        let counter = |object: &Value| {
            let counter = &object["counter"];
            Some((
                counter["name"].as_str()?.to_owned(),
                counter["packets"].as_u64()?,
            ))
        };
        let counters = objects.iter().filter_map(counter);
        let apart = ["sent_", "opened_", "canary_"];
        let traffic = |name: &str| apart.iter().any(|start| name.starts_with(start));
        Ok(counters
            .filter(|(name, packets)| *packets > 0 && !traffic(name))
            .collect())
    }

    /// Content of `/metrics` of a host's agent: slightly outdated.
    ///
    /// # Errors
    /// The metrics are not served.
    pub fn metrics(&self, host: &str) -> anyhow::Result<String> {
        self.host(host)?.run(metrics)?
    }

    /// A counter of a gateway's eBPF programs, from its agent's metrics: slightly outdated.
    ///
    /// # Errors
    /// The metrics are not served.
    pub fn gateway_counter(&self, host: &str, reason: &str) -> anyhow::Result<u64> {
        let text = self.metrics(host)?;
        let wanted = format!("egret_agent_gateway_packets{{reason=\"{reason}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&wanted));
        Ok(line.map_or(Ok(0), str::parse)?)
    }

    /// Waits until a gateway's counter has risen by `by` from `before`.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_gateway_counter(
        &self,
        host: &str,
        reason: &str,
        wanted: u64,
    ) -> anyhow::Result<()> {
        let what = format!("{reason} of {host} to reach {wanted}");
        wait_for(&what, DEADLINE, || {
            self.gateway_counter(host, reason)
                .is_ok_and(|now| now >= wanted)
        })?;
        Ok(())
    }

    /// Ends the server of the lab; a test that needs its ports calls this.
    pub fn without_server(mut self) -> Self {
        self.server = None;
        self
    }
}

fn all_ready(status: &Value) -> bool {
    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    list("policies")
        .iter()
        .all(|policy| policy["ready"] == true)
        && list("gateways")
            .iter()
            .all(|gateway| gateway["live"] == true)
        && list("addresses").iter().all(|address| {
            // An unused address needs no announcer.
            let leases = address["leases"].as_array();
            let rests = |lease: &Value| lease["state"] == "HoldDown";
            address["announcer"].is_string() || leases.is_none_or(|all| all.iter().all(rests))
        })
}

fn metrics() -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(
        &SocketAddr::from((Ipv6Addr::LOCALHOST, METRICS_PORT)),
        DEADLINE,
    )?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
