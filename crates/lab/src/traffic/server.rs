//! The answering server: returns to every client the source address that it sees.

use crate::LabError;
use crate::error::io;
use crate::namespace::Place;
use crate::traffic::Stop;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// TCP and UDP ports that answer with the client's address and port, then echo.
pub const ECHO_PORTS: [u16; 5] = [80, 5000, 5001, 5002, 5003];
/// TCP port that sends endlessly.
pub const DOWNLOAD_PORT: u16 = 5100;
/// TCP port that reads and discards endlessly.
pub const UPLOAD_PORT: u16 = 5101;
/// TCP port that returns the source of an echo request by its nonce: a line in, a line out.
pub const ASK_PORT: u16 = 5102;
/// Most simultaneous connections; further ones are closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// Echo requests that are remembered; older ones are forgotten first.
const ECHOES_MAX: usize = 4096;
/// Connections whose source is remembered; older ones are forgotten first.
const ACCEPTED_MAX: usize = 65536;
/// Poll interval of a thread's stop flag, milliseconds.
const POLL_MS: u16 = 20;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: Stop,
    connections: Mutex<HashMap<u64, TcpStream>>,
    echoes: Mutex<VecDeque<(u64, IpAddr)>>,
    accepted: Mutex<VecDeque<(u16, IpAddr)>>,
}

impl Server {
    /// Starts a server in a host or pod, on all its addresses.
    ///
    /// # Errors
    /// The place cannot be entered, or a port is taken.
    pub fn start(place: &Place) -> Result<Self, LabError> {
        place.run(Self::start_here)?
    }

    /// Starts a server in the network namespace of the calling thread.
    ///
    /// # Errors
    /// A port is taken, or raw sockets are not allowed.
    pub fn start_here() -> Result<Self, LabError> {
        let shared = Arc::new(Shared::default());
        let mut listeners = Vec::new();
        for port in ECHO_PORTS
            .into_iter()
            .chain([DOWNLOAD_PORT, UPLOAD_PORT, ASK_PORT])
        {
            // IPv6 sockets of Linux also accept IPv4 connections.
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
            let listener = listener.map_err(io(format!("listening on TCP port {port}")))?;
            listener
                .set_nonblocking(true)
                .map_err(io("setting up a listener"))?;
            listeners.push((port, listener));
        }
        let udp = udp_sockets()?;
        let icmp = [
            (Domain::IPV4, Protocol::ICMPV4),
            (Domain::IPV6, Protocol::ICMPV6),
        ]
        .into_iter()
        .map(|(domain, protocol)| {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            Ok(UdpSocket::from(socket))
        })
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(io("opening a raw ICMP socket"))?;
        // Threads inherit the network namespace.
        let threads = vec![
            spawn(&shared, move |shared| accept(shared, &listeners)),
            spawn(&shared, move |shared| answer_udp(shared, &udp)),
            spawn(&shared, move |shared| listen_icmp(shared, &icmp)),
        ];
        Ok(Self { shared, threads })
    }

    /// Source address of the echo request with this nonce, if the server saw it.
    pub fn echo_source(&self, nonce: u64) -> Option<IpAddr> {
        self.shared.echo_source(nonce)
    }

    /// The source address of every TCP connection to this port so far, in their order.
    pub fn accepted(&self, port: u16) -> Vec<IpAddr> {
        let accepted = lock(&self.shared.accepted);
        let sources = accepted.iter().filter(|(to, _)| *to == port);
        sources.map(|(_, source)| *source).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.set();
        for stream in lock(&self.shared.connections).values() {
            // Wakes its thread; fails if the connection is broken already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the lab's server panicked");
            }
        }
    }
}

impl Shared {
    fn remember(&self, port: u16, source: IpAddr) {
        let mut accepted = lock(&self.accepted);
        if accepted.len() >= ACCEPTED_MAX {
            accepted.pop_front();
        }
        accepted.push_back((port, source));
    }

