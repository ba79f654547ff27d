//! Hand-made packets, sent from the network namespace of the calling thread.

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};

/// VXLAN port and network identifier of the tunnel.
pub const TUNNEL: (u16, u32) = (14789, 14790);
/// `IPPROTO_RAW`: the sender writes the IP header itself, with any source.
const RAW: i32 = 255;

/// Flags of a hand-made TCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// Opens a connection.
    Syn,
    /// Continues one.
    Ack,
}

fn headers(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("{source} and {destination} are of different families"),
    }
}

/// An IP packet with UDP in it.
///
/// # Panics
/// Source and destination are of different families.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    headers(source.ip(), destination.ip())
        .udp(source.port(), destination.port())
        .write(&mut packet, payload)
        .expect("writing into memory");
    packet
}

/// An IP packet with TCP in it, without payload.
///
/// # Panics
/// Source and destination are of different families.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: Tcp) -> Vec<u8> {
    let mut packet = Vec::new();
    let tcp =
        headers(source.ip(), destination.ip()).tcp(source.port(), destination.port(), 1000, 1000);
    let tcp = match flags {
        Tcp::Syn => tcp.syn(),
        Tcp::Ack => tcp.ack(2000),
    };
    tcp.write(&mut packet, &[]).expect("writing into memory");
    packet
}

/// An echo reply without a request.
///
/// # Panics
/// Source and destination are of different families.
pub fn echo_reply(source: IpAddr, destination: IpAddr, id: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let headers = headers(source, destination);
    let written = match source {
        IpAddr::V4(_) => headers
            .icmpv4_echo_reply(id, 1)
            .write(&mut packet, b"stray"),
        IpAddr::V6(_) => headers
            .icmpv6_echo_reply(id, 1)
            .write(&mut packet, b"stray"),
    };
    written.expect("writing into memory");
    packet
}

/// An IP packet inside a VXLAN packet's payload: VXLAN header, Ethernet header, packet.
pub fn vxlan(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((TUNNEL.1 << 8).to_be_bytes());
    payload.extend(to);
    payload.extend(from);
    payload.extend(if packet[0] >> 4 == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    payload.extend(packet);
    payload
}

/// Sends a whole IP packet with the source that it carries.
///
/// # Errors
/// The system refuses.
pub fn send_raw(packet: &[u8]) -> std::io::Result<()> {
    send_all_raw(std::iter::once(packet.to_vec()))
}

/// Sends many packets of one family by one socket: opening and closing one takes longer than sending.
///
/// # Errors
/// The system refuses.
pub fn send_all_raw(packets: impl IntoIterator<Item = Vec<u8>>) -> std::io::Result<()> {
    let mut socket = None;
    for packet in packets {
        let (domain, destination) = destination(&packet);
        let socket = match &mut socket {
            Some(socket) => socket,
            none => none.insert(Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?),
        };
        socket.send_to(&packet, &SocketAddr::new(destination, 0).into())?;
    }
    Ok(())
}

fn destination(packet: &[u8]) -> (Domain, IpAddr) {
    if packet[0] >> 4 == 4 {
        let bytes: [u8; 4] = packet[16..20].try_into().expect("four bytes");
        (Domain::IPV4, bytes.into())
    } else {
        let bytes: [u8; 16] = packet[24..40].try_into().expect("sixteen bytes");
        (Domain::IPV6, bytes.into())
    }
}

/// Sends the payload of a protocol without ports, such as GRE (47) and ESP (50).
///
/// # Errors
/// The system refuses, for example because it has learned that the destination is administratively prohibited.
pub fn send_protocol(destination: IpAddr, protocol: u8, payload: &[u8]) -> std::io::Result<()> {
    let domain = if destination.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
    socket.send_to(payload, &SocketAddr::new(destination, 0).into())?;
    Ok(())
}

/// An SCTP packet without IP header (RFC 9260 section 3): common header and chunks.
pub fn sctp(source_port: u16, destination_port: u16, tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source_port.to_be_bytes());
    packet.extend(destination_port.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunks);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// Whether the checksum of an SCTP packet is right.
pub fn sctp_is_intact(packet: &[u8]) -> bool {
    let mut zeroed = packet.to_vec();
    zeroed[8..12].fill(0);
    packet[8..12] == crc32c(&zeroed).to_le_bytes()
}

/// The checksum of SCTP (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (POLYNOMIAL * (sum & 1));
        }
    }
    !sum
}

/// Cuts an IP packet into fragments at these offsets of its payload (multiples of 8), each from its offset to its end.
///
/// # Panics
/// An offset lies beyond the packet.
pub fn fragments(packet: &[u8], id: u16, parts: &[std::ops::Range<usize>]) -> Vec<Vec<u8>> {
    const FRAGMENT: u8 = 44;
    let is_v4 = packet[0] >> 4 == 4;
    let header = if is_v4 { 20 } else { 40 };
    let payload = &packet[header..];
    let cut = |part: &std::ops::Range<usize>| {
        let more = part.end < payload.len();
        let mut one = packet[..header].to_vec();
        if is_v4 {
            let length = u16::try_from(20 + part.len()).expect("a fragment");
            one[2..4].copy_from_slice(&length.to_be_bytes());
            one[4..6].copy_from_slice(&id.to_be_bytes());
            let offset = u16::try_from(part.start / 8).expect("an offset") | u16::from(more) << 13;
            one[6..8].copy_from_slice(&offset.to_be_bytes());
        } else {
            let length = u16::try_from(8 + part.len()).expect("a fragment");
            one[4..6].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut one[6], FRAGMENT);
            let offset = u16::try_from(part.start).expect("an offset") | u16::from(more);
            one.extend([next, 0]);
            one.extend(offset.to_be_bytes());
            one.extend(u32::from(id).to_be_bytes());
        }
        one.extend(&payload[part.clone()]);
        one
    };
    parts.iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut packet = sctp(1, 2, 3, &[1, 0, 0, 4]);
        assert!(sctp_is_intact(&packet));
        packet[0] ^= 1;
        assert!(!sctp_is_intact(&packet));
    }
}
