//! Leases that grow: one pod opens far more connections to one server than its node's first grant has ports, and none is
//! refused.

use anyhow::{Context, Result, ensure};
use egret_lab::Place;
use egret_lab::Topology;
use egret_tests::chaos::{Scene, egress, ip, wait};
use egret_tests::steps::Group;
use egret_tests::tests;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
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
/// Longest wait for one connection: TCP tries again after 1 s and 3 s (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(15);
/// Threads that open connections, so that one which waits for its second SYN holds up no other.
const OPENERS: usize = 64;
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
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.max(65_536), most.max(65_536))?;
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

/// Results of many attempts.
struct Opened {
    streams: Vec<TcpStream>,
    /// Errors, by their kind.
    failed: Vec<ErrorKind>,
    took: Duration,
}

/// Opens connections as fast as the threads can, and keeps them.
fn open(pod: &Place, count: usize) -> Result<Opened> {
    let target = SocketAddr::new(ip(SERVER), PORT);
    let begun = AtomicUsize::new(0);
    let results = Mutex::new((Vec::new(), Vec::new()));
    let started = Instant::now();
    let opener = || {
        let (mut streams, mut failed) = (Vec::new(), Vec::new());
        while begun.fetch_add(1, Ordering::Relaxed) < count {
            match TcpStream::connect_timeout(&target, PATIENCE) {
                Ok(stream) => streams.push(stream),
                Err(error) => failed.push(error.kind()),
            }
        }
        let mut all = results.lock().expect("no thread panics");
        all.0.append(&mut streams);
        all.1.append(&mut failed);
    };
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..OPENERS)
            .map(|_| scope.spawn(|| pod.run(opener)))
            .collect();
        for thread in threads {
            thread.join().ok().context("a thread panicked")??;
        }
        Ok(())
    })?;
    let took = started.elapsed();
    let (streams, failed) = results.into_inner().expect("no thread panics");
    Ok(Opened {
        streams,
        failed,
        took,
    })
}

/// Accepts connections and keeps them.
fn serve(server: &Place) -> Result<()> {
    let listener = server.run(|| -> std::io::Result<TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    })??;
    // Ends with the test's process: `accept` cannot be interrupted.
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming().flatten() {
            kept.push(stream);
        }
    });
    Ok(())
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

fn all_are_accepted(test: &str, count: usize) -> Result<Scene> {
    let scene = up(test)?;
    wait("the first grant", || ports(&scene) == (FIRST, 0))?;
    serve(&scene.host("server")?)?;
    let opened = open(&scene.pod("a1")?, count)?;
    println!(
        "{} connections in {:?}, ports granted and wanted {:?}, failed {:?}",
        opened.streams.len(),
        opened.took,
        ports(&scene),
        opened.failed.iter().take(5).collect::<Vec<_>>()
    );
    ensure!(
        opened.failed.is_empty(),
        "{} of {count} failed: {:?} ...; {}",
        opened.failed.len(),
        &opened.failed[..opened.failed.len().min(5)],
        scene.shell(
            "w1",
            "nft list counters table inet egret | grep -B1 -A1 'packets [1-9]'"
        )?
    );
    wait("twice the ports that are in use", || {
        let (granted, wanted) = ports(&scene);
        granted >= 2 * count.min(32_000) && wanted >= 2 * count.min(32_000)
    })?;
    drop(opened);
    Ok(scene)
}

fn twenty_thousand_connections_of_one_pod_to_one_server_are_all_accepted() -> Result<()> {
    all_are_accepted("growth", 20_000).map(drop)
}

fn a_burst_of_five_thousand_connections_is_accepted_whole() -> Result<()> {
    all_are_accepted("burst", 5_000).map(drop)
}
