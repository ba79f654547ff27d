//! Packets of the tunnel to a next hop: they go up the stack with its number, and no other packet does.

use crate::packets::{tunnelled, udp};
use crate::site::{EGRESS, OUTSIDE, OWN, Site, state};

const IDENTIFIER: u32 = 0x80_0abc;
const NUMBER: u8 = 5;
const POD: [&str; 2] = ["10.244.1.7", "fd00:244:1::7"];

/// The same frame with another network identifier.
fn with_identifier(mut frame: Vec<u8>, identifier: u32) -> Vec<u8> {
    frame[4..7].copy_from_slice(&identifier.to_be_bytes()[1..]);
    frame
}

fn site() -> Site {
    let mut site = Site::new();
    let mut with = state(false);
    with.next_hops = [(IDENTIFIER, NUMBER)].into();
    site.driver.apply(&with, OWN).unwrap();
    // Others' marks on the outer packet have no effect.
    sh(
        "nft add table inet t; nft add counter inet t right; nft add counter inet t wrong; \
        nft add chain inet t in '{ type filter hook prerouting priority -300; }'; \
        nft add rule inet t in iifname gu meta mark set 0x12060034; \
        nft add rule inet t in iifname egret0 meta mark 0x12050034 counter name right drop; \
        nft add rule inet t in iifname egret0 meta mark and 0x00ff0000 != 0 counter name wrong",
    );
    site
}

fn sh(command: &str) -> String {
    let mut sh = std::process::Command::new("sh");
    let output = sh.args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn marked(counter: &str) -> bool {
    !sh(&format!("nft list counter inet t {counter}")).contains("packets 0 ")
}

#[test]
fn a_known_peers_packet_goes_up_with_the_number_and_with_no_mark_of_others() {
    let site = site();
    for (family, pod) in POD.into_iter().enumerate() {
        let packet = udp((pod, 1024), (OUTSIDE[family], 9000), 64, b"question");
        let frame = with_identifier(tunnelled(11, OWN, &packet), IDENTIFIER);
        site.worker(11).send_to(&frame, site.tunnel()).unwrap();
        site.wait_counter("out_next_hop", family as u64 + 1);
    }
    crate::namespaces::wait("the mark", || marked("right").then_some(()));
    assert!(!marked("wrong"));
}

#[test]
fn what_is_for_no_neighbour_or_from_nobody_known_is_dropped_and_counted() {
    let site = site();
    let packet = |source: &str| udp((source, 1024), (OUTSIDE[0], 9000), 64, b"question");
    let send = |from: u16, frame: Vec<u8>| {
        site.worker(from).send_to(&frame, site.tunnel()).unwrap();
    };
    let of = |claimed: u16, source: &str, identifier| {
        with_identifier(tunnelled(claimed, OWN, &packet(source)), identifier)
    };
    send(11, of(11, POD[0], IDENTIFIER + 1));
    site.wait_counter("out_next_hop_unknown", 1);
    // 12 claims to be 11, and 14 is in no table.
    send(12, of(11, POD[0], IDENTIFIER));
    send(14, of(14, POD[0], IDENTIFIER));
    site.wait_counter("out_unknown_peer", 2);
    send(11, of(11, EGRESS[0], IDENTIFIER));
    site.wait_counter("out_spoofed", 1);
    send(11, of(11, POD[0], IDENTIFIER & 0x7f_ffff));
    site.wait_counter("out_foreign_tunnel", 1);
    // The tunnel's own identifier leads to no next hop.
    send(11, tunnelled(11, OWN, &packet(POD[0])));
    site.wait_counter("out_not_ours", 1);
    assert_eq!(site.counter("out_next_hop"), 0);
    assert!(!marked("right") && !marked("wrong"));
}

#[test]
fn what_is_gone_or_was_changed_by_others_is_brought_back() {
    let mut site = site();
    let mut with = state(false);
    with.next_hops = [(IDENTIFIER + 7, NUMBER)].into();
    site.driver.apply(&with, OWN).unwrap();
    assert_eq!(site.driver.verify_tables(true).unwrap(), None);
    let path = site.pins.join("gateway").join("next_hops");
    let listed = || sh(&format!("bpftool -j map dump pinned {}", path.display()));
    assert_eq!(listed().matches("\"formatted\"").count(), 1, "{}", listed());
    let key = (IDENTIFIER + 7).to_ne_bytes();
    let key = key.map(|byte| format!("{byte:02x}")).join(" ");
    sh(&format!(
        "bpftool map delete pinned {} key hex {key}",
        path.display()
    ));
    assert!(site.driver.verify_tables(true).unwrap().is_some());
    site.driver.apply(&with, OWN).unwrap();
    assert_eq!(listed().matches("\"formatted\"").count(), 1);
    assert_eq!(site.driver.verify_tables(true).unwrap(), None);
}
