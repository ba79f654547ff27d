//! This version starts from objects and files of nodes that the previous one wrote. They are recorded in
//! `tests/fixtures/previous`; the kernel's state of the previous version is missing. The real upgrade, under load, is
//! `tests/tests/install/upgrade.rs`.
//!
//! To record anew, after `cargo test --workspace --test install upgrade::` with `EGRET_FULL=1` has built the programs:
//!
//! ```text
//! EGRET_RECORD=$PWD/tests/fixtures/previous EGRET_BIN=$PWD/target/previous/target/debug/egret \
//!     cargo test --workspace --test lab upgrade::
//! ```

use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use egret_lab::traffic::tcp_source;
use egret_lab::{Hurt, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::runtime::Sandbox;
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const RECORD: &str = "EGRET_RECORD";
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/previous");
/// Parts of the record: objects with their statuses, and the state directory of each node.
const OBJECTS: &str = "objects";
const NODES: [&str; 3] = ["worker1", "gateway1", "gateway2"];
const CONTROL: &str = "control";
const STATE: &str = "var/lib/egret";
const GROUPS: &str = "groups.json";
const ANNOUNCED: &str = "cni/announced.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Address of a second policy, whose gateway came later and sorts before the first one: an agent that does not know the
/// recorded group numbers allocates others.
const SECOND: [&str; 2] = ["192.168.122.223", "fd00:122::223"];
const GATEWAY: &str = "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {name: another}\n\
    spec: {nodeSelector: {matchLabels: {egret.dev/gateway: \"true\"}}}\n";
/// A pod that the plugin announced; its object shows no address yet.
const ANNOUNCED_POD: &str = "announced";

pub fn groups() -> Vec<Group> {
    let all = steps![
        leases_and_group_numbers_of_the_previous_version_stay,
        announcements_of_the_previous_version_stay,
        nodes_report_under_the_names_of_this_version,
    ];
    match std::env::var_os(RECORD) {
        None => vec![Group::new("upgrade", up, all)],
        Some(_) => vec![Group::single("record", record)],
    }
}

/// One worker and two gateways, with the pods of the record.
fn cluster() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology
        .hosts
        .retain(|host| !host.is_node() || NODES.contains(&host.name.as_str()));
    let cluster = Cluster::up("upgrade", &topology)?;
    let lab = cluster.lab();
    lab.add_pod("worker1", pod("second", "Second"))?;
    lab.begin_pod("worker1", pod(ANNOUNCED_POD, "MyApp"))?;
    Ok(cluster)
}

/// A node's state directory.
fn state(cluster: &Cluster, node: &str) -> anyhow::Result<PathBuf> {
    Ok(cluster.host(node)?.root()?.join(STATE))
}

fn boot_id() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?)
}

/// Ends agents and controller.
fn end(cluster: &Cluster) -> Outcome {
    for host in NODES.into_iter().chain([CONTROL]) {
        cluster.lab().kill(host, Hurt::Agent)?;
    }
    Ok(())
}

