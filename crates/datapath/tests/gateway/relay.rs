//! Packets from outside for ports that have no owner in this gateway's tables: one hop to another gateway, and no further.

use crate::packets::{Seen, seen, tunnelled, udp};
use crate::site::{EGRESS, OUTSIDE, OWN, Site, nothing_waits, receive, state};
use egret_core::node::{GatewayPeers, GatewayState};
use std::net::UdpSocket;

/// `EGRET_RELAY_VNI` of `bpf/include/abi.h`.
const RELAYED: u32 = 14791;
/// `EGRET_VNI` of `bpf/include/abi.h`.
const STEERED: u32 = 14790;
/// A port that has no owner here.
const UNOWNED: u16 = 2000;
/// `EGRET_RELAYED_PER_SECOND` of `bpf/include/abi.h`.
const PER_SECOND: u64 = 10_000;

/// Node 13 is another gateway and gets packets without an owner; node 12 is a third one.
fn with_peers() -> GatewayState {
    let mut state = state(false);
    for table in state.addresses.values_mut() {
        table.group = 1;
    }
    state.peers = GatewayPeers {
        members: [12, 13].into(),
        relays: [(1, 13)].into(),
    };
    state
}

fn site() -> Site {
    let mut site = Site::new();
    site.driver.apply(&with_peers(), OWN).unwrap();
    site
}

fn identifier(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([0, bytes[4], bytes[5], bytes[6]])
}

fn got(socket: &UdpSocket) -> (u32, Seen) {
    let bytes = receive(socket).0;
    (identifier(&bytes), seen(&bytes[8..]))
}

fn relayed_by(site: &Site, sender: u16, claimed: u16, port: u16, family: usize) {
    let packet = udp(
        (OUTSIDE[family], 9000),
        (EGRESS[family], port),
        63,
        b"answer",
    );
    let mut frame = tunnelled(claimed, OWN, &packet);
    frame[4..7].copy_from_slice(&RELAYED.to_be_bytes()[1..]);
    site.worker(sender).send_to(&frame, site.tunnel()).unwrap();
}

#[test]
fn a_port_without_owner_goes_to_another_gateway_one_hop_older() {
    let site = site();
    for family in [0, 1] {
        let (owner, peer) = (site.worker(11), site.worker(13));
        let server = site.server(family, 9000);
        server
            .send_to(b"answer", (EGRESS[family], UNOWNED))
            .unwrap();
        let (network, seen) = got(&peer);
        assert_eq!(
            (network, seen.ports, seen.payload),
            (RELAYED, (9000, UNOWNED), b"answer".to_vec())
        );
        assert_eq!(seen.hops, 63);
        server.send_to(b"answer", (EGRESS[family], 1024)).unwrap();
        assert_eq!(got(&owner).0, STEERED);
        nothing_waits(&peer);
    }
    assert_eq!(
        (site.counter("in_relayed"), site.counter("in_no_block")),
        (2, 0)
    );
}

#[test]
fn what_another_gateway_passes_on_goes_to_its_owner_and_never_further() {
    let site = site();
    for family in [0, 1] {
        let (owner, next) = (site.worker(11), site.worker(13));
        relayed_by(&site, 12, 12, 1024, family);
        let (network, seen) = got(&owner);
        assert_eq!((network, seen.ports), (STEERED, (9000, 1024)));
        assert_eq!(seen.hops, 63, "the first gateway has counted the hop");
        relayed_by(&site, 12, 12, UNOWNED, family);
        site.wait_counter("relay_no_block", family as u64 + 1);
        nothing_waits(&next);
    }
    assert_eq!(site.counter("relay_forwarded"), 2);
    assert_eq!(site.counter("in_relayed"), 0);
}

#[test]
fn nothing_is_taken_from_nodes_that_share_no_group() {
    let site = site();
    let owner = site.worker(11);
    // 11 is a worker, 14 is in no table, and 14 claims to be 12.
    for (count, (sender, claimed)) in [(11, 11), (14, 14), (14, 12)].into_iter().enumerate() {
        match sender {
            11 => {
                let packet = udp((OUTSIDE[0], 9000), (EGRESS[0], 1024), 63, b"answer");
                let mut frame = tunnelled(claimed, OWN, &packet);
                frame[4..7].copy_from_slice(&RELAYED.to_be_bytes()[1..]);
                owner.send_to(&frame, site.tunnel()).unwrap();
            }
            _ => relayed_by(&site, sender, claimed, 1024, 0),
        }
        site.wait_counter("relay_refused", count as u64 + 1);
    }
    nothing_waits(&owner);
}

#[test]
fn without_another_gateway_and_beyond_the_limit_it_is_dropped_by_name() {
    let mut site = site();
    let server = site.server(0, 9000);
    server.connect((EGRESS[0], UNOWNED)).unwrap();
    // The limit is per second and CPU: twice as many at least, sent as fast as they go, meet it.
    let start = std::time::Instant::now();
    while site.counter("in_relay_limited") == 0 {
        for _ in 0..PER_SECOND {
            let _ = server.send(b"answer");
        }
        assert!(
            start.elapsed() < crate::namespaces::PATIENCE,
            "the limit is never met"
        );
    }
    let mut alone = with_peers();
    alone.peers = GatewayPeers::default();
    site.driver.apply(&alone, OWN).unwrap();
    let before = site.counter("in_no_block");
    server.send(b"answer").unwrap();
    site.wait_counter("in_no_block", before + 1);
}
