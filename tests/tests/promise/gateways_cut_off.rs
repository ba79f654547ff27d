//! Gateways that live and cannot forward: cut off from the other nodes while their external link works, or cut off from
//! the outside beyond their own carrier. Gateways have a link to the nodes and another one to the outside.
//!
//! The load is that of [`Load`]. Outages are printed and bounded coarsely, as in `failures`.

use crate::three_gateways::{EGRESS, GATEWAYS, Load, OUTAGE_MAX, but, up_in, with_external_links};
use anyhow::{Context, ensure};
use egret_lab::Hurt;
use egret_lab::layout::CONTROL;
use egret_tests::chaos::{Scene, program, wait};
use egret_tests::steps::Group;
use egret_tests::{Outcome, steps};
use serde_json::Value;
use std::time::Duration;

/// Multiple of the load's bytes that takes longer than a gateway waits before it announces again.
const BEYOND_A_REFRESH: u32 = 6;

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "cut_off",
        up,
        steps![
            an_announcer_without_its_link_to_the_nodes_gives_way,
            an_announcer_that_no_tunnel_packet_reaches_gives_way,
            an_announcer_that_sends_no_tunnel_packet_gives_way,
            the_last_gateway_serves_also_while_no_agent_asks_it,
            a_gateway_whose_segment_is_dead_beyond_its_carrier_is_left,
            a_gateway_whose_default_route_leads_elsewhere_is_left,
            all_gateways_without_a_router_stay,
            a_closed_tunnel_port_of_every_gateway_is_named,
            a_closed_tunnel_port_of_the_worker_is_named,
        ],
    )]
}

fn up() -> anyhow::Result<Scene> {
    up_in("cutoff", &with_external_links())
}

/// The announcer of the first address, according to the worker's agent.
fn announcer(scene: &Scene) -> anyhow::Result<Option<String>> {
    let status = scene.status("w1")?;
    let list = status["addresses"].as_array().cloned().unwrap_or_default();
    let entry = list.iter().find(|entry| entry["address"] == EGRESS[0]);
    let announcer = entry.context("no such address")?["announcer"].as_str();
    Ok(announcer.map(str::to_owned))
}

fn wait_announcer(scene: &Scene) -> anyhow::Result<String> {
    let mut found = None;
    wait("somebody to announce the address", || {
        found = announcer(scene).ok().flatten();
        found.is_some()
    })?;
    found.context("nobody")
}

/// The reasons of a node's conditions that are true.
fn reasons(scene: &Scene, node: &str) -> Vec<String> {
    let object = scene.object("EgressNode", node).unwrap_or_default();
    let conditions = object["status"]["conditions"].as_array().cloned();
    let holding = conditions.unwrap_or_default().into_iter();
    let holding = holding.filter(|one| one["status"] == "True");
    holding
        .map(|one| format!("{} {}", one["reason"], one["message"]))
        .collect()
}

/// Waits until the node's own status has this reason, or no longer has it.
fn wait_reason(scene: &Scene, node: &str, reason: &str, holds: bool) -> Outcome {
    let mut last = Vec::new();
    let what = format!("{node} to say {reason}: {holds}");
    let waited = wait(&what, || {
        last = reasons(scene, node);
        last.iter().any(|one| one.contains(reason)) == holds
    });
    waited.with_context(|| format!("{last:?}"))
}

fn announces(scene: &Scene, node: &str) -> bool {
    let object = scene.object("EgressNode", node).unwrap_or_default();
    let list = object["status"]["announcing"].as_array().cloned();
    !list.unwrap_or_default().is_empty()
}

/// The bridge's port of a host's link drops everything, and the host's carrier stays.
fn block(scene: &Scene, host: &str, link: usize, is_blocked: bool) -> Outcome {
    let layout = scene.lab().layout()?;
    let found = layout.host(host).context("no such host")?;
    let port = &found.links.get(link).context("no such link")?.port;
    let state = if is_blocked { 0 } else { 3 };
    let line = format!("bridge link set dev {port} state {state}");
    scene.shell(CONTROL, &line).map(drop)
}

/// A host firewall that drops tunnel packets at this hook.
fn close(scene: &Scene, host: &str, hook: &str) -> Outcome {
    let line = format!(
        "nft 'table inet closed {{ chain tunnel {{ type filter hook {hook} priority 0; udp dport 14789 drop; }}; }}'"
    );
    scene.shell(host, &line).map(drop)
}

