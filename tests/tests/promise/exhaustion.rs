//! All source ports of a lease are in use towards one destination, and the address has no more: new flows to it are
//! refused visibly, and at once after the first 1.5 s; all other traffic continues (RFC 5508 section 8 asks for the ICMP error). `wrong_source::lease_exhausted` tests that no
//! packet leaves with a wrong source meanwhile.

use anyhow::{Context, Result, ensure};
use egret_lab::Topology;
use egret_tests::chaos::{Scene, egress, ip, wait};
use egret_tests::crowded;
use egret_tests::steps::Group;
use egret_tests::tests;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![
        new_tcp_flows_are_refused_at_once_and_all_else_goes_on,
        new_udp_flows_are_told_that_they_are_prohibited
    ]
}

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// Ports of the lease.
const LEASED: usize = 64;
/// How long a dropped SYN is waited for; a refusal arrives within a round trip to the pod's own node.
const PATIENCE: Duration = Duration::from_millis(300);
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

fn up(test: &str) -> Result<Scene> {
    let scene = Scene::up(test, &Topology::from_yaml(TOPOLOGY)?)?;
    scene.put(
        "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {name: default}\nspec:\n  default: true\n  \
        nodeSelector: {matchLabels: {egret.dev/gateway: \"true\"}}\n  externalInterface: eth0\n  \
        leases: {initialPorts: 64, expectedWorkers: 1}\n",
    )?;
    scene.put_ready("main", &egress("main", &EGRESS.map(ip), &[]))?;
    scene.wait_live("w1", &["g1"])?;
    crowded::take_the_rest(&scene, &EGRESS.map(ip))?;
    Ok(scene)
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&target, PATIENCE)
}

/// Opens connections until no more succeed, then waits until the next one is refused and not dropped.
fn fill(target: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    while streams.len() < LEASED {
        match connect(target) {
            Ok(stream) => streams.push(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            Err(_) => {}
        }
    }
    wait("the refusal of the next connection", || {
        match connect(target) {
            Ok(stream) => {
                streams.push(stream);
                false
            }
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        }
    })?;
    ensure!(streams.len() == LEASED, "{} connections", streams.len());
    Ok(streams)
}

/// The connection still carries data.
fn is_alive(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"alive\n")?;
    ensure!(stream.read(&mut [0; 128])? > 0, "closed");
    Ok(())
}

/// Sends by as many sockets as there are ports, and by more until one of them gets the error "prohibited".
fn udp_is_refused(server: IpAddr) -> Result<()> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let mut sockets = Vec::new();
    let mut ask = || -> Result<i32> {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(SocketAddr::new(server, 5000))?;
        socket.send(b"x")?;
        let answer = socket.recv(&mut [0; 128]);
        sockets.push(socket);
        Ok(answer.map_or_else(|error| error.raw_os_error().unwrap_or(0), |_| 0))
    };
    for number in 0..LEASED {
        ensure!(ask()? == 0, "flow {number} of {LEASED}");
    }
    // ICMP 3/13 and ICMPv6 1/1, as a socket shows them (icmp_err_convert, icmpv6_err_convert).
    let prohibited = [libc::EHOSTUNREACH, libc::EACCES][usize::from(server.is_ipv6())];
    wait("a prohibited datagram", || {
        ask().is_ok_and(|errno| errno == prohibited)
    })
}

fn says(object: Option<serde_json::Value>, reason: &str) -> bool {
    let conditions = object.map(|object| object["status"]["conditions"].clone());
    conditions
        .as_ref()
        .and_then(|all| all.as_array())
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PortsExhausted" && c["status"] == "True" && c["reason"] == reason)
}

fn both_say(scene: &Scene) -> [bool; 2] {
    [("EgressNode", "w1"), ("Egress", "default.main")]
        .map(|(kind, name)| says(scene.object(kind, name), "DestinationFull"))
}

fn refused(scene: &Scene) -> Result<u64> {
    let text = scene.shell("w1", "nft list counter inet egret ports_exhausted")?;
    let packets = text.split("packets ").nth(1).context("a counter")?;
    Ok(packets.split(' ').next().context("a number")?.parse()?)
}

fn new_tcp_flows_are_refused_at_once_and_all_else_goes_on() -> Result<()> {
    let scene = up("full-tcp")?;
    let pod = scene.pod("a1")?;
    for server in SERVERS.map(ip) {
        let before = refused(&scene)?;
        let mut streams = pod.run(|| -> Result<_> {
            let mut streams = fill(SocketAddr::new(server, 5000))?;
            let mut other = connect(SocketAddr::new(server, 5001)).context("another port")?;
            is_alive(&mut other)?;
            for stream in &mut streams {
                is_alive(stream).context("a flow that exists")?;
            }
            Ok(streams)
        })??;
        ensure!(refused(&scene)? > before, "nothing was counted");
        wait("node and policy to say so", || {
            both_say(&scene) == [true; 2]
        })?;
        // A new agent refuses like the last one did, and changes no flow.
        scene.restart_agents(&["w1"], false)?;
        pod.run(|| -> Result<()> {
            for stream in &mut streams {
                is_alive(stream).context("a flow that exists, after a restart")?;
            }
            ensure!(fill_is_refused(SocketAddr::new(server, 5000))?, "taken");
            Ok(())
        })??;
        drop(streams);
        pod.run(|| {
            wait("a connection after the others have closed", || {
                connect(SocketAddr::new(server, 5000)).is_ok()
            })
        })??;
        wait("node and policy to take it back", || {
            both_say(&scene) == [false; 2]
        })?;
    }
    Ok(())
}

/// Whether a connection is refused, once the agent has read the flows.
fn fill_is_refused(target: SocketAddr) -> Result<bool> {
    let mut taken = false;
    wait("a refusal", || match connect(target) {
        Ok(_) => {
            taken = true;
            true
        }
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    })?;
    Ok(!taken)
}

fn new_udp_flows_are_told_that_they_are_prohibited() -> Result<()> {
    let scene = up("full-udp")?;
    let pod = scene.pod("a1")?;
    for server in SERVERS.map(ip) {
        pod.run(|| udp_is_refused(server))??;
    }
    ensure!(refused(&scene)? >= 2, "nothing was counted");
    Ok(())
}
