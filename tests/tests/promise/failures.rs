//! P3 and P5: components die, freeze, or start, and no connection is affected.
//!
//! The load is that of [`Load`]. The outage is printed and bounded coarsely: figures are for the benchmarks, and this
//! machine may be busy.

use crate::three_gateways::{
    EGRESS, GATEWAYS, Load, OUTAGE_MAX, SERVERS, TOPOLOGY, but, up_in, with_external_links,
};
use anyhow::Result;
use egret_lab::Hurt;
use egret_lab::layout::CONTROL;
use egret_lab::traffic::{ping_source, tcp_source, udp_source};
use egret_tests::chaos::{Scene, egress, ip, repetitions};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::net::{IpAddr, SocketAddr};

pub fn groups() -> Vec<Group> {
    // The longest first.
    tests![
        worker_agent_started_again_and_again,
        gateway_loses_its_power_and_comes_back,
        gateway_loses_its_external_link_alone_and_comes_back,
        gateway_loses_its_links_and_comes_back,
        gateway_is_no_longer_selected_and_selected_again,
        gateway_agents_killed_and_frozen,
        gateway_agents_end_in_order,
        controller_dead,
        worker_agent_dead_or_frozen,
        all_gateways_dead_and_back,
    ]
}

fn up(test: &str) -> Result<Scene> {
    up_in(test, TOPOLOGY)
}

fn gateway_lost_and_back(test: &str, how: Hurt) -> Result<()> {
    let scene = up(test)?;
    lost_and_back(
        &scene,
        &format!("{how:?}"),
        |gateway| Ok(scene.lab().kill(gateway, how)?),
        |gateway| Ok(scene.lab().start(gateway)?),
    )
}

/// Each gateway in turn is lost and comes back, the latter without packet loss.
fn lost_and_back(
    scene: &Scene,
    how: &str,
    lose: impl Fn(&str) -> Result<()>,
    bring_back: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    // The ones that carry the traffic and announce the addresses are among them.
    for gateway in GATEWAYS {
        let load = Load::start(scene)?;
        load.pass(1)?;
        lose(gateway)?;
        scene.wait_live("w1", &but(gateway))?;
        load.pass(1)?;
        load.finish_within(&format!("{gateway} lost ({how})"), OUTAGE_MAX)?;

        let load = Load::start(scene)?;
        bring_back(gateway)?;
        scene.wait_live("w1", &GATEWAYS)?;
        scene.wait_agents(&[gateway])?;
        load.pass(1)?;
        load.finish_without_loss(&format!("{gateway} added after {how}"))?;
    }
    Ok(())
}

fn gateway_loses_its_links_and_comes_back() -> Result<()> {
    gateway_lost_and_back("links", Hurt::Links)
}

fn gateway_loses_its_power_and_comes_back() -> Result<()> {
    gateway_lost_and_back("power", Hurt::Power)
}

/// It still has its link to the nodes and answers probes, but cannot send on.
fn gateway_loses_its_external_link_alone_and_comes_back() -> Result<()> {
    let scene = up_in("external", &with_external_links())?;
    lost_and_back(
        &scene,
        "external link",
        |gateway| scene.plug_external(gateway, false),
        |gateway| scene.plug_external(gateway, true),
    )
}

fn gateway_is_no_longer_selected_and_selected_again() -> Result<()> {
    let scene = up("label")?;
    lost_and_back(
        &scene,
        "label removed",
        |gateway| scene.select_gateway(gateway, false),
        |gateway| scene.select_gateway(gateway, true),
    )
}

/// Their kernel state stays effective, also after an orderly end.
fn gateway_agents_end_in_order() -> Result<()> {
    let scene = up("term")?;
    let load = Load::start(&scene)?;
    for gateway in GATEWAYS {
        scene.end_agent(gateway)?;
        load.pass(1)?;
    }
    for gateway in GATEWAYS {
        scene.lab().start(gateway)?;
        load.pass(1)?;
    }
    scene.wait_agents(&GATEWAYS)?;
    scene.wait_live("w1", &GATEWAYS)?;
    load.finish_without_loss("agents of all gateways ended by SIGTERM, then running again")?;
    Ok(())
}

