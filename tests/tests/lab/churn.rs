//! Nodes of an autoscaler in the lab: 1,100 come and go through one address, while a pod of a node that stays has
//! connections by it. Gateways, worker and controller are real; the nodes that come and go are objects only (`churn`).

use anyhow::{Context, Result, ensure};
use egret_core::model::{NodeRecord, Snapshot};
use egret_lab::Topology;
use egret_objects::dir::{DirSource, Settings};
use egret_objects::{Condition, NodeReport, Source, SourceError};
use egret_tests::Cluster;
use egret_tests::churn::{Churn, Objects, Spot, run};
use egret_tests::cluster::{SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![a_thousand_nodes_come_and_go_through_one_address]
}

const NODES: usize = 1_100;
const AT_ONCE: usize = 50;
const LIFE: Duration = Duration::from_secs(4);
/// Connections of the pod that stays.
const CONNECTIONS: usize = 20;
/// Longest wait for a connection or an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const ADDRESS: &str = "192.168.122.222";
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24]}
- {name: outside, cidrs: [203.0.113.0/24]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: g2, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";
/// A block each: 1,100 nodes want more than an address has.
const GATEWAY: &str = "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {name: default}\nspec:\n  default: true\n  \
    nodeSelector: {matchLabels: {egret.dev/gateway: \"true\"}}\n  externalInterface: eth0\n  \
    leases: {initialPorts: 64}\n";

fn connect() -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&echo(ip(SERVERS[0])), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(&mut stream)?;
    Ok(stream)
}

/// Sends a line, and reads the answer.
fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"alive\n")?;
    ensure!(stream.read(&mut [0; 128])? > 0, "closed");
    Ok(())
}

struct Directory {
    source: DirSource,
    folder: PathBuf,
}

impl Objects for Directory {
    fn snapshot(&mut self) -> Result<Snapshot> {
        Ok(self.source.snapshot()?.snapshot)
    }

    fn come(&mut self, spots: &[Spot]) -> Result<()> {
        for spot in spots {
            let (name, address, pod) = (spot.name(), spot.address(), spot.pod_address());
            let mut text = format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
            );
            write!(
                text,
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, uid: {name}, \
                 labels: {{app: MyApp}}}}\nspec: {{nodeName: {name}}}\n\
                 status: {{phase: Running, podIPs: [{{ip: {pod}}}]}}\n"
            )?;
            std::fs::write(self.folder.join(format!("{name}.yaml")), text)?;
        }
        Ok(())
    }

    fn go(&mut self, spots: &[Spot]) -> Result<()> {
        for spot in spots {
            std::fs::remove_file(self.folder.join(format!("{}.yaml", spot.name())))?;
        }
        Ok(())
    }

    fn report(&mut self, records: &[NodeRecord]) -> Result<()> {
        for record in records {
            let report = NodeReport {
                conditions: Vec::<Condition>::new(),
                ..NodeReport::default()
            };
            match self.source.write_node_status(record, &report, 0) {
                // The next look reads it again.
                Ok(_) | Err(SourceError::Conflict { .. } | SourceError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn a_thousand_nodes_come_and_go_through_one_address() -> Result<()> {
    let settings = ["--hold-down-secs", "5"];
    let cluster = Cluster::up_set("churn", &Topology::from_yaml(TOPOLOGY)?, &settings)?;
    cluster.apply(&[GATEWAY.to_owned(), egress("main", "MyApp", &[ADDRESS], "")])?;
    let pod = cluster.pod("a1")?;
    let mut streams =
        pod.run(|| -> Result<Vec<TcpStream>> { (0..CONNECTIONS).map(|_| connect()).collect() })??;
    let folder = cluster.lab().dir().objects().join("spots");
    std::fs::create_dir_all(&folder)?;
    let mut objects = Directory {
        source: DirSource::open(cluster.lab().dir().objects(), Settings::default())?,
        folder,
    };
    let churn = Churn {
        nodes: NODES,
        at_once: AT_ONCE,
        life: LIFE,
        address: ip(ADDRESS),
        gateways_too: false,
    };
    let seen = run(&mut objects, churn)?;
    println!("{seen:?}");
    for stream in &mut streams {
        exchange(stream).context("a connection from before")?;
    }
    pod.run(connect)??;
    // More than one address has at a time: ports were used again.
    ensure!(seen.blocks > 1008, "{seen:?}");
    Ok(())
}
