//! The liveness probe. **Frozen**: nodes of different versions speak it to each other.
//!
//! A request is a hand-made tunnel packet from an ordinary UDP socket to the gateway's underlay address and tunnel port:
//!
//! ```text
//! VXLAN (8, VNI 14790) | Ethernet (14) | IPv6 (40) fe80::<own> -> fe80::<gateway> | UDP (8) any -> 14790 | probe (32)
//!
//! probe:  0       4        5     6           8        16                 24
//!         "EGRT"  version  kind  sender      nonce    steering version   zero
//!                 1        1, 2  index, BE   u64, BE  u64, BE            8 bytes
//! ```
//!
//! The gateway's eBPF program swaps the addresses, sets kind 2, its own index and its steering version, and sends it
//! back through the tunnel; it arrives at the socket that is bound to the request's source port on the tunnel device.
//! The socket that sends requests should send outer checksums of zero (`SO_NO_CHECK`, over IPv6 `UDP_NO_CHECK6_TX`), as
//! VXLAN itself does (RFC 7348 section 5).

use crate::{link_local, tunnel_mac};
use thiserror::Error;

/// VXLAN network identifier of the tunnel.
pub const VNI: u32 = 14790;
/// UDP port of requests inside the tunnel, and source port of replies.
pub const PORT: u16 = 14790;
/// First bytes of a probe.
pub const MAGIC: [u8; 4] = *b"EGRT";
/// The only version.
pub const VERSION: u8 = 1;
/// Length of a probe in bytes (the UDP payload).
pub const PROBE_BYTES: usize = 32;
/// Length of a whole request in bytes, from the VXLAN header on (the payload of the outer UDP packet).
pub const FRAME_BYTES: usize = VXLAN_BYTES + ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES + PROBE_BYTES;

const VXLAN_BYTES: usize = 8;
const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const UDP_PROTOCOL: u8 = 17;
const HOP_LIMIT: u8 = 64;

/// Request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From a prober.
    Request,
    /// From the gateway's eBPF program (or, without BPF, its agent).
    Reply,
}

/// One probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Request or reply.
    pub kind: Kind,
    /// Tunnel index of the sender.
    pub sender: u16,
    /// Chosen by the prober, returned unchanged.
    pub nonce: u64,
    /// Steering version of the gateway's tables; 0 in requests.
    pub steering_version: u64,
}

/// Reason why bytes are no probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProbeError {
    /// Shorter or longer than the format.
    #[error("{got} bytes where {want} are expected")]
    Length {
        /// Actual number of bytes.
        got: usize,
        /// Expected number of bytes.
        want: usize,
    },
    /// The magic bytes are missing.
    #[error("no probe: wrong magic bytes")]
    Magic,
    /// A later version.
    #[error("probe version {0} is unknown")]
    Version(u8),
    /// Neither request nor reply.
    #[error("probe kind {0} is unknown")]
    Kind(u8),
    /// A header of the frame differs from the format.
    #[error("the frame's {0} is not that of a probe")]
    Header(&'static str),
    /// The UDP checksum is wrong.
    #[error("wrong UDP checksum")]
    Checksum,
}

