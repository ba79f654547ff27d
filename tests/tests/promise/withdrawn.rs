//! Ports that a node has no more, not even to let its flows go on: so a node finds its record that was fenced while it was
//! away. Its connections end as after a policy change.

use anyhow::{Context, Result, ensure};
use egret_core::model::{NodeName, NodeRecord};
use egret_lab::{Hurt, Topology};
use egret_objects::Source;
use egret_objects::dir::{DirSource, Settings};
use egret_tests::chaos::{Phase, Scene, Watch, egress, ip, wait};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![connections_in_ports_of_another_owner_are_reset_and_nothing_leaves_with_a_wrong_source]
}

const SERVER: &str = "203.0.113.10";
const EGRESS: &str = "192.168.122.222";
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24]}
- {name: outside, cidrs: [203.0.113.0/24]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: clock, links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// Sends a line, and reads the answer.
fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"alive\n")?;
    match stream.read(&mut [0; 128])? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Changes what the controller has written for the node; the controller does not run.
fn rewrite(scene: &Scene, change: impl FnOnce(&mut NodeRecord)) -> Result<()> {
    let objects = scene.lab().dir().objects();
    let mut source = DirSource::open(objects, Settings::default())?;
    let view = source.snapshot()?;
    let record = view.snapshot.node_records.get(&NodeName("w1".into()));
    let mut record = record.context("its record")?.clone();
    change(&mut record);
    source.write_node_spec(&record)?;
    Ok(())
}

fn connections_in_ports_of_another_owner_are_reset_and_nothing_leaves_with_a_wrong_source()
-> Result<()> {
    let scene = Scene::up("withdrawn", &Topology::from_yaml(TOPOLOGY)?)?;
    scene.put_ready("main", &egress("main", &[ip(EGRESS)], &[]))?;
    scene.wait_live("w1", &["g1"])?;
    let watch = Watch::start(&scene, &[ip(EGRESS)])?;
    watch.phase(Phase::only(vec![ip(EGRESS)]))?;
    let pod = scene.pod("a1")?;
    let target = SocketAddr::new(ip(SERVER), 5000);
    let mut streams = pod.run(|| -> Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            echo(&mut stream)?;
            streams.push(stream);
        }
        Ok(streams)
    })??;
    scene.lab().kill("control", Hurt::Agent)?;
    // Withdrawn, with time for the flows: they go on.
    rewrite(&scene, |record| {
        record.draining = std::mem::take(&mut record.grants);
        record.grants_epoch += 1;
    })?;
    let acknowledged = |scene: &Scene| {
        let node = scene.object("EgressNode", "w1").unwrap_or_default();
        let epoch = |part: &str, name: &str| node[part][name].as_i64().unwrap_or(0);
        epoch("spec", "grantsEpoch") > 0
            && epoch("status", "acknowledgedEpoch") == epoch("spec", "grantsEpoch")
    };
    wait("the acknowledgement of the withdrawal", || {
        acknowledged(&scene)
    })?;
    for stream in &mut streams {
        echo(stream).context("a connection in draining ports")?;
    }
    rewrite(&scene, |record| {
        record.draining.clear();
        record.grants_epoch += 1;
    })?;
    wait("the acknowledgement of the end", || acknowledged(&scene))?;
    for stream in &mut streams {
        let mut ended = None;
        wait("a connection to end", || {
            ended = echo(stream).err().map(|error| error.kind());
            ended.is_some()
        })?;
        ensure!(ended == Some(ErrorKind::ConnectionReset), "{ended:?}");
    }
    wait("the report that no port is held", || {
        let node = scene.object("EgressNode", "w1").unwrap_or_default();
        node["status"]["held"].is_null()
    })?;
    let verdict = watch.stop()?;
    verdict.assert_clean(&[]);
    ensure!(verdict.from(ip(EGRESS)) > 0, "nothing was captured");
    Ok(())
}
