//! TCP connections that carry data without pause; measures bytes and stalls.

use crate::namespace::Place;
use crate::slowness::relaxed;
use crate::traffic::idle::chain;
use crate::traffic::server::{DOWNLOAD_PORT, UPLOAD_PORT};
use crate::traffic::source::connect;
use crate::traffic::{Stop, TIMEOUT, TrafficError};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of one read or write.
const CHUNK: usize = 16 * 1024;
/// Small socket buffers, bytes, so that a stall of the network becomes one of the program.
const SOCKET_BUFFER: usize = 64 * 1024;
/// A connection with a longer stall counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Default rate of one connection: enough to have packets in flight at all times, little enough for a small machine.
pub const PACE_BYTES_PER_SECOND: u64 = 4_000_000;

/// Transfers that run until they are stopped.
#[derive(Debug)]
pub struct BusyFlows {
    stop: Stop,
    bytes: Arc<AtomicU64>,
    flows: Vec<(TcpStream, JoinHandle<BusyReport>)>,
}

/// Results of transfers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BusyReport {
    /// Connections.
    pub flows: usize,
    /// Bytes sent.
    pub uploaded: u64,
    /// Bytes received.
    pub downloaded: u64,
    /// Longest stall of any connection.
    pub longest_stall: Duration,
    /// Errors of broken connections, one entry each.
    pub broken: Vec<String>,
}

impl BusyFlows {
    /// Opens uploads and downloads to the lab's server, each at [`PACE_BYTES_PER_SECOND`].
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn start(
        place: &Place,
        server: IpAddr,
        uploads: usize,
        downloads: usize,
    ) -> Result<Self, TrafficError> {
        Self::start_paced(
            place,
            server,
            uploads,
            downloads,
            Some(PACE_BYTES_PER_SECOND),
        )
    }

    /// As [`BusyFlows::start`] with another rate of each connection in bytes per second, or without a limit.
    ///
    /// # Errors
    /// As [`BusyFlows::start`].
    pub fn start_paced(
        place: &Place,
        server: IpAddr,
        uploads: usize,
        downloads: usize,
        pace: Option<u64>,
    ) -> Result<Self, TrafficError> {
        let directions = std::iter::repeat_n(Direction::Up, uploads)
            .chain(std::iter::repeat_n(Direction::Down, downloads));
        let open = |direction: Direction| {
            let peer = SocketAddr::new(server, direction.port());
            let stream = connect(peer, TIMEOUT)?;
            let clone = set_up(&stream).map_err(TrafficError::io("setting up", peer))?;
            Ok((direction, peer, stream, clone))
        };
        let opened: Vec<_> =
            place.run(|| directions.map(open).collect::<Result<_, TrafficError>>())??;
        let (stop, bytes) = (Stop::default(), Arc::new(AtomicU64::new(0)));
        let flows = opened.into_iter().map(|(direction, peer, stream, clone)| {
            let (stop, bytes) = (stop.clone(), Arc::clone(&bytes));
            let thread =
                std::thread::spawn(move || carry(&clone, peer, direction, pace, &stop, &bytes));
            (stream, thread)
        });
        Ok(Self {
            flows: flows.collect(),
            stop,
            bytes,
        })
    }

    /// Bytes carried by all connections until now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Connections that broke until now.
    pub fn broken(&self) -> usize {
        let threads = self.flows.iter().map(|(_, thread)| thread);
        threads.filter(|thread| thread.is_finished()).count()
    }

    /// Closes the connections and reports.
    pub fn stop(self) -> BusyReport {
        self.stop.set();
        let mut report = BusyReport::default();
        for (stream, thread) in self.flows {
            // Wakes a thread that waits for the network; fails if the connection is broken already.
            let _ = stream.shutdown(Shutdown::Both);
            let one = match thread.join() {
                Ok(one) => one,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            report.flows += one.flows;
            report.uploaded += one.uploaded;
            report.downloaded += one.downloaded;
            report.longest_stall = report.longest_stall.max(one.longest_stall);
            report.broken.extend(one.broken);
        }
        report
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Direction {
    fn port(self) -> u16 {
        match self {
            Self::Up => UPLOAD_PORT,
            Self::Down => DOWNLOAD_PORT,
        }
    }
}

fn set_up(stream: &TcpStream) -> std::io::Result<TcpStream> {
    let socket = socket2::SockRef::from(stream);
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    stream.set_read_timeout(Some(relaxed(PATIENCE)))?;
    stream.set_write_timeout(Some(relaxed(PATIENCE)))?;
    stream.try_clone()
}

fn carry(
    mut stream: &TcpStream,
    peer: SocketAddr,
    direction: Direction,
    pace: Option<u64>,
    stop: &Stop,
    total: &AtomicU64,
) -> BusyReport {
    let mut report = BusyReport {
        flows: 1,
        ..BusyReport::default()
    };
    let mut buffer = vec![0; CHUNK];
    let mut due = Instant::now();
    while !stop.is_set() {
        // Waiting for the next write by rate is no stall, so only the transfer itself is timed.
        let started = Instant::now();
        let moved = match direction {
            Direction::Up => stream.write(&buffer),
            Direction::Down => stream.read(&mut buffer),
        };
        let moved = match moved {
            // The shutdown of `stop` ends the transfer under way; its stall still counts.
            _ if stop.is_set() => Ok(0),
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            result => result,
        };
        report.longest_stall = report.longest_stall.max(started.elapsed());
        match moved {
            Ok(moved) => {
                let moved = moved as u64;
                total.fetch_add(moved, Ordering::Relaxed);
                match direction {
                    Direction::Up => report.uploaded += moved,
                    Direction::Down => report.downloaded += moved,
                }
                if let Some(pace) = pace {
                    due += Duration::from_nanos(moved * 1_000_000_000 / pace.max(1));
                    // After a stall there is no catching up in a burst.
                    due = due.max(Instant::now() - Duration::from_millis(100));
                    stop.wait_until(due);
                }
            }
            Err(error) => {
                let error = TrafficError::io("transferring data with", peer)(error);
                report.broken.push(chain(&error));
                return report;
            }
        }
    }
    report
}
