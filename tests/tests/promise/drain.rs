//! P3: a gateway is taken out of service, and no packet is lost: by `egret drain`, cordon, its label, deletion of its Node;
//! and single addresses move.
//!
//! Meanwhile a pod opens 500 connections a second and has idle and busy ones and a stream of datagrams. The machine of a
//! gateway that says it is drained is powered off: it was empty.

use crate::three_gateways::{EGRESS, GATEWAYS, TOPOLOGY, but, with_external_links};
use crate::traffic::{Traffic, up};
use anyhow::{Result, ensure};
use egret_lab::Hurt;
use egret_tests::chaos::{Scene, wait};
use egret_tests::steps::Group;
use egret_tests::tests;
use serde_json::json;
use std::time::{Duration, Instant};

/// Longer than the join delay of a gateway.
const SETTLED: Duration = Duration::from_secs(5);

pub fn groups() -> Vec<Group> {
    tests![
        gateways_are_drained_powered_off_and_undrained_in_turn,
        gateways_with_an_external_link_are_drained_in_turn,
        a_cordoned_gateway_is_drained_and_a_cordoned_worker_is_not_touched,
        a_gateway_without_its_label_hands_over_first,
        a_gateway_whose_node_is_deleted_hands_over,
        an_address_moves_to_each_gateway_and_back,
        a_drain_of_every_gateway_is_refused_and_served
    ]
}

/// Names these announcers in the `EgressGateway` of the lab.
pub fn announcers(scene: &Scene, named: &[(&str, &str)]) -> Result<()> {
    let named = named.iter();
    let named = named.map(|(address, node)| json!({"address": address, "node": node}));
    let mut gateway = scene.manifest("egressgateway", "default")?;
    gateway["spec"]["announcers"] = named.collect();
    scene.put(&gateway.to_string())
}

/// Adds the annotation that `egret drain` writes, or removes it.
pub fn ask(scene: &Scene, host: &str, is_asked: bool) -> Result<()> {
    let mut node = scene.node(host)?;
    node["metadata"]["annotations"] = match is_asked {
        true => json!({"egret.dev/drain": ""}),
        false => json!({}),
    };
    scene.put(&node.to_string())
}

fn cordon(scene: &Scene, host: &str, is_cordoned: bool) -> Result<()> {
    let mut node = scene.node(host)?;
    node["spec"]["unschedulable"] = is_cordoned.into();
    scene.put(&node.to_string())
}

/// Reason of the condition `Draining` of a node; empty without it.
fn draining(scene: &Scene, host: &str) -> String {
    let node = scene.object("EgressNode", host).unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|one| one["type"] == "Draining" && one["status"] == "True");
    let reason = found.and_then(|one| one["reason"].as_str());
    reason.unwrap_or_default().to_owned()
}

pub fn wait_draining(scene: &Scene, host: &str, reason: &str) -> Result<()> {
    let mut last = String::new();
    let waited = wait(&format!("{host} to be {reason:?}"), || {
        last = draining(scene, host);
        last == reason
    });
    if waited.is_err() {
        scene.print_logs();
        let node = scene.object("EgressNode", host).unwrap_or_default();
        println!("{}", node["status"]);
    }
    waited
}

/// Nodes that say they announce an address.
fn announcing(scene: &Scene, address: &str) -> Vec<&'static str> {
    let announces = |host: &str| {
        let node = scene.object("EgressNode", host).unwrap_or_default();
        let all = node["status"]["announcing"].as_array().cloned();
        all.unwrap_or_default().contains(&address.into())
    };
    GATEWAYS
        .into_iter()
        .filter(|host| announces(host))
        .collect()
}

/// The announcers of all addresses, once each has one and none has changed for longer than a gateway takes to join: until
/// then the first gateways that are up announce.
fn settled_announcers(scene: &Scene) -> Result<[Vec<&'static str>; 2]> {
    let mut last = EGRESS.map(|address| announcing(scene, address));
    let mut since = Instant::now();
    wait("the announcers to settle", || {
        let now = EGRESS.map(|address| announcing(scene, address));
        if now != last {
            (last, since) = (now, Instant::now());
        }
        last.iter().all(|by| by.len() == 1) && since.elapsed() > SETTLED
    })?;
    Ok(last)
}

/// Each gateway in turn: drained, powered off, on again and back.
fn in_turn(scene: &Scene, how: &str, drain: impl Fn(&str, bool) -> Result<()>) -> Result<()> {
    for gateway in GATEWAYS {
        let traffic = Traffic::start(scene)?;
        drain(gateway, true)?;
        wait_draining(scene, gateway, "Drained")?;
        for address in EGRESS {
            let by = announcing(scene, address);
            ensure!(by.len() == 1 && by[0] != gateway, "{address}: {by:?}");
        }
        scene.lab().kill(gateway, Hurt::Power)?;
        traffic.pass()?;
        traffic.undisturbed(&format!("{gateway} {how} and powered off"))?;

        let traffic = Traffic::start(scene)?;
        scene.lab().start(gateway)?;
        scene.wait_agents(&[gateway])?;
        wait_draining(scene, gateway, "Drained")?;
        drain(gateway, false)?;
        wait_draining(scene, gateway, "")?;
        scene.wait_live("w1", &GATEWAYS)?;
        traffic.undisturbed(&format!("{gateway} back"))?;
    }
    Ok(())
}

