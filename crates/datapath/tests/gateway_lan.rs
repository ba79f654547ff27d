//! Real packets through both programs: a VXLAN device, veth pairs, and a kernel outside that checks every byte.

#[path = "gateway/namespaces.rs"]
mod namespaces;
#[path = "gateway/packets.rs"]
mod packets;
#[path = "gateway/site.rs"]
mod site;

use packets::{tunnelled, udp, untunnelled};
use site::{EGRESS, OUTSIDE, OWN, Site, receive};

fn out_and_back(site: &Site) {
    for family in [0, 1] {
        let (worker, server) = (site.worker(11), site.server(family, 9000));
        let request = udp(
            (EGRESS[family], 1024),
            (OUTSIDE[family], 9000),
            64,
            b"question",
        );
        worker
            .send_to(&tunnelled(11, OWN, &request), site.tunnel())
            .unwrap();
        let (bytes, from) = receive(&server);
        assert_eq!(
            (&bytes[..], from.ip().to_string()),
            (&b"question"[..], EGRESS[family].to_owned())
        );
        assert_eq!(from.port(), 1024);

        server.send_to(b"answer", from).unwrap();
        let (bytes, _) = receive(&worker);
        let seen = untunnelled(&bytes);
        assert_eq!(
            seen.macs,
            (egret_wire::tunnel_mac(11), egret_wire::tunnel_mac(OWN))
        );
        assert_eq!(
            (seen.source, seen.ports),
            (OUTSIDE[family].parse().unwrap(), (9000, 1024))
        );
        assert_eq!((seen.hops, &seen.payload[..]), (63, &b"answer"[..]));
    }
    assert_eq!(site.counter("out_forwarded"), 2);
    assert_eq!(site.counter("in_forwarded"), 2);
    assert_eq!(site.counter("in_arp_answered"), 1);
    assert_eq!(site.counter("in_nd_answered"), 1);
}

#[test]
fn a_packet_goes_out_by_its_egress_address_and_the_answer_comes_back() {
    out_and_back(&Site::new());
}

#[test]
fn the_same_over_an_ipv6_underlay() {
    out_and_back(&Site::with(true, egret_datapath::gateway::Attachment::Tcx));
}

#[test]
fn the_same_attached_by_clsact_as_before_kernel_6_6() {
    out_and_back(&Site::with(
        false,
        egret_datapath::gateway::Attachment::Clsact,
    ));
}
