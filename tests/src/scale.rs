//! A large cluster of objects on a real API server, with a controller, the agents of one worker and of one gateway in a
//! lab, and measurements of their cost. Used by tests with loose limits, and by `./dev bench` for figures.

mod delay;
mod one_address;

pub use delay::{Changes, Delay};
pub use one_address::Busy;

use crate::bulk::{Bulk, Request};
use crate::kubernetes::{CRDS, Daemon, Relay, requests_between, right_of, role, until};
use anyhow::{Context, ensure};
use egret_cluster::{ApiServer, Kubectl};
use egret_lab::{Lab, OwnedLab, Topology, UpOptions};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// The node whose agent is measured.
const WORKER: &str = "w1";
/// The gateway.
const GATEWAY: &str = "g1";
/// Longest wait for any condition.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The controller has converged after this time without a write.
const QUIET: Duration = Duration::from_secs(4);
/// All components are at rest when they together use less than this share of a core, for this long.
const SETTLED_CORES: f64 = 0.2;
const SETTLED_FOR: Duration = Duration::from_secs(2);
/// Longest wait for that.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// Arguments of every component.
const SETTINGS: [&str; 4] = ["--unpooled-addresses", "Allow", "--http-port", "0"];
const OURS: &str = "/apis/egret.dev/v1alpha1";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// Two hosts and the other parts of a lab.
const HOSTS: &str = "segments:
- {name: nodes, cidrs: [192.168.122.0/24, 'fd00:122::/64']}
- {name: outside, cidrs: [203.0.113.0/24, '2001:db8:1::/64']}
hosts:
- {name: w1, roles: [worker], cni: none, links: [{segment: nodes}], podCidrs: [10.244.1.0/24, 'fd00:244:1::/64']}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// Size of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, including worker and gateway of the lab.
    pub nodes: usize,
    /// Pods; every one is selected by a policy.
    pub pods: usize,
    /// Policies, each with an address of its own.
    pub policies: usize,
    /// Whether all pods are on the one worker of the lab.
    pub all_on_worker: bool,
}

/// Cost of a process while nothing changes.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// Anonymous resident memory, MB.
    pub memory_mb: f64,
    /// CPU, share of one core.
    pub cores: f64,
    /// Requests to the API server per second.
    pub requests_per_sec: f64,
}

/// The controller, the agent of the worker, that of the gateway.
pub const COMPONENTS: [&str; 3] = ["controller", "worker", "gateway"];

/// A large cluster with all components running.
pub struct Large {
    size: Size,
    daemons: Vec<Daemon>,
    /// Connections of the agents of gateway and worker to the API server, by node.
    relays: Vec<(&'static str, Relay)>,
    bulk: Bulk,
    // The lab takes remaining agents down with it.
    lab: OwnedLab,
    server: ApiServer,
}

impl Large {
    /// Creates the objects; no component of Egret runs yet.
    ///
    /// # Errors
    /// Lab or API server do not come up, or reject objects.
    pub fn up(name: &str, size: Size) -> anyhow::Result<Self> {
        let options = UpOptions {
            egret: crate::egret()?,
            agent_args: Vec::new(),
            agents: false,
            standing_server: false,
        };
        let lab = Lab::up(name, &Topology::from_yaml(HOSTS)?, &options)?.owned();
        let users: Vec<(&str, &[&str])> = COMPONENTS.iter().map(|user| (*user, &[][..])).collect();
        let server = ApiServer::start_with(&users)?;
        let kubectl = server.kubectl();
        kubectl.define(Path::new(CRDS))?;
        kubectl.apply(BASE)?;
        for (component, user) in ["Controller", "Agent", "Agent"].iter().zip(COMPONENTS) {
            kubectl.apply(&role(component, user))?;
        }
        let bulk = Bulk::start(kubectl, server.folder())?;
        let large = Self {
            size,
            daemons: Vec::new(),
            relays: Vec::new(),
            bulk,
            lab,
            server,
        };
        large.make_nodes()?;
        large.make_policies()?;
        large.make_pods(0..size.pods)?;
        Ok(large)
    }

    /// kubectl as administrator.
    pub fn kubectl(&self) -> &Kubectl {
        self.server.kubectl()
    }

    /// Starts the controller; returns the time until its last write, seconds.
    ///
    /// # Errors
    /// It does not come to rest, or some object then lacks its address or leases.
    pub fn converge(&mut self) -> anyhow::Result<f64> {
        self.converge_with(&[])
    }