fn gateway_agents_killed_and_frozen() -> Result<()> {
    let scene = up("agents")?;
    for how in [Hurt::Agent, Hurt::Freeze] {
        let load = Load::start(&scene)?;
        for gateway in GATEWAYS {
            scene.lab().kill(gateway, how)?;
            load.pass(1)?;
        }
        for gateway in GATEWAYS {
            scene.lab().start(gateway)?;
            load.pass(1)?;
        }
        scene.wait_agents(&GATEWAYS)?;
        scene.wait_live("w1", &GATEWAYS)?;
        load.finish_without_loss(&format!(
            "agents of all gateways: {how:?}, then running again"
        ))?;
    }
    Ok(())
}

fn all_gateways_dead_and_back() -> Result<()> {
    let scene = up("all")?;
    let load = Load::start(&scene)?;
    for gateway in GATEWAYS {
        scene.lab().kill(gateway, Hurt::Links)?;
    }
    scene.wait_live("w1", &[])?;
    for gateway in GATEWAYS {
        scene.lab().start(gateway)?;
    }
    scene.wait_live("w1", &GATEWAYS)?;
    load.pass(1)?;
    for report in load.finish()? {
        println!(
            "all gateways dead and back: {} of {} probes lost",
            report.lost, report.sent
        );
        assert!(report.lost > 0, "the gateways were not dead");
    }
    Ok(())
}

/// New flows of a pod have the egress address.
fn new_flows_work(scene: &Scene) -> Result<()> {
    let pod = scene.pod("a1")?;
    for (server, egress) in SERVERS.map(ip).into_iter().zip(EGRESS.map(ip)) {
        let target = SocketAddr::new(server, 5002);
        let seen: [IpAddr; 3] = [
            tcp_source(&pod, target)?.ip(),
            udp_source(&pod, target)?.ip(),
            ping_source(&pod, server)?,
        ];
        assert_eq!(seen, [egress; 3]);
    }
    Ok(())
}

fn worker_agent_dead_or_frozen() -> Result<()> {
    let scene = up("worker")?;
    for how in [Hurt::Agent, Hurt::Freeze] {
        let load = Load::start(&scene)?;
        scene.lab().kill("w1", how)?;
        load.pass(1)?;
        new_flows_work(&scene)?;
        scene.lab().start("w1")?;
        scene.wait_agents(&["w1"])?;
        load.pass(1)?;
        new_flows_work(&scene)?;
        load.finish_without_loss(&format!("the worker's agent: {how:?}, then running again"))?;
    }
    Ok(())
}

/// Every start replaces the whole table; living flows must neither lose a packet nor count as ended.
fn worker_agent_started_again_and_again() -> Result<()> {
    let scene = up("again")?;
    let load = Load::start(&scene)?;
    for _ in 0..repetitions() {
        scene.restart_agents(&["w1"], false)?;
    }
    load.pass(1)?;
    load.finish_without_loss(&format!(
        "the worker's agent started {} times",
        repetitions()
    ))?;
    Ok(())
}

fn controller_dead() -> Result<()> {
    let scene = up("controller")?;
    let load = Load::start(&scene)?;
    scene.lab().kill(CONTROL, Hurt::Agent)?;
    load.pass(1)?;
    new_flows_work(&scene)?;
    // Everything else works without it: an agent starts, and a gateway is lost and comes back.
    scene.restart_agents(&["w1", "g1"], false)?;
    new_flows_work(&scene)?;
    load.finish_without_loss("controller dead, agents restarted")?;
    let load = Load::start(&scene)?;
    scene.lab().kill("g2", Hurt::Power)?;
    scene.wait_live("w1", &["g1", "g3"])?;
    new_flows_work(&scene)?;
    scene.lab().start("g2")?;
    scene.wait_live("w1", &GATEWAYS)?;
    load.pass(1)?;
    load.finish_within("controller dead, gateway lost and back", OUTAGE_MAX)?;
    scene.lab().start(CONTROL)?;
    scene.put_ready(
        "main",
        &egress(
            "main",
            &EGRESS.map(ip),
            &["203.0.113.0/24", "2001:db8:1::/64"],
        ),
    )?;
    new_flows_work(&scene)
}