/// Copies the files of a folder, without hidden ones.
fn copy(from: &Path, to: &Path) -> Outcome {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else if !name.to_string_lossy().starts_with('.') {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Empties a folder that is mounted elsewhere too.
fn empty(folder: &Path) -> Outcome {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(&path)?,
            false => std::fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// Runs the previous version and records what it wrote.
fn record() -> Outcome {
    let folder = PathBuf::from(std::env::var_os(RECORD).context("the folder")?);
    let cluster = cluster()?;
    cluster.apply(&[egress("first", "MyApp", &EGRESS, "")])?;
    let second = egress("second", "Second", &SECOND, "gateway: another");
    cluster.apply(&[GATEWAY.to_owned(), second])?;
    let sandbox = Sandbox::of(&cluster, "default", ANNOUNCED_POD)?;
    sandbox.cni(&cluster, "ADD", "1.0.0")?.expect_good()?;
    cluster.wait_selected("first", 3)?;
    cluster.wait_ready()?;
    end(&cluster)?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    copy(&cluster.lab().dir().objects(), &folder.join(OBJECTS))?;
    for node in NODES {
        copy(&state(&cluster, node)?, &folder.join(node))?;
    }
    let file = folder.join("worker1").join(ANNOUNCED);
    let mut announced: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    ensure!(announced["boot"] == boot_id()?, "{announced}");
    // Of the machine that recorded it.
    announced["boot"] = Value::Null;
    Ok(std::fs::write(file, announced.to_string())?)
}

fn up() -> anyhow::Result<Cluster> {
    let cluster = cluster()?;
    end(&cluster)?;
    let (fixtures, objects) = (Path::new(FIXTURES), cluster.lab().dir().objects());
    empty(&objects)?;
    copy(&fixtures.join(OBJECTS), &objects)?;
    for node in NODES {
        let state = state(&cluster, node)?;
        copy(&fixtures.join(node), &state)?;
    }
    let file = state(&cluster, "worker1")?.join(ANNOUNCED);
    let mut announced: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    announced["boot"] = json!(boot_id()?);
    std::fs::write(file, announced.to_string())?;
    for host in [CONTROL].into_iter().chain(NODES) {
        cluster.lab().start(host)?;
    }
    // The recorded statuses are those of ready policies.
    for node in NODES {
        let applied = wait_for(node, DEADLINE, || cluster.agent_ready(node));
        if applied.is_err() {
            cluster.print_logs();
        }
        applied?;
    }
    cluster.wait_ready()?;
    Ok(cluster)
}

/// A file of the record, as JSON.
fn recorded(path: &str) -> anyhow::Result<Value> {
    let path = Path::new(FIXTURES).join(path);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_saphyr::from_str(&text)?)
}

fn leases_and_group_numbers_of_the_previous_version_stay(cluster: &Cluster) -> Outcome {
    let mut leases = 0;
    for entry in std::fs::read_dir(Path::new(FIXTURES).join("objects/status/EgressAddress"))? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        let before = recorded(&format!("objects/status/EgressAddress/{file}"))?;
        let name = file.trim_end_matches(".yaml");
        let after = cluster.object("EgressAddress", None, name);
        let after = after.with_context(|| format!("{name} is gone"))?;
        ensure!(
            before["spec"] == after["spec"],
            "{name}: {} became {}",
            before["spec"],
            after["spec"]
        );
        leases += before["spec"]["leases"].as_array().map_or(0, Vec::len);
    }
    ensure!(leases == 4, "{leases} leases are recorded");
    let before = recorded(&format!("worker1/{GROUPS}"))?;
    let after = std::fs::read(state(cluster, "worker1")?.join(GROUPS))?;
    let after: Value = serde_json::from_slice(&after)?;
    // This version adds fields of its own.
    for (name, before) in before.as_object().context("the record is no object")? {
        ensure!(
            *before == after[name],
            "{name}: {before} became {}",
            after[name]
        );
    }
    for (name, address) in [("a1", EGRESS[0]), ("second", SECOND[0])] {
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), ip(address))?;
    }
    Ok(())
}

/// The object of the pod shows no address: only the recorded file says that the pod has it.
fn announcements_of_the_previous_version_stay(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    let pod = cluster.pod(ANNOUNCED_POD)?;
    for (server, address) in SERVERS.into_iter().zip(EGRESS) {
        let seen = tcp_source(&pod, echo(ip(server)))?.ip();
        ensure!(seen == ip(address), "it left as {seen}");
    }
    cluster.wait_selected("first", 3)?;
    watch.clean()
}

fn nodes_report_under_the_names_of_this_version(cluster: &Cluster) -> Outcome {
    for node in NODES {
        let before = recorded(&format!("objects/status/EgressNode/{node}.yaml"))?;
        let before = &before["status"]["abilities"];
        ensure!(before.is_array(), "{node} recorded no abilities");
        let mut last = None;
        let named = wait_for("this version's report", DEADLINE, || {
            last = cluster.object("EgressNode", None, node);
            let status = last.as_ref().map(|object| &object["status"]);
            status.is_some_and(|status| {
                status["capabilities"] == *before && status["abilities"].is_null()
            })
        });
        named.with_context(|| format!("{node}: {before} became {last:?}"))?;
    }
    Ok(())
}
