//! Sockets that an agent listens on: no request changes anything.

use anyhow::{Context, ensure};
use egret_lab::{Place, Topology};
use egret_tests::cluster::{SERVERS, ip};
use egret_tests::steps::Group;
use egret_tests::{Cluster, Outcome, steps};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// Port of the agent's metrics and health (docs/requirements.md).
const AGENT: u16 = 9791;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "endpoints",
        || Cluster::up("endpoints", &Topology::built_in()),
        steps![
            nothing_else_listens,
            whoever_asks_may_only_read,
            sockets_of_the_node_are_roots_alone,
        ],
    )]
}

/// Ports that processes called `egret` listen on at a host.
fn listening(cluster: &Cluster, host: &str) -> anyhow::Result<BTreeSet<(String, u16)>> {
    let said = cluster.exec(&cluster.host(host)?, &["ss", "-Htulnp"])?;
    let ours = said.lines().filter(|line| line.contains("\"egret\""));
    let port = |line: &str| {
        let mut words = line.split_whitespace();
        let protocol = words.next()?.to_owned();
        let port = words.nth(3)?.rsplit_once(':')?.1.parse().ok()?;
        Some((protocol, port))
    };
    ours.map(|line| port(line).with_context(|| line.to_owned()))
        .collect()
}

fn nothing_else_listens(cluster: &Cluster) -> Outcome {
    for host in ["worker1", "gateway1"] {
        let found = listening(cluster, host)?;
        let allowed = BTreeSet::from([("tcp".to_owned(), AGENT)]);
        ensure!(found == allowed, "{host} listens on {found:?}");
    }
    Ok(())
}

/// First line of the answer.
fn asked(place: &Place, to: SocketAddr, method: &str, path: &str) -> anyhow::Result<String> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: egret\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    let answer = place.run(move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })??;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

fn whoever_asks_may_only_read(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("other1")?;
    let node: IpAddr = cluster.node_address("worker1", ip(SERVERS[0]))?;
    let to = SocketAddr::new(node, AGENT);
    let first = asked(&pod, to, "GET", "/metrics")?;
    ensure!(first.contains(" 200 "), "reading: {first}");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for path in [
            "/metrics", "/healthz", "/readyz", "/", "/status", "/cleanup",
        ] {
            let first = asked(&pod, to, method, path)?;
            let refused = first.contains(" 405 ") || first.contains(" 404 ");
            ensure!(refused, "{method} {path}: {first}");
        }
    }
    Ok(())
}

fn sockets_of_the_node_are_roots_alone(cluster: &Cluster) -> Outcome {
    let host = cluster.host("worker1")?;
    let script = "stat -c '%F %a %u %n' /run/egret/*.sock";
    let said = cluster.exec(&host, &["sh", "-c", script])?;
    ensure!(said.lines().count() >= 2, "agent and plugin: {said}");
    for line in said.lines() {
        ensure!(line.starts_with("socket 600 0 "), "{line}");
    }
    Ok(())
}
