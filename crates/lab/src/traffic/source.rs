//! Asks the lab's server for the source address of a place.

use crate::namespace::Place;
use crate::slowness::relaxed;
use crate::traffic::ping::{PingError, PingOptions, ping_here};
use crate::traffic::server::ASK_PORT;
use crate::traffic::{TIMEOUT, TrafficError};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Interval after which requests by UDP and ping are repeated, as TCP does: these functions ask for the source, and
/// [`crate::traffic::UdpProbe`] for losses.
const RESEND: Duration = Duration::from_secs(1);

/// Source address and port that the server at `target` sees of a TCP connection from `place`.
///
/// # Errors
/// No connection or no answer within [`TIMEOUT`].
pub fn tcp_source(place: &Place, target: SocketAddr) -> Result<SocketAddr, TrafficError> {
    tcp_source_within(place, target, TIMEOUT)
}

/// As [`tcp_source`] with another deadline.
///
/// # Errors
/// As [`tcp_source`].
pub fn tcp_source_within(
    place: &Place,
    target: SocketAddr,
    timeout: Duration,
) -> Result<SocketAddr, TrafficError> {
    place.run(|| {
        let stream = connect(target, timeout)?;
        let seen = address_in(target, &read_line(&stream, target)?)?;
        finish(stream);
        Ok(seen)
    })?
}

/// Source address and port that the server at `target` sees of a UDP packet from `place`; the payload must come back.
///
/// # Errors
/// No answer within [`TIMEOUT`], or another payload.
pub fn udp_source(place: &Place, target: SocketAddr) -> Result<SocketAddr, TrafficError> {
    udp_echo(place, target, 32, TIMEOUT)
}

/// As [`udp_source`] with a payload of this many bytes; from about 1400 on it travels in fragments.
///
/// # Errors
/// As [`udp_source`].
pub fn udp_echo(
    place: &Place,
    target: SocketAddr,
    payload_bytes: usize,
    timeout: Duration,
) -> Result<SocketAddr, TrafficError> {
    place.run(|| {
        let failed = |what| TrafficError::io(what, target);
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).map_err(failed("binding a socket for"))?;
        socket.connect(target).map_err(failed("routing to"))?;
        let payload: Vec<u8> = (0..payload_bytes).map(|n| (n % 251) as u8).collect();
        let mut buffer = vec![0; 65536];
        let deadline = Instant::now() + relaxed(timeout);
        let length = loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .min(RESEND);
            if left.is_zero() {
                return Err(failed("waiting for UDP from")(
                    std::io::ErrorKind::TimedOut.into(),
                ));
            }
            socket.send(&payload).map_err(failed("sending UDP to"))?;
            socket
                .set_read_timeout(Some(left))
                .map_err(failed("setting a deadline for"))?;
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The kernel has learned the path MTU; the next packet observes it.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
                result => break result.map_err(failed("waiting for UDP from"))?,
            }
        };
        let answer = &buffer[..length];
        let end = answer
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(length);
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        if answer.get(end + 1..) != Some(payload.as_slice()) {
            return Err(TrafficError::Answer {
                peer: target,
                answer: head,
            });
        }
        address_in(target, &head)
    })?
}

/// Source address that the server at `target` sees of an echo request from `place`. The server's answer is also fetched
/// from `place`, by TCP.
///
/// # Errors
/// No answer to the echo or to the request within [`TIMEOUT`].
pub fn ping_source(place: &Place, target: IpAddr) -> Result<IpAddr, TrafficError> {
    place.run(|| {
        let options = PingOptions {
            timeout: RESEND,
            ..PingOptions::default()
        };
        let deadline = Instant::now() + relaxed(TIMEOUT);
        let echo = loop {
            match ping_here(target, &options) {
                Err(PingError::Timeout(..)) if Instant::now() < deadline => {}
                result => break result?,
            }
        };
        let peer = SocketAddr::new(target, ASK_PORT);
        let deadline = Instant::now() + relaxed(TIMEOUT);
        loop {
            let mut stream = connect(peer, TIMEOUT)?;
            let asked = writeln!(stream, "{:x}", echo.nonce);
            asked.map_err(TrafficError::io("asking", peer))?;
            let answer = read_line(&stream, peer)?;
            finish(stream);
            match answer.as_str() {
                // The kernel answered the echo before the server has read it from its socket.
                "none" if Instant::now() < deadline => {}
                seen => {
                    let seen = seen.parse();
                    return seen.map_err(|_| TrafficError::Answer { peer, answer });
                }
            }
        }
    })?
}

/// Connects from the namespace of the calling thread; reads and writes have the same deadline.
pub(crate) fn connect(target: SocketAddr, timeout: Duration) -> Result<TcpStream, TrafficError> {
    let timeout = relaxed(timeout);
    let stream = TcpStream::connect_timeout(&target, timeout);
    let stream = stream.map_err(TrafficError::io("connecting to", target))?;
    let set = stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .and_then(|()| stream.set_nodelay(true));
    set.map_err(TrafficError::io("setting a deadline for", target))?;
    Ok(stream)
}

/// Ends a connection and waits for the server's end of it, so that no packet of it is under way when a capture begins
/// that would count it. The wait is at most [`RESEND`].
fn finish(mut stream: TcpStream) {
    let ended = stream
        .shutdown(Shutdown::Write)
        .and_then(|()| stream.set_read_timeout(Some(RESEND)));
    let mut rest = [0; 64];
    while ended.is_ok() && stream.read(&mut rest).is_ok_and(|length| length > 0) {}
}

/// One line without its end.
pub(crate) fn read_line(stream: &TcpStream, peer: SocketAddr) -> Result<String, TrafficError> {
    let mut line = String::new();
    let read = BufReader::with_capacity(256, stream).read_line(&mut line);
    match read.map_err(TrafficError::io("waiting for an answer from", peer))? {
        0 => Err(TrafficError::io("waiting for an answer from", peer)(
            std::io::ErrorKind::UnexpectedEof.into(),
        )),
        _ => Ok(line.trim_end().to_owned()),
    }
}

/// The address in the server's answer.
pub(crate) fn address_in(peer: SocketAddr, answer: &str) -> Result<SocketAddr, TrafficError> {
    answer.parse().map_err(|_| TrafficError::Answer {
        peer,
        answer: answer.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A capture once began between the end of a request and its last acknowledgement.
    #[test]
    fn a_question_is_over_when_the_server_has_ended_it_too() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                writeln!(stream, "192.0.2.1:1024").unwrap();
                let mut end = [0; 1];
                assert_eq!(stream.read(&mut end).unwrap(), 0);
                ended.store(true, Ordering::SeqCst);
            });
            let stream = connect(peer, TIMEOUT).unwrap();
            read_line(&stream, peer).unwrap();
            finish(stream);
            assert!(ended.load(Ordering::SeqCst));
        });
    }
}
