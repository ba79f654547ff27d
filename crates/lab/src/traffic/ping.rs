//! ICMP and ICMPv6 echo by raw sockets.

use crate::LabError;
use crate::namespace::Place;
use crate::slowness::relaxed;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Size of the ICMP header of echo and of all errors (RFC 792, RFC 4443).
const HEADER_BYTES: usize = 8;
/// Smallest payload, bytes: the nonce that identifies our echoes.
pub const PAYLOAD_BYTES_MIN: usize = 8;

/// Interval after which an unanswered request is repeated, as ping(8) does. The kernel's own ICMP messages may be lost:
/// each CPU has one socket for those of all namespaces, and where that cannot send, it only counts (`Icmp6OutErrors`).
const AGAIN: Duration = Duration::from_secs(1);

/// Options of an echo request.
#[derive(Debug, Clone)]
pub struct PingOptions {
    /// Bytes after the ICMP header; at least [`PAYLOAD_BYTES_MIN`] are sent.
    pub payload_bytes: usize,
    /// Longest wait for the answer.
    pub timeout: Duration,
    /// Time to live or hop limit, if not the default.
    pub ttl: Option<u32>,
}

impl Default for PingOptions {
    fn default() -> Self {
        Self {
            payload_bytes: 56,
            timeout: Duration::from_secs(1),
            ttl: None,
        }
    }
}

/// An answered echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Time from the last request to the answer.
    pub rtt: Duration,
    /// Nonce in the request's first eight payload bytes; the server remembers it.
    pub nonce: u64,
}

/// Error of an echo request.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// No answer arrived.
    #[error("no answer from {0} within {1:?}")]
    Timeout(IpAddr, Duration),
    /// An ICMP error about the request arrived.
    #[error("{from} answered with ICMP type {kind} code {code} (rest of header {rest})")]
    Icmp {
        /// Its sender.
        from: IpAddr,
        /// ICMP or ICMPv6 type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum: the MTU of "too big" (ICMPv4: its low 16 bits).
        rest: u32,
    },
    /// The system refused to send, for instance because no route exists or the local MTU is known to be too small.
    #[error("sending to {0}")]
    Send(IpAddr, #[source] std::io::Error),
    /// No socket.
    #[error("opening a raw ICMP socket")]
    Socket(#[source] std::io::Error),
    /// The place cannot be entered.
    #[error(transparent)]
    Lab(#[from] LabError),
}

/// Sends an echo request from `place`, and again every second, and waits for the first answer.
///
/// # Errors
/// No answer in time, an ICMP error instead of it, or nothing could be sent.
pub fn ping(place: &Place, target: IpAddr, options: &PingOptions) -> Result<Echo, PingError> {
    place.run(|| ping_here(target, options))?
}

/// As [`ping`], from the network namespace of the calling thread.
///
/// # Errors
/// As [`ping`].
pub fn ping_here(target: IpAddr, options: &PingOptions) -> Result<Echo, PingError> {
    // ICMP ids are shared by all pings of a namespace, so they must differ within the process, and mostly between
    // processes.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    let id = (std::process::id() as u16)
        .wrapping_mul(251)
        .wrapping_add(turn);
    let nonce = u64::from(std::process::id()) << 32 | u64::from(turn) << 16 | u64::from(id);
    let socket = open(target, options).map_err(PingError::Socket)?;
    let request = request(target.is_ipv4(), id, nonce, options.payload_bytes);
    let ask = || {
        let sent = socket.send_to(&request, SocketAddr::new(target, 0));
        sent.map_err(|error| PingError::Send(target, error))
    };
    let timeout = relaxed(options.timeout);
    let started = Instant::now();
    let mut asked = started;
    ask()?;
    let mut buffer = vec![0; 65536];
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(PingError::Timeout(target, timeout));
        }
        if asked.elapsed() >= AGAIN {
            asked = Instant::now();
            ask()?;
        }
        let turn = AGAIN.saturating_sub(asked.elapsed()).min(left);
        socket
            .set_read_timeout(Some(turn.max(Duration::from_millis(1))))
            .map_err(PingError::Socket)?;
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let icmp = icmp_part(&buffer[..length], target.is_ipv4());
        match about_us(icmp, target.is_ipv4(), id, nonce) {
            Some(About::Reply) => {
                return Ok(Echo {
                    rtt: asked.elapsed(),
                    nonce,
                });
            }
            Some(About::Error { kind, code, rest }) => {
                return Err(PingError::Icmp {
                    from: from.ip(),
                    kind,
                    code,
                    rest,
                });
            }
            None => {}
        }
    }
}

