//! Endpoints of the measured traffic: a server with plain sockets, and clients that measure.
//!
//! Where single packets count, both ends share one CPU: waking another one takes longer than any of the paths, and that
//! time varies from run to run. Throughput uses all CPUs.

use anyhow::{Context, Result, ensure};
use egret_lab::Place;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ECHO: u16 = 7000;
const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
/// Ports that accept and close at once: many, so that no path is limited by the source ports of one destination, which
/// stay in TIME_WAIT for two minutes after each connection.
const ACCEPT: std::ops::Range<u16> = 7100..7164;
const CHUNK_BYTES: usize = 128 * 1024;
/// Datagrams of packet rates: small, so that the packet rate is the limit and not the bandwidth.
const DATAGRAM_BYTES: usize = 64;
/// Datagrams in flight for packet rates.
const WINDOW: usize = 64;
/// Longest time for all round trips of one run.
const GIVE_UP: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_millis(200);
/// CPU of both ends where single packets count.
const CPU: usize = 0;

/// Pins the thread to [`CPU`]; every run has a thread of its own.
fn stay() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(CPU)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("staying on one CPU")
}

/// Threads in the server's namespace.
pub struct Endpoints {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Endpoints {
    /// Starts the servers on every address of the place.
    pub fn start(place: &Place) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let echo = place.run(|| UdpSocket::bind(("::", ECHO)))??;
        echo.set_read_timeout(Some(PATIENCE))?;
        let flag = stop.clone();
        threads.push(std::thread::spawn(move || answer_all(&echo, &flag)));
        let serve = |port| match port {
            SINK => swallow as fn(TcpStream),
            SOURCE => pour,
            _ => drop,
        };
        for port in listening() {
            let serve = serve(port);
            let listener = place.run(|| TcpListener::bind(("::", port)))??;
            listener.set_nonblocking(false)?;
            let flag = stop.clone();
            threads.push(std::thread::spawn(move || {
                if ACCEPT.contains(&port) {
                    stay().expect("CPU 0 is there");
                }
                for stream in listener.incoming() {
                    if flag.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    if ACCEPT.contains(&port) {
                        serve(stream);
                    } else {
                        std::thread::spawn(move || serve(stream));
                    }
                }
            }));
        }
        Ok(Endpoints { stop, threads })
    }

    /// Ends the servers; `place` must be the same.
    pub fn stop(self, place: &Place) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for port in listening() {
            // Wakes the thread that accepts connections.
            let _woken = place.run(|| TcpStream::connect(("::1", port)).is_ok())?;
        }
        for thread in self.threads {
            ensure!(thread.join().is_ok(), "a server thread panicked");
        }
        Ok(())
    }
}

fn listening() -> impl Iterator<Item = u16> {
    [SINK, SOURCE].into_iter().chain(ACCEPT)
}

fn answer_all(socket: &UdpSocket, stop: &AtomicBool) {
    stay().expect("CPU 0 is there");
    let mut buffer = [0u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _lost = socket.send_to(&buffer[..length], from);
        }
    }
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0u8; CHUNK_BYTES];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

fn pour(mut stream: TcpStream) {
    let buffer = vec![0u8; CHUNK_BYTES];
    while stream.write_all(&buffer).is_ok() {}
}

/// Median round trip of one small datagram at a time, microseconds.
pub fn round_trip_us(place: &Place, server: IpAddr, count: usize) -> Result<f64> {
    place.run(|| -> Result<f64> {
        stay()?;
        let socket = udp(server)?;
        let mut times = Vec::with_capacity(count);
        let mut buffer = [0u8; 2048];
        let begin = Instant::now();
        while times.len() < count {
            let start = Instant::now();
            let waited = start - begin;
            ensure!(waited < GIVE_UP, "{} answers in {waited:?}", times.len());
            socket.send(&[0; DATAGRAM_BYTES])?;
            if socket.recv(&mut buffer).is_ok() {
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[count / 2])
    })?
}

/// Rate of small datagrams that come back, per second.
pub fn packets_per_second(place: &Place, server: IpAddr, time: Duration) -> Result<f64> {
    place.run(|| -> Result<f64> {
        stay()?;
        let socket = udp(server)?;
        let mut buffer = [0u8; 2048];
        let start = Instant::now();
        let mut answers = 0u64;
        for _ in 0..WINDOW {
            socket.send(&[0; DATAGRAM_BYTES])?;
        }
        while start.elapsed() < time {
            match socket.recv(&mut buffer) {
                Ok(_) => answers += 1,
                // All datagrams in flight were lost: start a new window.
                Err(_) => {
                    for _ in 1..WINDOW {
                        socket.send(&[0; DATAGRAM_BYTES])?;
                    }
                }
            }
            socket.send(&[0; DATAGRAM_BYTES])?;
        }
        Ok(answers as f64 / start.elapsed().as_secs_f64())
    })?
}

fn udp(server: IpAddr) -> Result<UdpSocket> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(SocketAddr::new(server, ECHO))?;
    Ok(socket)
}

/// Direction of the data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the pod.
    Up,
    /// To the pod.
    Down,
}

/// Throughput of several TCP connections together, Gbit/s.
pub fn gigabits(
    place: &Place,
    server: IpAddr,
    streams: usize,
    direction: Direction,
    time: Duration,
) -> Result<f64> {
    let port = if direction == Direction::Up {
        SINK
    } else {
        SOURCE
    };
    let target = SocketAddr::new(server, port);
    let threads = (0..streams).map(|_| {
        place.spawn(move || -> Result<u64> {
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))
                .context("connecting for throughput")?;
            stream.set_write_timeout(Some(Duration::from_secs(5)))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut buffer = vec![0u8; CHUNK_BYTES];
            let (start, mut bytes) = (Instant::now(), 0u64);
            while start.elapsed() < time {
                bytes += match direction {
                    Direction::Up => stream.write(&buffer)?,
                    Direction::Down => stream.read(&mut buffer)?,
                } as u64;
            }
            Ok(bytes)
        })
    });
    let threads: Vec<_> = threads.collect::<Result<_, _>>()?;
    let mut bytes = 0;
    for thread in threads {
        let done = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a client panicked"))?;
        bytes += done?;
    }
    Ok(bytes as f64 * 8.0 / time.as_secs_f64() / 1e9)
}

/// Rate of TCP connections opened and closed one after the other, per second.
pub fn connections_per_second(place: &Place, server: IpAddr, time: Duration) -> Result<f64> {
    place.run(|| -> Result<f64> {
        stay()?;
        let (start, mut count) = (Instant::now(), 0u64);
        let mut ports = ACCEPT.cycle();
        while start.elapsed() < time {
            let target = SocketAddr::new(server, ports.next().context("ports")?);
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))
                .context("connecting")?;
            // The server closes first, so that its side has the connection in TIME_WAIT and not the pod's.
            let _end = stream.read(&mut [0; 1]);
            count += 1;
        }
        Ok(count as f64 / start.elapsed().as_secs_f64())
    })?
}
