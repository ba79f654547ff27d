//! Other traffic over IP: SCTP, errors, fragments in disorder, unusual UDP, protocols without ports.

mod datagrams;

use anyhow::{Context, ensure};
use egret_lab::capture::{Capture, Direction, Packet};
use egret_lab::process::wait_for;
use egret_lab::traffic::source::udp_echo;
use egret_lab::{Place, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::packet::{
    fragments, sctp, sctp_is_intact, send_all_raw, send_protocol, send_raw, udp,
};
use egret_tests::steps::Group;
use egret_tests::watch::Leaving;
use egret_tests::{Cluster, Outcome, steps};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const SCTP: u8 = 132;
/// Size of a datagram that is fragmented manually, bytes.
const DATAGRAM: usize = 2800;
const PATIENCE: Duration = Duration::from_secs(2);

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "protocols",
        || {
            let cluster = Cluster::up("protocols", &Topology::built_in())?;
            // The second pod's policy does not contain ICMP.
            let transport = "destinations: [{cidr: 203.0.113.0/24, ports: [{protocol: UDP, port: 1, endPort: 65535}]}, \
                             {cidr: '2001:db8:1::/64', ports: [{protocol: UDP, port: 1, endPort: 65535}]}]";
            cluster.apply(&[
                egress("all", "MyApp", &EGRESS, ""),
                egress(
                    "transport",
                    "Other",
                    &["192.168.122.224", "fd00:122::224"],
                    transport,
                ),
            ])?;
            Ok(cluster)
        },
        steps![
            sctp_gets_the_egress_address_and_comes_back,
            fragments_in_reverse_arrive,
            fragments_twice_arrive,
            fragments_that_overlap_harm_nobody,
            a_flood_of_first_fragments_stops_no_whole_packet,
            a_flood_from_outside_is_refused_and_counted,
            a_pods_error_goes_the_way_of_its_flow,
            protocols_without_ports_are_told,
            a_rule_of_others_for_our_mark_is_told,
        ]
        .into_iter()
        .chain(datagrams::steps())
        .collect(),
    )]
}

fn families() -> [(IpAddr, IpAddr); 2] {
    [0, 1].map(|family| (ip(SERVERS[family]), ip(EGRESS[family])))
}

fn wrong(cluster: &Cluster) -> anyhow::Result<Leaving> {
    Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))
}

