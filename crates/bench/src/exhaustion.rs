//! Cost of a new flow while its lease fills up: 0, 50, 90 and 100 % of the ports in use towards one destination.

use crate::cluster::{self, SERVER};
use crate::figure::{Figure, Report};
use anyhow::{Context, Result, ensure};
use egret_lab::{Hurt, Place};
use egret_tests::chaos::ip;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PART: &str = "filling lease";
/// Ports of the first grant of the lab's policy.
const LEASE: usize = 1024;
/// New flows timed at each level.
const TIMED: usize = 40;
/// Levels, in percent of the lease; the timed flows end there or just above.
const LEVELS: [usize; 3] = [0, 50, 90];
/// Round n uses this port plus n as destination: conntrack remembers the flows of earlier rounds.
const FIRST_PORT: u16 = 7300;
/// Longest wait for an answer; a flow without one was not entered into the conntrack table.
const PATIENCE: Duration = Duration::from_millis(50);
/// Longest wait until the agent refuses a full destination.
const REFUSED_AFTER: Duration = Duration::from_secs(20);

/// Measures by filling a lease towards a new destination in each round.
pub fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let hosts = [
        cluster::worker("w1", 1, &[("a1", "MyApp")]),
        cluster::gateway("g1"),
    ];
    let scene = cluster::up("bench-lease", &hosts)?;
    cluster::start_policy(&scene, &["g1"])?;
    // Nobody grants more: the lease stays as large as it is.
    scene.lab().kill("control", Hurt::Agent)?;
    let (pod, server) = (scene.pod("a1")?, scene.host("server")?);
    for round in 0..rounds {
        let target = SocketAddr::new(ip(SERVER), FIRST_PORT + u16::try_from(round)?);
        let keeper = Keeper::start(&server, target.port())?;
        pod.run(|| fill(report, target))??;
        keeper.stop(&server, target.port())?;
    }
    Ok(())
}

fn fill(report: &mut Report, target: SocketAddr) -> Result<()> {
    let mut flows = Vec::with_capacity(LEASE);
    for level in LEVELS {
        while flows.len() < LEASE * level / 100 {
            flows.extend(flow(target)?.map(|(socket, _)| socket));
        }
        let (mut times, mut lost) = (Vec::new(), 0);
        for _ in 0..TIMED {
            match flow(target)? {
                Some((socket, time)) => {
                    times.push(time.as_secs_f64() * 1e6);
                    flows.push(socket);
                }
                None => lost += 1,
            }
        }
        let name = format!("connect at {level} %");
        report.add(PART, &name, "ours", "us", middle(times));
        report.add(
            PART,
            &format!("lost at {level} %"),
            "ours",
            "flows",
            f64::from(lost),
        );
    }
    let started = Instant::now();
    let (mut refusals, mut lost) = (Vec::new(), 0);
    while refusals.len() < TIMED {
        ensure!(
            started.elapsed() < REFUSED_AFTER,
            "{} flows, and no refusal",
            flows.len()
        );
        match attempt(target)? {
            Attempt::Answered(socket, _) => flows.push(socket),
            Attempt::Lost => lost += 1,
            Attempt::Refused(time) => refusals.push(time.as_secs_f64() * 1e6),
        }
    }
    // Close to the end a flow may find its range full and others not: it is lost, and is tried again.
    report.add(PART, "lost up to 100 %", "ours", "flows", f64::from(lost));
    report.add(PART, "refusal at 100 %", "ours", "us", middle(refusals));
    report.add(
        PART,
        "flows when it is full",
        "ours",
        "flows",
        flows.len() as f64,
    );
    Ok(())
}

fn middle(values: Vec<f64>) -> f64 {
    let figure = Figure {
        values,
        ..Figure::default()
    };
    figure.median()
}

enum Attempt {
    Answered(TcpStream, Duration),
    Refused(Duration),
    Lost,
}

/// Opens a new flow and times its answer; `None` without an answer.
fn flow(target: SocketAddr) -> Result<Option<(TcpStream, Duration)>> {
    match attempt(target)? {
        Attempt::Answered(socket, time) => Ok(Some((socket, time))),
        Attempt::Refused(_) | Attempt::Lost => Ok(None),
    }
}

fn attempt(target: SocketAddr) -> Result<Attempt> {
    let started = Instant::now();
    match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(stream) => Ok(Attempt::Answered(stream, started.elapsed())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Ok(Attempt::Refused(started.elapsed()))
        }
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(Attempt::Lost),
        Err(error) => Err(error).context("a new flow"),
    }
}

/// Accepts connections at one port and holds them open.
struct Keeper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Keeper {
    fn start(server: &Place, port: u16) -> Result<Self> {
        let listener = server.run(|| TcpListener::bind(("::", port)))??;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                kept.push(stream);
            }
        });
        Ok(Keeper { stop, thread })
    }

    fn stop(self, server: &Place, port: u16) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts connections.
        let _woken = server.run(|| TcpStream::connect(("::1", port)).is_ok())?;
        let joined = self.thread.join().ok();
        joined.context("the server's end panicked")
    }
}
