//! A packet socket (packet(7)) on one device.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Receive buffer, bytes: several seconds of small packets.
const RECEIVE_BUFFER_BYTES: usize = 128 * 1024 * 1024;

/// A packet socket that receives all packets of one device, in both directions.
#[derive(Debug)]
pub(super) struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens it in the network namespace of the calling thread.
    pub(super) fn open(device: &str) -> Result<Self> {
        Self::with_buffer(device, RECEIVE_BUFFER_BYTES)
    }

    fn with_buffer(device: &str, buffer_bytes: usize) -> Result<Self> {
        let index = nix::net::if_::if_nametoindex(device)?;
        // Protocol zero receives nothing: the socket must not receive from other devices before it is bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &buffer_bytes)?;
        // SAFETY: every field of sockaddr_ll is an integer or an array of integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(index).map_err(Error::other)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer and length describe `address`, which lives until after the call; the kernel only reads.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if result < 0 {
            return Err(Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// Waits until a packet arrives, at most this long.
    pub(super) fn wait(&self, timeout: Duration) -> Result<()> {
        let timeout = PollTimeout::try_from(timeout).map_err(Error::other)?;
        match poll(
            &mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next packet's first bytes, their number, and whether this machine sent it; `None` if none waits.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Option<(usize, bool)>> {
        match recvfrom::<LinkAddr>(self.0.as_raw_fd(), buffer) {
            Ok((length, from)) => {
                let kind = from.map(|from| from.pkttype());
                Ok(Some((length, kind == Some(libc::PACKET_OUTGOING))))
            }
            // ENETDOWN: the device went down; it may come up again, and queued packets are still there.
            Err(nix::Error::EAGAIN | nix::Error::EINTR | nix::Error::ENETDOWN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Packets that did not fit into the buffer since the last call.
    pub(super) fn dropped(&self) -> Result<u32> {
        let mut stats = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the pointers are to `stats` and to its size, and the kernel writes at most that many bytes.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(Error::last_os_error());
        }
        Ok(stats.tp_drops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn packets_that_do_not_fit_are_counted_once() {
        let socket = PacketSocket::with_buffer("lo", 4096).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            udp.send_to(&[0; 1000], udp.local_addr().unwrap()).unwrap();
        }
        let mut received = 0;
        while socket.receive(&mut [0; 64]).unwrap().is_some() {
            received += 1;
        }
        let dropped = socket.dropped().unwrap();
        // Each packet passes the loopback device twice; other tests may use the device at the same time.
        assert!(
            dropped > 0 && dropped + received >= 200,
            "{dropped} dropped, {received} received"
        );
    }
}
