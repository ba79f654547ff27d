//! Further cases of IP, one packet at a time: SCTP, extension headers, disorder and floods of fragments, merged
//! packets.

use crate::packets::{dont_fragment, fragments, frame, seen, udp};
use crate::programs::{DROP, EGRESS, HOST, MTU, Programs, REDIRECT, REMOTE, SENDER};
use aya::maps::HashMap;

/// `EGRET_FRAGMENTS_MAX`.
const FRAGMENTS_MAX: usize = 16_384;

/// A packet of `protocol` instead of UDP, with the same bytes.
fn of_protocol(family: usize, protocol: u8, ports: (u16, u16)) -> Vec<u8> {
    let from = (REMOTE[family], ports.0);
    let mut packet = udp(from, (EGRESS[family], ports.1), 60, b"0123456789abcdef");
    packet[[9, 6][family]] = protocol;
    if family == 0 {
        packet[10..12].fill(0);
        let sum = packet[..20]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

#[test]
fn sctp_goes_by_its_port_and_its_checksum_is_not_touched() {
    const SCTP: u8 = 132;
    for family in [0, 1] {
        let packet = of_protocol(family, SCTP, (5000, 1087));
        let programs = Programs::new();
        let (verdict, out) = programs.inward(&packet);
        assert_eq!(
            (verdict, programs.counted()),
            (REDIRECT, vec![("in_forwarded", 1)])
        );
        let header = [20, 40][family];
        // ports, verification tag, CRC32c, chunks: SCTP's checksum covers no address (RFC 9260 section 6.8)
        assert_eq!(out[14 + header..], packet[header..]);
        Programs::new().dropped(&of_protocol(family, SCTP, (5000, 40000)), "in_no_block");
    }
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut packet = udp((REMOTE[0], 53), (EGRESS[0], 1024), 60, b"answer");
    packet[26..28].fill(0);
    let programs = Programs::new();
    let (verdict, out) = programs.inward(&packet);
    assert_eq!(verdict, REDIRECT);
    assert_eq!(out[34..], packet[20..]);
}

/// Puts headers of these kinds, 8 bytes each, before UDP.
fn with_headers(plain: &[u8], kinds: &[u8]) -> Vec<u8> {
    let mut packet = plain[..40].to_vec();
    for (at, kind) in kinds.iter().enumerate() {
        let next = kinds.get(at + 1).copied().unwrap_or(17);
        packet.extend(match kind {
            44 => [next, 0, 0, 0, 0, 0, 0, 9], // an atomic fragment (RFC 6946)
            43 => [next, 0, 4, 0, 0, 0, 0, 0], // routing, no segments left
            _ => [next, 0, 1, 4, 0, 0, 0, 0],  // hop-by-hop, destination options: padding
        });
    }
    packet.extend(&plain[40..]);
    packet[6] = kinds.first().copied().unwrap_or(17);
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

#[test]
fn extension_headers_of_every_kind_are_walked() {
    let plain = udp((REMOTE[1], 53), (EGRESS[1], 1024), 60, b"answer");
    for kinds in [
        &[0][..],
        &[60],
        &[43],
        &[44],
        &[0, 60, 43, 44, 60],
        &[0, 60, 43, 60, 44, 60],
    ] {
        let packet = with_headers(&plain, kinds);
        let programs = Programs::new();
        let (verdict, out) = programs.inward(&packet);
        assert_eq!(verdict, REDIRECT, "{kinds:?}: {:?}", programs.counted());
        assert_eq!(out[14 + 8..], packet[8..], "{kinds:?}");
    }
    // no next header, and one whose length exceeds the packet
    Programs::new().dropped(&with_headers(&plain, &[0, 59]), "in_unserved");
    let mut long = with_headers(&plain, &[0]);
    long[41] = 255;
    let programs = Programs::new();
    assert_eq!(programs.inward(&long).0, DROP);
    assert_eq!(programs.counted().len(), 1, "{:?}", programs.counted());
}

#[test]
fn fragments_that_come_before_their_first_are_dropped_and_those_that_come_twice_are_not() {
    for family in [0, 1] {
        let whole = udp((REMOTE[family], 53), (EGRESS[family], 1024), 60, &[7; 2000]);
        let parts = fragments(&whole, 800, 5);
        let programs = Programs::new();
        for part in parts.iter().rev() {
            programs.inward(part);
        }
        let reversed = [("in_forwarded", 1), ("in_fragment_unknown", 2)];
        assert_eq!(programs.counted(), reversed);
        // repeated, as after a loss: now all are known, and each copy is forwarded
        for part in parts.iter().chain(&parts) {
            assert_eq!(programs.inward(part).0, REDIRECT);
        }
        let again = [("in_forwarded", 7), ("in_fragment_unknown", 2)];
        assert_eq!(programs.counted(), again);
    }
}

/// A second first fragment of the same datagram with another worker's port: it goes by its own port, and so never to a
/// worker without that port; later fragments follow the newest. The receiver refuses overlaps (RFC 5722).
#[test]
fn an_overlapping_first_fragment_goes_by_its_own_port() {
    for family in [0, 1] {
        let of = |port| {
            let whole = udp((REMOTE[family], 53), (EGRESS[family], port), 60, &[7; 2000]);
            fragments(&whole, 800, 5)
        };
        let programs = Programs::new();
        assert_eq!(programs.inward(&of(1024)[0]).0, REDIRECT);
        assert_eq!(programs.inward(&of(40000)[0]).0, DROP);
        // the first datagram is not affected
        assert_eq!(programs.inward(&of(1024)[1]).0, REDIRECT);
        assert_eq!(
            programs.counted(),
            [("in_forwarded", 2), ("in_no_block", 1)]
        );
    }
}

#[test]
fn a_flood_of_first_fragments_fills_no_more_than_its_table() {
    let programs = Programs::new();
    let whole = udp((REMOTE[0], 53), (EGRESS[0], 1024), 60, &[7; 200]);
    for id in 0..FRAGMENTS_MAX as u16 + 4096 {
        assert_eq!(programs.inward(&fragments(&whole, 104, id)[0]).0, REDIRECT);
    }
    let remembered = programs.remembered();
    assert!(
        remembered <= FRAGMENTS_MAX && remembered > 0,
        "{remembered} are remembered"
    );
    // the newest datagram is among them; later fragments of the oldest are dropped and counted
    let last = FRAGMENTS_MAX as u16 + 4095;
    assert_eq!(
        programs.inward(&fragments(&whole, 104, last)[1]).0,
        REDIRECT
    );
    assert_eq!(programs.inward(&fragments(&whole, 104, 0)[1]).0, DROP);
    assert_eq!(programs.counted()[1], ("in_fragment_unknown", 1));
}

/// A merged packet is judged by its segments: a sender that already respects the path MTU gets no error.
#[test]
fn merged_packets_are_too_big_only_where_their_pieces_are() {
    for family in [0, 1] {
        let mut packet = udp((REMOTE[family], 53), (EGRESS[family], 1024), 60, &[7; 3000]);
        if family == 0 {
            packet = dont_fragment(packet);
        }
        let bytes = frame(HOST, SENDER, &packet);
        let headers = [20, 40][family] + 8;
        let programs = Programs::new();
        let (verdict, out) = programs.run("external_in", &bytes, (MTU - headers) as u32);
        assert_eq!(
            (verdict, programs.counted()),
            (REDIRECT, vec![("in_forwarded", 1)])
        );
        assert_eq!(out.len(), bytes.len());
        // SCTP's segments differ in size; the kernel marks them with GSO_BY_FRAGS
        let mut sctp = bytes.clone();
        sctp[14 + [9, 6][family]] = 132;
        let programs = Programs::new();
        assert_eq!(programs.run("external_in", &sctp, 0xffff).0, REDIRECT);
        assert_eq!(programs.counted(), [("in_forwarded", 1)]);
        let programs = Programs::new();
        let (_, out) = programs.run("external_in", &bytes, 0);
        assert_eq!(programs.counted(), [("in_too_big", 1)]);
        let (ports, word) = (seen(&out).ports, seen(&out).word);
        assert_eq!(ports, [(3, 4), (2, 0)][family]);
        assert_eq!(u32::from_be_bytes(word), MTU as u32);
    }
}

impl Programs {
    fn remembered(&self) -> usize {
        let map = self.map("fragments");
        let map: HashMap<_, [u8; 40], [u8; 16]> = map.try_into().unwrap();
        map.keys().map(Result::unwrap).count()
    }
}
