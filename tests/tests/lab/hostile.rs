//! Packets that must not get through: strangers' packets, hand-made tunnel packets, others' ports, forged sources, and
//! protocols that cannot be translated. Each is counted.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::capture::{Capture, Direction, Packet};
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, egress, ip};
use egret_tests::packet::{self, TUNNEL};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "hostile",
        up,
        steps![
            a_packet_without_state_crosses_the_tunnel_once_and_is_counted,
            a_packet_to_an_unleased_port_reaches_no_worker,
            a_workers_own_port_passes_the_gateway,
            a_workers_use_of_anothers_port_is_dropped_at_every_gateway,
            a_workers_packet_with_a_foreign_source_is_dropped_at_the_gateway,
            a_pods_tunnel_packet_to_its_own_node_is_dropped,
            a_pods_tunnel_packet_to_other_nodes_is_dropped,
            a_pods_tunnel_packet_from_a_peers_address_is_dropped,
            a_pods_tunnel_packet_to_an_address_that_no_node_names_is_dropped,
            a_pods_forged_egress_address_is_dropped,
            a_flow_to_an_egress_address_is_refused,
            protocols_without_ports_are_refused_to_selected_pods_only,
            unknown_transport_of_a_selected_pod_has_the_egress_address_or_does_not_leave,
            a_tcp_packet_without_flow_is_reset_towards_the_pod,
        ],
    )]
}

/// The server's second address: only these tests send to it.
const MARK: [&str; 2] = ["203.0.113.20", "2001:db8:1::20"];
const NODES: [&str; 6] = [
    "worker1", "worker2", "worker3", "gateway1", "gateway2", "gateway3",
];
const GATEWAYS: [&str; 3] = ["gateway1", "gateway2", "gateway3"];
const PORT: u16 = 7777;

fn up() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("hostile", &Topology::built_in())?;
    // Where the kernel itself filters forged IPv4 sources, Egret's own rules would not be tested.
    let worker = cluster.host("worker1")?;
    let layout = cluster.lab().layout()?;
    let pods = &layout.host("worker1").context("worker1")?.pods;
    let devices = pods.iter().map(|pod| pod.device.as_str());
    for device in devices.chain(["all"]) {
        let setting = format!("net.ipv4.conf.{device}.rp_filter=0");
        cluster.exec(&worker, &["sysctl", "-qw", &setting])?;
    }
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

/// A legitimate exchange by every worker: all packets sent before it have been processed by then.
fn settle(cluster: &Cluster) -> Outcome {
    for pod in ["a1", "a2", "a3"] {
        for family in 0..2 {
            expect_source(&cluster.pod(pod)?, ip(SERVERS[family]), ip(EGRESS[family]))?;
        }
    }
    Ok(())
}

/// The last port of a worker's lease.
fn port_of(cluster: &Cluster, worker: &str, family: usize) -> anyhow::Result<u16> {
    Ok(*cluster.lease(ip(EGRESS[family]), worker)?.end())
}

/// TCP SYN and ACK by their flags, UDP, and an echo reply: none of them belongs to a flow.
fn stray(from: SocketAddr, to: SocketAddr) -> Vec<Vec<u8>> {
    vec![
        packet::udp(from, to, b"stray"),
        packet::tcp(from, to, packet::Tcp::Syn),
        packet::tcp(from, to, packet::Tcp::Ack),
        packet::echo_reply(from.ip(), to.ip(), to.port()),
    ]
}

fn a_packet_without_state_crosses_the_tunnel_once_and_is_counted(cluster: &Cluster) -> Outcome {
    for family in 0..2 {
        for worker in ["worker1", "worker3"] {
            let target = SocketAddr::new(ip(EGRESS[family]), port_of(cluster, worker, family)?);
            for packet in stray(SocketAddr::new(ip(MARK[family]), PORT), target) {
                crosses_once(cluster, worker, family, &packet)?;
            }
        }
    }
    Ok(())
}

