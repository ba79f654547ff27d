//! Priority tags (IEEE 802.1p: VLAN 0), which the stack treats as untagged, and tags of VLANs.

use crate::namespaces::wait;
use crate::packets::{frame, udp, untunnelled};
use crate::site::{EGRESS, EXTERNAL_MAC, OUTSIDE, Site, Wire, nothing_waits, receive};

const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Control information of a tag: priority 5 of no VLAN, and of VLAN 5.
const PRIORITY: u16 = 0xa000;
const VLAN: u16 = 0xa005;

fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag.to_be_bytes(), &frame[12..]].concat()
}

#[test]
fn a_priority_tag_is_no_vlan() {
    let site = Site::new();
    let worker = site.worker(11);
    let wire = site.outside.run(|| Wire::open("oe"));
    for family in [0, 1] {
        let answer = udp(
            (OUTSIDE[family], 9000),
            (EGRESS[family], 1024),
            60,
            b"answer",
        );
        let answer = frame(EXTERNAL_MAC, SENDER, &answer);
        wire.send(&tagged(&answer, VLAN));
        wire.send(&tagged(&answer, PRIORITY));
        // Parsed completely: the tag is not in the tunnel packet.
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!((&seen.payload[..], seen.hops), (&b"answer"[..], 59));
        nothing_waits(&worker);
    }
    assert_eq!(site.counter("in_forwarded"), 2);
}

#[test]
fn a_question_with_a_priority_tag_is_answered() {
    let site = Site::new();
    let wire = site.outside.run(|| Wire::open("oe"));
    let address: std::net::Ipv4Addr = EGRESS[0].parse().unwrap();
    let asker: std::net::Ipv4Addr = OUTSIDE[0].parse().unwrap();
    let question = [
        &[0xff; 6][..],
        &SENDER,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &SENDER,
        &asker.octets(),
        &[0; 6],
        &address.octets(),
    ]
    .concat();
    wire.send(&tagged(&question, VLAN));
    wire.send(&tagged(&question, PRIORITY));
    let is_reply = |frame: &[u8]| frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
    let reply = wire.receive(is_reply);
    assert_eq!(
        (&reply[..6], &reply[22..28]),
        (&SENDER[..], &EXTERNAL_MAC[..])
    );
    assert_eq!(reply[28..32], address.octets());

    // Neighbour solicitation to the address's group, from an address with a tag of no VLAN.
    let packet = solicitation(EGRESS[1].parse().unwrap(), OUTSIDE[1].parse().unwrap());
    let group = [0x33, 0x33, 0xff, packet[61], packet[62], packet[63]];
    wire.send(&tagged(&frame(group, SENDER, &packet), PRIORITY));
    wait("both answers", || {
        let answered = ["in_arp_answered", "in_nd_answered"].map(|name| site.counter(name));
        (answered == [1, 1]).then_some(())
    });
}

/// RFC 4861 section 4.3, without options.
fn solicitation(target: std::net::Ipv6Addr, from: std::net::Ipv6Addr) -> Vec<u8> {
    let group = egret_datapath::presence::l2::solicited_node(target);
    let rest = target.octets();
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ipv6(from.octets(), group.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut bytes, &rest)
        .unwrap();
    bytes
}