impl Probe {
    /// The 32 bytes of the UDP payload.
    pub fn encode(&self) -> [u8; PROBE_BYTES] {
        let mut bytes = [0; PROBE_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = match self.kind {
            Kind::Request => 1,
            Kind::Reply => 2,
        };
        bytes[6..8].copy_from_slice(&self.sender.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.steering_version.to_be_bytes());
        bytes
    }

    /// Parses a UDP payload. The reserved bytes are ignored.
    ///
    /// # Errors
    /// [`ProbeError`] where it is no probe of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProbeError> {
        let bytes: &[u8; PROBE_BYTES] = bytes.try_into().map_err(|_| ProbeError::Length {
            got: bytes.len(),
            want: PROBE_BYTES,
        })?;
        if bytes[..4] != MAGIC {
            return Err(ProbeError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(ProbeError::Version(bytes[4]));
        }
        let kind = match bytes[5] {
            1 => Kind::Request,
            2 => Kind::Reply,
            other => return Err(ProbeError::Kind(other)),
        };
        let number = |at: usize| {
            bytes[at..at + 8]
                .iter()
                .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        Ok(Self {
            kind,
            sender: u16::from_be_bytes([bytes[6], bytes[7]]),
            nonce: number(8),
            steering_version: number(16),
        })
    }

    /// The whole tunnel packet, from the VXLAN header on, from node `self.sender` to node `to`.
    ///
    /// `source_port` and `destination_port` are those inside the tunnel: a request goes from the port of the agent's
    /// reply socket to [`PORT`], a reply the other way.
    pub fn encode_frame(
        &self,
        to: u16,
        source_port: u16,
        destination_port: u16,
    ) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        let (vxlan, rest) = frame.split_at_mut(VXLAN_BYTES);
        vxlan[0] = 0x08; // the VNI is valid
        vxlan[4..7].copy_from_slice(&VNI.to_be_bytes()[1..]);
        let (ethernet, ip) = rest.split_at_mut(ETHERNET_BYTES);
        ethernet[..6].copy_from_slice(&tunnel_mac(to));
        ethernet[6..12].copy_from_slice(&tunnel_mac(self.sender));
        ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&((UDP_BYTES + PROBE_BYTES) as u16).to_be_bytes());
        ip[6] = UDP_PROTOCOL;
        ip[7] = HOP_LIMIT;
        ip[8..24].copy_from_slice(&link_local(self.sender).octets());
        ip[24..40].copy_from_slice(&link_local(to).octets());
        ip[40..42].copy_from_slice(&source_port.to_be_bytes());
        ip[42..44].copy_from_slice(&destination_port.to_be_bytes());
        ip[44..46].copy_from_slice(&((UDP_BYTES + PROBE_BYTES) as u16).to_be_bytes());
        ip[48..].copy_from_slice(&self.encode());
        let checksum = match udp_checksum(ip) {
            0 => 0xffff, // RFC 768: zero means none
            other => other,
        };
        ip[46..48].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    /// Parses a whole tunnel packet, as [`Probe::encode_frame`] makes it: the probe, the destination node, and the
    /// ports inside the tunnel (source, destination).
    ///
    /// # Errors
    /// [`ProbeError`] where a header, the checksum or the probe differs from the format.
    pub fn decode_frame(frame: &[u8]) -> Result<(Self, u16, u16, u16), ProbeError> {
        if frame.len() != FRAME_BYTES {
            return Err(ProbeError::Length {
                got: frame.len(),
                want: FRAME_BYTES,
            });
        }
        let (vxlan, rest) = frame.split_at(VXLAN_BYTES);
        let (ethernet, ip) = rest.split_at(ETHERNET_BYTES);
        if vxlan[0] != 0x08 || vxlan[4..7] != VNI.to_be_bytes()[1..] {
            return Err(ProbeError::Header("VXLAN header"));
        }
        if ethernet[12..] != [0x86, 0xdd] {
            return Err(ProbeError::Header("Ethernet type"));
        }
        if ip[0] >> 4 != 6 || ip[6] != UDP_PROTOCOL || ip[4..6] != ip[44..46] {
            return Err(ProbeError::Header("IPv6 or UDP header"));
        }
        let probe = Self::decode(&ip[48..])?;
        let to = u16::from_be_bytes([ip[38], ip[39]]);
        if ip[8..24] != link_local(probe.sender).octets() || ip[24..40] != link_local(to).octets() {
            return Err(ProbeError::Header("pair of addresses"));
        }
        if ip[46..48] == [0, 0] || udp_checksum(ip) != 0 {
            return Err(ProbeError::Checksum);
        }
        Ok((
            probe,
            to,
            u16::from_be_bytes([ip[40], ip[41]]),
            u16::from_be_bytes([ip[42], ip[43]]),
        ))
    }
}

/// The checksum over pseudo header and UDP packet of an IPv6 packet (RFC 8200 section 8.1); 0 if the packet contains
/// its correct checksum.
fn udp_checksum(ip: &[u8]) -> u16 {
    let length = (ip.len() - IPV6_BYTES) as u32;
    let words = ip[8..]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum::<u32>() + length + u32::from(UDP_PROTOCOL);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Probe = Probe {
        kind: Kind::Request,
        sender: 0x0102,
        nonce: 0x1122_3344_5566_7788,
        steering_version: 0,
    };

    #[test]
    fn the_bytes_of_a_probe_are_frozen() {
        let golden = *b"EGRT\x01\x01\x01\x02\x11\x22\x33\x44\x55\x66\x77\x88\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(REQUEST.encode(), golden);
        assert_eq!(Probe::decode(&golden), Ok(REQUEST));
        let reply = Probe {
            kind: Kind::Reply,
            steering_version: 9,
            ..REQUEST
        };
        assert_eq!(reply.encode()[5], 2);
        assert_eq!(reply.encode()[16..24], [0, 0, 0, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn the_bytes_of_a_frame_are_frozen() {
        let frame = REQUEST.encode_frame(3, 40000, PORT);
        let mut golden = Vec::new();
        golden.extend([0x08, 0, 0, 0, 0x00, 0x39, 0xc6, 0]);
        golden.extend([
            0x02, 0x65, 0x67, 0x72, 0, 3, 0x02, 0x65, 0x67, 0x72, 1, 2, 0x86, 0xdd,
        ]);
        golden.extend([0x60, 0, 0, 0, 0, 40, 17, 64]);
        golden.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        golden.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        golden.extend([
            0x9c,
            0x40,
            0x39,
            0xc6,
            0,
            40,
            GOLDEN_CHECKSUM[0],
            GOLDEN_CHECKSUM[1],
        ]);
        golden.extend(REQUEST.encode());
        assert_eq!(frame.to_vec(), golden);
        assert_eq!(Probe::decode_frame(&frame), Ok((REQUEST, 3, 40000, PORT)));
    }

    /// Computed independently of this code (Python, sum of 16-bit words).
    const GOLDEN_CHECKSUM: [u8; 2] = [0x80, 0x9d];

    #[test]
    fn a_frame_with_any_byte_of_its_packet_changed_is_refused() {
        let frame = REQUEST.encode_frame(3, 40000, PORT);
        // No checksum covers Ethernet addresses, flow label and hop limit.
        let covered =
            (VXLAN_BYTES + ETHERNET_BYTES + 8..FRAME_BYTES).chain([0, 4, 5, 6, 20, 21, 22]);
        for at in covered {
            let mut wrong = frame;
            wrong[at] ^= 0x10;
            assert!(Probe::decode_frame(&wrong).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_probe_is_refused_with_a_reason() {
        let good = REQUEST.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Probe::decode(&bytes)
        };
        assert_eq!(
            Probe::decode(&good[1..]),
            Err(ProbeError::Length { got: 31, want: 32 })
        );
        assert_eq!(with(0, b'e'), Err(ProbeError::Magic));
        assert_eq!(with(4, 2), Err(ProbeError::Version(2)));
        assert_eq!(with(5, 3), Err(ProbeError::Kind(3)));
        assert_eq!(with(31, 1), Ok(REQUEST));
    }
}
