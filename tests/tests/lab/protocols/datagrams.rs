//! UDP in forms that few programs use: without checksum, after options, with an expiring hop limit, merged.

use super::{PATIENCE, families, raw, wrong};
use anyhow::{Context, ensure};
use egret_lab::capture::{Capture, Direction, Packet};
use egret_lab::process::wait_for;
use egret_tests::cluster::DEADLINE;
use egret_tests::packet::{send_raw, udp};
use egret_tests::socket::{accept_without_checksum, merge, segment};
use egret_tests::{Cluster, Outcome, Step, steps};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// The steps, in order.
pub fn steps() -> Vec<Step<Cluster>> {
    steps![
        udp_without_checksum_goes_out_and_comes_back,
        options_of_ipv6_go_out_and_come_back,
        each_hop_of_a_traceroute_by_udp_answers,
        merged_datagrams_go_out_and_come_back,
    ]
}

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

fn header_bytes(is_v4: bool) -> usize {
    if is_v4 { 20 } else { 40 }
}

/// Sends a datagram of a pod to a socket of the server and one back, both as `shape` makes them. Both must arrive, and
/// both must satisfy `is_kept` on arrival.
fn out_and_back(
    cluster: &Cluster,
    (server, egress): (IpAddr, IpAddr),
    port: u16,
    shape: fn(&mut Vec<u8>),
    is_kept: fn(&Packet) -> bool,
) -> Outcome {
    let (pod, host) = (cluster.pod("a1")?, cluster.host("server")?);
    let address = cluster.pod_address("a1", server)?;
    let ends = [
        SocketAddr::new(address, port),
        SocketAddr::new(server, port),
    ];
    let mine = pod.run(|| UdpSocket::bind(ends[0]))??;
    let theirs = host.run(|| UdpSocket::bind(ends[1]))??;
    for socket in [&mine, &theirs] {
        socket.set_read_timeout(Some(PATIENCE))?;
        accept_without_checksum(socket)?;
    }
    let arrives = |from: IpAddr, to: IpAddr| {
        move |packet: &Packet| {
            packet.direction == Direction::In
                && (packet.source, packet.destination) == (from, to)
                && is_kept(packet)
        }
    };
    let out = Capture::start(&host, "eth0", arrives(egress, server))?;
    let back = Capture::start(&pod, "eth0", arrives(server, address))?;
    let mut packet = udp(ends[0], ends[1], b"out");
    shape(&mut packet);
    pod.run(|| send_raw(&packet))??;
    let mut buffer = [0; 64];
    let (length, seen) = theirs.recv_from(&mut buffer).context("out")?;
    ensure!(seen.ip() == egress && &buffer[..length] == b"out", "{seen}");
    let mut packet = udp(ends[1], seen, b"back");
    shape(&mut packet);
    host.run(|| send_raw(&packet))??;
    let (length, seen) = mine.recv_from(&mut buffer).context("back")?;
    ensure!(seen == ends[1] && &buffer[..length] == b"back", "{seen}");
    for (way, capture) in [("out", out), ("back", back)] {
        // A packet that a socket has received has been captured, but perhaps not been counted yet.
        let what = format!("the packet {way} as it was sent, to {server}");
        wait_for(&what, DEADLINE, || capture.so_far().offending_count > 0)?;
    }
    Ok(())
}

/// RFC 768 allows it for IPv4, RFC 6935 for tunnels over IPv6.
fn udp_without_checksum_goes_out_and_comes_back(cluster: &Cluster) -> Outcome {
    let watch = wrong(cluster)?;
    let shape = |packet: &mut Vec<u8>| {
        let at = header_bytes(packet[0] >> 4 == 4) + 6;
        packet[at..at + 2].fill(0);
    };
    let is_kept = |packet: &Packet| {
        let at = ETHERNET + header_bytes(packet.source.is_ipv4()) + 6;
        packet.protocol == 17 && packet.bytes.get(at..at + 2) == Some(&[0; 2])
    };
    for ends in families() {
        out_and_back(cluster, ends, 6100, shape, is_kept)?;
    }
    watch.clean()
}

/// Destination options (RFC 8200 section 4.6) without meaning: padding.
fn options_of_ipv6_go_out_and_come_back(cluster: &Cluster) -> Outcome {
    const OPTIONS: u8 = 60;
    let watch = wrong(cluster)?;
    let shape = |packet: &mut Vec<u8>| {
        let next = std::mem::replace(&mut packet[6], OPTIONS);
        let length = u16::from_be_bytes([packet[4], packet[5]]) + 8;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
    };
    let is_kept = |packet: &Packet| packet.bytes.get(ETHERNET + 6) == Some(&OPTIONS);
    out_and_back(cluster, families()[1], 6101, shape, is_kept)?;
    watch.clean()
}

/// Like traceroute without options: every hop sends an error that quotes the pod's packet, the server last.
fn each_hop_of_a_traceroute_by_udp_answers(cluster: &Cluster) -> Outcome {
    let watch = wrong(cluster)?;
    let layout = cluster.lab().layout()?;
    let hops = ["worker1", "gateway", "router", "server"];
    for (family, (server, _)) in families().into_iter().enumerate() {
        let pod = cluster.pod("a1")?;
        let own = cluster.pod_address("a1", server)?;
        // Used only for receiving, which is the same for all datagram sockets.
        let errors = UdpSocket::from(raw(&pod, server, [1, 58][family])?);
        errors.set_read_timeout(Some(Duration::from_millis(100)))?;
        for (number, hop) in (1u16..).zip(hops) {
            let hosts = layout
                .hosts
                .iter()
                .filter(|host| host.name.starts_with(hop));
            let addresses: Vec<IpAddr> = hosts.flat_map(|host| host.addresses()).collect();
            // Time exceeded, and port unreachable from the server.
            let kind = match (hop, family) {
                ("server", 0) => (3, 3),
                ("server", _) => (1, 4),
                (_, 0) => (11, 0),
                _ => (3, 0),
            };
            let target = SocketAddr::new(server, 33_434 + number);
            let probe = pod.run(|| probe(SocketAddr::new(own, 0), number))??;
            let from = probe.local_addr()?;
            wait_for(&format!("{hop} to answer {from}"), DEADLINE, || {
                // A send may fail with the error of an earlier packet: the next one is sent anyway.
                let _ = probe.send_to(b"trace", target);
                let heard = hear(&errors, server.is_ipv4());
                heard.is_some_and(|(who, found, quoted)| {
                    addresses.contains(&who) && found == kind && quoted == (from, target)
                })
            })?;
        }
    }
    watch.clean()
}