fn crosses_once(cluster: &Cluster, worker: &str, family: usize, packet: &[u8]) -> Outcome {
    let stranger = ip(MARK[family]);
    let is_it = move |packet: &Packet| packet.source == stranger || packet.destination == stranger;
    let (mut tunnels, mut links) = (Vec::new(), Vec::new());
    for node in NODES {
        tunnels.push((node, Capture::start(&cluster.host(node)?, "egret0", is_it)?));
    }
    for device in ["eth0", "eth1"] {
        // The router's own neighbour solicitations are no answer.
        let from_us =
            move |packet: &Packet| packet.destination == stranger && !is_link_local(packet.source);
        links.push(Capture::start(&cluster.host("router")?, device, from_us)?);
    }
    let before = cluster.worker_counter(worker, "unsolicited")?;
    cluster.host("server")?.run(|| packet::send_raw(packet))??;
    wait_for("the worker to count it", DEADLINE, || {
        cluster
            .worker_counter(worker, "unsolicited")
            .is_ok_and(|now| now > before)
    })?;
    // A looping packet would pass many times before this ends.
    settle(cluster)?;
    let after = cluster.worker_counter(worker, "unsolicited")?;
    ensure!(after == before + 1, "{worker} counted {}", after - before);
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    for (node, capture) in tunnels {
        let report = capture.stop()?;
        ensure!(report.dropped == 0, "the capture at {node} lost packets");
        for packet in report.offending {
            let list = if packet.direction == Direction::Out {
                &mut sent
            } else {
                &mut received
            };
            list.push(node);
        }
    }
    ensure!(
        sent.len() == 1 && sent[0].starts_with("gateway"),
        "into the tunnel: {sent:?}"
    );
    ensure!(received == [worker], "out of the tunnel: {received:?}");
    // Neither the worker's stack nor a gateway answers.
    for link in links {
        link.stop()?.clean().map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Packets that any gateway got from another one and had no owner for.
fn refused_relays(cluster: &Cluster) -> anyhow::Result<u64> {
    let counts = GATEWAYS.map(|gateway| cluster.gateway_counter(gateway, "relay_no_block"));
    counts.into_iter().sum()
}

fn a_packet_to_an_unleased_port_reaches_no_worker(cluster: &Cluster) -> Outcome {
    for family in 0..2 {
        let stranger = ip(MARK[family]);
        let gateway = cluster.announcer(ip(EGRESS[family]))?;
        let before = cluster.gateway_counter(&gateway, "in_relayed")?;
        let refused = refused_relays(cluster)?;
        let mut tunnels = Vec::new();
        let workers = NODES.iter().filter(|node| !GATEWAYS.contains(node));
        for node in workers {
            let is_it = move |packet: &Packet| packet.source == stranger;
            tunnels.push(Capture::start(&cluster.host(node)?, "egret0", is_it)?);
        }
        // Ports below 1024 are never leased.
        let target = SocketAddr::new(ip(EGRESS[family]), 80);
        let packet = packet::udp(SocketAddr::new(stranger, PORT), target, b"stray");
        cluster
            .host("server")?
            .run(|| packet::send_raw(&packet))??;
        // One other gateway gets it, has no owner for it either, and passes it to nobody.
        cluster.wait_gateway_counter(&gateway, "in_relayed", before + 1)?;
        wait_for("the other gateway to drop it", DEADLINE, || {
            refused_relays(cluster).is_ok_and(|now| now == refused + 1)
        })?;
        let again = cluster.gateway_counter(&gateway, "in_relayed")?;
        ensure!(again == before + 1, "it was passed on {again} times");
        for tunnel in tunnels {
            tunnel.stop()?.clean().map_err(anyhow::Error::msg)?;
        }
    }
    Ok(())
}

/// Hardware address of a node's tunnel device.
fn tunnel_mac(cluster: &Cluster, node: &str) -> anyhow::Result<[u8; 6]> {
    let text = cluster.exec(
        &cluster.host(node)?,
        &["cat", "/sys/class/net/egret0/address"],
    )?;
    let bytes: Vec<u8> = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("a hardware address")
}

/// A tunnel packet's payload from one node to another: UDP from the egress address and a port, to the server's mark.
fn forged(
    cluster: &Cluster,
    family: usize,
    from: &str,
    to: &str,
    port: u16,
) -> anyhow::Result<Vec<u8>> {
    let source = SocketAddr::new(ip(EGRESS[family]), port);
    let inner = packet::udp(source, SocketAddr::new(ip(MARK[family]), PORT), b"forged");
    Ok(packet::vxlan(
        tunnel_mac(cluster, to)?,
        tunnel_mac(cluster, from)?,
        &inner,
    ))
}

fn send_tunnel(cluster: &Cluster, place: &str, to: IpAddr, payload: &[u8]) -> Outcome {
    let target = SocketAddr::new(to, TUNNEL.0);
    let any = if to.is_ipv4() {
        ip("0.0.0.0")
    } else {
        ip("::")
    };
    cluster.lab().place(place)?.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.send_to(payload, target)
    })??;
    Ok(())
}

