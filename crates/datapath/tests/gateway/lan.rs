//! Real packets through both programs: a VXLAN device, veth pairs, and a kernel outside that checks every byte.

use crate::namespaces::wait;
use crate::packets::{dont_fragment, fragments, icmp, tunnelled, udp, untunnelled};
use crate::site::{
    EGRESS, EXTERNAL_MAC, GATEWAY, MTU, OUTSIDE, OWN, Site, Wire, discover_mtu, nothing_waits,
    path_mtu, ping, receive, state,
};
use egret_datapath::gateway::{Carried, Flow};
use egret_wire::probe::{Kind, PORT, Probe};

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
    let traffic = site.driver.traffic().unwrap();
    for (address, headers) in EGRESS.into_iter().zip([28, 48]) {
        let flow = |payload: &[u8]| Flow {
            packets: 1,
            bytes: headers + payload.len() as u64,
            dropped: Some(0),
        };
        let carried = Carried {
            out: flow(b"question"),
            back: flow(b"answer"),
        };
        assert_eq!(traffic[&address.parse().unwrap()], carried, "{address}");
    }
}

#[test]
fn a_packet_goes_out_by_its_egress_address_and_the_answer_comes_back() {
    out_and_back(&Site::new());
}

#[test]
fn the_same_over_an_ipv6_underlay() {
    out_and_back(&Site::with(
        true,
        egret_datapath::gateway::Attachment::supported(),
    ));
}

#[test]
fn the_same_attached_by_clsact_as_before_kernel_6_6() {
    out_and_back(&Site::with(
        false,
        egret_datapath::gateway::Attachment::Clsact,
    ));
}

/// Another worker's port, a port without owner, and an unknown worker: no packet leaves.
#[test]
fn what_the_sender_does_not_own_is_dropped_and_counted() {
    let site = Site::new();
    let server = site.server(0, 9000);
    let packet = |port| udp((EGRESS[0], port), (OUTSIDE[0], 9000), 64, b"spoofed");
    let send = |from: u16, port: u16| {
        let bytes = tunnelled(from, OWN, &packet(port));
        site.worker(from).send_to(&bytes, site.tunnel()).unwrap();
    };
    send(12, 1024);
    send(11, 1088);
    send(11, 40000);
    send(13, 1024);
    send(14, 1024);
    send(11, 1152); // this node's own block does not come out of the tunnel
    site.wait_counter("out_spoofed", 6);
    // and a packet that claims to be from worker 11 but is from 12
    site.worker(12)
        .send_to(&tunnelled(11, OWN, &packet(1024)), site.tunnel())
        .unwrap();
    site.wait_counter("out_spoofed", 7);
    // a source that is no egress address: the gateway's own, a pod's
    for source in [GATEWAY[0], "10.244.1.7", OUTSIDE[0]] {
        let packet = udp((source, 1024), (OUTSIDE[0], 9000), 64, b"spoofed");
        site.worker(11)
            .send_to(&tunnelled(11, OWN, &packet), site.tunnel())
            .unwrap();
    }
    site.wait_counter("out_not_ours", 3);
    nothing_waits(&server);
    send(11, 1024);
    assert_eq!(receive(&server).0, b"spoofed");
    assert_eq!(site.counter("out_forwarded"), 1);
    let out = site.driver.traffic().unwrap()[&EGRESS[0].parse().unwrap()].out;
    assert_eq!(
        (out.packets, out.dropped),
        (1, Some(site.counter("out_spoofed")))
    );
}

