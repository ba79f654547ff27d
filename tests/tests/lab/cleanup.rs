//! P7: `--cleanup`, the removal of a policy and `egret lab down` leave nothing behind.
//!
//! Agents and controller are started manually in a lab without any, so that there is an initial state for comparison.

use anyhow::{Context, Result, ensure};
use egret_lab::process::Process;
use egret_lab::traffic::{Server, tcp_source, udp_source};
use egret_lab::{Lab, OwnedLab, Snapshot, Topology, UpOptions};
use egret_tests::chaos::{egress, ip, program, wait, without_memory};
use egret_tests::steps::{Group, lab_name};
use egret_tests::tests;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

pub fn groups() -> Vec<Group> {
    tests![
        nothing_stays_in_a_cluster,
        nothing_stays_in_a_single_node,
        lab_down_leaves_nothing
    ]
}

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];

const CLUSTER: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: nft, rpFilter: strict,
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";
const SINGLE: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64],
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// A lab whose agents and controller are started here.
struct Bare {
    server: Option<Server>,
    daemons: BTreeMap<String, (Child, Process)>,
    lab: OwnedLab,
}

impl Bare {
    fn up(test: &str, topology: &str) -> Result<Self> {
        let options = UpOptions {
            egret: program()?,
            agent_args: Vec::new(),
            agents: false,
            standing_server: false,
        };
        let name = lab_name(test);
        let lab = Lab::up(&name, &Topology::from_yaml(topology)?, &options)?.owned();
        let server = Some(Server::start(&lab.place("server")?)?);
        Ok(Self {
            server,
            daemons: BTreeMap::new(),
            lab,
        })
    }

    fn nodes(&self) -> Result<Vec<String>> {
        let layout = self.lab.layout()?;
        let nodes = layout.hosts.into_iter().filter(|host| host.is_node());
        Ok(nodes.map(|host| host.name).collect())
    }

    fn command(&self, host: &str, arguments: &[&str]) -> Result<Command> {
        let place = self.lab.place(host)?;
        let mut command = self.lab.exec(&place, program()?)?;
        command.args(arguments).stdin(Stdio::null());
        Ok(command)
    }