fn open(target: IpAddr, options: &PingOptions) -> std::io::Result<UdpSocket> {
    let socket = match target {
        IpAddr::V4(_) => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?,
        IpAddr::V6(_) => Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?,
    };
    match (target, options.ttl) {
        (IpAddr::V4(_), Some(ttl)) => socket.set_ttl_v4(ttl)?,
        (IpAddr::V6(_), Some(ttl)) => socket.set_unicast_hops_v6(ttl)?,
        (_, None) => {}
    }
    // Only send_to, recv_from and timeouts are used, which are the same for all datagram-like sockets.
    Ok(UdpSocket::from(socket))
}

fn request(is_v4: bool, id: u16, nonce: u64, payload_bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet[0] = if is_v4 { 8 } else { 128 };
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[7] = 1;
    packet.extend(nonce.to_be_bytes());
    packet.resize(HEADER_BYTES + payload_bytes.max(PAYLOAD_BYTES_MIN), b'e');
    if is_v4 {
        // For ICMPv6 the kernel computes the checksum, because it covers addresses that are not known yet (RFC 3542
        // 3.1).
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let sum: u32 = words.sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum >> 16) + (sum & 0xffff)) as u16
}

/// Raw IPv4 sockets deliver the IP header, raw IPv6 sockets do not.
fn icmp_part(packet: &[u8], is_v4: bool) -> &[u8] {
    let header = if is_v4 {
        packet
            .first()
            .map_or(0, |byte| usize::from(byte & 0x0f) * 4)
    } else {
        0
    };
    packet.get(header..).unwrap_or_default()
}

/// Nonce of an echo request as a raw socket delivers it; `None` for other packets.
pub(crate) fn nonce_of_request(packet: &[u8], is_v4: bool) -> Option<u64> {
    let icmp = icmp_part(packet, is_v4);
    let is_request = *icmp.first()? == if is_v4 { 8 } else { 128 };
    let nonce = icmp.get(HEADER_BYTES..HEADER_BYTES + PAYLOAD_BYTES_MIN)?;
    is_request.then_some(u64::from_be_bytes(nonce.try_into().ok()?))
}

enum About {
    Reply,
    Error { kind: u8, code: u8, rest: u32 },
}

/// Whether an ICMP message answers our request or reports an error about it.
fn about_us(icmp: &[u8], is_v4: bool, id: u16, nonce: u64) -> Option<About> {
    let (&kind, &code) = (icmp.first()?, icmp.get(1)?);
    let rest = u32::from_be_bytes(icmp.get(4..8)?.try_into().ok()?);
    let reply = if is_v4 { 0 } else { 129 };
    if kind == reply {
        let echoed = u64::from_be_bytes(icmp.get(8..16)?.try_into().ok()?);
        return ((rest >> 16) as u16 == id && echoed == nonce).then_some(About::Reply);
    }
    // Errors embed the packet that caused them: destination unreachable, time exceeded, parameter problem, too big.
    let is_error = if is_v4 {
        matches!(kind, 3 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    };
    let embedded = icmp.get(HEADER_BYTES..).filter(|_| is_error)?;
    let header = if is_v4 {
        usize::from(embedded.first()? & 0x0f) * 4
    } else {
        40
    };
    let request = embedded.get(header..)?;
    let asked = u16::from_be_bytes(request.get(4..6)?.try_into().ok()?);
    let is_request = *request.first()? == if is_v4 { 8 } else { 128 };
    (is_request && asked == id).then_some(About::Error { kind, code, rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_over_both_families() {
        for target in ["127.0.0.1", "::1"] {
            let echo = ping_here(target.parse().unwrap(), &PingOptions::default()).unwrap();
            assert!(echo.rtt < Duration::from_secs(1));
        }
    }

    #[test]
    fn the_checksum_of_a_checksummed_packet_is_zero() {
        let packet = request(true, 7, 99, 57);
        assert_eq!(checksum(&packet), 0);
    }
}
