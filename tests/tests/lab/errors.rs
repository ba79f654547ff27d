//! ICMP errors reach the pod whose packet caused them, so that path MTU discovery, refusals and traceroute work.

use anyhow::{Context, bail, ensure};
use egret_lab::capture::{Capture, Packet};
use egret_lab::process::wait_for;
use egret_lab::topology::{Link, Role};
use egret_lab::traffic::ping::PingError;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_lab::traffic::{BusyFlows, PingOptions, TrafficError, ping};
use egret_lab::{Place, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, egress, ip};
use egret_tests::socket::{forbid_fragments, is_too_big, path_mtu};
use egret_tests::steps::Group;
use egret_tests::{Cluster, Outcome, steps};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "errors",
            || up("errors", Topology::built_in()),
            steps![
                a_closed_port_refuses,
                each_hop_of_a_traceroute_answers,
                a_pod_learns_the_mtu_of_the_tunnel,
                the_server_learns_the_mtu_of_the_tunnel,
                uploads_fit_the_tunnel,
                downloads_fit_the_tunnel,
            ],
        ),
        Group::new(
            "narrow_way",
            || up("narrow", narrow(Topology::built_in())),
            steps![
                a_pod_learns_the_mtu_of_the_way,
                uploads_fit_the_way,
                downloads_fit_the_way,
            ],
        ),
        Group::new(
            "narrow_way_of_a_single_node",
            || up("narrow1", narrow(single())),
            steps![
                a_closed_port_refuses,
                a_pod_learns_the_mtu_of_the_way,
                uploads_fit_the_way,
                downloads_fit_the_way,
            ],
        ),
    ]
}

/// Largest IP packet inside the tunnel, bytes: 1500 minus VXLAN over IPv4.
const TUNNEL_MTU: u32 = 1450;
/// Largest IP packet on the narrow link between router and server, bytes.
const NARROW_MTU: u32 = 1300;
/// UDP port of a test's own socket in the server.
const PORT: u16 = 6000;
/// Enough data for several windows, bytes.
const BULK_BYTES: u64 = 16_000_000;

fn up(name: &str, topology: Topology) -> anyhow::Result<Cluster> {
    let cluster = Cluster::up(name, &topology)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn single() -> Topology {
    let mut topology = Topology::built_in();
    topology
        .hosts
        .retain(|host| !host.is_node() || host.name == "worker1");
    topology.hosts[0].roles = vec![Role::Worker, Role::Gateway];
    topology
}

fn narrow(mut topology: Topology) -> Topology {
    for router in topology
        .hosts
        .iter_mut()
        .filter(|host| host.has(Role::Router))
    {
        router.links = vec![Link {
            mtu: Some(NARROW_MTU),
            ..Link::to("outside")
        }];
    }
    topology
}

fn a_closed_port_refuses(cluster: &Cluster) -> Outcome {
    let pods: Vec<Place> = ["a1", "b1"]
        .into_iter()
        .map(|name| cluster.pod(name))
        .collect::<Result<_, _>>()?;
    for server in SERVERS.map(ip) {
        for pod in &pods {
            let closed = SocketAddr::new(server, 9);
            let refused = |result: Result<SocketAddr, TrafficError>| match result {
                Err(error) if error.kind() == Some(ErrorKind::ConnectionRefused) => Ok(()),
                other => bail!("{closed} did not refuse, but: {other:?}"),
            };
            refused(udp_echo(pod, closed, 32, DEADLINE)).context("UDP")?;
            refused(tcp_source_within(pod, closed, DEADLINE)).context("TCP")?;
        }
    }
    Ok(())
}

fn each_hop_of_a_traceroute_answers(cluster: &Cluster) -> Outcome {
    let layout = cluster.lab().layout()?;
    let addresses = |name: &str| -> Vec<IpAddr> {
        let hosts = layout
            .hosts
            .iter()
            .filter(|host| host.name.starts_with(name));
        hosts
            .flat_map(|host| host.addresses().collect::<Vec<_>>())
            .collect()
    };
    let hops = [
        addresses("worker1"),
        addresses("gateway"),
        addresses("router"),
    ];
    for (family, server) in SERVERS.map(ip).into_iter().enumerate() {
        let pod = cluster.pod("a1")?;
        for (n, hop) in hops.iter().enumerate() {
            let options = PingOptions {
                ttl: Some(n as u32 + 1),
                timeout: DEADLINE,
                ..PingOptions::default()
            };
            let expired = [11, 3][family];
            match ping(&pod, server, &options) {
                Err(PingError::Icmp {
                    from,
                    kind,
                    code: 0,
                    ..
                }) if kind == expired && hop.contains(&from) => {}
                other => bail!(
                    "hop {} to {server}: {other:?}, expected one of {hop:?}",
                    n + 1
                ),
            }
        }
        let options = PingOptions {
            ttl: Some(4),
            timeout: DEADLINE,
            ..PingOptions::default()
        };
        ping(&pod, server, &options).context("the server is the fourth hop")?;
    }
    Ok(())
}

/// Sends packets of `bytes` that must not be fragmented, until the sender knows a smaller path MTU; returns that.
fn learn(socket: &UdpSocket, bytes: usize) -> anyhow::Result<u32> {
    forbid_fragments(socket)?;
    let payload = vec![0; bytes];
    wait_for("the sender to learn a path MTU", DEADLINE, || {
        is_too_big(socket.send(&payload)) && path_mtu(socket).is_ok_and(|mtu| mtu < 1500)
    })?;
    Ok(path_mtu(socket)?)
}

fn any(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::new(ip("0.0.0.0"), 0),
        IpAddr::V6(_) => SocketAddr::new(ip("::"), 0),
    }
}

