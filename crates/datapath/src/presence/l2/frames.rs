//! Frames of ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).

use nix::libc;
use socket2::Socket;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Types of ICMPv6 messages (RFC 4861 section 4).
pub(crate) const SOLICITATION: u8 = 135;
pub(crate) const ADVERTISEMENT: u8 = 136;
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// The frames of one announcement.
pub(crate) fn announcement(mac: [u8; 6], address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => vec![arp(mac, v4, 1), arp(mac, v4, 2)],
        IpAddr::V6(v6) => vec![advertisement(mac, v6)],
    }
}

/// Request for the owner of an address: an ARP request, or a neighbour solicitation (RFC 4861 section 4.3). `at`:
/// hardware address of the only recipient (RFC 1122 section 2.3.2.1); `None`: all. `sender`: the address that the
/// device claims to have; `None`: it claims none, and receivers learn nothing (RFC 5227 section 2.1.1, RFC 4862 section
/// 5.4.2).
pub(crate) fn question(
    mac: [u8; 6],
    sender: Option<IpAddr>,
    address: IpAddr,
    at: Option<[u8; 6]>,
) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let sender = match sender {
                Some(IpAddr::V4(sender)) => sender,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            let to = at.unwrap_or(BROADCAST);
            arp_frame(to, 1, (mac, sender), ([0; 6], address))
        }
        IpAddr::V6(address) => {
            let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            message.extend(address.octets());
            let sender = match sender {
                Some(IpAddr::V6(sender)) => {
                    message.extend([1, 1]);
                    message.extend(mac);
                    sender
                }
                _ => Ipv6Addr::UNSPECIFIED,
            };
            let (destination, to) = match at {
                Some(at) => (address, at),
                None => {
                    let group = solicited_node(address);
                    let [.., a, b, c, d] = group.octets();
                    (group, [0x33, 0x33, a, b, c, d])
                }
            };
            icmpv6_frame((to, mac), sender, destination, message)
        }
    }
}

/// The solicited-node multicast group of an address (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn arp(mac: [u8; 6], address: Ipv4Addr, operation: u16) -> Vec<u8> {
    let target_mac = if operation == 1 { [0; 6] } else { BROADCAST };
    arp_frame(BROADCAST, operation, (mac, address), (target_mac, address))
}

/// ARP of Ethernet and IPv4: sender and target, each with hardware address.
fn arp_frame(
    to: [u8; 6],
    operation: u16,
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut frame = ethernet(to, sender.0, ETHERTYPE_ARP);
    frame.extend([0, 1, 0x08, 0x00, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    icmpv6_frame((ALL_NODES_MAC, mac), address, ALL_NODES, message)
}

/// A message of neighbour discovery, shorter than 256 bytes, with its checksum, in a frame to the first hardware
/// address from the second.
fn icmpv6_frame(
    (to, from): ([u8; 6], [u8; 6]),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mut message: Vec<u8>,
) -> Vec<u8> {
    let sum = checksum(source, destination, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(to, from, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    frame
}

/// Checksum of an ICMPv6 message of even length whose own checksum is zero (RFC 4443 section 2.3).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let addresses = [from.octets(), to.octets()].concat();
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&addresses[..], &length, &[0, 0, 0, 58], message].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes()].concat()
}

pub(crate) fn send(socket: &Socket, ifindex: u32, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: sockaddr_ll consists of integers; all zero is a value of it.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
    // SAFETY: frame and address are valid for the lengths given, which the kernel only reads.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn both_forms_of_gratuitous_arp_name_sender_and_target() {
        let frames = announcement(MAC, "192.0.2.7".parse().unwrap());
        assert_eq!(frames.len(), 2);
        for (frame, operation) in frames.iter().zip([1, 2]) {
            assert_eq!(frame[..14], [&[0xff; 6][..], &MAC, &[0x08, 0x06]].concat());
            assert_eq!(frame[20..22], [0, operation]);
            assert_eq!(frame[22..28], MAC);
            assert_eq!(frame[28..32], [192, 0, 2, 7]);
            assert_eq!(frame[38..42], [192, 0, 2, 7]);
        }
    }

    #[test]
    fn the_advertisement_is_unsolicited_overrides_and_has_a_right_checksum() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let frames = announcement(MAC, address.into());
        let packet = SlicedPacket::from_ethernet(&frames[0]).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
            panic!("no ICMPv6")
        };
        assert!(icmp.is_checksum_valid(address.octets(), ALL_NODES.octets()));
        assert_eq!(
            (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()),
            (136, 0, [0x20, 0, 0, 0])
        );
        assert_eq!(
            icmp.payload(),
            [&address.octets()[..], &[2, 1], &MAC].concat()
        );
        assert_eq!(frames[0][21], 255);
    }

    #[test]
    fn the_solicited_node_group_has_the_last_three_bytes() {
        let group = solicited_node("2001:db8::1:2233:4455".parse().unwrap());
        assert_eq!(group, "ff02::1:ff33:4455".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn an_arp_probe_names_its_target_and_no_sender() {
        let frame = question(MAC, None, [192, 0, 2, 7].into(), None);
        assert_eq!(frame[..14], [&[0xff; 6][..], &MAC, &[0x08, 0x06]].concat());
        assert_eq!(frame[20..28], [&[0, 1][..], &MAC].concat());
        assert_eq!(frame[28..38], [0; 10]);
        assert_eq!(frame[38..42], [192, 0, 2, 7]);
    }

    #[test]
    fn a_solicitation_from_nobody_goes_to_the_group_with_a_right_checksum() {
        let address: Ipv6Addr = "2001:db8::1:2233:4455".parse().unwrap();
        let frame = question(MAC, None, address.into(), None);
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
    fn a_question_to_one_neighbour_goes_to_it_and_names_its_sender() {
        let at = [2, 0, 0, 0, 0, 8];
        let sender: Ipv6Addr = "fe80::9".parse().unwrap();
        let address: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        let group = [0x33, 0x33, 0xff, 1, 0, 2];
        for (known, to) in [(None, group), (Some(at), at)] {
            let frame = question(MAC, Some(sender.into()), address.into(), known);
            assert_eq!(frame[..6], to);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
                panic!("no ICMPv6")
            };
            let destination: [u8; 16] = frame[38..54].try_into().unwrap();
            assert!(icmp.is_checksum_valid(sender.octets(), destination));
            let option = [&address.octets()[..], &[1, 1], &MAC].concat();
            assert_eq!(icmp.payload(), option);
        }
        let v4 = question(
            MAC,
            Some([192, 0, 2, 9].into()),
            [192, 0, 2, 7].into(),
            Some(at),
        );
        assert_eq!(v4[..6], at);
        assert_eq!(v4[28..32], [192, 0, 2, 9]);
    }
}
