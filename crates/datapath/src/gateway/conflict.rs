//! Asking a segment who has an address, and hearing who says that it has one (RFC 5227, RFC 4861, RFC 4862).

use crate::presence::l2::AnnounceError;
use crate::presence::l2::frames::{BROADCAST, ETHERTYPE_ARP, ETHERTYPE_IPV6};
use crate::presence::l2::frames::{arp_frame, icmpv6_frame, send, solicited_node};
use libc::{AF_PACKET, POLLIN, SO_ATTACH_FILTER, SOL_SOCKET, c_void, sock_filter, sock_fprog};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, Read};
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Where ICMPv6 begins in a frame, behind Ethernet and IPv6.
const ICMPV6: usize = 54;
/// Longest frame that is looked at, bytes: ARP, or ND with a few options.
const FRAME_BYTES: usize = 256;

/// Somebody says that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The hardware address that belongs to it by what was said.
    pub mac: [u8; 6],
}

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
    send(&socket, ifindex, &probe_frame(mac, address)).map_err(error)
}

/// The frame of such a question.
pub fn probe_frame(mac: [u8; 6], address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let nobody = (mac, Ipv4Addr::UNSPECIFIED);
            arp_frame(BROADCAST, 1, nobody, ([0; 6], address))
        }
        IpAddr::V6(address) => {
            let group = solicited_node(address);
            let [.., a, b, c, d] = group.octets();
            let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            message.extend(address.octets());
            let to = [0x33, 0x33, a, b, c, d];
            icmpv6_frame((to, mac), Ipv6Addr::UNSPECIFIED, group, message)
        }
    }
}

/// What a frame says, if it says that somebody has an address: ARP with a sender, a neighbour advertisement, a neighbour
/// solicitation with a source. Questions from nobody say nothing.
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    match ethertype {
        ETHERTYPE_ARP => arp_claim(frame),
        ETHERTYPE_IPV6 => nd_claim(frame),
        _ => None,
    }
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

fn arp_claim(frame: &[u8]) -> Option<Claim> {
    // Ethernet and IPv4, a request or a reply.
    let header: [u8; 8] = bytes(frame, 14)?;
    let sender = Ipv4Addr::from(bytes::<4>(frame, 28)?);
    let is_right = header[..7] == [0, 1, 8, 0, 6, 4, 0] && matches!(header[7], 1 | 2);
    (is_right && !sender.is_unspecified()).then_some(Claim {
        address: sender.into(),
        mac: bytes(frame, 22)?,
    })
}

fn nd_claim(frame: &[u8]) -> Option<Claim> {
    let [next_header, hop_limit] = bytes(frame, 20)?;
    let [kind, code] = bytes(frame, ICMPV6)?;
    // RFC 4861 sections 7.1.1 and 7.1.2: whoever is beyond a router is not heard.
    if (next_header, hop_limit, code) != (58, 255, 0) {
        return None;
    }
    let source = Ipv6Addr::from(bytes::<16>(frame, 22)?);
    let (address, option) = match kind {
        ADVERTISEMENT => (Ipv6Addr::from(bytes::<16>(frame, ICMPV6 + 8)?), 2),
        SOLICITATION if !source.is_unspecified() => (source, 1),
        _ => return None,
    };
    let mac = link_address(frame, option).or_else(|| bytes(frame, 6))?;
    Some(Claim {
        address: address.into(),
        mac,
    })
}