    fn echo_source(&self, nonce: u64) -> Option<IpAddr> {
        lock(&self.echoes)
            .iter()
            .rev()
            .find(|(seen, _)| *seen == nonce)
            .map(|(_, ip)| *ip)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(shared: &Arc<Shared>, work: impl FnOnce(&Arc<Shared>) + Send + 'static) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || work(&shared))
}

/// One socket per address: a wildcard socket would answer from the address that the kernel prefers.
fn udp_sockets() -> Result<Vec<UdpSocket>, LabError> {
    let interfaces =
        nix::ifaddrs::getifaddrs().map_err(|errno| io("listing addresses")(errno.into()))?;
    let mut sockets = Vec::new();
    for address in interfaces.filter_map(|interface| interface.address) {
        let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => v6.ip().into(),
            _ => continue,
        };
        for port in ECHO_PORTS {
            let socket = UdpSocket::bind((ip, port));
            let socket = socket.map_err(io(format!("binding UDP {ip} port {port}")))?;
            socket
                .set_nonblocking(true)
                .map_err(io("setting up a socket"))?;
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

/// Waits shortly for any of the sockets; returns which are readable.
fn readable<S: AsFd>(sockets: &[S]) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    // An interrupted wait only ends sooner.
    let _ = poll(&mut fds, PollTimeout::from(POLL_MS));
    fds.iter().map(|fd| fd.any().unwrap_or_default()).collect()
}

fn accept(shared: &Arc<Shared>, listeners: &[(u16, TcpListener)]) {
    let sockets: Vec<&TcpListener> = listeners.iter().map(|(_, listener)| listener).collect();
    let mut next = 0;
    while !shared.stop.is_set() {
        let ready = readable(&sockets);
        for ((port, listener), _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            while let Ok((stream, peer)) = listener.accept() {
                next += 1;
                shared.remember(*port, peer.ip().to_canonical());
                let Ok(clone) = stream.try_clone() else {
                    continue;
                };
                let mut connections = lock(&shared.connections);
                if connections.len() >= CONNECTIONS_MAX {
                    continue;
                }
                connections.insert(next, clone);
                let (shared, port, id) = (Arc::clone(shared), *port, next);
                std::thread::spawn(move || {
                    // The client reports a broken connection.
                    let _ = serve(&shared, port, stream, peer);
                    lock(&shared.connections).remove(&id);
                });
            }
        }
    }
}

fn serve(
    shared: &Shared,
    port: u16,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    // So that the connection of a client that vanished does not stay forever.
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(Duration::from_secs(120)))?;
    let mut buffer = vec![0; 65536];
    match port {
        DOWNLOAD_PORT => loop {
            stream.write_all(&buffer)?;
        },
        UPLOAD_PORT => while stream.read(&mut buffer)? > 0 {},
        ASK_PORT => {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            let nonce = u64::from_str_radix(line.trim(), 16).ok();
            let source = nonce.and_then(|nonce| shared.echo_source(nonce));
            let answer = source.map_or("none".to_owned(), |source| source.to_string());
            writeln!(stream, "{answer}")?;
        }
        _ => {
            let seen = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            writeln!(stream, "{seen}")?;
            loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                stream.write_all(&buffer[..length])?;
            }
        }
    }
    Ok(())
}

fn answer_udp(shared: &Arc<Shared>, sockets: &[UdpSocket]) {
    let mut buffer = vec![0; 65536];
    while !shared.stop.is_set() {
        let ready = readable(sockets);
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            // An error belongs to an earlier answer (port unreachable); the next receive works.
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let mut answer = format!("{peer}\n").into_bytes();
                answer.extend(&buffer[..length]);
                // The client reports a lost answer.
                let _ = socket.send_to(&answer, peer);
            }
        }
    }
}

fn listen_icmp(shared: &Arc<Shared>, sockets: &[UdpSocket]) {
    let mut buffer = vec![0; 65536];
    while !shared.stop.is_set() {
        let ready = readable(sockets);
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let packet = &buffer[..length];
                let nonce = super::ping::nonce_of_request(packet, peer.is_ipv4());
                if let Some(nonce) = nonce {
                    let mut echoes = lock(&shared.echoes);
                    echoes.push_back((nonce, peer.ip()));
                    if echoes.len() > ECHOES_MAX {
                        echoes.pop_front();
                    }
                }
            }
        }
    }
}