/// A socket of a pod towards a server, and the server's own socket, which has received from it.
fn pair(cluster: &Cluster, pod: &str, server: IpAddr) -> anyhow::Result<(UdpSocket, UdpSocket)> {
    let target = SocketAddr::new(server, PORT);
    let outside = cluster.host("server")?.run(|| UdpSocket::bind(target))??;
    let inside = cluster.pod(pod)?.run(|| UdpSocket::bind(any(server)))??;
    // Routing happens in the namespace of the socket, not of the thread.
    inside.connect(target)?;
    for socket in [&inside, &outside] {
        socket.set_read_timeout(Some(DEADLINE))?;
    }
    inside.send(b"hello")?;
    let (_, peer) = outside.recv_from(&mut [0; 64])?;
    ensure!(
        EGRESS.map(ip).contains(&peer.ip()),
        "the server was asked by {peer}"
    );
    outside.connect(peer)?;
    Ok((inside, outside))
}

/// UDP payload of a packet of this many bytes.
fn payload_bytes(packet: u32, family: IpAddr) -> usize {
    packet as usize - if family.is_ipv4() { 28 } else { 48 }
}

fn a_pod_learns(cluster: &Cluster, bytes: u32, mtu: u32) -> Outcome {
    for server in SERVERS.map(ip) {
        let (inside, outside) = pair(cluster, "a1", server)?;
        let learned = learn(&inside, payload_bytes(bytes, server))?;
        ensure!(
            learned == mtu,
            "{server}: the pod learned {learned}, not {mtu}"
        );
        arrives(&inside, &outside, payload_bytes(mtu, server))?;
    }
    Ok(())
}

/// Sends packets that fit the learned path MTU until one is received.
fn arrives(from: &UdpSocket, to: &UdpSocket, bytes: usize) -> Outcome {
    let payload = vec![7; bytes];
    // Errors about earlier packets may still be reported, each once.
    wait_for("what fits to be sent", DEADLINE, || {
        from.send(&payload).is_ok()
    })?;
    let mut buffer = [0; 2048];
    while to.recv(&mut buffer).context("waiting for what fits")? != bytes {}
    Ok(())
}

fn a_pod_learns_the_mtu_of_the_tunnel(cluster: &Cluster) -> Outcome {
    a_pod_learns(cluster, 1500, TUNNEL_MTU)
}

fn a_pod_learns_the_mtu_of_the_way(cluster: &Cluster) -> Outcome {
    a_pod_learns(cluster, 1400, NARROW_MTU)
}

fn the_server_learns_the_mtu_of_the_tunnel(cluster: &Cluster) -> Outcome {
    for server in SERVERS.map(ip) {
        let (inside, outside) = pair(cluster, "a2", server)?;
        let learned = learn(&outside, payload_bytes(1500, server))?;
        ensure!(
            learned == TUNNEL_MTU,
            "{server} learned {learned}, not {TUNNEL_MTU}"
        );
        arrives(&outside, &inside, payload_bytes(TUNNEL_MTU, server))?;
    }
    Ok(())
}

/// An IPv4 packet with a fragment offset or more to come, or an IPv6 one with a fragment header.
fn is_fragment(packet: &Packet) -> bool {
    let ip = packet.bytes.get(14..).unwrap_or_default();
    match (ip.first().map(|byte| byte >> 4), ip.get(6..8)) {
        (Some(4), Some(flags)) => u16::from_be_bytes([flags[0], flags[1]]) & 0x3fff != 0,
        (Some(6), Some(next)) => next[0] == 44,
        _ => false,
    }
}

/// Transfers data one way over each family; no packet on the worker's link may be a fragment.
fn bulk(cluster: &Cluster, uploads: usize, downloads: usize) -> Outcome {
    for server in SERVERS.map(ip) {
        let link = Capture::start(&cluster.host("worker1")?, "eth0", is_fragment)?;
        let flows = BusyFlows::start_paced(&cluster.pod("a1")?, server, uploads, downloads, None)?;
        let carried = wait_for("the transfer", DEADLINE, || flows.bytes() >= BULK_BYTES);
        let report = flows.stop();
        carried.with_context(|| format!("{server}: {report:?}"))?;
        ensure!(report.broken.is_empty(), "{server}: {report:?}");
        // Lost packets of the capture do not matter here: fragments would be many.
        let seen = link.stop()?;
        ensure!(seen.offending_count == 0, "fragments: {:?}", seen.clean());
        ensure!(!seen.counts.is_empty(), "the capture is blind");
    }
    Ok(())
}

fn uploads_fit_the_tunnel(cluster: &Cluster) -> Outcome {
    bulk(cluster, 1, 0)
}

fn downloads_fit_the_tunnel(cluster: &Cluster) -> Outcome {
    bulk(cluster, 0, 1)
}

fn uploads_fit_the_way(cluster: &Cluster) -> Outcome {
    bulk(cluster, 1, 0)
}

fn downloads_fit_the_way(cluster: &Cluster) -> Outcome {
    bulk(cluster, 0, 1)
}
