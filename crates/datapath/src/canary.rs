//! Canaries: the pair of devices that they pass, their frames, and the counters along their path.
//!
//! ```text
//!  [egret-canary-in] --frame--> egret-canary: ingress --> prerouting ... postrouting --> egret0 --> gateway, returned
//!  [egret-canary-in] <--frame-- egret-canary: egress <--- postrouting ... prerouting <-- egret0 <-----------'
//! ```
//!
//! Both ends are in the node's own namespace. The agent writes and reads at one end by packet(7); at the other the
//! stack sees frames like those of a pod.

use egret_core::canary::{CanaryCounts, CanaryKind};
use egret_core::numbers::{CANARY_ADDRESS, CANARY_DEVICE, CANARY_PEER, CANARY_PORT, NFT_TABLE};
use egret_kernel::netlink::{Attrs, NetlinkError, NetlinkSocket, Request, flags};
use egret_kernel::nft::{NftError, Nftables};
use egret_kernel::veth::{VethEnd, VethError, VethPair};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nix::libc;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use thiserror::Error;

const PAIR: VethPair = VethPair {
    name: CANARY_DEVICE,
    peer: CANARY_PEER,
    alias: "egret: packets that measure the way of pods' packets come in here",
    address: CANARY_ADDRESS,
    // A MAC address of no node's tunnel: the last number that its form has (`TUNNEL_INDEX_MAX`).
    macs: Some([
        [0x02, b'e', b'g', b'r', 0xff, 0xff],
        [0x06, b'e', b'g', b'r', 0xff, 0xff],
    ]),
};
/// Destination MAC address of answers: no device has it, so that no stack processes them a second time.
const ANSWERS_MAC: [u8; 6] = [0x02, b'e', b'g', b'r', 0xff, 0xfe];
/// Size of the buffer for one frame.
const FRAME_BYTES_MAX: usize = 65_536;