fn probe(from: SocketAddr, hops: u16) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(from)?;
    match from.is_ipv4() {
        true => socket2::SockRef::from(&socket).set_ttl_v4(u32::from(hops))?,
        false => socket2::SockRef::from(&socket).set_unicast_hops_v6(u32::from(hops))?,
    }
    Ok(socket)
}

type Error = (IpAddr, (u8, u8), (SocketAddr, SocketAddr));

/// The next ICMP error: its sender, type and code, and source and destination of the quoted datagram.
fn hear(socket: &UdpSocket, is_v4: bool) -> Option<Error> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let bytes = &buffer[..length];
    // Raw IPv4 sockets include the header.
    let icmp = bytes.get(if is_v4 { 20 } else { 0 }..)?;
    let quoted = icmp.get(8..)?;
    let address = |at: usize| -> Option<IpAddr> {
        Some(match is_v4 {
            true => IpAddr::from(<[u8; 4]>::try_from(quoted.get(12 + at * 4..16 + at * 4)?).ok()?),
            false => {
                IpAddr::from(<[u8; 16]>::try_from(quoted.get(8 + at * 16..24 + at * 16)?).ok()?)
            }
        })
    };
    let ports = quoted.get(header_bytes(is_v4)..)?;
    let port = |at: usize| {
        Some(u16::from_be_bytes(
            ports.get(at * 2..at * 2 + 2)?.try_into().ok()?,
        ))
    };
    let end = |at: usize| Some(SocketAddr::new(address(at)?, port(at)?));
    Some((
        from.ip(),
        (*icmp.first()?, *icmp.get(1)?),
        (end(0)?, end(1)?),
    ))
}

/// One send of many datagrams stays one packet until it must be segmented on the path, and the kernel may merge
/// arriving ones (udp(7): `UDP_SEGMENT`, `UDP_GRO`). All of them arrive, both ways, with the right source.
fn merged_datagrams_go_out_and_come_back(cluster: &Cluster) -> Outcome {
    const PIECE: usize = 1000;
    const PIECES: usize = 20;
    const PORT: u16 = 6102;
    let watch = wrong(cluster)?;
    let (pod, host) = (cluster.pod("a1")?, cluster.host("server")?);
    for (server, egress) in families() {
        let address = cluster.pod_address("a1", server)?;
        let mine = pod.run(|| UdpSocket::bind(SocketAddr::new(address, PORT)))??;
        let theirs = host.run(|| UdpSocket::bind(SocketAddr::new(server, PORT)))??;
        for socket in [&mine, &theirs] {
            socket.set_read_timeout(Some(PATIENCE))?;
            segment(socket, PIECE as u16)?;
            merge(socket)?;
        }
        let mut places = vec![pod.clone(), host.clone(), cluster.host("worker1")?];
        for gateway in ["gateway1", "gateway2", "gateway3"] {
            places.extend(cluster.host(gateway).ok());
        }
        let devices = ["eth0", "egret0"];
        let mut captures = Vec::new();
        for place in &places {
            for device in devices {
                // Pods and the server have no tunnel.
                if let Ok(capture) = Capture::start(place, device, is_merged) {
                    captures.push((format!("{device} of {}", place.name()), capture));
                }
            }
        }
        let payload: Vec<u8> = (0..PIECE * PIECES).map(|n| (n / PIECE) as u8).collect();
        mine.send_to(&payload, SocketAddr::new(server, PORT))?;
        let seen = receive_all(&theirs, &payload).context("out")?;
        ensure!(seen.ip() == egress, "{seen}");
        theirs.send_to(&payload, seen)?;
        let seen = receive_all(&mine, &payload).context("back")?;
        ensure!(seen == SocketAddr::new(server, PORT), "{seen}");
        let mut merged = 0;
        for (place, capture) in captures {
            let count = capture.stop()?.offending_count;
            println!("     {server}: {count} merged packets at {place}");
            if place.contains("gateway") {
                merged += count;
            }
        }
        ensure!(merged > 0, "nothing was merged at any gateway");
    }
    watch.clean()
}

/// Larger than any link carries.
fn is_merged(packet: &Packet) -> bool {
    let at = ETHERNET + if packet.source.is_ipv4() { 2 } else { 4 };
    let length = packet.bytes.get(at..at + 2);
    let is_udp = packet.protocol == 17;
    is_udp && length.is_some_and(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]) > 1500)
}

/// Receives everything, in order; returns the sender.
fn receive_all(socket: &UdpSocket, wanted: &[u8]) -> anyhow::Result<SocketAddr> {
    let mut all: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket
            .recv_from(&mut buffer)
            .with_context(|| format!("after {} bytes", all.len()))?;
        all.extend(&buffer[..length]);
        if all.len() >= wanted.len() {
            ensure!(all == wanted, "other bytes than those sent");
            return Ok(from);
        }
    }
}