fn raw(place: &Place, like: IpAddr, protocol: u8) -> anyhow::Result<Socket> {
    let domain = if like.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let protocol = Protocol::from(i32::from(protocol));
    let socket = place.run(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The next packet of a raw socket, without IP header, and its sender.
fn receive(socket: &mut Socket) -> anyhow::Result<Vec<u8>> {
    let mut buffer = vec![0; 2048];
    let length = socket.read(&mut buffer)?;
    buffer.truncate(length);
    // Raw IPv4 sockets include the header.
    if socket
        .local_addr()?
        .as_socket()
        .is_some_and(|a| a.is_ipv4())
    {
        buffer.drain(..20);
    }
    Ok(buffer)
}

/// Hand-made INIT and INIT ACK: this kernel has no SCTP sockets.
fn sctp_gets_the_egress_address_and_comes_back(cluster: &Cluster) -> Outcome {
    const PORTS: (u16, u16) = (40_000, 3868);
    let watch = wrong(cluster)?;
    for (server, egress) in families() {
        let pod = cluster.pod("a1")?;
        let mut ends = [
            raw(&pod, server, SCTP)?,
            raw(&cluster.host("server")?, server, SCTP)?,
        ];
        let is_init = move |packet: &Packet| {
            packet.protocol == SCTP && packet.direction == Direction::In && packet.source == egress
        };
        // The host has another address of this family, too.
        ends[1].bind(&SocketAddr::new(server, 0).into())?;
        let capture = Capture::start(&cluster.host("server")?, "eth0", is_init)?;
        let init = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9];
        let packet = sctp(PORTS.0, PORTS.1, 0, &init);
        pod.run(|| send_protocol(server, SCTP, &packet))??;
        let seen = receive(&mut ends[1]).context("the server's end")?;
        ensure!(sctp_is_intact(&seen), "the checksum is wrong: {seen:02x?}");
        let port = u16::from_be_bytes([seen[0], seen[1]]);
        ensure!(port >= 1024 && seen[2..4] == PORTS.1.to_be_bytes() && seen[12..] == init);
        let mut answer = init;
        answer[0] = 2;
        let packet = sctp(PORTS.1, port, 7, &answer);
        ends[1].send_to(&packet, &SocketAddr::new(egress, 0).into())?;
        let back = receive(&mut ends[0]).context("the pod's end")?;
        ensure!(sctp_is_intact(&back), "the checksum is wrong: {back:02x?}");
        ensure!(
            back[..4] == sctp(PORTS.1, PORTS.0, 7, &answer)[..4],
            "{back:02x?}"
        );
        ensure!(capture.stop()?.offending_count == 1, "not from {egress}");
    }
    watch.clean()
}

/// Sends a datagram of a pod in these fragments; returns whether the server's echo arrives.
fn sends(
    cluster: &Cluster,
    server: IpAddr,
    id: u16,
    parts: &[std::ops::Range<usize>],
) -> anyhow::Result<bool> {
    let place = cluster.pod("a2")?;
    // The server learns the path MTU: an IPv6 datagram that exceeds it is lost, with an ICMP error.
    udp_echo(&place, echo(server), DATAGRAM, DEADLINE)?;
    let source = SocketAddr::new(cluster.pod_address("a2", server)?, 41_000 + id);
    let socket = place.run(|| UdpSocket::bind(source))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    let payload: Vec<u8> = (0..DATAGRAM).map(|n| (n / 8) as u8).collect();
    let whole = udp(source, echo(server), &payload);
    place.run(|| -> Outcome {
        for fragment in fragments(&whole, 100 + id, parts) {
            send_raw(&fragment)?;
        }
        Ok(())
    })??;
    // The echo begins with the source address that the server saw.
    let mut buffer = vec![0; 4096];
    let Ok(length) = socket.recv(&mut buffer) else {
        return Ok(false);
    };
    let egress = EGRESS[usize::from(server.is_ipv6())];
    let text = String::from_utf8_lossy(&buffer[..length.min(64)]).into_owned();
    ensure!(text.contains(egress), "the server saw {text}");
    Ok(true)
}

fn fragments_in_reverse_arrive(cluster: &Cluster) -> Outcome {
    let watch = wrong(cluster)?;
    let end = DATAGRAM + 8;
    for (server, _) in families() {
        for id in 0..10 {
            let parts = [2400..end, 1200..2400, 0..1200];
            ensure!(
                sends(cluster, server, id, &parts)?,
                "{server}: nothing came back"
            );
        }
    }
    watch.clean()
}

fn fragments_twice_arrive(cluster: &Cluster) -> Outcome {
    let watch = wrong(cluster)?;
    let end = DATAGRAM + 8;
    for (server, _) in families() {
        for id in 20..30 {
            let parts = [0..1200, 0..1200, 1200..2400, 1200..2400, 2400..end];
            ensure!(
                sends(cluster, server, id, &parts)?,
                "{server}: nothing came back"
            );
        }
    }
    watch.clean()
}

/// The worker's reassembly refuses them (RFC 5722; Linux does the same for IPv4).
fn fragments_that_overlap_harm_nobody(cluster: &Cluster) -> Outcome {
    let watch = wrong(cluster)?;
    let end = DATAGRAM + 8;
    for (server, egress) in families() {
        let parts = [0..1200, 800..2000, 2000..end];
        ensure!(
            !sends(cluster, server, 40, &parts)?,
            "{server}: it was put together"
        );
        let seen = udp_echo(&cluster.pod("a2")?, echo(server), 3000, DEADLINE)?;
        ensure!(seen.ip() == egress, "{seen}");
    }
    watch.clean()
}

/// Memory of incomplete datagrams is limited by the kernel (`ipfrag_high_thresh`, `ip6frag_high_thresh`).
fn a_flood_of_first_fragments_stops_no_whole_packet(cluster: &Cluster) -> Outcome {
    const FLOOD: u16 = 6000;
    const FIRST: std::ops::Range<usize> = 0..1400;
    let watch = wrong(cluster)?;
    let place = cluster.pod("a3")?;
    for (server, egress) in families() {
        let source = SocketAddr::new(cluster.pod_address("a3", server)?, 42_000);
        let whole = udp(source, echo(server), &[0; DATAGRAM]);
        let first = std::slice::from_ref(&FIRST);
        let flood = (0..FLOOD).flat_map(|id| fragments(&whole, id, first));
        place.run(|| send_all_raw(flood))??;
        let seen = udp_echo(&place, echo(server), 1000, DEADLINE)?;
        ensure!(seen.ip() == egress, "{seen}");
        let name = if server.is_ipv4() {
            "ipv4/ipfrag"
        } else {
            "ipv6/ip6frag"
        };
        let path = format!("/proc/sys/net/{name}_high_thresh");
        let limit = cluster.exec(&cluster.host("worker3")?, &["cat", &path])?;
        let key = if server.is_ipv4() {
            "FRAG: inuse"
        } else {
            "FRAG6: inuse"
        };
        let file = if server.is_ipv4() {
            "/proc/net/sockstat"
        } else {
            "/proc/net/sockstat6"
        };
        let stat = cluster.exec(&cluster.host("worker3")?, &["cat", file])?;
        let memory = stat
            .lines()
            .find(|line| line.starts_with(key))
            .context("no statistics")?;
        let used: u64 = memory.rsplit(' ').next().context("memory")?.parse()?;
        let limit: u64 = limit.trim().parse()?;
        // One more may be accepted before the limit is checked.
        ensure!(used <= limit + 64 * 1024, "{used} bytes of {limit}");
    }
    watch.clean()
}

/// First fragments of more datagrams than a gateway remembers: it forgets the oldest, and their later fragments are
/// refused, counted, and not delivered. Whole packets still pass, both ways.
fn a_flood_from_outside_is_refused_and_counted(cluster: &Cluster) -> Outcome {
    /// Datagrams that a gateway remembers (docs/datapath.md), and half as many again.
    const FLOOD: u16 = 16_384 + 8_192;
    /// Datagrams whose later fragments follow.
    const REST: u16 = 1_000;
    const COUNTER: &str = "in_fragment_unknown";
    let watch = wrong(cluster)?;
    let (pod, host) = (cluster.pod("a3")?, cluster.host("server")?);
    for (server, egress) in families() {
        let seen = udp_echo(&pod, echo(server), 32, DEADLINE)?;
        let whole = udp(echo(server), seen, &[0; 64]);
        let end = whole.len() - if server.is_ipv4() { 20 } else { 40 };
        let gateway = cluster.announcer(egress)?;
        let before = cluster.gateway_counter(&gateway, COUNTER)?;
        let parts = [0..16, 16..end];
        let flood = (0..FLOOD).flat_map(|id| fragments(&whole, id, &parts[..1]));
        let rest = (0..REST).flat_map(|id| fragments(&whole, id, &parts[1..]));
        host.run(|| send_all_raw(flood.chain(rest)))??;
        cluster.wait_gateway_counter(&gateway, COUNTER, before + 1)?;
        let refused = cluster.gateway_counter(&gateway, COUNTER)? - before;
        println!("     {server}: {refused} of {REST} later fragments refused by {gateway}");
        let seen = udp_echo(&pod, echo(server), 1000, DEADLINE)?;
        ensure!(seen.ip() == egress, "{seen}");
    }
    watch.clean()
}

/// The answer arrives at a closed socket of the pod: its kernel sends an error, which leaves with the egress address.
fn a_pods_error_goes_the_way_of_its_flow(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| {
        !["192.168.122.224", "fd00:122::224"]
            .map(ip)
            .contains(&packet.source)
    })?;
    for (server, egress) in [
        (ip(SERVERS[0]), ip("192.168.122.224")),
        (ip(SERVERS[1]), ip("fd00:122::224")),
    ] {
        let error = move |packet: &Packet| {
            let kind = packet
                .bytes
                .get(14 + if egress.is_ipv4() { 20 } else { 40 });
            packet.direction == Direction::In
                && packet.source == egress
                && matches!((packet.protocol, kind), (1, Some(3)) | (58, Some(1)))
        };
        let capture = Capture::start(&cluster.host("server")?, "eth0", error)?;
        let place = cluster.pod("other1")?;
        wait_for("the pod's error to arrive", DEADLINE, || {
            let any = if server.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let sent = place.run(|| UdpSocket::bind(any)?.send_to(b"closed", echo(server)));
            sent.is_ok_and(|sent| sent.is_ok()) && capture.so_far().offending_count > 0
        })?;
        capture.stop()?;
    }
    watch.clean()
}