#[test]
fn ping_errors_and_unserved_protocols_from_a_worker() {
    let site = Site::new();
    for family in [0, 1] {
        let (request, reply) = [(8, 0), (128, 129)][family];
        let worker = site.worker(11);
        let echo = icmp(
            EGRESS[family],
            OUTSIDE[family],
            request,
            0,
            [4, 1, 0, 1],
            b"ping",
        );
        worker
            .send_to(&tunnelled(11, OWN, &echo), site.tunnel())
            .unwrap();
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!((seen.ports, seen.word), ((reply, 0), [4, 1, 0, 1]));
        assert_eq!(seen.payload, b"ping");

        // an echo id of another worker's block
        let echo = icmp(
            EGRESS[family],
            OUTSIDE[family],
            request,
            0,
            [4, 0x40, 0, 1],
            b"ping",
        );
        worker
            .send_to(&tunnelled(11, OWN, &echo), site.tunnel())
            .unwrap();
        site.wait_counter("out_spoofed", 1 + 2 * family as u64);

        // an error about a packet of ours, and one about another packet
        let (kind, code) = [(3, 3), (1, 4)][family];
        let got = udp((OUTSIDE[family], 9), (EGRESS[family], 1024), 60, b"lost");
        let error = icmp(EGRESS[family], OUTSIDE[family], kind, code, [0; 4], &got);
        worker
            .send_to(&tunnelled(11, OWN, &error), site.tunnel())
            .unwrap();
        site.wait_counter("out_forwarded", 2 + 2 * family as u64);
        let got = udp((OUTSIDE[family], 9), (GATEWAY[family], 1024), 60, b"lost");
        let error = icmp(EGRESS[family], OUTSIDE[family], kind, code, [0; 4], &got);
        worker
            .send_to(&tunnelled(11, OWN, &error), site.tunnel())
            .unwrap();
        site.wait_counter("out_foreign_quote", 1 + family as u64);
        let got = udp((OUTSIDE[family], 9), (EGRESS[family], 1088), 60, b"lost");
        let error = icmp(EGRESS[family], OUTSIDE[family], kind, code, [0; 4], &got);
        worker
            .send_to(&tunnelled(11, OWN, &error), site.tunnel())
            .unwrap();
        site.wait_counter("out_spoofed", 2 + 2 * family as u64);
    }
    // an unrequested reply has no id of ours, GRE has none at all
    let reply = icmp(EGRESS[0], OUTSIDE[0], 0, 0, [4, 0, 0, 1], b"ping");
    site.worker(11)
        .send_to(&tunnelled(11, OWN, &reply), site.tunnel())
        .unwrap();
    site.wait_counter("out_unserved", 1);
}

#[test]
fn fragments_follow_their_first_one_both_ways() {
    let site = Site::new();
    for family in [0, 1] {
        let (worker, server) = (site.worker(11), site.server(family, 9000));
        let payload: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        let question = udp(
            (EGRESS[family], 1030),
            (OUTSIDE[family], 9000),
            64,
            &payload,
        );
        for part in fragments(&question, 1200, 7) {
            worker
                .send_to(&tunnelled(11, OWN, &part), site.tunnel())
                .unwrap();
        }
        let (bytes, from) = receive(&server);
        assert_eq!((bytes, from.port()), (payload.clone(), 1030));

        // IPv6 hosts fragment to the path MTU only after an ICMP error; the outside has the MTU from its route
        if family == 1 {
            let route = format!("route add {} dev oe mtu 1400", EGRESS[1]);
            site.outside.ip(&format!("-6 {route}"));
        }
        server.send_to(&payload, from).unwrap();
        let mut got = 0;
        let mut count = 0;
        while got < payload.len() + 8 {
            let bytes = receive(&worker).0;
            let frame = &bytes[8..];
            crate::packets::seen(frame);
            got += frame.len() - 14 - [20, 48][family];
            count += 1;
        }
        assert_eq!((got, count), (3008, 3));
    }
    // later fragments of a worker without any block of the address
    let question = udp((EGRESS[0], 1030), (OUTSIDE[0], 9000), 64, &[0; 2000]);
    let parts = fragments(&question, 1200, 8);
    site.worker(13)
        .send_to(&tunnelled(13, OWN, &parts[1]), site.tunnel())
        .unwrap();
    site.wait_counter("out_spoofed", 1);
    // and a later fragment from outside, whose first fragment did not pass
    let answer = udp((OUTSIDE[0], 9000), (EGRESS[0], 1030), 64, &[0; 2000]);
    let wire = site.outside.run(|| Wire::open("oe"));
    wire.send(&crate::packets::frame(
        EXTERNAL_MAC,
        [2, 0, 0, 0, 0, 1],
        &fragments(&answer, 1200, 99)[1],
    ));
    site.wait_counter("in_fragment_unknown", 1);
}

