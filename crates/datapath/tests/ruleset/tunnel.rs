//! Tunnel packets that a node accepts: frames by hand into its devices, and a socket on the tunnel's port in place of
//! the tunnel device, which receives packets to any address.

use super::*;
use egret_core::numbers::TUNNEL_PORT;
use etherparse::PacketBuilder;
use nix::libc;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const UNDERLAY: &str = "192.168.122.11";
/// The peer of the state.
const PEER: &str = "192.168.122.21";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// Makes two devices in the nodes' network and one of a pod; the other ends are in this namespace too, without
/// addresses.
fn devices() {
    for line in [
        "ip link set lo up",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        "sysctl -qw net.ipv6.conf.default.accept_dad=0",
    ] {
        run(line);
    }
    for (device, peer) in [("eth0", "far0"), ("eth1", "far1"), ("pod0", "in0")] {
        run(&format!(
            "sysctl -qw net.ipv6.conf.default.disable_ipv6=1; ip link add {device} address 02:00:00:00:00:11 type veth peer name {peer}"
        ));
        run(&format!(
            "ip link set {device} up; ip link set {peer} up; sysctl -qw net.ipv4.conf.{device}.rp_filter=0 net.ipv6.conf.{device}.disable_ipv6=0"
        ));
    }
    for line in [
        "ip address add 192.168.122.11/24 dev eth0",
        "ip address add 192.168.122.12/24 dev eth1",
        "ip address add 192.168.122.200/32 dev eth0",
        "ip address add fd00:122::11/64 dev eth0 nodad",
        "ip address add 10.244.1.1/32 dev pod0",
        "ip route add 10.244.1.5 dev pod0",
    ] {
        run(line);
    }
}

/// Sends a UDP packet to the tunnel's port, by the far end of a device.
fn send(device: &str, from: &str, to: &str) {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], MAC);
    let builder = match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("one family"),
    };
    let payload = format!("{from} to {to} by {device}");
    builder
        .udp(40000, TUNNEL_PORT)
        .write(&mut frame, payload.as_bytes())
        .expect("a frame");
    let index = nix::net::if_::if_nametoindex(device).expect("a device");
    // SAFETY: the descriptor is new and owned by this value; the address is written in full and lives through the call.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0, "root");
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        let sent = libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            std::mem::size_of_val(&address) as u32,
        );
        assert_eq!(sent, frame.len() as isize);
    }
}

#[test]
fn tunnel_packets_count_for_the_underlay_address_and_by_the_devices_of_its_network_alone() {
    in_new_namespace(|| {
        devices();
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state())).expect("apply");
        // Sent to another address, whoever owns it, and translated to this one on the way in.
        run("nft 'add table ip foreign; \
            add chain ip foreign in { type nat hook prerouting priority dstnat; }; \
            add rule ip foreign in ip daddr 203.0.113.200 dnat to 192.168.122.11'");
        let tunnel = UdpSocket::bind(("::", TUNNEL_PORT)).expect("the tunnel's port");
        tunnel
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        let mut strangers = 0;
        let mut expect = |device: &str, from: &str, to: &str, taken: bool| {
            let before = nft.counters().expect("counters")["tunnel_stranger"];
            assert_eq!(before, strangers);
            send(device, from, to);
            strangers += u64::from(!taken);
            // An accepted packet shows that the earlier ones have been processed.
            let last = match taken {
                true => format!("{from} to {to} by {device}"),
                false => {
                    send("far0", PEER, UNDERLAY);
                    format!("{PEER} to {UNDERLAY} by far0")
                }
            };
            let mut got = [0; 128];
            let length = tunnel
                .recv(&mut got)
                .unwrap_or_else(|error| panic!("{last}: {error}"));
            assert_eq!(String::from_utf8_lossy(&got[..length]), last);
            let after = nft.counters().expect("counters")["tunnel_stranger"];
            assert_eq!(after, strangers, "{from} to {to} by {device}");
        };
        expect("far0", PEER, UNDERLAY, true);
        // Two devices in one network: the other one may answer for the underlay address too.
        expect("far1", PEER, UNDERLAY, true);
        // Other addresses of this node, of either family, and one that is translated to the right one.
        expect("far0", PEER, "192.168.122.12", false);
        expect("far1", PEER, "192.168.122.12", false);
        expect("far0", PEER, "192.168.122.200", false);
        expect("far0", PEER, "203.0.113.200", false);
        expect("far0", "fd00:122::21", "fd00:122::11", false);
        // From other senders than peers, and from a pod that borrows a peer's address.
        expect("far0", "192.168.122.99", UNDERLAY, false);
        expect("in0", "10.244.1.5", UNDERLAY, false);
        expect("in0", PEER, UNDERLAY, false);
    });
}

/// Kernels before 5.18 offer reverse-path lookups in prerouting alone, and refuse the whole table otherwise.
#[test]
fn the_way_back_is_asked_for_in_prerouting_alone() {
    in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state())).expect("apply");
        let listed = run("nft list table inet egret");
        let (mut hook, mut asking) = ("none", Vec::new());
        for line in listed.lines().map(str::trim) {
            if line.starts_with("chain ") {
                hook = "none";
            } else if let Some((_, rest)) = line.split_once(" hook ") {
                hook = rest.split(' ').next().expect("a name");
            } else if line.contains("fib ") && line.contains(" oif ") {
                asking.push((hook, line));
            }
        }
        assert!(!asking.is_empty());
        assert!(
            asking.iter().all(|(hook, _)| *hook == "prerouting"),
            "{asking:?}"
        );
    });
}
