//! Quotas: a pod, and a namespace, at its quota of connections to one destination is refused at once; nobody else notices.

use anyhow::{Context, Result, ensure};
use egret_lab::{Place, Topology};
use egret_tests::chaos::{Scene, ip, wait};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![a_pod_and_a_namespace_at_its_quota_is_refused_at_once_and_nobody_else]
}

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const PER_POD: usize = 20;
const PER_NAMESPACE: usize = 30;
/// A refusal arrives within a round trip to the pod's own node.
const PATIENCE: Duration = Duration::from_millis(500);
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}, {name: a2, labels: {app: MyApp}},
     {name: b1, namespace: other, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// The quota of pods is the gateway's, that of namespaces the pool's.
const OBJECTS: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: default}
spec:
  default: true
  nodeSelector: {matchLabels: {egret.dev/gateway: \"true\"}}
  externalInterface: eth0
  leases: {quota: {perPod: 20, perNamespace: 1000}}
---
apiVersion: egret.dev/v1alpha1
kind: EgressPool
metadata: {name: all}
spec: {cidrs: [192.168.122.222/32, \"fd00:122::222/128\"], namespaces: {all: true}, quota: {perNamespace: 30}}
---
apiVersion: egret.dev/v1alpha1
kind: ClusterEgress
metadata: {name: main}
spec: {selector: {app: MyApp}, ips: [192.168.122.222, \"fd00:122::222\"]}
";

/// Opens connections, and counts those that are refused.
fn open(place: &Place, to: SocketAddr, count: usize) -> Result<(Vec<TcpStream>, usize)> {
    place.run(|| {
        let (mut streams, mut refused) = (Vec::new(), 0);
        for _ in 0..count {
            match TcpStream::connect_timeout(&to, PATIENCE) {
                Ok(stream) => streams.push(stream),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((streams, refused))
    })?
}

fn is_alive(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"alive\n")?;
    ensure!(stream.read(&mut [0; 128])? > 0, "closed");
    Ok(())
}

fn counter(scene: &Scene, name: &str) -> Result<u64> {
    let text = scene.shell("w1", &format!("nft list counter inet egret {name}"))?;
    let packets = text.split("packets ").nth(1).context("a counter")?;
    Ok(packets.split(' ').next().context("a number")?.parse()?)
}

/// Errors of datagrams that are sent by this many sockets.
fn datagrams(place: &Place, to: SocketAddr, count: usize) -> Result<Vec<i32>> {
    place.run(|| {
        let any: IpAddr = if to.is_ipv4() {
            ip("0.0.0.0")
        } else {
            ip("::")
        };
        let mut sockets = Vec::new();
        let mut errors = Vec::new();
        for _ in 0..count {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"x")?;
            if let Err(error) = socket.recv(&mut [0; 128]) {
                errors.push(error.raw_os_error().unwrap_or(0));
            }
            sockets.push(socket);
        }
        Ok(errors)
    })?
}

fn message(scene: &Scene) -> Option<String> {
    let node = scene.object("EgressNode", "w1")?;
    let conditions = node["status"]["conditions"].as_array()?.clone();
    let mut reached = conditions
        .into_iter()
        .filter(|one| one["type"] == "QuotaReached");
    Some(reached.next()?["message"].as_str()?.to_owned())
}

fn a_pod_and_a_namespace_at_its_quota_is_refused_at_once_and_nobody_else() -> Result<()> {
    let scene = Scene::up("quotas", &Topology::from_yaml(TOPOLOGY)?)?;
    scene.put(OBJECTS)?;
    scene.wait_live("w1", &["g1"])?;
    let [a1, a2] = ["a1", "a2"].map(|name| scene.pod(name));
    let (a1, a2, b1) = (a1?, a2?, scene.lab().place("pod/other/b1")?);
    for server in SERVERS.map(ip) {
        let to = SocketAddr::new(server, 5000);
        wait("the policy in the kernel", || {
            open(&a1, SocketAddr::new(server, 5003), 1).is_ok_and(|(open, _)| open.len() == 1)
        })?;
        let (mut first, refused) = open(&a1, to, 2 * PER_POD)?;
        ensure!(
            (first.len(), refused) == (PER_POD, PER_POD),
            "{} {refused}",
            first.len()
        );
        // The namespace has 30, of which the first pod has 20.
        let (second, refused) = open(&a2, to, 2 * PER_POD)?;
        let rest = PER_NAMESPACE - PER_POD;
        ensure!(
            (second.len(), refused) == (rest, 2 * PER_POD - rest),
            "{} {refused}",
            second.len()
        );
        // Another namespace, and another port, are not concerned.
        let (third, refused) = open(&b1, to, PER_POD)?;
        ensure!(
            (third.len(), refused) == (PER_POD, 0),
            "{} {refused}",
            third.len()
        );
        let (other_port, refused) = open(&a1, SocketAddr::new(server, 5001), PER_POD)?;
        ensure!((other_port.len(), refused) == (PER_POD, 0), "{refused}");
        for stream in &mut first {
            is_alive(stream).context("a connection that was there")?;
        }
        ensure!(counter(&scene, "pod_quota")? >= PER_POD as u64);
        ensure!(counter(&scene, "namespace_quota")? > 0);
        ensure!(counter(&scene, "ports_exhausted")? == 0);
        wait("a condition that names both", || {
            message(&scene).is_some_and(|text| {
                text.contains("Pod default/a1 has 20 TCP connections, its quota")
                    && text.contains("namespace default has 30 TCP connections, its quota")
                    && !text.contains("other")
            })
        })
        .with_context(|| format!("{:?}", message(&scene)))?;
        // Connections that end make room: the server ends them, too.
        drop((first, second));
        wait("room for new connections", || {
            open(&a1, to, 1).is_ok_and(|(open, _)| open.len() == 1)
        })?;
        let errors = datagrams(&b1, to, PER_POD + 5)?;
        // ICMP 3/13 and ICMPv6 1/1, as a socket shows them.
        let prohibited = [libc::EHOSTUNREACH, libc::EACCES][usize::from(server.is_ipv6())];
        ensure!(errors == [prohibited; 5], "{errors:?}");
    }
    Ok(())
}