fn protocols_without_ports_are_told(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("a1")?;
    for (server, _) in families() {
        for protocol in [47, 50] {
            pod.run(|| send_protocol(server, protocol, &[0; 32]))??;
        }
    }
    let addresses = [
        cluster.pod_address("a1", ip(SERVERS[0]))?,
        cluster.pod_address("a1", ip(SERVERS[1]))?,
    ];
    let mut said = String::new();
    wait_for("the condition", DEADLINE, || {
        said = degraded(cluster, "worker1");
        addresses.iter().zip(SERVERS).all(|(pod, server)| {
            ["GRE", "ESP"]
                .iter()
                .all(|name| said.contains(&format!("{name} from {pod} to {server}")))
        }) && said.contains("ProtocolRefused")
    })
    .context(said)
}

/// The condition of a node's object, as text; empty if it does not hold.
fn degraded(cluster: &Cluster, node: &str) -> String {
    let object = cluster.object("egressnode", None, node).unwrap_or_default();
    let mut conditions = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let found = conditions.find(|one| one["type"] == "Degraded" && one["status"] == "True");
    found.map(ToString::to_string).unwrap_or_default()
}

fn a_rule_of_others_for_our_mark_is_told(cluster: &Cluster) -> Outcome {
    const NODE: &str = "worker2";
    let rule = |verb: &str, mark: &str| -> Outcome {
        let words = [
            "ip", "rule", verb, "priority", "500", "fwmark", mark, "lookup", "main",
        ];
        cluster.exec(&cluster.host(NODE)?, &words).map(drop)
    };
    // kube-proxy's and Calico's bits are outside our mask.
    rule("add", "0x4000/0x4000")?;
    rule("add", "0xa0000/0xf0000")?;
    let mut said = String::new();
    wait_for("the condition", DEADLINE, || {
        said = degraded(cluster, NODE);
        said.contains("MarkOverlap") && said.contains("priority 500 looks for mark 0xa0000/0xf0000")
    })
    .with_context(|| said.clone())?;
    ensure!(!said.contains("0x4000"), "{said}");
    rule("del", "0xa0000/0xf0000")?;
    rule("del", "0x4000/0x4000")?;
    wait_for("the condition to go", DEADLINE, || {
        degraded(cluster, NODE).is_empty()
    })?;
    Ok(())
}
