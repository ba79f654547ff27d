//! Asks, by ARP and ND, whether somebody on the external network has an address, and hears who says so.
//!
//! The kernel's own neighbour table is neither read nor changed: it notices a silent neighbour only after half a minute, and
//! egress addresses are in it on no gateway.

use crate::presence::l2::frames::{ETHERTYPE_ARP, ETHERTYPE_IPV6};
use crate::presence::l2::frames::{checksum, ethernet, send, solicited_node};
use nix::libc;
use socket2::{Domain, SockFilter, Socket, Type};
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const BROADCAST: [u8; 6] = [0xff; 6];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;
/// Ethernet and ARP for IPv4 (RFC 826).
const ARP_BYTES: usize = 14 + 28;
/// Ethernet, IPv6 and a neighbour advertisement without options (RFC 4861 section 4.4).
const ADVERTISEMENT_BYTES: usize = 14 + 40 + 24;
/// Messages read at once.
const BURST_MAX: usize = 256;

/// The device that questions leave by, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index; an Ethernet device.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// An IPv6 address of it, link-local where there is one.
    pub v6: Option<Ipv6Addr>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A neighbour, as the kernel would ask: at this MAC address where it is known (RFC 1122 section 2.3.2.1).
    IsThere(Option<[u8; 6]>),
    /// Whoever has the address, without claiming any (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2): nobody learns
    /// anything from such a question.
    HasIt,
}

/// Somebody has said that an address is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The MAC address that goes with it.
    pub mac: [u8; 6],
    /// It was said to this device alone, in answer to a question: both directions work.
    pub is_answer: bool,
}

/// Sockets on one device.
#[derive(Debug)]
pub struct Asker {
    device: Device,
    arp: Socket,
    nd: Socket,
}

impl Asker {
    /// Opens them. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(device: Device) -> io::Result<Self> {
        Ok(Self {
            arp: open(device.ifindex, ETHERTYPE_ARP, &arp_filter())?,
            nd: open(device.ifindex, ETHERTYPE_IPV6, &nd_filter())?,
            device,
        })
    }

    /// The device that it was opened for.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sends one question.
    ///
    /// # Errors
    /// The kernel's: the device is down or gone.
    pub fn ask(&self, address: IpAddr, who: Who) -> io::Result<()> {
        let frame = question(&self.device, address, who);
        send(&self.arp, self.device.ifindex, &frame)
    }

    /// What others have said since the last call.
    pub fn heard(&self) -> Vec<Claim> {
        let mut all = Vec::new();
        for socket in [&self.arp, &self.nd] {
            for _ in 0..BURST_MAX {
                let mut buffer = [MaybeUninit::<u8>::uninit(); 256];
                let Ok(length) = socket.recv(&mut buffer) else {
                    break;
                };
                let frame: Vec<u8> = buffer[..length.min(buffer.len())]
                    .iter()
                    // SAFETY: the kernel has written these bytes.
                    .map(|byte| unsafe { byte.assume_init() })
                    .collect();
                let own = self.device.mac;
                all.extend(claim(&frame, own).filter(|claim| claim.mac != own));
            }
        }
        all
    }

    /// Readable where something was heard.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.arp.as_fd(), self.nd.as_fd()]
    }
}

fn open(ifindex: u32, protocol: u16, filter: &[SockFilter]) -> io::Result<Socket> {
    // Without a protocol nothing arrives before the filter is there.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.attach_filter(filter)?;
    socket.set_nonblocking(true)?;
    // SAFETY: sockaddr_ll consists of integers; all zero is a value of it.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    to.sll_protocol = protocol.to_be();
    // SAFETY: the address is valid for the length given, which the kernel only reads.
    let done = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match done {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of the frame that must be so, and the largest frame that is wanted: classic BPF (`linux/filter.h`).
fn filter(bytes: &[(u32, u8)], accept: u32) -> Vec<SockFilter> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = Vec::new();
    for (number, (offset, value)) in bytes.iter().enumerate() {
        // Past the rest of the comparisons and the acceptance.
        let miss = (bytes.len() - number - 1) * 2 + 1;
        program.push(SockFilter::new(LOAD_BYTE, 0, 0, *offset));
        program.push(SockFilter::new(
            JUMP_EQUAL,
            0,
            miss as u8,
            u32::from(*value),
        ));
    }
    program.push(SockFilter::new(RETURN, 0, 0, accept));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

fn arp_filter() -> Vec<SockFilter> {
    // Replies alone, for IPv4 over Ethernet: requests of everybody else on the segment wake nobody.
    filter(
        &[
            (15, 1),
            (16, 8),
            (17, 0),
            (18, 6),
            (19, 4),
            (20, 0),
            (21, 2),
        ],
        256,
    )
}

fn nd_filter() -> Vec<SockFilter> {
    // RFC 4861 section 7.1.2: hop limit 255; and never behind extension headers (RFC 6980).
    filter(&[(20, ICMPV6), (21, 255), (54, ADVERTISEMENT)], 256)
}

fn question(device: &Device, address: IpAddr, who: Who) -> Vec<u8> {
    let at = match who {
        Who::IsThere(at) => at,
        Who::HasIt => None,
    };
    match address {
        IpAddr::V4(address) => {
            let sender = device.v4.filter(|_| who != Who::HasIt);
            let sender = sender.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let mut frame = ethernet(at.unwrap_or(BROADCAST), device.mac, ETHERTYPE_ARP);
            frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, 1]);
            frame.extend(device.mac);
            frame.extend(sender.octets());
            frame.extend([0; 6]);
            frame.extend(address.octets());
            frame
        }
        IpAddr::V6(address) => {
            let sender = device.v6.filter(|_| who != Who::HasIt);
            solicitation(device.mac, sender, address, at)
        }
    }
}

