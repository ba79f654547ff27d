//! Leases that grow: one pod opens far more connections to one server than its node's first grant has ports, and none is
//! refused.

use anyhow::{Context, Result, ensure};
use egret_lab::{Place, Topology};
use egret_tests::chaos::{Scene, egress, ip, wait};
use egret_tests::steps::Group;
use egret_tests::tests;
use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub fn groups() -> Vec<Group> {
    tests![
        twenty_thousand_connections_of_one_pod_to_one_server_are_all_accepted,
        a_burst_of_five_thousand_connections_is_accepted_whole
    ]
}

const SERVER: &str = "203.0.113.10";
const EGRESS: &str = "192.168.122.222";
const PORT: u16 = 7100;
/// Ports of the first grant.
const FIRST: usize = 1024;
/// Longest wait for one connection: TCP tries again after 1, 3, 7 and 15 s (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(30);
/// Processes that open connections.
const OPENERS: usize = 4;
/// Threads of each, so that one which waits for its second SYN holds up no other.
const THREADS: usize = 32;
/// Environment variable that makes this program an [`Opener`]: the number of its connections.
const COUNT: &str = "EGRET_TEST_CONNECTIONS";
/// What an [`Opener`] says, before its errors.
const DONE: &str = "done ";
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24]}
- {name: outside, cidrs: [203.0.113.0/24]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: g2, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

fn up(test: &str) -> Result<Scene> {
    let scene = Scene::up(test, &Topology::from_yaml(TOPOLOGY)?)?;
    scene.put(&format!(
        "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {{name: default}}\nspec:\n  default: true\n  \
        nodeSelector: {{matchLabels: {{egret.dev/gateway: \"true\"}}}}\n  externalInterface: eth0\n  \
        leases: {{initialPorts: {FIRST}}}\n",
    ))?;
    scene.put_ready("main", &egress("main", &[ip(EGRESS)], &[]))?;
    scene.wait_live("w1", &["g1", "g2"])?;
    Ok(scene)
}

/// A process of its own that opens connections and keeps them: one process may not have enough descriptors for all.
struct Opener {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Opener {
    fn start(scene: &Scene, count: usize) -> Result<Self> {
        let pod = scene.pod("a1")?;
        let mut command = scene.lab().exec(&pod, std::env::current_exe()?)?;
        command.env(COUNT, count.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let said = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, said })
    }

    /// Errors of the connections that failed, once all were tried.
    fn failed(&mut self) -> Result<Vec<String>> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let failed = line.trim_end_matches('\n').strip_prefix(DONE);
        let failed = failed.with_context(|| format!("it said {line:?}"))?;
        Ok(failed.split_terminator(',').map(str::to_owned).collect())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        // Without a reader of its end it would keep its connections.
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

/// The program of an [`Opener`], if this process is one: opens connections as fast as its threads can, says which failed,
/// and keeps them until its input ends.
pub fn run_as_opener() -> bool {
    let Some(count) = std::env::var(COUNT)
        .ok()
        .and_then(|count| count.parse::<usize>().ok())
    else {
        return false;
    };
    let target = SocketAddr::new(ip(SERVER), PORT);
    let begun = AtomicUsize::new(0);
    let opener = || {
        let (mut streams, mut failed) = (Vec::new(), Vec::new());
        while begun.fetch_add(1, Ordering::Relaxed) < count {
            match TcpStream::connect_timeout(&target, PATIENCE) {
                Ok(stream) => streams.push(stream),
                Err(error) => failed.push(format!("{:?}", error.kind())),
            }
        }
        (streams, failed)
    };
    let (mut kept, mut failed) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(opener)).collect();
        for thread in threads {
            let (mut streams, mut errors) = thread.join().expect("a thread ends");
            kept.append(&mut streams);
            failed.append(&mut errors);
        }
    });
    println!("{DONE}{}", failed.join(","));
    let _ended = std::io::stdin().read(&mut [0]);
    drop(kept);
    true
}

/// Listens, and lets the kernel keep the connections: nobody accepts them, and its queue has room for all.
fn serve(server: &Place) -> Result<Socket> {
    let listening = server.run(|| -> std::io::Result<Socket> {
        std::fs::write("/proc/sys/net/core/somaxconn", "65535")?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into())?;
        socket.listen(65_535)?;
        Ok(socket)
    })??;
    Ok(listening)
}

/// Source ports that the node's EgressNode grants, and those that its agent wants.
fn ports(scene: &Scene) -> (usize, usize) {
    let node = scene.object("EgressNode", "w1").unwrap_or_default();
    let ranges = node["spec"]["grants"].as_array().into_iter().flatten();
    let ranges = ranges.flat_map(|grant| grant["ranges"].as_array().cloned().unwrap_or_default());
    let size = |range: serde_json::Value| {
        let (first, last) = range.as_str()?.split_once('-')?;
        Some(last.parse::<usize>().ok()? - first.parse::<usize>().ok()? + 1)
    };
    let wanted = node["status"]["demand"][0]["wantedPorts"].as_u64();
    (
        ranges.filter_map(size).sum(),
        usize::try_from(wanted.unwrap_or(0)).unwrap_or(0),
    )
}

/// TCP segments that a pod has sent again (RFC 1213 tcpRetransSegs).
fn repeated_segments(pod: &Place) -> Result<u64> {
    let text = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("two lines of TCP")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let found = both.find(|(name, _)| *name == "RetransSegs");
    Ok(found.context("the number")?.1.parse()?)
}

fn all_are_accepted(test: &str, count: usize) -> Result<()> {
    let scene = up(test)?;
    wait("the first grant", || ports(&scene) == (FIRST, 0))?;
    let _listening = serve(&scene.host("server")?)?;
    let started = Instant::now();
    let openers = (0..OPENERS).map(|_| Opener::start(&scene, count / OPENERS));
    let mut openers = openers.collect::<Result<Vec<Opener>>>()?;
    let mut failed = Vec::new();
    for opener in &mut openers {
        failed.append(&mut opener.failed()?);
    }
    let took = started.elapsed();
    let repeated = repeated_segments(&scene.pod("a1")?)?;
    println!(
        "{count} connections in {took:?}, {repeated} SYNs repeated, ports granted and wanted: {:?}",
        ports(&scene)
    );
    let reasons = "nft list counters table inet egret | grep -B1 'packets [1-9]'";
    ensure!(
        failed.is_empty(),
        "{} of {count} failed: {:?} ...; {}",
        failed.len(),
        &failed[..failed.len().min(5)],
        scene.shell("w1", reasons)?
    );
    wait("twice the ports that are in use", || {
        let (granted, wanted) = ports(&scene);
        granted >= 2 * count && wanted >= 2 * count
    })
}

fn twenty_thousand_connections_of_one_pod_to_one_server_are_all_accepted() -> Result<()> {
    all_are_accepted("growth", 20_000)
}

fn a_burst_of_five_thousand_connections_is_accepted_whole() -> Result<()> {
    all_are_accepted("burst", 5_000)
}