    fn start(&mut self) -> Result<()> {
        let source = format!("dir:{}", self.lab.dir().objects().display());
        let common = [
            "--source",
            &source,
            "--unpooled-addresses",
            "Allow",
            "--hold-down-secs",
            "1",
        ];
        let mut starts = vec![("control".to_owned(), vec!["controller".to_owned()])];
        for node in self.nodes()? {
            let agent = ["agent", "--node", &node].map(str::to_owned);
            starts.push((node, agent.to_vec()));
        }
        for (host, mut arguments) in starts {
            arguments.extend(common.map(str::to_owned));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut command = self.command(&host, &arguments)?;
            let log = self.lab.dir().path().join(format!("{host}.by-hand.log"));
            command
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(log)?);
            let child = command.spawn()?;
            let launcher = Process::of(child.id() as i32).context("the launcher runs")?;
            let process = launcher.first_child("a daemon")?;
            self.daemons.insert(host, (child, process));
        }
        Ok(())
    }

    /// Kills agents and controller.
    fn kill(&mut self) -> Result<()> {
        for (_, (mut child, process)) in std::mem::take(&mut self.daemons) {
            process.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn snapshots(&self) -> Result<BTreeMap<String, Snapshot>> {
        let take = |node: String| {
            let snapshot = Snapshot::take(&self.lab.place(&node)?)?;
            Ok((node, without_memory(snapshot)))
        };
        self.nodes()?.into_iter().map(take).collect()
    }

    fn write(&self, manifest: &str) -> Result<std::path::PathBuf> {
        let file = self.lab.dir().path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        Ok(file)
    }

    /// Applies a policy and waits until pods leave with its address.
    fn put_policy(&self) -> Result<()> {
        self.lab.apply(&self.write(&policy())?)?;
        for pod in self.pods()? {
            for (server, egress) in SERVERS.map(ip).into_iter().zip(EGRESS.map(ip)) {
                self.wait_source(&pod, server, egress)?;
            }
        }
        Ok(())
    }

    fn pods(&self) -> Result<Vec<String>> {
        let layout = self.lab.layout()?;
        let pods = layout.hosts.into_iter().flat_map(|host| host.pods);
        Ok(pods
            .map(|pod| format!("pod/default/{}", pod.name))
            .collect())
    }

    fn wait_source(&self, pod: &str, server: IpAddr, source: IpAddr) -> Result<()> {
        let place = self.lab.place(pod)?;
        let target = SocketAddr::new(server, 5000);
        wait(&format!("{pod} to be seen as {source}"), || {
            let tcp = tcp_source(&place, target).ok().map(|seen| seen.ip());
            let udp = udp_source(&place, target).ok().map(|seen| seen.ip());
            (tcp, udp) == (Some(source), Some(source))
        })
    }

    /// Removes the policy and waits until its addresses are gone.
    fn take_policy(&self) -> Result<()> {
        self.lab.delete(&self.write(&policy())?)?;
        let records = self.lab.dir().objects().join("status/EgressAddress");
        wait("the addresses to go after their hold-down", || {
            std::fs::read_dir(&records).map_or(0, Iterator::count) == 0
        })
    }

    fn cleanup(&self) -> Result<()> {
        for node in self.nodes()? {
            let output = self.command(&node, &["agent", "--cleanup"])?.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "--cleanup on {node}: {said}");
        }
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.server = None;
        // The lab kills its processes; here only the zombies of the launchers are reaped.
        for (child, _) in self.daemons.values_mut() {
            let _gone = child.kill().and_then(|()| child.wait());
        }
    }
}

fn policy() -> String {
    egress("main", &EGRESS.map(ip), &[])
}

/// Every link has carrier and its link-local address.
fn is_finished(snapshot: &Snapshot) -> bool {
    let lines = |section: &str| snapshot.sections.get(section).cloned().unwrap_or_default();
    let links = lines("links");
    let local = lines("addresses")
        .into_iter()
        .filter(|line| line.contains("fe80::") && !line.contains("tentative"));
    let ups = links.iter().filter(|link| !link.contains("LOOPBACK"));
    !links.iter().any(|link| link.contains("NO-CARRIER")) && local.count() >= ups.count()
}

/// The agent's file of group numbers outlives a policy, so that the next one gets the same; `--cleanup` removes it.
fn without_record(mut snapshots: BTreeMap<String, Snapshot>) -> BTreeMap<String, Snapshot> {
    for snapshot in snapshots.values_mut() {
        if let Some(files) = snapshot.sections.get_mut("files") {
            files.retain(|file| file != "/var/lib/egret/groups.json");
        }
    }
    snapshots
}

/// Whether this kernel has no tcx (Linux 6.6).
fn is_before_tcx() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(6), Some(6))
}

/// Whether a difference is the clsact qdisc that Egret leaves before Linux 6.6, since others may have begun to use it
/// (`GatewayDriver::remove`); it may have no filter.
fn is_empty_qdisc(line: &str, after: &Snapshot) -> bool {
    let all = after.sections.get("traffic control").into_iter().flatten();
    line.starts_with("+ traffic control: qdisc clsact")
        && !all.into_iter().any(|one| one.contains("filter"))
}

fn assert_same(
    what: &str,
    before: &BTreeMap<String, Snapshot>,
    after: &BTreeMap<String, Snapshot>,
) {
    let mut differences = Vec::new();
    for (node, snapshot) in before {
        let lines = snapshot.diff(&after[node]).into_iter();
        let lines = lines.filter(|line| !(is_before_tcx() && is_empty_qdisc(line, &after[node])));
        differences.extend(lines.map(|line| format!("{node} {line}")));
    }
    assert!(
        differences.is_empty(),
        "{what}:\n{}",
        differences.join("\n")
    );
}

