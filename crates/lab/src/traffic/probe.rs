//! A UDP packet every few milliseconds; counts unanswered ones and measures the longest gap.

use crate::namespace::Place;
use crate::slowness::relaxed;
use crate::traffic::{Stop, TIMEOUT, TrafficError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Default time between packets.
pub const INTERVAL: Duration = Duration::from_millis(5);
/// How long late answers are awaited after the last packet.
const LINGER: Duration = Duration::from_millis(1000);
/// Most packets of one probe: over 50 minutes at the default interval. Then it stops sending.
const PACKETS_MAX: usize = 600_000;

/// A probe that runs until it is stopped.
#[derive(Debug)]
pub struct UdpProbe {
    stop: Stop,
    thread: JoinHandle<ProbeReport>,
}

/// Result of a probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// Packets sent, or refused by the system while sending.
    pub sent: usize,
    /// Packets without answer.
    pub lost: usize,
    /// Answers to packets that were answered already.
    pub duplicates: usize,
    /// Longest time without an answer, from the first answer to the last packet. At least the interval.
    pub longest_gap: Duration,
    /// Errors while sending or from ICMP, each message once.
    pub errors: BTreeSet<String>,
    /// Source addresses and ports that the server saw.
    pub sources: BTreeSet<SocketAddr>,
}

impl ProbeReport {
    /// Source addresses that the server saw.
    pub fn source_ips(&self) -> BTreeSet<IpAddr> {
        self.sources.iter().map(SocketAddr::ip).collect()
    }
}

impl UdpProbe {
    /// Starts probing the lab's server at `target` (a port of [`crate::traffic::server::ECHO_PORTS`]), with one packet
    /// per [`INTERVAL`], and waits for the first answer.
    ///
    /// # Errors
    /// No answer within [`TIMEOUT`].
    pub fn start(place: &Place, target: SocketAddr) -> Result<Self, TrafficError> {
        Self::start_every(place, target, INTERVAL)
    }

    /// As [`UdpProbe::start`] with another time between packets.
    ///
    /// # Errors
    /// As [`UdpProbe::start`].
    pub fn start_every(
        place: &Place,
        target: SocketAddr,
        interval: Duration,
    ) -> Result<Self, TrafficError> {
        let stop = Stop::default();
        let inner = stop.clone();
        let (first, answered) = mpsc::sync_channel(1);
        let failed = |what| TrafficError::io(what, target);
        let socket = place
            .run(|| socket(target))?
            .map_err(failed("opening a UDP socket for"))?;
        // A socket stays in the namespace in which it was created, so the thread needs none of its own.
        let thread = std::thread::spawn(move || {
            let mut probe = Probe::new(socket, first);
            probe.run(interval, &inner);
            probe.report()
        });
        let probe = Self { stop, thread };
        if answered.recv_timeout(relaxed(TIMEOUT)).is_err() {
            let report = probe.stop();
            let said = report
                .errors
                .into_iter()
                .next()
                .unwrap_or_else(|| "timed out".to_owned());
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, said);
            return Err(failed("waiting for the first answer of")(source));
        }
        Ok(probe)
    }

    /// Stops sending, waits a second for late answers, and reports.
    pub fn stop(self) -> ProbeReport {
        self.stop.set();
        match self.thread.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn socket(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

struct Probe {
    socket: UdpSocket,
    first: mpsc::SyncSender<()>,
    answered: Vec<bool>,
    last_answer: Option<Instant>,
    last_sent: Instant,
    report: ProbeReport,
}

impl Probe {
    fn new(socket: UdpSocket, first: mpsc::SyncSender<()>) -> Self {
        let report = ProbeReport::default();
        let last_sent = Instant::now();
        Self {
            socket,
            first,
            answered: Vec::new(),
            last_answer: None,
            last_sent,
            report,
        }
    }

    fn run(&mut self, interval: Duration, stop: &Stop) {
        let mut due = Instant::now();
        while !stop.is_set() && self.answered.len() < PACKETS_MAX {
            let sequence = self.answered.len() as u64;
            self.answered.push(false);
            self.last_sent = Instant::now();
            if let Err(error) = self.socket.send(&sequence.to_be_bytes()) {
                self.report.errors.insert(error.to_string());
            }
            // After a pause of the whole machine there is no catching up in a burst.
            due = (due + interval).max(self.last_sent);
            self.receive_until(due);
        }
        let end = Instant::now() + LINGER;
        while Instant::now() < end && self.answered.contains(&false) {
            self.receive_until(end.min(Instant::now() + INTERVAL));
        }
    }

    fn receive_until(&mut self, due: Instant) {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            // Rounded up: waiting zero milliseconds would spin through the last one.
            let wait = PollTimeout::try_from(left + Duration::from_micros(999))
                .unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait only ends sooner.
            let _ = poll(&mut fds, wait);
            self.receive();
            if left.is_zero() || Instant::now() >= due {
                return;
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 256];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => self.take(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => drop(self.report.errors.insert(error.to_string())),
            }
        }
    }

    fn take(&mut self, answer: &[u8]) {
        let Some(end) = answer.iter().position(|byte| *byte == b'\n') else {
            return;
        };
        let source = std::str::from_utf8(&answer[..end])
            .ok()
            .and_then(|text| text.parse().ok());
        let sequence = answer[end + 1..].try_into().ok().map(u64::from_be_bytes);
        let slot = sequence.and_then(|n| self.answered.get_mut(usize::try_from(n).ok()?));
        let (Some(source), Some(slot)) = (source, slot) else {
            return;
        };
        self.report.sources.insert(source);
        if std::mem::replace(slot, true) {
            self.report.duplicates += 1;
        }
        let now = Instant::now();
        if let Some(last) = self.last_answer.replace(now) {
            self.report.longest_gap = self.report.longest_gap.max(now - last);
        } else {
            // The starter may have stopped waiting.
            let _ = self.first.try_send(());
        }
    }

    fn report(mut self) -> ProbeReport {
        self.report.sent = self.answered.len();
        self.report.lost = self.answered.iter().filter(|answered| !**answered).count();
        let silent = match self.last_answer {
            Some(last) => self.last_sent.saturating_duration_since(last),
            None => Duration::ZERO,
        };
        self.report.longest_gap = self.report.longest_gap.max(silent);
        self.report
    }
}
