//! New TCP connections at a fixed rate from a pod: each is opened, told its source by the lab's server, and closed.

use anyhow::{Context, Result};
use egret_lab::Place;
use socket2::SockRef;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that open connections in turn.
const THREADS: u64 = 16;
/// Longest wait for a connection and its answer. TCP sends a lost SYN again after 1 s (RFC 6298): a connection that took
/// longer has lost a packet.
const PATIENCE: Duration = Duration::from_secs(10);
/// See [`PATIENCE`].
const SYN_REPEATED: Duration = Duration::from_millis(950);

/// Connections that are opened until [`Openings::stop`].
#[derive(Debug)]
pub struct Openings {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<OpeningReport>>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    opened: AtomicU64,
}

/// Result of all openings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpeningReport {
    /// Connections that were opened and answered.
    pub opened: u64,
    /// Connections whose SYN or answer was lost once.
    pub repeated: u64,
    /// Errors of the others.
    pub failed: Vec<String>,
    /// Sources that the server saw.
    pub sources: BTreeSet<IpAddr>,
    /// Longest time from the first packet to the answer.
    pub slowest: Duration,
    /// Time of all.
    pub took: Duration,
}

impl Openings {
    /// Starts to open this many connections per second, in turn to these echo ports of the lab's server.
    ///
    /// # Errors
    /// The pod cannot be entered.
    pub fn start(pod: &Place, targets: &[SocketAddr], per_second: u64) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let interval = Duration::from_secs(1) / u32::try_from(per_second).context("rate")?;
        let began = Instant::now();
        let threads = (0..THREADS).map(|number| {
            let (shared, targets) = (shared.clone(), targets.to_vec());
            let first = began + interval * u32::try_from(number).unwrap_or(0);
            pod.spawn(move || open(&shared, &targets, first, interval * THREADS as u32))
        });
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            shared,
            began,
        })
    }

    /// Number of connections so far.
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Ends and reports.
    pub fn stop(self) -> OpeningReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = OpeningReport::default();
        for thread in self.threads {
            let one = match thread.join() {
                Ok(one) => one,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            all.opened += one.opened;
            all.repeated += one.repeated;
            all.failed.extend(one.failed);
            all.sources.extend(one.sources);
            all.slowest = all.slowest.max(one.slowest);
        }
        all.took = self.began.elapsed();
        all
    }
}

fn open(
    shared: &Shared,
    targets: &[SocketAddr],
    mut due: Instant,
    interval: Duration,
) -> OpeningReport {
    let mut report = OpeningReport::default();
    for target in targets.iter().cycle() {
        while Instant::now() < due {
            std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
        }
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        // A machine that is too slow opens fewer, and not many at once.
        due = Instant::now().max(due + interval);
        let began = Instant::now();
        match source_of(*target) {
            Ok(source) => {
                report.opened += 1;
                report.sources.insert(source);
                shared.opened.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => report.failed.push(format!("{target}: {error}")),
        }
        let took = began.elapsed();
        report.repeated += u64::from(took >= SYN_REPEATED);
        report.slowest = report.slowest.max(took);
    }
    report
}

/// Opens a connection, and returns the source that the server sees.
fn source_of(target: SocketAddr) -> Result<IpAddr> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // It leaves by a reset, so that ports are free again after seconds and not after minutes.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let seen = line.split_whitespace().find_map(|word| word.parse().ok());
    let seen: SocketAddr = seen.with_context(|| format!("the server said {line:?}"))?;
    let canonical = match seen.ip() {
        IpAddr::V6(v6) => v6.to_canonical(),
        v4 => v4,
    };
    Ok(canonical)
}
