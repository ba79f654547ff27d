//! A rolling reboot of the cluster, as an upgrade of its nodes makes it: each gateway is drained, powered off, powered on and
//! undrained; each worker's agent ends and starts. Nothing is lost.

use crate::drain::{ask, wait_draining};
use crate::three_gateways::{GATEWAYS, SERVERS, TOPOLOGY};
use crate::traffic::{Traffic, up};
use anyhow::Result;
use egret_lab::Hurt;
use egret_tests::chaos::ip;
use egret_tests::held::Held;
use egret_tests::steps::Group;
use egret_tests::tests;
use std::net::SocketAddr;

pub fn groups() -> Vec<Group> {
    tests![every_gateway_and_every_worker_in_turn_and_no_connection_fails]
}

/// Idle connections.
const IDLE: usize = 10_000;
/// Port of the server that they go to.
const IDLE_PORT: u16 = 7200;
/// A second worker, with a pod of its own.
const WORKER: &str = "- {name: w2, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64],
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1";

fn every_gateway_and_every_worker_in_turn_and_no_connection_fails() -> Result<()> {
    let scene = up("rolling", &TOPOLOGY.replacen("- {name: g1", WORKER, 1))?;
    scene.wait_agents(&["w2"])?;
    let target = SocketAddr::new(ip(SERVERS[0]), IDLE_PORT);
    let mut held = Held::open(&scene, "a2", target, IDLE)?;
    held.all_answer()?;
    let traffic = Traffic::start(&scene)?;
    for gateway in GATEWAYS {
        ask(&scene, gateway, true)?;
        wait_draining(&scene, gateway, "Drained")?;
        scene.lab().kill(gateway, Hurt::Power)?;
        traffic.pass()?;
        scene.lab().start(gateway)?;
        scene.wait_agents(&[gateway])?;
        ask(&scene, gateway, false)?;
        wait_draining(&scene, gateway, "")?;
        scene.wait_live("w1", &GATEWAYS)?;
        scene.wait_live("w2", &GATEWAYS)?;
        traffic.pass()?;
    }
    for worker in ["w1", "w2"] {
        scene.restart_agents(&[worker], true)?;
        traffic.pass()?;
    }
    held.all_answer()?;
    traffic.undisturbed("three gateways rebooted and two workers' agents restarted")
}