/// Captures all packets towards the server's mark.
fn watch_mark(cluster: &Cluster) -> anyhow::Result<Leaving> {
    Leaving::watch(cluster, |packet| MARK.map(ip).contains(&packet.destination))
}

/// The positive control of all that follows: the same hand-made packet is forwarded with a leased port.
fn a_workers_own_port_passes_the_gateway(cluster: &Cluster) -> Outcome {
    for family in 0..2 {
        let port = port_of(cluster, "worker1", family)?;
        for gateway in GATEWAYS {
            let watch = watch_mark(cluster)?;
            let payload = forged(cluster, family, "worker1", gateway, port)?;
            send_tunnel(
                cluster,
                "worker1",
                cluster.node_address(gateway, ip(SERVERS[0]))?,
                &payload,
            )?;
            wait_for("the packet to leave", DEADLINE, || watch.wrong() > 0)?;
        }
    }
    Ok(())
}

fn a_workers_use_of_anothers_port_is_dropped_at_every_gateway(cluster: &Cluster) -> Outcome {
    for family in 0..2 {
        let port = port_of(cluster, "worker2", family)?;
        for gateway in GATEWAYS {
            let watch = watch_mark(cluster)?;
            let before = cluster.gateway_counter(gateway, "out_spoofed")?;
            // Also with the other worker's hardware address, from which its index is read.
            for claims in ["worker1", "worker2"] {
                let payload = forged(cluster, family, claims, gateway, port)?;
                let to = cluster.node_address(gateway, ip(SERVERS[0]))?;
                send_tunnel(cluster, "worker1", to, &payload)?;
            }
            cluster.wait_gateway_counter(gateway, "out_spoofed", before + 2)?;
            settle(cluster)?;
            watch.clean()?;
        }
    }
    Ok(())
}

fn a_workers_packet_with_a_foreign_source_is_dropped_at_the_gateway(cluster: &Cluster) -> Outcome {
    for family in 0..2 {
        let node = cluster.node_address("worker1", ip(SERVERS[family]))?;
        let pod = cluster.pod_address("a1", ip(SERVERS[family]))?;
        for source in [node, pod, ip(SERVERS[family])] {
            let watch = watch_mark(cluster)?;
            let before = cluster.gateway_counter("gateway1", "out_not_ours")?;
            let from = SocketAddr::new(source, 5555);
            let inner = packet::udp(from, SocketAddr::new(ip(MARK[family]), PORT), b"forged");
            let macs = (
                tunnel_mac(cluster, "gateway1")?,
                tunnel_mac(cluster, "worker1")?,
            );
            let payload = packet::vxlan(macs.0, macs.1, &inner);
            let to = cluster.node_address("gateway1", ip(SERVERS[0]))?;
            send_tunnel(cluster, "worker1", to, &payload)?;
            cluster.wait_gateway_counter("gateway1", "out_not_ours", before + 1)?;
            settle(cluster)?;
            watch.clean()?;
        }
    }
    Ok(())
}

/// Sends `payloads` from a pod's side, waits until the node's counter has risen by as many, and checks that none
/// leaves.
fn dropped(
    cluster: &Cluster,
    (node, counter, times): (&str, &str, u64),
    send: impl FnOnce() -> Outcome,
) -> Outcome {
    let watch = watch_mark(cluster)?;
    let before = cluster.worker_counter(node, counter)?;
    send()?;
    let what = format!("{node} to count {times} as {counter}");
    wait_for(&what, DEADLINE, || {
        cluster
            .worker_counter(node, counter)
            .is_ok_and(|now| now >= before + times)
    })?;
    settle(cluster)?;
    let after = cluster.worker_counter(node, counter)?;
    ensure!(
        after == before + times,
        "{counter}: {} instead of {times}",
        after - before
    );
    watch.clean()
}

