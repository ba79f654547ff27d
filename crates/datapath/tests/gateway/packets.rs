//! Packets made and parsed by etherparse, independent of the code under test.

use etherparse::{
    IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, UdpHeader,
};
use std::net::IpAddr;

/// A whole IP packet with UDP in it; IPv4 without DF.
pub fn udp(from: (&str, u16), to: (&str, u16), hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (from.0.parse().unwrap(), to.0.parse().unwrap()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), hops)
            .udp(from.1, to.1)
            .write(&mut bytes, payload)
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), hops)
            .udp(from.1, to.1)
            .write(&mut bytes, payload)
            .unwrap(),
        _ => panic!("one family"),
    }
    if bytes[0] >> 4 == 4 {
        with_df(bytes, false)
    } else {
        bytes
    }
}

/// Sets DF in such a packet (IPv4).
pub fn dont_fragment(packet: Vec<u8>) -> Vec<u8> {
    with_df(packet, true)
}

fn with_df(mut packet: Vec<u8>, dont_fragment: bool) -> Vec<u8> {
    let mut header = Ipv4Header::from_slice(&packet).unwrap().0;
    header.dont_fragment = dont_fragment;
    header.header_checksum = header.calc_header_checksum();
    packet[..20].copy_from_slice(&header.to_bytes());
    packet
}

/// A whole IPv4 or IPv6 packet with an ICMP message: type, code, the 4 bytes after the checksum, the rest.
pub fn icmp(from: &str, to: &str, kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64)
            .icmpv4_raw(kind, code, word)
            .write(&mut bytes, rest)
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64)
            .icmpv6_raw(kind, code, word)
            .write(&mut bytes, rest)
            .unwrap(),
        _ => panic!("one family"),
    }
    bytes
}

/// Cuts a UDP packet in IP fragments of at most `size` payload bytes (a multiple of 8).
pub fn fragments(packet: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let four = packet[0] >> 4 == 4;
    let body = &packet[if four { 20 } else { 40 }..];
    let count = body.len().div_ceil(size);
    let cut = |(at, part): (usize, &[u8])| {
        let (more, offset) = (at + 1 < count, (at * size / 8) as u16);
        let mut bytes = Vec::new();
        if four {
            let mut header = Ipv4Header::from_slice(packet).unwrap().0;
            header.total_len = (20 + part.len()) as u16;
            header.identification = id;
            header.more_fragments = more;
            header.fragment_offset = offset.try_into().unwrap();
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut bytes).unwrap();
        } else {
            let mut header = Ipv6Header::from_slice(packet).unwrap().0;
            header.payload_length = (8 + part.len()) as u16;
            let fragment = Ipv6FragmentHeader::new(
                header.next_header,
                offset.try_into().unwrap(),
                more,
                u32::from(id),
            );
            header.next_header = IpNumber(44);
            header.write(&mut bytes).unwrap();
            fragment.write(&mut bytes).unwrap();
        }
        bytes.extend(part);
        bytes
    };
    body.chunks(size).enumerate().map(cut).collect()
}

/// An Ethernet frame.
pub fn frame(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    [&to[..], &from, &kind, packet].concat()
}

/// A tunnel packet from worker `from` to the gateway `to`, from the VXLAN header on.
pub fn tunnelled(from: u16, to: u16, packet: &[u8]) -> Vec<u8> {
    let macs = frame(
        egret_wire::tunnel_mac(to),
        egret_wire::tunnel_mac(from),
        packet,
    );
    [&[8, 0, 0, 0, 0, 0x39, 0xc6, 0][..], &macs].concat()
}

/// Content of a packet, with every checksum in it verified.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub macs: ([u8; 6], [u8; 6]),
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hops: u8,
    /// UDP ports, or ICMP type and code.
    pub ports: (u16, u16),
    /// Rest of the ICMP header.
    pub word: [u8; 4],
    pub payload: Vec<u8>,
}

/// Reads an Ethernet frame and verifies the checksums (not those of fragments).
pub fn seen(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
    let (source, destination, hops, fragmented) = match packet.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 checksum"
            );
            let fragmented = ip.is_payload_fragmented();
            (
                header.source.into(),
                header.destination.into(),
                header.time_to_live,
                fragmented,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let fragmented = ip.is_payload_fragmented();
            (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
                header.hop_limit,
                fragmented,
            )
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let macs = (
        frame[..6].try_into().unwrap(),
        frame[6..12].try_into().unwrap(),
    );
    let mut seen = Seen {
        macs,
        source,
        destination,
        hops,
        ports: (0, 0),
        word: [0; 4],
        payload: Vec::new(),
    };
    match packet.transport {
        _ if fragmented => {}
        Some(TransportSlice::Udp(udp)) => {
            seen.ports = (udp.source_port(), udp.destination_port());
            seen.payload = udp.payload().to_vec();
            let header: UdpHeader = udp.to_header();
            let right = match (source, destination) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), udp.payload())
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), udp.payload())
                }
                _ => unreachable!("one header has both"),
            };
            assert_eq!(header.checksum, right.unwrap(), "UDP checksum");
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(icmp.slice());
            assert_eq!(sum.ones_complement(), 0, "ICMP checksum");
            seen.ports = (icmp.type_u8().into(), icmp.code_u8().into());
            seen.word = icmp.bytes5to8();
            seen.payload = icmp.slice()[8..].to_vec();
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (source, destination) else {
                unreachable!()
            };
            assert!(
                icmp.is_checksum_valid(a.octets(), b.octets()),
                "ICMPv6 checksum"
            );
            seen.ports = (icmp.type_u8().into(), icmp.code_u8().into());
            seen.word = icmp.bytes5to8();
            seen.payload = icmp.slice()[8..].to_vec();
        }
        Some(TransportSlice::Tcp(tcp)) => {
            seen.ports = (tcp.source_port(), tcp.destination_port());
            seen.payload = tcp.payload().to_vec();
        }
        _ => {}
    }
    seen
}

/// Reads a tunnel packet, from the VXLAN header on.
pub fn untunnelled(bytes: &[u8]) -> Seen {
    assert_eq!(bytes[..8], [8, 0, 0, 0, 0, 0x39, 0xc6, 0], "VXLAN header");
    seen(&bytes[8..])
}