#[test]
fn a_sender_outside_learns_the_path_mtu() {
    let site = Site::new();
    for family in [0, 1] {
        let server = site.server(family, 9000);
        server.connect((EGRESS[family], 1024)).unwrap();
        discover_mtu(&server, family);
        server.send(&[0; 1440]).unwrap();
        wait("the path MTU", || {
            (path_mtu(&server, family) == MTU as i32).then_some(())
        });
    }
    assert_eq!(site.counter("in_too_big"), 2);
    assert_eq!(site.counter("in_forwarded"), 0);
}

#[test]
fn a_pod_learns_that_the_external_device_is_narrower_than_the_tunnel() {
    let site = Site::new();
    site.gateway.ip("link set ge mtu 1300");
    for (family, message) in [(0, (3, 4)), (1, (2, 0))] {
        let worker = site.worker(11);
        let mut packet = udp(
            (EGRESS[family], 1024),
            (OUTSIDE[family], 9000),
            64,
            &[0; 1350],
        );
        if family == 0 {
            packet = dont_fragment(packet);
        }
        worker
            .send_to(&tunnelled(11, OWN, &packet), site.tunnel())
            .unwrap();
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!(
            (seen.source.to_string(), seen.ports),
            (GATEWAY[family].to_owned(), message)
        );
        assert_eq!(u32::from_be_bytes(seen.word), 1300);
        assert_eq!(seen.payload[..], packet[..128]);
    }
    assert_eq!(site.counter("out_too_big"), 2);
}

#[test]
fn a_pods_trace_sees_the_gateway() {
    let site = Site::new();
    for (family, message) in [(0, (11, 0)), (1, (3, 0))] {
        let worker = site.worker(11);
        let packet = udp(
            (EGRESS[family], 1024),
            (OUTSIDE[family], 33434),
            1,
            b"trace",
        );
        worker
            .send_to(&tunnelled(11, OWN, &packet), site.tunnel())
            .unwrap();
        let seen = untunnelled(&receive(&worker).0);
        assert_eq!(seen.macs.0, egret_wire::tunnel_mac(11));
        assert_eq!(
            (seen.source.to_string(), seen.ports),
            (GATEWAY[family].to_owned(), message)
        );
        assert_eq!(
            (seen.destination.to_string(), seen.payload),
            (EGRESS[family].to_owned(), packet)
        );
    }
    assert_eq!(site.counter("out_ttl_expired"), 2);
}

#[test]
fn probes_are_answered_with_the_steering_version_and_only_to_known_nodes() {
    let mut site = Site::new();
    let probe = |from: u16| Probe {
        kind: Kind::Request,
        sender: from,
        nonce: 0x0123_4567_89ab_cdef,
        steering_version: 0,
    };
    let worker = site.worker(11);
    for version in [77, 78] {
        worker
            .send_to(&probe(11).encode_frame(OWN, 40000, PORT), site.tunnel())
            .unwrap();
        let (reply, to, from_port, to_port) = Probe::decode_frame(&receive(&worker).0).unwrap();
        let want = Probe {
            kind: Kind::Reply,
            sender: OWN,
            steering_version: version,
            ..probe(11)
        };
        assert_eq!((reply, to, from_port, to_port), (want, 11, PORT, 40000));
        let mut next = state(false);
        next.version = 78;
        site.driver.apply(&next, OWN).unwrap();
    }
    site.worker(14)
        .send_to(&probe(14).encode_frame(OWN, 1, PORT), site.tunnel())
        .unwrap();
    site.worker(12)
        .send_to(&probe(11).encode_frame(OWN, 1, PORT), site.tunnel())
        .unwrap();
    worker
        .send_to(&probe(11).encode_frame(OWN, 1, PORT + 1), site.tunnel())
        .unwrap();
    site.wait_counter("probe_refused", 3);
    nothing_waits(&worker);

    // the answer to a probe of this node goes up to its agent
    let agent = std::net::UdpSocket::bind("[::]:0").unwrap();
    agent
        .set_read_timeout(Some(crate::namespaces::PATIENCE))
        .unwrap();
    let reply = Probe {
        kind: Kind::Reply,
        sender: 11,
        steering_version: 5,
        nonce: 1,
    };
    let port = agent.local_addr().unwrap().port();
    worker
        .send_to(&reply.encode_frame(OWN, PORT, port), site.tunnel())
        .unwrap();
    assert_eq!(Probe::decode(&receive(&agent).0), Ok(reply));
    assert_eq!(site.counter("probe_received"), 1);
}

