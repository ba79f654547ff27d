//! Detection of address conflicts on a segment: probes, and claims of others (RFC 5227, RFC 4861, RFC 4862).

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

/// Probes for the owner of an address without claiming it: an ARP probe (RFC 5227 section 2.1.1), or a neighbour
/// solicitation with an unspecified source (RFC 4862 section 5.4.2). An owner answers to all nodes.
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

/// Listens to ARP and neighbour discovery on one device, without frames of this node itself.
///
/// The sockets, one per protocol, see only frames that programs at the device's ingress have left: a gateway's traffic
/// never arrives here.
#[derive(Debug)]
pub struct Listener {
    sockets: [Socket; 2],
}

impl Listener {
    /// Opens the sockets.
    ///
    /// # Errors
    /// The kernel's error: needs CAP_NET_RAW and the device.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        let arp = socket::open(ifindex, ETHERTYPE_ARP, &[])?;
        let filter = solicitations_and_advertisements();
        let nd = socket::open(ifindex, ETHERTYPE_IPV6, &filter)?;
        Ok(Self { sockets: [arp, nd] })
    }

    /// Waits for claims, at most `timeout`, and returns them.
    ///
    /// # Errors
    /// The kernel's error, for example when the device is removed or goes down.
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