/// The link-layer address option of this type (RFC 4861 section 4.6.1).
fn link_address(frame: &[u8], wanted: u8) -> Option<[u8; 6]> {
    let mut at = ICMPV6 + 24;
    loop {
        let [kind, units] = bytes(frame, at)?;
        if (kind, units) == (wanted, 1) {
            return bytes(frame, at + 2);
        }
        // An option without length would never end (RFC 4861 section 4.6).
        at += usize::from(units)
            .checked_mul(8)
            .filter(|bytes| *bytes > 0)?;
    }
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
        let arp = packets(ifindex, ETHERTYPE_ARP, &[])?;
        let nd = packets(ifindex, ETHERTYPE_IPV6, &ND_ONLY)?;
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
        let mut frame = [0; FRAME_BYTES];
        for socket in &mut self.sockets {
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => claims.extend(claim(&frame[..length])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(claims)
    }
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Classic BPF (`linux/filter.h`): IPv6 with ICMPv6 right behind it, of type 135 or 136; of that the first bytes.
const ND_ONLY: [sock_filter; 7] = [
    instruction(0x30, 0, 0, 20),
    instruction(0x15, 0, 3, 58),
    instruction(0x30, 0, 0, ICMPV6 as u32),
    instruction(0x35, 0, 1, SOLICITATION as u32),
    instruction(0x25, 0, 1, ADVERTISEMENT as u32),
    instruction(0x06, 0, 0, 0),
    instruction(0x06, 0, 0, FRAME_BYTES as u32),
];

/// A socket that gets frames of one protocol from one device.
fn packets(ifindex: u32, ethertype: u16, filter: &[sock_filter]) -> io::Result<Socket> {
    // Without a protocol nothing arrives before the filter is there.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    if !filter.is_empty() {
        let program = sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies the program, which lives through the call, and writes nothing.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                SOL_SOCKET,
                SO_ATTACH_FILTER,
                (&raw const program).cast::<c_void>(),
                size_of_val(&program) as u32,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: sockaddr_ll consists of integers; all zero is a value of it.
    let mut at: libc::sockaddr_ll = unsafe { zeroed() };
    at.sll_family = AF_PACKET as u16;
    at.sll_protocol = ethertype.to_be();
    at.sll_ifindex = ifindex as i32;
    // SAFETY: the address is valid for the length given, which the kernel only reads.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const at).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::l2::frames::announcement;
    use etherparse::{SlicedPacket, TransportSlice};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_announced_is_a_claim_and_a_probe_is_none() {
        for address in [ip("192.0.2.7"), ip("2001:db8::7")] {
            for frame in announcement(MAC, address) {
                assert_eq!(claim(&frame), Some(Claim { address, mac: MAC }));
                for end in 0..frame.len().min(ICMPV6) {
                    // What ends early says nothing, and hurts nobody.
                    assert!(end > 31 || claim(&frame[..end]).is_none());
                }
            }
            assert_eq!(claim(&probe_frame(MAC, address)), None);
        }
    }

    #[test]
    fn an_arp_probe_names_its_target_and_no_sender() {
        let frame = probe_frame(MAC, ip("192.0.2.7"));
        assert_eq!(frame[..14], [&[0xff; 6][..], &MAC, &[0x08, 0x06]].concat());
        assert_eq!(frame[20..28], [&[0, 1][..], &MAC].concat());
        assert_eq!(frame[28..38], [0; 10]);
        assert_eq!(frame[38..42], [192, 0, 2, 7]);
    }

    #[test]
    fn a_solicitation_from_nobody_goes_to_the_group_with_a_right_checksum() {
        let address: Ipv6Addr = "2001:db8::1:2233:4455".parse().unwrap();
        let frame = probe_frame(MAC, address.into());
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x33, 0x44, 0x55]);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
            panic!("no ICMPv6")
        };
        let group = solicited_node(address);
        assert!(icmp.is_checksum_valid([0; 16], group.octets()));
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (135, 0));
        // RFC 4861 section 4.3: no source link-layer address where the source is unspecified.
        assert_eq!(icmp.payload(), address.octets());
        assert_eq!(frame[21], 255);
    }

    #[test]
    fn options_are_searched_and_without_them_the_frame_says_who_it_is() {
        let address = ip("2001:db8::7");
        let mut frame = announcement(MAC, address).remove(0);
        let option = frame.split_off(ICMPV6 + 24);
        let sender = [2, 0, 0, 0, 0, 9];
        frame[6..12].copy_from_slice(&sender);
        assert_eq!(
            claim(&frame),
            Some(Claim {
                address,
                mac: sender
            })
        );
        let nonce = [14, 1, 0, 0, 0, 0, 0, 0];
        let with_both = [&frame[..], &nonce, &option].concat();
        assert_eq!(claim(&with_both), Some(Claim { address, mac: MAC }));
        let endless = [&frame[..], &[14, 0, 0, 0, 0, 0, 0, 0], &option].concat();
        assert_eq!(
            claim(&endless),
            Some(Claim {
                address,
                mac: sender
            })
        );
    }

    #[test]
    fn what_came_by_a_router_is_not_heard() {
        let mut frame = announcement(MAC, ip("2001:db8::7")).remove(0);
        frame[21] = 254;
        assert_eq!(claim(&frame), None);
    }
}