/// Error of sending or counting canaries.
#[derive(Debug, Error)]
pub enum CanaryError {
    /// The pair of devices.
    #[error(transparent)]
    Device(#[from] VethError),
    /// The neighbour entry of the pair.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The counters.
    #[error(transparent)]
    Counters(#[from] NftError),
    /// The packet socket: needs CAP_NET_RAW.
    #[error("the packet socket of {CANARY_PEER}")]
    Socket(#[from] io::Error),
    /// A canary that cannot be built: a path of two families, or larger than a packet may be.
    #[error("a canary from {0} to {1}")]
    Frame(IpAddr, IpAddr),
}

/// One canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Canary {
    /// Kind of the canary.
    pub kind: CanaryKind,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port, or echo id.
    pub port: u16,
}

/// End of the pair at which canaries are sent and received, and the counters.
pub struct CanaryPort {
    netlink: NetlinkSocket,
    counters: Nftables,
    /// Index and MAC address of the canary device; the socket is bound to its peer.
    device: Option<(u32, [u8; 6])>,
    socket: Socket,
}

impl CanaryPort {
    /// Opens the sockets; makes no device yet.
    ///
    /// # Errors
    /// [`CanaryError`].
    pub fn open() -> Result<Self, CanaryError> {
        Ok(CanaryPort {
            netlink: NetlinkSocket::open(libc::NETLINK_ROUTE)?,
            counters: Nftables::open(NFT_TABLE)?,
            device: None,
            socket: packet_socket()?,
        })
    }

    /// Creates or corrects the pair. Returns the index of the device at whose ingress canaries appear.
    ///
    /// # Errors
    /// [`CanaryError`].
    pub fn ensure(&mut self) -> Result<u32, CanaryError> {
        if let Some((index, mac)) = self.device
            && PAIR.is_intact(&mut self.netlink, &VethEnd { index, mac })?
        {
            return Ok(index);
        }
        let end = PAIR.ensure(&mut self.netlink)?;
        let device = Some((end.index, end.mac));
        if self.device != device {
            self.socket = packet_socket()?;
            bind(&self.socket)?;
            self.device = device;
        }
        Ok(end.index)
    }

    /// Adds the neighbour entry for answers to this source, with a MAC address that no stack accepts.
    ///
    /// # Errors
    /// [`CanaryError`].
    pub fn expect_answers(&mut self, source: IpAddr) -> Result<(), CanaryError> {
        const RTM_NEWNEIGH: u16 = 28;
        self.neighbour(RTM_NEWNEIGH, flags::CREATE | flags::REPLACE, source)
    }

    /// Removes the neighbour entry for answers to this source.
    ///
    /// # Errors
    /// [`CanaryError`].
    pub fn expect_no_answers(&mut self, source: IpAddr) -> Result<(), CanaryError> {
        const RTM_DELNEIGH: u16 = 29;
        match self.neighbour(RTM_DELNEIGH, 0, source) {
            Err(CanaryError::Netlink(error)) if error.errno() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    fn neighbour(&mut self, kind: u16, flags: u16, source: IpAddr) -> Result<(), CanaryError> {
        const NDA_DST: u16 = 1;
        const NDA_LLADDR: u16 = 2;
        const NUD_PERMANENT: u16 = 0x80;
        let Some((index, _)) = self.device else {
            return Ok(());
        };
        let (family, address) = match source {
            IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
        };
        // struct ndmsg
        let mut header = vec![family as u8, 0, 0, 0];
        header.extend(index.to_ne_bytes());
        header.extend(NUD_PERMANENT.to_ne_bytes());
        header.extend([0, 0]);
        let body = Attrs::after(&header)
            .bytes(NDA_DST, &address)
            .bytes(NDA_LLADDR, &ANSWERS_MAC)
            .finish();
        Ok(self.netlink.execute(&Request {
            kind,
            flags,
            body,
            what: format!("neighbour {source} of {CANARY_DEVICE}"),
        })?)
    }

    /// Sends one canary. `bytes`: size of the IP packet for [`CanaryKind::FullSize`].
    ///
    /// # Errors
    /// [`CanaryError`].
    pub fn send(&mut self, canary: &Canary, bytes: u32) -> Result<(), CanaryError> {
        let Some((_, mac)) = self.device else {
            return Ok(());
        };
        self.socket.send(&frame(canary, mac, bytes)?)?;
        Ok(())
    }

    /// Resets a TCP canary that was answered, so that connection tracking removes it.
    ///
    /// # Errors
    /// [`CanaryError`].
    pub fn reset(&mut self, canary: &Canary) -> Result<(), CanaryError> {
        let Some((_, mac)) = self.device else {
            return Ok(());
        };
        let (port, sequence) = (canary.port, SEQUENCE + 1);
        let header = ip(canary, mac)?;
        let mut frame = Vec::new();
        let reset = header.tcp(port, CANARY_PORT, sequence, 0).rst();
        reset
            .write(&mut frame, &[])
            .map_err(|_| CanaryError::Frame(canary.source, canary.destination))?;
        self.socket.send(&frame)?;
        Ok(())
    }

    /// The next answer that has arrived, if any. Its port distinguishes a canary from others of the same protocol.
    pub fn receive(&mut self) -> Option<Answer> {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); FRAME_BYTES_MAX];
        loop {
            let length = self.socket.recv(&mut buffer).ok()?;
            let bytes: Vec<u8> = buffer[..length]
                .iter()
                // SAFETY: the kernel has written the first `length` bytes.
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            if let Some(answer) = answer(&bytes) {
                return Some(answer);
            }
        }
    }

    /// Generation of the ruleset, which changes with every change of anybody's nftables; `None` if it cannot be read.
    pub fn ruleset_generation(&mut self) -> Option<u32> {
        self.counters.ruleset_generation().ok()
    }

    /// File descriptor for poll(2).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Counters of the hooks so far.
    ///
    /// # Errors
    /// [`CanaryError`]: there is no ruleset.
    pub fn counts(&mut self) -> Result<CanaryCounts, CanaryError> {
        let counts = self.counters.counts()?;
        Ok(CanaryCounts::new(|name| {
            counts.get(name).map(|count| count.packets)
        }))
    }
}

/// Deletes the pair, if it is ours. Returns whether it was there.
///
/// # Errors
/// [`VethError`].
pub fn remove() -> Result<bool, VethError> {
    let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
    PAIR.delete(&mut socket)
}

/// An answer to a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Destination of the canary.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The canary's source port, or echo id.
    pub port: u16,
}

/// Initial sequence number, the same for all: only the path is tested, not the connection.
const SEQUENCE: u32 = 0x6567_7265;

fn packet_socket() -> io::Result<Socket> {
    // Without a protocol until it is bound, so that no frame of other devices arrives.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind(socket: &Socket) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(CANARY_PEER)?;
    // SAFETY: all zeros is a value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is valid and of this length.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast::<libc::sockaddr>(),
            length,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ip(
    canary: &Canary,
    mac: [u8; 6],
) -> Result<etherparse::PacketBuilderStep<etherparse::IpHeaders>, CanaryError> {
    const HOPS: u8 = 64;
    let ethernet = PacketBuilder::ethernet2(ANSWERS_MAC, mac);
    match (canary.source, canary.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Ok(ethernet.ipv4(source.octets(), destination.octets(), HOPS))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Ok(ethernet.ipv6(source.octets(), destination.octets(), HOPS))
        }
        (source, destination) => Err(CanaryError::Frame(source, destination)),
    }
}

fn frame(canary: &Canary, mac: [u8; 6], bytes: u32) -> Result<Vec<u8>, CanaryError> {
    const WINDOW: u16 = 64_240;
    const PAYLOAD: &[u8] = b"egret canary";
    let headers = if canary.source.is_ipv4() { 28 } else { 48 };
    let (header, port) = (ip(canary, mac)?, canary.port);
    let mut frame = Vec::new();
    let written = match canary.kind {
        CanaryKind::Tcp => header
            .tcp(port, CANARY_PORT, SEQUENCE, WINDOW)
            .syn()
            .write(&mut frame, &[]),
        CanaryKind::Udp => header.udp(port, CANARY_PORT).write(&mut frame, PAYLOAD),
        CanaryKind::FullSize => {
            let payload = vec![0x65; (bytes as usize).saturating_sub(headers)];
            header.udp(port, CANARY_PORT).write(&mut frame, &payload)
        }
        CanaryKind::Echo if canary.source.is_ipv4() => header
            .icmpv4_echo_request(port, 1)
            .write(&mut frame, PAYLOAD),
        CanaryKind::Echo => header
            .icmpv6_echo_request(port, 1)
            .write(&mut frame, PAYLOAD),
    };
    written.map_err(|_| CanaryError::Frame(canary.source, canary.destination))?;
    Ok(frame)
}

fn answer(frame: &[u8]) -> Option<Answer> {
    if frame.get(..6)? != ANSWERS_MAC {
        return None;
    }
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let destination: IpAddr = match packet.net? {
        NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
        _ => return None,
    };
    let (protocol, port) = match packet.transport? {
        TransportSlice::Tcp(tcp) if tcp.syn() && tcp.ack() => (6, tcp.destination_port()),
        TransportSlice::Udp(udp) => (17, udp.destination_port()),
        TransportSlice::Icmpv4(icmp) if icmp.type_u8() == 0 => (1, echo_id(icmp.bytes5to8())),
        TransportSlice::Icmpv6(icmp) if icmp.type_u8() == 129 => (58, echo_id(icmp.bytes5to8())),
        _ => return None,
    };
    Some(Answer {
        destination,
        protocol,
        port,
    })
}

fn echo_id(bytes: [u8; 4]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

impl Answer {
    /// Whether it answers this canary.
    pub fn is_to(&self, canary: &Canary) -> bool {
        let protocol = match (canary.kind, canary.source) {
            (CanaryKind::Tcp, _) => 6,
            (CanaryKind::Udp | CanaryKind::FullSize, _) => 17,
            (CanaryKind::Echo, IpAddr::V4(_)) => 1,
            (CanaryKind::Echo, IpAddr::V6(_)) => 58,
        };
        (self.destination, self.protocol, self.port) == (canary.destination, protocol, canary.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(kind: CanaryKind, v4: bool) -> Canary {
        let text = |four: &str, six: &str| if v4 { four } else { six }.parse().unwrap();
        Canary {
            kind,
            source: text("10.244.1.0", "fd00:244:1::ffff"),
            destination: text("198.18.79.1", "100::79:0:1"),
            port: 20_001,
        }
    }

    #[test]
    fn a_frame_is_whole_and_of_the_size_asked_for() {
        for v4 in [true, false] {
            for kind in CanaryKind::ALL {
                let bytes = frame(&canary(kind, v4), [2, 0, 0, 0, 0, 1], 1450).unwrap();
                let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
                assert!(packet.transport.is_some(), "{kind} {v4}");
                if kind == CanaryKind::FullSize {
                    assert_eq!(bytes.len(), 14 + 1450);
                }
                assert!(answer(&bytes).is_none(), "it is no answer to itself");
            }
        }
    }

    #[test]
    fn an_answer_is_told_by_address_protocol_and_port() {
        let asked = canary(CanaryKind::Udp, true);
        let back = Canary {
            source: asked.destination,
            destination: asked.source,
            ..asked
        };
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], ANSWERS_MAC)
            .ipv4([198, 18, 79, 1], [10, 244, 1, 0], 63)
            .udp(CANARY_PORT, asked.port)
            .write(&mut bytes, b"x")
            .unwrap();
        let found = answer(&bytes).unwrap();
        assert!(found.is_to(&asked));
        assert!(!found.is_to(&Canary { port: 1, ..asked }));
        assert!(!found.is_to(&canary(CanaryKind::Tcp, true)));
        assert!(!found.is_to(&back));
    }
}
