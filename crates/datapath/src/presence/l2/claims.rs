//! Claims of addresses by ARP or neighbour discovery (RFC 826, RFC 4861).

use super::frames::{ADVERTISEMENT, ETHERTYPE_ARP, ETHERTYPE_IPV6, SOLICITATION};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Offset of ICMPv6 in a frame, after Ethernet and IPv6.
pub(super) const ICMPV6: usize = 54;
/// Offset of the operation in an ARP frame; 2 is a reply.
const ARP_OPERATION: usize = 20;

/// Claim of a neighbour that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The hardware address in the claim.
    pub mac: [u8; 6],
}

/// The claim in a frame: ARP with a sender, a neighbour advertisement, a neighbour solicitation with a source. Probes
/// with an unspecified sender claim nothing.
pub(super) fn claim(frame: &[u8]) -> Option<Claim> {
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
    // RFC 4861 sections 7.1.1 and 7.1.2: messages from beyond a router are ignored.
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
        // Parsing an option of length zero would never end (RFC 4861 section 4.6).
        at += usize::from(units)
            .checked_mul(8)
            .filter(|bytes| *bytes > 0)?;
    }
}

/// Whether a frame with a claim was sent to this device alone, as the answer to a request: an ARP reply or an
/// advertisement.
pub(super) fn is_answer(frame: &[u8], own: [u8; 6]) -> bool {
    let is_reply = match bytes::<2>(frame, 12).map(u16::from_be_bytes) {
        Some(ETHERTYPE_ARP) => bytes(frame, ARP_OPERATION) == Some([0, 2]),
        Some(ETHERTYPE_IPV6) => bytes(frame, ICMPV6) == Some([ADVERTISEMENT]),
        _ => false,
    };
    is_reply && bytes(frame, 0) == Some(own)
}

#[cfg(test)]
mod tests {
    use super::super::frames::{announcement, question};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_announced_is_a_claim_and_a_probe_is_none() {
        for address in [ip("192.0.2.7"), ip("2001:db8::7")] {
            for frame in announcement(MAC, address) {
                assert_eq!(claim(&frame), Some(Claim { address, mac: MAC }));
                for end in 0..frame.len().min(ICMPV6) {
                    // A truncated frame claims nothing and does no harm.
                    assert!(end > 31 || claim(&frame[..end]).is_none());
                }
            }
            assert_eq!(claim(&question(MAC, None, address, None)), None);
        }
    }

    #[test]
    fn what_is_sent_to_us_alone_is_an_answer_and_a_request_never_is() {
        for address in [ip("192.0.2.7"), ip("2001:db8::7")] {
            for mut frame in announcement(OTHER, address) {
                assert!(!is_answer(&frame, MAC));
                frame[..6].copy_from_slice(&MAC);
                let is_request = frame[12..14] == [8, 6] && frame[21] == 1;
                assert_eq!(is_answer(&frame, MAC), !is_request);
            }
        }
        for short in [&[][..], &[0; 13], &[0; 14]] {
            assert!(!is_answer(short, [0; 6]));
        }
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