    /// As [`Self::converge`], with more arguments for the controller.
    ///
    /// # Errors
    /// As [`Self::converge`].
    pub fn converge_with(&mut self, more: &[&str]) -> anyhow::Result<f64> {
        let own = self.server.kubectl_as(COMPONENTS[0])?;
        let source = format!("kube:{}", own.kubeconfig().display());
        let log = self.server.folder().join("controller.log");
        let arguments = [&["controller", "--source", &source], &SETTINGS[..], more].concat();
        let from = std::fs::metadata(self.server.audit_log())?.len();
        let started = SystemTime::now();
        self.daemons.push(Daemon::start(&log, &arguments)?);
        until("the controller has planned everything", TIMEOUT, || {
            std::thread::sleep(Duration::from_millis(500));
            Ok(self.allocated()? == self.size.policies)
        })?;
        let last = self.quiet_since(from)?;
        let records = self.kubectl().run(&["get", "egrnode", "-o", "name"])?;
        let records = records.lines().count();
        ensure!(
            records == self.size.nodes,
            "{records} of {} EgressNodes",
            self.size.nodes
        );
        Ok((last - seconds_of_day(started)).rem_euclid(86_400.0))
    }

    /// Starts the agents of worker and gateway, and waits until everything is at rest and their policies are Ready.
    ///
    /// # Errors
    /// It does not come to rest.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        for (node, user) in [(GATEWAY, COMPONENTS[2]), (WORKER, COMPONENTS[1])] {
            let place = self.lab.place(node)?;
            let listener = place.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
            let relay = Relay::listening(listener, &self.server)?;
            let own = self.server.kubectl_as(user)?;
            let kubeconfig = relay.kubeconfig(&own, &self.server)?;
            std::fs::copy(
                &kubeconfig,
                place.root()?.join("run/egret-scale.kubeconfig"),
            )?;
            let mut command = self.lab.exec(&place, crate::egret()?)?;
            command
                .args(["agent", "--node", node])
                .args(["--source", "kube:/run/egret-scale.kubeconfig"])
                .args(SETTINGS);
            let log = self.lab.dir().log().join(format!("{node}.agent.log"));
            let at = if node == WORKER {
                1
            } else {
                self.daemons.len()
            };
            self.daemons.insert(at, Daemon::spawn(&log, command)?);
            self.relays.push((node, relay));
        }
        let programmed = [
            "get",
            "egrnode",
            WORKER,
            "-o",
            "jsonpath={.status.programmed}",
        ];
        self.kubectl().wait_until(
            "the worker has programmed its pods",
            TIMEOUT,
            &programmed,
            |said| !said.out.is_empty(),
        )?;
        self.wait_quiet()?;
        Ok(())
    }

    /// Adds one pod on a node where its policy has no lease yet: milliseconds from the API server's answer to its
    /// creation until the controller's next write, that of the lease, arrives there.
    ///
    /// # Errors
    /// Nothing is written.
    pub fn one_pod_more(&self, number: usize) -> anyhow::Result<f64> {
        let log = self.server.audit_log();
        let before = std::fs::metadata(&log)?.len();
        let number = self.size.pods + number;
        self.make_pods([number].into_iter())?;
        let mut found = None;
        until("the lease is written", TIMEOUT, || {
            let all = requests_between(&log, before)?;
            let made = all.iter().find(|r| is(r, "admin", "create", "pods"));
            let made = made.map(|r| time(&r["stageTimestamp"]));
            let wrote = all.iter().find(|r| {
                let is_write = |verb| is(r, COMPONENTS[0], verb, "egressaddresses");
                is_write("create") || is_write("update")
            });
            let wrote = wrote.map(|r| time(&r["requestReceivedTimestamp"]));
            found = made.zip(wrote);
            Ok(found.is_some())
        })?;
        let (made, wrote) = found.context("the condition held")?;
        // A write may overtake the log's line of the creation.
        Ok((wrote - made) * 1e3)
    }

    /// Position of the audit log's end.
    ///
    /// # Errors
    /// There is no log.
    pub fn now(&self) -> anyhow::Result<u64> {
        Ok(std::fs::metadata(self.server.audit_log())?.len())
    }

    /// Writes of the controller since then, as `update egressaddresses` or `patch egresses/status`, in order.
    ///
    /// # Errors
    /// The audit log cannot be read.
    pub fn writes_since(&self, from: u64) -> anyhow::Result<Vec<String>> {
        let all = requests_between(&self.server.audit_log(), from)?;
        let mut writes: Vec<&Value> = all.iter().filter(|r| is_write(r)).collect();
        let arrival = |request: &Value| time(&request["requestReceivedTimestamp"]);
        writes.sort_by(|a, b| arrival(a).total_cmp(&arrival(b)));
        let text = |request: &Value| {
            let (_, resource, verb) = right_of(request);
            format!("{verb} {resource}")
        };
        Ok(writes.into_iter().map(text).collect())
    }

    /// Waits until the controller stops writing.
    ///
    /// # Errors
    /// It does not stop.
    pub fn wait_quiet(&self) -> anyhow::Result<()> {
        let from = std::fs::metadata(self.server.audit_log())?.len();
        self.quiet_since(from).map(drop)
    }

    /// As [`Self::wait_quiet`]; returns the time of its last write after this byte of the audit log, in seconds of the
    /// day (UTC).
    fn quiet_since(&self, mut from: u64) -> anyhow::Result<f64> {
        let log = self.server.audit_log();
        let (mut last, mut since) = (0.0, Instant::now());
        until("the controller writes nothing", TIMEOUT, || {
            std::thread::sleep(Duration::from_millis(500));
            let (start, end) = (from, std::fs::metadata(&log)?.len());
            let fresh = requests_between(&log, start)?;
            from = end;
            for request in fresh.iter().filter(|r| is_write(r)) {
                last = time(&request["stageTimestamp"]).max(last);
                since = Instant::now();
            }
            Ok(since.elapsed() >= QUIET)
        })?;
        Ok(last)
    }

    /// Cost of each of [`COMPONENTS`] over this time.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn rest(&self, time: Duration) -> anyhow::Result<Vec<Rest>> {
        let pids: Vec<i32> = self
            .daemons
            .iter()
            .map(Daemon::program)
            .collect::<Result<_, _>>()?;
        let cpus =
            || -> anyhow::Result<Vec<f64>> { pids.iter().map(|pid| cpu_seconds(*pid)).collect() };
        // Planning or programming may have to settle; a component that never rests is measured as it is.
        let _ = until("all components to rest", SETTLED_WITHIN, || {
            let before = cpus()?;
            std::thread::sleep(SETTLED_FOR);
            let used = cpus()?
                .into_iter()
                .zip(before)
                .map(|(now, then)| now - then);
            Ok(used.sum::<f64>() < SETTLED_FOR.as_secs_f64() * SETTLED_CORES)
        });
        let before = cpus()?;
        let from = std::fs::metadata(self.server.audit_log())?.len();
        let start = Instant::now();
        std::thread::sleep(time);
        let seconds = start.elapsed().as_secs_f64();
        let after = cpus()?;
        let all = requests_between(&self.server.audit_log(), from)?;
        let mut rests = Vec::new();
        for (number, pid) in pids.iter().enumerate() {
            let own = |r: &&Value| r["user"]["username"] == COMPONENTS[number];
            rests.push(Rest {
                memory_mb: memory_mb(*pid)?,
                cores: (after[number] - before[number]) / seconds,
                requests_per_sec: all.iter().filter(own).count() as f64 / seconds,
            });
        }
        Ok(rests)
    }

    /// Number of policies that have an address.
    fn allocated(&self) -> anyhow::Result<usize> {
        let form = "jsonpath={range .items[*]}{.status.addresses[0]}{\"\\n\"}{end}";
        let said = self.kubectl().run(&["get", "egress", "-o", form])?;
        Ok(said.lines().filter(|line| !line.is_empty()).count())
    }

    fn node_of(&self, number: usize) -> String {
        match self.size.all_on_worker {
            true => WORKER.to_owned(),
            // Not on the gateway, and pods of one policy on different nodes.
            false => {
                let (row, policy) = (number / self.size.policies, number % self.size.policies);
                node_name(1 + (policy + row * 37) % (self.size.nodes - 1))
            }
        }
    }

    fn make_nodes(&self) -> anyhow::Result<()> {
        let layout = self.lab.layout()?;
        let node = |number: usize| {
            let name = node_name(number);
            let mut labels = json!({});
            let mut address = format!("172.16.{}.{}", number / 250, number % 250 + 1);
            let mut pods = format!("10.{}.{}.0/24", 64 + number / 256, number % 256);
            if let Some(host) = layout.host(&name) {
                let v4 = host.node_addresses().find(IpAddr::is_ipv4);
                address = v4.map_or(address, |v4| v4.to_string());
                pods = format!("10.244.{number}.0/24");
            }
            if name == GATEWAY {
                labels = json!({"egret.dev/gateway": "true"});
            }
            let body = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": labels},
                "spec": {"podCIDR": pods, "podCIDRs": [pods]},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            });
            Request::create("/api/v1/nodes", body.to_string())
        };
        self.bulk.send((0..self.size.nodes).map(node))
    }

    fn make_policies(&self) -> anyhow::Result<()> {
        let policy = |number: usize| {
            let body = json!({
                "apiVersion": "egret.dev/v1alpha1", "kind": "Egress",
                "metadata": {"name": format!("policy{number}"), "namespace": "default"},
                "spec": {"selector": {"app": format!("app{number}")}, "pool": "many"},
            });
            let collection = format!("{OURS}/namespaces/default/egresses");
            Request::create(&collection, body.to_string())
        };
        self.bulk.send((0..self.size.policies).map(policy))
    }

    /// Creates pods, first without addresses and then with them, as kubelets do.
    fn make_pods(&self, numbers: impl Iterator<Item = usize>) -> anyhow::Result<()> {
        self.make_pods_on(numbers.map(|number| (number, self.node_of(number))))
    }

    /// As [`Self::make_pods`], each on this node.
    fn make_pods_on(&self, pods: impl Iterator<Item = (usize, String)>) -> anyhow::Result<()> {
        let (mut made, mut statuses) = (Vec::new(), Vec::new());
        for (number, node) in pods {
            let policy = number % self.size.policies;
            let name = format!("pod{number}");
            let body = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": format!("app{policy}")}},
                "spec": {
                    "nodeName": node, "automountServiceAccountToken": false,
                    "containers": [{"name": "c", "image": "none"}],
                },
            });
            made.push(Request::create(PODS, body.to_string()));
            let address = address_of(number);
            let body = json!({
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
            });
            let path = format!("{PODS}/{name}/status");
            statuses.push(Request::patch(path, body.to_string()));
        }
        self.bulk.send(made)?;
        self.bulk.send(statuses)
    }
}