fn a_pods_tunnel_packet_to_its_own_node_is_dropped(cluster: &Cluster) -> Outcome {
    for pod in ["a1", "other1"] {
        for family in 0..2 {
            let port = port_of(cluster, "worker1", family)?;
            let payload = forged(cluster, family, "worker1", "worker1", port)?;
            dropped(cluster, ("worker1", "tunnel_stranger", 2), || {
                for like in SERVERS.map(ip) {
                    let to = cluster.node_address("worker1", like)?;
                    send_tunnel(cluster, &format!("pod/default/{pod}"), to, &payload)?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn a_pods_tunnel_packet_to_other_nodes_is_dropped(cluster: &Cluster) -> Outcome {
    for pod in ["a1", "other1"] {
        for family in 0..2 {
            // A port in its node's lease: without the drop it would pass the gateway.
            let port = port_of(cluster, "worker1", family)?;
            dropped(cluster, ("worker1", "tunnel_handmade", 8), || {
                for node in ["gateway1", "gateway2", "gateway3", "worker2"] {
                    let payload = forged(cluster, family, "worker1", node, port)?;
                    for like in SERVERS.map(ip) {
                        let to = cluster.node_address(node, like)?;
                        send_tunnel(cluster, &format!("pod/default/{pod}"), to, &payload)?;
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn a_pods_tunnel_packet_from_a_peers_address_is_dropped(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("other1")?;
    for family in 0..2 {
        let port = port_of(cluster, "worker2", family)?;
        for (target, counter) in [
            ("gateway1", "tunnel_handmade"),
            ("worker1", "tunnel_stranger"),
        ] {
            let payload = forged(cluster, family, "worker2", target, port)?;
            let to = cluster.node_address(target, ip(SERVERS[0]))?;
            for peer in ["worker2", "gateway2"] {
                let from = SocketAddr::new(cluster.node_address(peer, to)?, 5555);
                let outer = packet::udp(from, SocketAddr::new(to, TUNNEL.0), &payload);
                dropped(cluster, ("worker1", counter, 1), || {
                    Ok(pod.run(|| packet::send_raw(&outer))??)
                })?;
            }
        }
    }
    Ok(())
}

/// Its node treats such an address like any other outside and translates the packet's source to its own: a peer's.
fn a_pods_tunnel_packet_to_an_address_that_no_node_names_is_dropped(cluster: &Cluster) -> Outcome {
    const FURTHER: [&str; 2] = ["192.168.122.77", "fd00:122::77"];
    let gateway = cluster.host("gateway1")?;
    let address = |word: &str| -> Outcome {
        for (further, bits) in FURTHER.into_iter().zip([32, 128]) {
            let further = format!("{further}/{bits}");
            let mut line = vec!["ip", "address", word, &further, "dev", "eth0"];
            line.extend((word == "add" && bits == 128).then_some("nodad"));
            cluster.exec(&gateway, &line)?;
        }
        Ok(())
    };
    address("add")?;
    for family in 0..2 {
        let port = port_of(cluster, "worker1", family)?;
        let payload = forged(cluster, family, "worker1", "gateway1", port)?;
        dropped(cluster, ("gateway1", "tunnel_stranger", 2), || {
            for to in FURTHER.map(ip) {
                send_tunnel(cluster, "pod/default/other1", to, &payload)?;
            }
            Ok(())
        })?;
    }
    address("delete")
}

fn a_pods_forged_egress_address_is_dropped(cluster: &Cluster) -> Outcome {
    for name in ["a1", "other1"] {
        let pod = cluster.pod(name)?;
        for family in 0..2 {
            let from = SocketAddr::new(ip(EGRESS[family]), port_of(cluster, "worker1", family)?);
            let forged = packet::udp(from, SocketAddr::new(ip(MARK[family]), PORT), b"forged");
            let drops = ("worker1", "forged_source", 1);
            dropped(cluster, drops, || {
                Ok(pod.run(|| packet::send_raw(&forged))??)
            })?;
        }
    }
    Ok(())
}

/// Egress addresses answer only flows of pods, so a pod that contacts one gets an error.
fn a_flow_to_an_egress_address_is_refused(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("a1")?;
    for (address, prohibited) in EGRESS
        .map(ip)
        .into_iter()
        .zip([libc::EHOSTUNREACH, libc::EACCES])
    {
        let target = SocketAddr::new(address, PORT);
        dropped(cluster, ("worker1", "hairpin", 1), || {
            let error = pod.run(|| -> std::io::Result<Option<i32>> {
                let any = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(DEADLINE))?;
                socket.connect(target)?;
                socket.send(b"anybody there?")?;
                let answer = socket.recv(&mut [0; 16]);
                Ok(answer.err().and_then(|error| error.raw_os_error()))
            })??;
            ensure!(error == Some(prohibited), "{target} said {error:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// GRE, ESP, AH and an unassigned one.
const PORTLESS: [u8; 4] = [47, 50, 51, 200];

fn protocols_without_ports_are_refused_to_selected_pods_only(cluster: &Cluster) -> Outcome {
    for server in MARK.map(ip) {
        for protocol in PORTLESS {
            let send = |pod: &str| -> Outcome {
                let place = cluster.pod(pod)?;
                Ok(place.run(|| packet::send_protocol(server, protocol, &[0; 32]))??)
            };
            dropped(cluster, ("worker1", "protocol_refused", 1), || send("a1"))
                .with_context(|| format!("protocol {protocol} to {server}"))?;
            // The same packet of an unselected pod leaves, so the capture would have seen it.
            let watch = watch_mark(cluster)?;
            send("other1")?;
            wait_for("the unselected pod's packet to leave", DEADLINE, || {
                watch.wrong() > 0
            })
            .with_context(|| format!("protocol {protocol} to {server}"))?;
        }
    }
    Ok(())
}

fn unknown_transport_of_a_selected_pod_has_the_egress_address_or_does_not_leave(
    cluster: &Cluster,
) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| {
        MARK.map(ip).contains(&packet.destination) && !EGRESS.map(ip).contains(&packet.source)
    })?;
    let pod = cluster.pod("a1")?;
    // SCTP INIT, UDP-Lite, DCCP, IGMP, IPv6 in IPv4, ICMP of types that are neither echo nor error.
    for server in MARK.map(ip) {
        for protocol in [132, 136, 33, 2, 41, 4] {
            let mut payload = [0; 32];
            payload[..4].copy_from_slice(&[0x13, 0x88, 0x13, 0x88]);
            payload[12..16].copy_from_slice(&[1, 0, 0, 20]);
            refused_or_sent(pod.run(|| packet::send_protocol(server, protocol, &payload))?)?;
        }
        let icmp = if server.is_ipv4() { 1 } else { 58 };
        for kind in [0, 3, 5, 10, 13, 15, 17, 18, 42, 129, 139, 160, 255] {
            let mut payload = [0; 32];
            payload[0] = kind;
            refused_or_sent(pod.run(|| packet::send_protocol(server, icmp, &payload))?)?;
        }
    }
    settle(cluster)?;
    watch.clean()
}

/// A raw socket may report ICMP errors about earlier packets.
fn refused_or_sent(result: std::io::Result<()>) -> Outcome {
    match result {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::HostUnreachable | ErrorKind::PermissionDenied
            ) =>
        {
            Err(error.into())
        }
        _ => Ok(()),
    }
}

fn a_tcp_packet_without_flow_is_reset_towards_the_pod(cluster: &Cluster) -> Outcome {
    for mark in MARK.map(ip) {
        let server = SocketAddr::new(mark, 80);
        let own = SocketAddr::new(cluster.pod_address("a1", server.ip())?, 4444);
        let resets = Capture::start(&cluster.pod("a1")?, "eth0", move |packet| {
            // Byte 13 of the TCP header, after Ethernet and an IP header without options.
            let flags = packet
                .bytes
                .get(14 + if server.is_ipv4() { 20 } else { 40 } + 13);
            packet.direction == Direction::In
                && packet.source == server.ip()
                && packet.protocol == 6
                && flags.is_some_and(|flags| flags & 4 != 0)
        })?;
        let ack = packet::tcp(own, server, packet::Tcp::Ack);
        let pod = cluster.pod("a1")?;
        dropped(cluster, ("worker1", "midstream_reset", 1), || {
            Ok(pod.run(|| packet::send_raw(&ack))??)
        })?;
        let report = resets.stop()?;
        ensure!(
            report.offending_count == 1,
            "{} resets",
            report.offending_count
        );
    }
    Ok(())
}