fn nothing_stays(test: &str, topology: &str) -> Result<()> {
    let mut bare = Bare::up(test, topology)?;
    for node in bare.nodes()? {
        // So that there is a setting which the agent must change and restore.
        let place = bare.lab.place(&node)?;
        place.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0"))??;
    }
    // The kernel completes links and their own addresses asynchronously.
    let mut before = BTreeMap::new();
    wait("all links to be finished", || {
        before = bare.snapshots().unwrap_or_default();
        !before.is_empty() && before.values().all(is_finished)
    })?;
    bare.start()?;
    let objects = bare.lab.dir().objects();
    for node in bare.nodes()? {
        wait(&format!("the agent of {node} to report"), || {
            let path = objects.join(format!("status/EgressNode/{node}.yaml"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.contains("tunnelMac") && text.contains("Programmed")
        })?;
    }
    let idle = without_record(bare.snapshots()?);
    assert!(
        before
            .iter()
            .all(|(node, snapshot)| !snapshot.diff(&idle[node]).is_empty()),
        "agents that run leave traces, so the comparison can fail"
    );

    bare.put_policy()?;
    bare.take_policy()?;
    let mut after = BTreeMap::new();
    // The agents' next read may still be under way.
    wait("the policy's remains to go", || {
        after = without_record(bare.snapshots().unwrap_or_default());
        idle.iter().all(|(node, snapshot)| {
            after
                .get(node)
                .is_some_and(|after| snapshot.diff(after).is_empty())
        })
    })
    .inspect_err(|_| assert_same("left by a policy that was removed", &idle, &after))?;

    bare.put_policy()?;
    bare.kill()?;
    bare.cleanup()?;
    assert_same("left after --cleanup", &before, &bare.snapshots()?);
    // A second cleanup succeeds as well.
    bare.cleanup()?;
    assert_same("left after a second --cleanup", &before, &bare.snapshots()?);
    Ok(())
}

/// Cases: N11, N14, F5.
fn nothing_stays_in_a_cluster() -> Result<()> {
    nothing_stays("cleanup", CLUSTER)
}

fn nothing_stays_in_a_single_node() -> Result<()> {
    nothing_stays("single", SINGLE)
}

/// Ids of the eBPF maps and links that a host has pinned.
fn pinned(bare: &Bare, host: &str) -> Result<Vec<(String, String)>> {
    let place = bare.lab.place(host)?;
    let line = "for f in $(find /sys/fs/bpf/egret -type f); do for k in map link; do \
        bpftool $k show pinned $f 2>/dev/null | sed -n \"s/^\\([0-9]*\\):.*/$k \\1/p\"; done; done";
    let output = bare.lab.exec(&place, "sh")?.args(["-c", line]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs
        .map(|(kind, id)| (kind.to_owned(), id.to_owned()))
        .collect())
}

fn lab_down_leaves_nothing() -> Result<()> {
    let mut bare = Bare::up("down", CLUSTER)?;
    bare.start()?;
    bare.put_policy()?;
    let objects = [pinned(&bare, "g1")?, pinned(&bare, "wg1")?].concat();
    assert!(
        objects.len() > 4,
        "the gateways have pinned maps and links: {objects:?}"
    );
    let daemons: Vec<Process> = bare.daemons.values().map(|(_, process)| *process).collect();
    let folder = bare.lab.dir().path();
    drop(bare);
    assert!(!folder.exists(), "{} is still there", folder.display());
    assert!(
        daemons.iter().all(|daemon| !daemon.is_alive()),
        "a daemon runs on"
    );
    // The kernel asynchronously frees objects of the last mount.
    wait("the eBPF objects to be freed", || {
        objects.iter().all(|(kind, id)| {
            let show = Command::new("bpftool")
                .args([kind, "show", "id", id])
                .output();
            show.is_ok_and(|show| !show.status.success())
        })
    })
}