const BASE: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: default}
---
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: main}
spec: {nodeSelector: {matchLabels: {egret.dev/gateway: 'true'}}}
---
apiVersion: egret.dev/v1alpha1
kind: EgressPool
metadata: {name: many}
spec: {cidrs: [10.250.0.0/20], gateway: main, namespaces: {all: true}}
";

/// Address of the pod of this number.
fn address_of(number: usize) -> String {
    let (high, low) = (number / 250, number % 250 + 1);
    format!("10.{}.{}.{low}", 128 + high / 256, high % 256)
}

fn node_name(number: usize) -> String {
    match number {
        0 => GATEWAY.to_owned(),
        1 => WORKER.to_owned(),
        _ => format!("node{number:04}"),
    }
}

fn is(request: &Value, user: &str, verb: &str, resource: &str) -> bool {
    request["user"]["username"] == user
        && request["verb"] == verb
        && request["objectRef"]["resource"] == resource
        && request["objectRef"]["subresource"].is_null()
}

/// Whether the controller changed something other than its Lease.
fn is_write(request: &Value) -> bool {
    let verb = request["verb"].as_str().unwrap_or_default();
    request["user"]["username"] == COMPONENTS[0]
        && !["get", "list", "watch"].contains(&verb)
        && request["objectRef"]["resource"] != "leases"
}

/// Seconds of the day (UTC) of a time like `2026-11-21T10:30:00.123456Z`.
fn time(value: &Value) -> f64 {
    let text = value.as_str().unwrap_or_default().trim_end_matches('Z');
    let clock = text.split_once('T').map_or("", |(_, clock)| clock);
    clock.split(':').fold(0.0, |sum, part| {
        sum * 60.0 + part.parse::<f64>().unwrap_or(f64::NAN)
    })
}

fn seconds_of_day(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64() % 86_400.0)
}

/// User and system time so far (proc(5), fields 14 and 15 of stat).
///
/// # Errors
/// The process has ended.
pub fn cpu_seconds(pid: i32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rsplit(')').next().context("a stat line")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    Ok(ticks / per_second.context("ticks per second")? as f64)
}

/// Resident memory without shared pages, MB.
///
/// # Errors
/// The process has ended.
pub fn memory_mb(pid: i32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kb: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("RssAnon")?
        .parse()?;
    Ok(kb / 1024.0)
}