/// RFC 4861 section 4.3; without a source address no option may name a MAC address.
fn solicitation(
    mac: [u8; 6],
    sender: Option<Ipv6Addr>,
    address: Ipv6Addr,
    at: Option<[u8; 6]>,
) -> Vec<u8> {
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    if sender.is_some() {
        message.extend([1, 1]);
        message.extend(mac);
    }
    let (to, at) = match at {
        Some(at) => (address, at),
        None => {
            let group = solicited_node(address);
            let [.., a, b, c, d] = group.octets();
            (group, [0x33, 0x33, a, b, c, d])
        }
    };
    let from = sender.unwrap_or(Ipv6Addr::UNSPECIFIED);
    let sum = checksum(from, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(at, mac, ETHERTYPE_IPV6);
    let bytes = (message.len() as u16).to_be_bytes();
    frame.extend([0x60, 0, 0, 0, bytes[0], bytes[1], ICMPV6, 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// Who says to have which address; asking for an address is no claim to it, but naming it as one's own is.
fn claim(frame: &[u8], own: [u8; 6]) -> Option<Claim> {
    let to_us = frame.get(..6)? == own;
    match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
        ETHERTYPE_ARP => {
            let arp = frame.get(14..ARP_BYTES)?;
            let sender: [u8; 4] = arp[14..18].try_into().ok()?;
            let mac = arp[8..14].try_into().ok()?;
            (sender != [0; 4]).then(|| Claim {
                address: IpAddr::from(sender),
                mac,
                is_answer: to_us && arp[6..8] == [0, 2],
            })
        }
        ETHERTYPE_IPV6 => {
            let message = frame.get(54..)?;
            let is_one = frame.len() >= ADVERTISEMENT_BYTES && message[..2] == [ADVERTISEMENT, 0];
            let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
            let option = message.get(24..32).filter(|option| option[..2] == [2, 1]);
            let mac = option.map_or(&frame[6..12], |option| &option[2..8]);
            let mac = mac.try_into().ok()?;
            is_one.then(|| Claim {
                address: IpAddr::from(target),
                mac,
                is_answer: to_us,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::l2::frames::announcement;
    use etherparse::{SlicedPacket, TransportSlice};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
    const DEVICE: Device = Device {
        ifindex: 1,
        mac: MAC,
        v4: Some(Ipv4Addr::new(192, 0, 2, 9)),
        v6: Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9)),
    };

    #[test]
    fn a_question_of_who_has_an_address_claims_none() {
        let v4 = question(&DEVICE, [192, 0, 2, 7].into(), Who::HasIt);
        assert_eq!(v4.len(), ARP_BYTES);
        assert_eq!(v4[28..32], [0; 4], "RFC 5227 section 2.1.1");
        assert_eq!(v4[38..42], [192, 0, 2, 7]);
        assert_eq!(claim(&v4, OTHER), None);
        let v6 = question(&DEVICE, "2001:db8::7".parse().unwrap(), Who::HasIt);
        assert_eq!(v6.len(), ADVERTISEMENT_BYTES, "no option: RFC 4861 4.3");
        assert_eq!(v6[22..38], [0; 16]);
        assert_eq!(claim(&v6, OTHER), None);
    }

    #[test]
    fn solicitations_have_a_right_checksum_and_go_where_they_must() {
        let address: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        for (who, to) in [
            (Who::HasIt, [0x33, 0x33, 0xff, 1, 0, 2]),
            (Who::IsThere(None), [0x33, 0x33, 0xff, 1, 0, 2]),
            (Who::IsThere(Some(OTHER)), OTHER),
        ] {
            let frame = question(&DEVICE, address.into(), who);
            assert_eq!(frame[..6], to);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
                panic!("no ICMPv6")
            };
            let from: [u8; 16] = frame[22..38].try_into().unwrap();
            let group: [u8; 16] = frame[38..54].try_into().unwrap();
            assert!(icmp.is_checksum_valid(from, group));
        }
    }

    #[test]
    fn announcements_and_answers_are_claims() {
        for address in ["192.0.2.7", "2001:db8::7"] {
            let address: IpAddr = address.parse().unwrap();
            for mut frame in announcement(OTHER, address) {
                let mut expected = Claim {
                    address,
                    mac: OTHER,
                    is_answer: false,
                };
                assert_eq!(claim(&frame, MAC), Some(expected));
                frame[..6].copy_from_slice(&MAC);
                let is_request = frame[12..14] == [8, 6] && frame[21] == 1;
                expected.is_answer = !is_request;
                assert_eq!(claim(&frame, MAC), Some(expected));
            }
        }
        for short in [&[][..], &[0; 13], &[0; 14]] {
            assert_eq!(claim(short, MAC), None);
        }
        let mut cut = announcement(OTHER, "2001:db8::7".parse().unwrap()).remove(0);
        cut.truncate(ADVERTISEMENT_BYTES - 1);
        assert_eq!(claim(&cut, MAC), None);
    }
}