fn gateways_are_drained_powered_off_and_undrained_in_turn() -> Result<()> {
    let scene = up("drain", TOPOLOGY)?;
    in_turn(&scene, "drained", |host, asked| ask(&scene, host, asked))
}

fn gateways_with_an_external_link_are_drained_in_turn() -> Result<()> {
    let scene = up("drainexternal", &with_external_links())?;
    in_turn(&scene, "drained", |host, asked| ask(&scene, host, asked))
}

fn a_cordoned_gateway_is_drained_and_a_cordoned_worker_is_not_touched() -> Result<()> {
    let scene = up("cordon", TOPOLOGY)?;
    cordon(&scene, "w1", true)?;
    in_turn(&scene, "cordoned", |host, asked| {
        cordon(&scene, host, asked)
    })?;
    ensure!(draining(&scene, "w1").is_empty(), "a worker is no gateway");
    Ok(())
}

fn a_gateway_without_its_label_hands_over_first() -> Result<()> {
    let scene = up("unlabelled", TOPOLOGY)?;
    for gateway in GATEWAYS {
        let traffic = Traffic::start(&scene)?;
        scene.select_gateway(gateway, false)?;
        scene.wait_live("w1", &but(gateway))?;
        wait("its data path to go", || {
            let node = scene.object("EgressNode", gateway).unwrap_or_default();
            let status = &node["status"];
            status["datapath"].is_null() && draining(&scene, gateway).is_empty()
        })?;
        traffic.undisturbed(&format!("{gateway} without its label"))?;

        let traffic = Traffic::start(&scene)?;
        scene.select_gateway(gateway, true)?;
        scene.wait_live("w1", &GATEWAYS)?;
        traffic.undisturbed(&format!("{gateway} with its label"))?;
    }
    Ok(())
}

fn a_gateway_whose_node_is_deleted_hands_over() -> Result<()> {
    let scene = up("deleted", TOPOLOGY)?;
    for gateway in GATEWAYS {
        let node = scene.node(gateway)?.to_string();
        let traffic = Traffic::start(&scene)?;
        scene.take(&node)?;
        wait("others to announce its addresses, and it none", || {
            EGRESS.iter().all(|address| {
                let by = announcing(&scene, address);
                by.iter().any(|host| *host != gateway)
            }) && answers_nothing(&scene, gateway)
        })?;
        traffic.pass()?;
        scene.lab().kill(gateway, Hurt::Power)?;
        traffic.undisturbed(&format!("the Node {gateway} deleted, and powered off"))?;
        scene.put(&node)?;
        scene.lab().start(gateway)?;
        scene.wait_live("w1", &GATEWAYS)?;
    }
    Ok(())
}

/// Whether the agent of a gateway announces nothing any more: without its Node object it writes no status.
fn answers_nothing(scene: &Scene, gateway: &str) -> bool {
    let metrics = scene.metrics(gateway).unwrap_or_default();
    metrics
        .lines()
        .any(|line| line == "egret_agent_announcing 0")
}

fn an_address_moves_to_each_gateway_and_back() -> Result<()> {
    let scene = up("move", TOPOLOGY)?;
    let before = settled_announcers(&scene)?;
    let traffic = Traffic::start(&scene)?;
    for gateway in GATEWAYS {
        announcers(&scene, &EGRESS.map(|address| (address, gateway)))?;
        wait(&format!("{gateway} to announce both"), || {
            EGRESS
                .iter()
                .all(|address| announcing(&scene, address) == [gateway])
        })?;
        traffic.pass()?;
    }
    let status = scene.status("g1")?;
    ensure!(status["addresses"][0]["moved_to"] == "g3", "{status}");
    // It gives way while it is drained, and has them again afterwards.
    ask(&scene, "g3", true)?;
    wait_draining(&scene, "g3", "Drained")?;
    ask(&scene, "g3", false)?;
    wait("g3 to announce both again", || {
        EGRESS
            .iter()
            .all(|address| announcing(&scene, address) == ["g3"])
    })?;
    announcers(&scene, &[])?;
    wait("the announcers from before", || {
        EGRESS.map(|address| announcing(&scene, address)) == before
    })?;
    traffic.undisturbed("addresses moved")
}

fn a_drain_of_every_gateway_is_refused_and_served() -> Result<()> {
    let scene = up("drainall", TOPOLOGY)?;
    let traffic = Traffic::start(&scene)?;
    for gateway in GATEWAYS {
        ask(&scene, gateway, true)?;
    }
    for gateway in GATEWAYS {
        wait_draining(&scene, gateway, "DrainRefused")?;
    }
    scene.wait_live("w1", &GATEWAYS)?;
    traffic.pass()?;
    ask(&scene, "g2", false)?;
    for gateway in ["g1", "g3"] {
        wait_draining(&scene, gateway, "Drained")?;
    }
    // The last one goes: those that were drained serve again, before anybody is told.
    traffic.undisturbed("all drained, then all but one")?;
    scene.lab().kill("g2", Hurt::Power)?;
    for gateway in ["g1", "g3"] {
        wait_draining(&scene, gateway, "DrainRefused")?;
    }
    scene.wait_live("w1", &["g1", "g3"])?;
    Traffic::start(&scene)?.undisturbed("both drained gateways serve")
}
