//! TCP connections that periodically exchange a line; reports broken ones.

use crate::namespace::Place;
use crate::slowness::relaxed;
use crate::traffic::source::{address_in, connect, read_line};
use crate::traffic::{Stop, TIMEOUT, TrafficError};
use socket2::{SockRef, TcpKeepalive};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval of exchanges of one connection.
const INTERVAL: Duration = Duration::from_millis(200);
/// A longer exchange counts as a broken connection. TCP itself would wait longer; a user would not.
const PATIENCE: Duration = Duration::from_secs(20);
/// Idle time before a connection with keepalives sends the first probe, and interval of the following ones.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// Connections that stay until they are stopped.
#[derive(Debug)]
pub struct IdleFlows {
    stop: Stop,
    threads: Vec<JoinHandle<IdleReport>>,
}

/// Results of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdleReport {
    /// Connections.
    pub flows: usize,
    /// Exchanges that succeeded.
    pub exchanges: usize,
    /// Longest exchange.
    pub slowest: Duration,
    /// Errors of broken connections, one entry each.
    pub broken: Vec<String>,
    /// Source addresses and ports that the server saw at their start.
    pub sources: BTreeSet<SocketAddr>,
}

impl IdleFlows {
    /// Opens `count` connections to the lab's server at `target` (an echo port).
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn start(place: &Place, target: SocketAddr, count: usize) -> Result<Self, TrafficError> {
        Self::open(place, target, count, false)
    }

    /// As [`Self::start`], with TCP keepalives: such a connection also sends while it waits for an answer.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_kept_alive(
        place: &Place,
        target: SocketAddr,
        count: usize,
    ) -> Result<Self, TrafficError> {
        Self::open(place, target, count, true)
    }

    fn open(
        place: &Place,
        target: SocketAddr,
        count: usize,
        keepalive: bool,
    ) -> Result<Self, TrafficError> {
        let streams: Vec<(TcpStream, SocketAddr)> = place.run(|| {
            let open = |_| {
                let stream = connect(target, TIMEOUT)?;
                if keepalive {
                    let often = TcpKeepalive::new()
                        .with_time(KEEPALIVE)
                        .with_interval(KEEPALIVE);
                    let set = SockRef::from(&stream).set_tcp_keepalive(&often);
                    set.map_err(TrafficError::io("setting keepalives for", target))?;
                }
                let source = address_in(target, &read_line(&stream, target)?)?;
                Ok((stream, source))
            };
            (0..count).map(open).collect::<Result<_, TrafficError>>()
        })??;
        let stop = Stop::default();
        let threads = streams
            .into_iter()
            .enumerate()
            .map(|(index, (stream, source))| {
                let stop = stop.clone();
                // Connections do not send all at the same moment.
                let first = Instant::now() + INTERVAL * index as u32 / count as u32;
                std::thread::spawn(move || talk(&stream, target, source, first, &stop))
            });
        Ok(Self {
            threads: threads.collect(),
            stop,
        })
    }

    /// Connections that broke until now.
    pub fn broken(&self) -> usize {
        self.threads
            .iter()
            .filter(|thread| thread.is_finished())
            .count()
    }

    /// Lets every connection exchange one more line, closes them and reports.
    pub fn stop(self) -> IdleReport {
        self.stop.set();
        let mut report = IdleReport::default();
        for thread in self.threads {
            let one = match thread.join() {
                Ok(one) => one,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            report.flows += one.flows;
            report.exchanges += one.exchanges;
            report.slowest = report.slowest.max(one.slowest);
            report.broken.extend(one.broken);
            report.sources.extend(one.sources);
        }
        report
    }
}

fn talk(
    stream: &TcpStream,
    peer: SocketAddr,
    source: SocketAddr,
    first: Instant,
    stop: &Stop,
) -> IdleReport {
    let mut report = IdleReport {
        flows: 1,
        sources: [source].into(),
        ..IdleReport::default()
    };
    let mut due = first;
    loop {
        stop.wait_until(due);
        due = Instant::now() + INTERVAL;
        // Read before the exchange, so that the last one begins after the stop.
        let is_last = stop.is_set();
        match exchange(stream, peer, report.exchanges) {
            Ok(took) => {
                report.exchanges += 1;
                report.slowest = report.slowest.max(took);
            }
            Err(error) => {
                report.broken.push(format!("{source}: {}", chain(&error)));
                return report;
            }
        }
        if is_last {
            return report;
        }
    }
}

fn exchange(
    mut stream: &TcpStream,
    peer: SocketAddr,
    turn: usize,
) -> Result<Duration, TrafficError> {
    let started = Instant::now();
    stream
        .set_read_timeout(Some(relaxed(PATIENCE)))
        .map_err(TrafficError::io("setting a deadline for", peer))?;
    let line = format!("turn {turn}");
    let written = stream.write_all(format!("{line}\n").as_bytes());
    written.map_err(TrafficError::io("writing to", peer))?;
    let answer = read_line(stream, peer)?;
    if answer != line {
        return Err(TrafficError::Answer { peer, answer });
    }
    Ok(started.elapsed())
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