fn open(scene: &Scene, host: &str) -> Outcome {
    scene.shell(host, "nft delete table inet closed").map(drop)
}

/// The announcer is cut off from the other nodes while its external link lives, and comes back.
fn cut_off(
    scene: &Scene,
    what: &str,
    cut: impl Fn(&str) -> Outcome,
    mend: impl Fn(&str) -> Outcome,
) -> Outcome {
    let gateway = wait_announcer(scene)?;
    let load = Load::start(scene)?;
    load.pass(1)?;
    cut(&gateway)?;
    let seen = (|| {
        scene.wait_live("w1", &but(&gateway))?;
        load.pass(BEYOND_A_REFRESH)?;
        wait_reason(scene, &gateway, "CutOff", true)?;
        ensure!(!announces(scene, &gateway), "{gateway} announces");
        let named = announcer(scene)?;
        ensure!(
            named.as_ref().is_some_and(|named| *named != gateway),
            "{named:?} is named"
        );
        Ok(())
    })();
    let fared = load.finish_within(what, OUTAGE_MAX);
    mend(&gateway)?;
    fared.and(seen)?;
    let load = Load::start(scene)?;
    scene.wait_live("w1", &GATEWAYS)?;
    wait_reason(scene, &gateway, "CutOff", false)?;
    load.pass(1)?;
    load.finish_within(&format!("{what}, and back"), OUTAGE_MAX)
}

fn an_announcer_without_its_link_to_the_nodes_gives_way(scene: &Scene) -> Outcome {
    let link = |gateway: &str, state: &str| {
        let layout = scene.lab().layout()?;
        let found = layout.host(gateway).context("no such host")?;
        let line = format!("ip link set {} {state}", found.links[0].port);
        scene.shell(CONTROL, &line).map(drop)
    };
    cut_off(
        scene,
        "underlay link down",
        |gateway| link(gateway, "down"),
        |gateway| link(gateway, "up"),
    )
}

fn an_announcer_that_no_tunnel_packet_reaches_gives_way(scene: &Scene) -> Outcome {
    cut_off(
        scene,
        "tunnel packets dropped on their way in",
        |gateway| close(scene, gateway, "input"),
        |gateway| open(scene, gateway),
    )
}

fn an_announcer_that_sends_no_tunnel_packet_gives_way(scene: &Scene) -> Outcome {
    cut_off(
        scene,
        "tunnel packets dropped on their way out",
        |gateway| close(scene, gateway, "output"),
        |gateway| open(scene, gateway),
    )
}

/// No other gateway could serve: one that receives no probes continues.
fn the_last_gateway_serves_also_while_no_agent_asks_it(scene: &Scene) -> Outcome {
    let load = Load::start(scene)?;
    load.pass(1)?;
    for gateway in ["g2", "g3"] {
        scene.lab().kill(gateway, Hurt::Links)?;
    }
    let seen = (|| {
        scene.wait_live("w1", &["g1"])?;
        load.pass(1)?;
        scene.lab().kill("w1", Hurt::Freeze)?;
        load.pass(BEYOND_A_REFRESH)
    })();
    for host in ["w1", "g2", "g3"] {
        scene.lab().start(host)?;
    }
    seen?;
    scene.wait_live("w1", &GATEWAYS)?;
    load.pass(1)?;
    load.finish_within("two of three gateways dead, and no agent", OUTAGE_MAX)
}

/// A gateway cannot send on, though its external link has carrier: workers stop using it, and use it again later.
fn no_way_out(
    scene: &Scene,
    what: &str,
    cut: impl Fn(&str) -> Outcome,
    mend: impl Fn(&str) -> Outcome,
) -> Outcome {
    let gateway = wait_announcer(scene)?;
    let load = Load::start(scene)?;
    cut(&gateway)?;
    let seen = (|| {
        scene.wait_live("w1", &but(&gateway))?;
        wait_reason(scene, &gateway, "NoUplink", true)?;
        ensure!(!announces(scene, &gateway), "{gateway} announces");
        load.pass(1)?;
        let fresh = Load::start(scene)?;
        fresh.pass(1)?;
        fresh.finish_within(&format!("{what}, once the gateway is left"), OUTAGE_MAX)
    })();
    mend(&gateway)?;
    seen?;
    scene.wait_live("w1", &GATEWAYS)?;
    wait_reason(scene, &gateway, "NoUplink", false)?;
    load.pass(1)?;
    load.finish_within(what, Duration::from_secs(15))
}

