//! Continuous traffic from selected pods: new connections, datagrams and echoes several times a second, and long flows
//! that are opened again when they end. Nothing here fails: packets are checked at the router.

use anyhow::ensure;
use egret_lab::Place;
use egret_lab::traffic::ping::{PingOptions, ping_here};
use egret_lab::traffic::server::{DOWNLOAD_PORT, ECHO_PORTS};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::chaos::wait;

/// Longest wait for one answer of a new flow.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for a datagram's or echo's answer: the next one is due.
const SHORT: Duration = Duration::from_millis(50);
/// A long flow with a longer stall is abandoned.
const LONG: Duration = Duration::from_secs(2);
/// The same for a flow that only receives: it is not told when it is cut. By then the server has retransmitted twice
/// (after 200 ms and 600 ms), and its later packets still arrive at a pod that refuses them.
const LISTENS: Duration = Duration::from_secs(1);

/// Traffic of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// New TCP connections.
    Connections,
    /// UDP datagrams from new sockets.
    Datagrams,
    /// Echo requests.
    Echoes,
    /// One UDP socket, kept forever.
    LongUdp,
    /// One TCP connection with periodic lines.
    LongTcp,
    /// One TCP connection on which the server sends.
    Download,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 6] = [
        Kind::Connections,
        Kind::Datagrams,
        Kind::Echoes,
        Kind::LongUdp,
        Kind::LongTcp,
        Kind::Download,
    ];
}

#[derive(Debug, Default)]
struct Counts {
    turns: AtomicU64,
    answered: AtomicU64,
    opened: AtomicU64,
}

#[derive(Debug, Default)]
struct Stop {
    is_set: AtomicBool,
    changed: (Mutex<()>, Condvar),
}

impl Stop {
    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }

    fn set(&self) {
        let guard = self
            .changed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.is_set.store(true, Ordering::SeqCst);
        drop(guard);
        self.changed.1.notify_all();
    }

    /// Waits between two turns.
    fn pause(&self, time: Duration) {
        let guard = self
            .changed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !self.is_set() {
            // An early wake-up only makes the next turn earlier.
            drop(self.changed.1.wait_timeout(guard, time));
        }
    }
}

/// Traffic that runs until it is stopped or dropped.
pub struct Load {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    counts: Vec<(String, Kind, Arc<Counts>)>,
}

impl Load {
    /// Starts every [`Kind`] from every pod to every server address.
    ///
    /// # Errors
    /// A pod cannot be entered.
    pub fn start(pods: &[Place], servers: &[IpAddr]) -> anyhow::Result<Self> {
        Self::start_kinds(pods, servers, &Kind::ALL)
    }

