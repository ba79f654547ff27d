//! Asking a segment who has an address, and hearing who says that it has one (RFC 5227, RFC 4861, RFC 4862).

use super::AnnounceError;
pub use super::claims::Claim;
use super::claims::claim;
use super::frames::{ETHERTYPE_ARP, ETHERTYPE_IPV6, question, send};
use super::socket::{self, next_frame, solicitations_and_advertisements};
use nix::libc::{self, POLLIN};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Asks who has an address without saying that anybody here does: an ARP probe (RFC 5227 section 2.1.1), or a neighbour
/// solicitation from nobody (RFC 4862 section 5.4.2). Whoever has it answers to all.
///
/// # Errors
/// [`AnnounceError::Send`]: needs CAP_NET_RAW and a device that is up.
pub fn probe(ifindex: u32, mac: [u8; 6], address: IpAddr) -> Result<(), AnnounceError> {
    let error = |source| AnnounceError::Send {
        address,
        ifindex,
        source,
    };
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(error)?;
    send(&socket, ifindex, &question(mac, None, address, None)).map_err(error)
}

/// Hears ARP and neighbour discovery on one device, without what this node itself sends.
///
/// Sockets of one protocol each see only what is left after programs at the device's ingress have taken theirs: a gateway's
/// traffic never comes by here.
#[derive(Debug)]
pub struct Listener {
    sockets: [Socket; 2],
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel's: needs CAP_NET_RAW and the device.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        let arp = socket::open(ifindex, ETHERTYPE_ARP, &[])?;
        let filter = solicitations_and_advertisements();
        let nd = socket::open(ifindex, ETHERTYPE_IPV6, &filter)?;
        Ok(Self { sockets: [arp, nd] })
    }

    /// Waits for something to hear, at most so long, and says what there is.
    ///
    /// # Errors
    /// The kernel's, for example when the device goes away or down.
    pub fn hear(&mut self, timeout: Duration) -> io::Result<Vec<Claim>> {
        let of = |socket: &Socket| libc::pollfd {
            fd: socket.as_raw_fd(),
            events: POLLIN,
            revents: 0,
        };
        let mut wanted = [of(&self.sockets[0]), of(&self.sockets[1])];
        let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the array lives through the call and has the length given.
        let ready = unsafe { libc::poll(wanted.as_mut_ptr(), 2, milliseconds) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                ErrorKind::Interrupted => Ok(Vec::new()),
                _ => Err(error),
            };
        }
        let mut claims = Vec::new();
        for socket in &self.sockets {
            while let Some(frame) = next_frame(socket)? {
                claims.extend(claim(&frame));
            }
        }
        Ok(claims)
    }
}