fn a_gateway_whose_segment_is_dead_beyond_its_carrier_is_left(scene: &Scene) -> Outcome {
    no_way_out(
        scene,
        "the segment dead beyond the carrier",
        |gateway| block(scene, gateway, 1, true),
        |gateway| block(scene, gateway, 1, false),
    )
}

fn a_gateway_whose_default_route_leads_elsewhere_is_left(scene: &Scene) -> Outcome {
    let via = |gateway: &str, v4: &str, v6: &str| {
        let line = format!(
            "ip route replace default via {v4} && ip -6 route replace default via {v6} metric 1024"
        );
        scene.shell(gateway, &line).map(drop)
    };
    no_way_out(
        scene,
        "the default route on another device",
        |gateway| via(gateway, "10.10.0.1", "fd00:10::1"),
        |gateway| via(gateway, "192.168.122.1", "fd00:122::1"),
    )
}

/// A fault of all gateways is no reason to leave any.
fn all_gateways_without_a_router_stay(scene: &Scene) -> Outcome {
    let layout = scene.lab().layout()?;
    let host = layout.host("g1").context("g1")?;
    let router = layout.host("router").context("router")?;
    let edge = &host.links[1].bridge;
    let link = router.links.iter().position(|link| link.bridge == *edge);
    let link = link.context("the router has no link there")?;
    let load = Load::start(scene)?;
    load.pass(1)?;
    block(scene, "router", link, true)?;
    let seen = GATEWAYS
        .iter()
        .try_for_each(|gateway| wait_reason(scene, gateway, "NoUplink", true))
        .and_then(|()| scene.wait_live("w1", &GATEWAYS))
        .and_then(|()| {
            wait("explain to say that nothing leaves", || {
                explain(scene).is_ok_and(|said| said["leaves"] == "Stopped")
            })?;
            let findings = scene.status("w1")?["findings"].to_string();
            ensure!(findings.contains("status.uplinkLost"), "{findings}");
            wait("the policy not to be ready", || {
                scene.ready_generation("main") == 0
            })
        });
    block(scene, "router", link, false)?;
    seen?;
    for gateway in GATEWAYS {
        wait_reason(scene, gateway, "NoUplink", false)?;
    }
    scene.wait_live("w1", &GATEWAYS)?;
    wait("the policy to be ready again", || {
        scene.ready_generation("main") > 0
    })?;
    load.pass(1)?;
    load.finish_within("the router gone and back", Duration::from_secs(30))
}

/// Output of `egret explain` on the worker of its pod.
fn explain(scene: &Scene) -> anyhow::Result<Value> {
    let mut command = scene.lab().exec(&scene.host("w1")?, program()?)?;
    let output = command
        .args(["explain", "default/a1", "-o", "json"])
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn closed_port_is_named(scene: &Scene, hosts: &[&str]) -> Outcome {
    for host in hosts {
        close(scene, host, "input")?;
    }
    let seen = (|| {
        scene.wait_live("w1", &[])?;
        let mut last = Value::Null;
        let waited = wait("explain to name the port", || {
            last = explain(scene).unwrap_or_default();
            let text = last.to_string();
            text.contains("14789") && !text.contains("leaves from")
        });
        waited.with_context(|| last.to_string())?;
        ensure!(last["leaves"] == "Stopped", "{last}");
        ensure!(!last.to_string().contains("is announced by"), "{last}");
        let status = scene.status("w1")?;
        for address in status["addresses"].as_array().context("addresses")? {
            ensure!(address["announcer"].is_null(), "{address}");
        }
        let findings = status["findings"].to_string();
        ensure!(findings.contains("14789"), "{findings}");
        wait("the policy not to be Ready", || {
            let status = scene.status("w1").unwrap_or_default();
            status["policies"][0]["ready"] == false
        })
    })();
    for host in hosts {
        open(scene, host)?;
    }
    seen?;
    scene.wait_live("w1", &GATEWAYS)?;
    scene.wait_ready("main", 0)?;
    wait("explain to say how it leaves", || {
        explain(scene).is_ok_and(|said| said.to_string().contains("leaves from"))
    })
}

fn a_closed_tunnel_port_of_every_gateway_is_named(scene: &Scene) -> Outcome {
    closed_port_is_named(scene, &GATEWAYS)
}

fn a_closed_tunnel_port_of_the_worker_is_named(scene: &Scene) -> Outcome {
    closed_port_is_named(scene, &["w1"])
}