    /// As [`Self::start`], with these kinds only.
    ///
    /// # Errors
    /// A pod cannot be entered.
    pub fn start_kinds(pods: &[Place], servers: &[IpAddr], kinds: &[Kind]) -> anyhow::Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            counts: Vec::new(),
        };
        for pod in pods {
            for server in servers {
                for kind in kinds.iter().copied() {
                    let counts = Arc::new(Counts::default());
                    let (stop, inner) = (Arc::clone(&load.stop), Arc::clone(&counts));
                    let server = *server;
                    let thread = pod.spawn(move || work(kind, server, &inner, &stop))?;
                    load.threads.push(thread);
                    let name = format!("{} {kind:?} to {server}", pod.name());
                    load.counts.push((name, kind, counts));
                }
            }
        }
        Ok(load)
    }

    /// Waits until every thread that never blocks for long has made two more turns: at least one complete one.
    ///
    /// # Errors
    /// The traffic stalls.
    pub fn wait_turns(&self) -> anyhow::Result<()> {
        let quick = [Kind::Datagrams, Kind::Echoes, Kind::LongUdp];
        self.wait_more("turns", &quick, |counts| &counts.turns, 2)
    }

    /// Waits until every thread has received one more answer, to traffic that began after the call.
    ///
    /// # Errors
    /// One receives none.
    pub fn wait_answers(&self) -> anyhow::Result<()> {
        self.wait_more("answers", &Kind::ALL, |counts| &counts.answered, 2)
    }

    fn wait_more(
        &self,
        what: &str,
        kinds: &[Kind],
        counter: impl Fn(&Counts) -> &AtomicU64,
        more: u64,
    ) -> anyhow::Result<()> {
        let of_kind = || {
            self.counts
                .iter()
                .filter(|(_, kind, _)| kinds.contains(kind))
        };
        let read = |counts: &Counts| counter(counts).load(Ordering::Relaxed);
        let goals: Vec<u64> = of_kind()
            .map(|(_, _, counts)| read(counts) + more)
            .collect();
        let missing = || {
            let pairs = of_kind().zip(&goals);
            let late = pairs.filter(|((_, _, counts), goal)| read(counts) < **goal);
            late.map(|((name, ..), _)| name.clone()).collect::<Vec<_>>()
        };
        let result = wait(&format!("more {what}"), || missing().is_empty());
        ensure!(result.is_ok(), "no {what} for {:?}", missing());
        Ok(())
    }

    /// Number of flows of this kind that were opened.
    pub fn opened(&self, kind: Kind) -> u64 {
        let counts = self.counts.iter().filter(|(_, of, _)| *of == kind);
        counts
            .map(|(_, _, counts)| counts.opened.load(Ordering::Relaxed))
            .sum()
    }

    /// Ends all traffic.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            if let (Err(panic), false) = (thread.join(), std::thread::panicking()) {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn work(kind: Kind, server: IpAddr, counts: &Counts, stop: &Stop) {
    let echo = SocketAddr::new(server, ECHO_PORTS[1]);
    while !stop.is_set() {
        counts.opened.fetch_add(1, Ordering::Relaxed);
        let pause = match kind {
            Kind::Connections => {
                answered(counts, connect(echo).is_ok());
                150
            }
            Kind::Datagrams => {
                answered(counts, datagram(echo).is_ok());
                100
            }
            Kind::Echoes => {
                let options = PingOptions {
                    timeout: SHORT,
                    ..PingOptions::default()
                };
                answered(counts, ping_here(server, &options).is_ok());
                100
            }
            Kind::LongUdp => {
                let _broken = long_udp(echo, counts, stop);
                20
            }
            Kind::LongTcp => {
                let _broken = long_tcp(echo, counts, stop);
                20
            }
            Kind::Download => {
                let _broken = download(SocketAddr::new(server, DOWNLOAD_PORT), counts, stop);
                20
            }
        };
        stop.pause(Duration::from_millis(pause));
    }
}

fn answered(counts: &Counts, is_answered: bool) {
    counts.turns.fetch_add(1, Ordering::Relaxed);
    counts
        .answered
        .fetch_add(u64::from(is_answered), Ordering::Relaxed);
}

fn connect(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    read_line(&mut stream)
}

fn read_line(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(())
}

fn udp(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(SHORT))?;
    Ok(socket)
}

fn datagram(target: SocketAddr) -> std::io::Result<()> {
    let socket = udp(target)?;
    socket.send(b"new")?;
    socket.recv(&mut [0; 128]).map(drop)
}

/// Continues to send after every error: the socket stays the same.
fn long_udp(target: SocketAddr, counts: &Counts, stop: &Stop) -> std::io::Result<()> {
    let socket = udp(target)?;
    while !stop.is_set() {
        let sent = socket.send(b"long").is_ok();
        let got = sent && socket.recv(&mut [0; 128]).is_ok();
        answered(counts, got);
        stop.pause(Duration::from_millis(20));
    }
    Ok(())
}

fn long_tcp(target: SocketAddr, counts: &Counts, stop: &Stop) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONG))?;
    read_line(&mut stream)?;
    while !stop.is_set() {
        stream.write_all(b"line\n")?;
        read_line(&mut stream)?;
        answered(counts, true);
        stop.pause(Duration::from_millis(50));
    }
    Ok(())
}

/// The server always has data to send, so it hits all remains of the flow after a policy change.
fn download(target: SocketAddr, counts: &Counts, stop: &Stop) -> std::io::Result<()> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    let socket = socket2::SockRef::from(&stream);
    socket.set_recv_buffer_size(8 * 1024)?;
    stream.set_read_timeout(Some(LISTENS))?;
    let mut buffer = [0; 4096];
    let mut stream = &stream;
    while !stop.is_set() {
        if stream.read(&mut buffer)? == 0 {
            return Ok(());
        }
        answered(counts, true);
        stop.pause(Duration::from_millis(25));
    }
    Ok(())
}