/// The gateway is a worker too: packets of its own blocks are left to its stack, from outside and from another gateway,
/// and packets of other blocks are not accepted from the tunnel.
#[test]
fn own_blocks_are_left_to_the_stack() {
    let site = Site::new();
    let server = site.server(0, 9000);
    server.send_to(b"to self", (EGRESS[0], 1152)).unwrap();
    site.wait_counter("in_self", 1);
    let answer = |port| udp((OUTSIDE[0], 9000), (EGRESS[0], port), 60, b"answer");
    site.worker(13)
        .send_to(&tunnelled(13, OWN, &answer(1152)), site.tunnel())
        .unwrap();
    site.wait_counter("out_self", 1);
    site.worker(13)
        .send_to(&tunnelled(13, OWN, &answer(1024)), site.tunnel())
        .unwrap();
    site.wait_counter("out_not_ours", 1);
    site.worker(14)
        .send_to(&tunnelled(14, OWN, &answer(1152)), site.tunnel())
        .unwrap();
    site.wait_counter("out_unknown_peer", 1);
}

/// The node's own traffic on the same device, unrelated to egress addresses.
#[test]
fn foreign_traffic_is_left_alone() {
    let site = Site::new();
    assert!(ping(&site.outside, GATEWAY[0]) && ping(&site.outside, GATEWAY[1]));
    assert!(ping(&site.gateway, OUTSIDE[0]) && ping(&site.gateway, OUTSIDE[1]));
    let counters = site.driver.counters().unwrap();
    assert_eq!(counters.values().sum::<u64>(), 0, "{counters:?}");
}

#[test]
fn only_the_announcer_answers_for_the_address() {
    let mut site = Site::new();
    let mut quiet = state(false);
    quiet
        .addresses
        .values_mut()
        .for_each(|steering| steering.announce = false);
    assert!(site.driver.apply(&quiet, OWN).unwrap().is_empty());
    for family in [0, 1] {
        assert!(!ping(&site.outside, EGRESS[family]));
    }
    assert_eq!(
        (
            site.counter("in_arp_answered"),
            site.counter("in_nd_answered")
        ),
        (0, 0)
    );
    let announced = site.driver.apply(&state(false), OWN).unwrap();
    assert_eq!(
        announced,
        EGRESS.map(|ip| ip.parse::<std::net::IpAddr>().unwrap())
    );
    assert!(site.driver.apply(&state(false), OWN).unwrap().is_empty());
    for family in [0, 1] {
        assert!(
            !ping(&site.outside, EGRESS[family]),
            "no stack answers an echo request"
        );
    }
    wait("both answers", || {
        // Under emulation of Linux 6.12 the question of a first ping was not always counted; why is not known.
        let _ = EGRESS.map(|address| ping(&site.outside, address));
        let counters = site.driver.counters().unwrap();
        (counters["in_arp_answered"] >= 1 && counters["in_nd_answered"] >= 1).then_some(())
    });
    // those of the first round may have waited for neighbour resolution until now
    assert!(site.counter("in_echo_request") >= 2);
}
