//! Several addresses of a policy: new pods use the one that has room, and pods that run keep theirs.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::traffic::IdleFlows;
use egret_tests::chaos::{Scene, egress, ip, wait};
use egret_tests::cluster::{echo, pod};
use egret_tests::crowded;
use egret_tests::steps::Group;
use egret_tests::tests;
use egret_tests::watch::wait_source;
use std::net::IpAddr;

pub fn groups() -> Vec<Group> {
    tests![new_pods_use_the_address_that_has_room_also_after_a_restart_of_the_agent]
}

const SERVER: &str = "203.0.113.10";
const EGRESS: [&str; 2] = ["192.168.122.222", "192.168.122.223"];
/// Pods from before an address is full, and after it.
const PODS: usize = 5;
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24]}
- {name: outside, cidrs: [203.0.113.0/24]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24],
   pods: [{name: a0, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// The address that the server sees of a pod.
fn source(scene: &Scene, name: &str) -> anyhow::Result<IpAddr> {
    let place = scene.pod(name)?;
    let mut seen = None;
    wait("an egress address", || {
        let asked = egret_lab::traffic::source::tcp_source(&place, echo(ip(SERVER)));
        let asked = asked.ok().map(|source| source.ip());
        seen = asked.filter(|source| EGRESS.map(ip).contains(source));
        seen.is_some()
    })?;
    seen.context("there is one")
}

fn crowded_of(scene: &Scene) -> Vec<String> {
    let policy = scene.object("Egress", "default.main").unwrap_or_default();
    let crowded = policy["status"]["crowded"].as_array().cloned();
    let crowded = crowded.unwrap_or_default().into_iter();
    crowded
        .filter_map(|one| Some(one.as_str()?.to_owned()))
        .collect()
}

fn new_pods_use_the_address_that_has_room_also_after_a_restart_of_the_agent() -> anyhow::Result<()>
{
    let scene = Scene::up("spreading", &Topology::from_yaml(TOPOLOGY)?)?;
    scene.put_ready("main", &egress("main", &EGRESS.map(ip), &[]))?;
    scene.wait_live("w1", &["g1"])?;
    let mut before = vec![("a0".to_owned(), source(&scene, "a0")?)];
    for number in 1..PODS {
        let name = format!("a{number}");
        scene.lab().add_pod("w1", pod(&name, "MyApp"))?;
        before.push((name.clone(), source(&scene, &name)?));
    }
    let full = before[0].1;
    let free = EGRESS.map(ip).into_iter().find(|other| *other != full);
    let free = free.context("two addresses")?;
    let flows = IdleFlows::start(&scene.pod("a0")?, echo(ip(SERVER)), 5)?;
    // The stand-in's pod needs this address, whatever its hash selects.
    scene.put_ready("rest", &egress("rest", &[full], &["198.51.100.0/24"]))?;
    crowded::take_the_rest(&scene, &[full])?;
    wait("the full address in the policy's status", || {
        crowded_of(&scene) == [full.to_string()]
    })?;
    for number in 0..PODS {
        let name = format!("b{number}");
        let place = scene.lab().add_pod("w1", pod(&name, "MyApp"))?;
        wait_source(&place, ip(SERVER), free)?;
    }
    let unchanged = |scene: &Scene| -> anyhow::Result<()> {
        for (name, address) in &before {
            ensure!(source(scene, name)? == *address, "{name} has moved");
        }
        for number in 0..PODS {
            let seen = source(scene, &format!("b{number}"))?;
            ensure!(seen == free, "b{number} leaves by {seen}");
        }
        Ok(())
    };
    unchanged(&scene)?;
    scene.restart_agents(&["w1"], true)?;
    scene.wait_agents(&["w1"])?;
    unchanged(&scene).context("after a restart of the agent")?;
    ensure!(flows.broken() == 0, "connections of a pod that was there");
    let program = egret_tests::chaos::program()?;
    let line = format!("{} explain default/b0 --to {SERVER}", program.display());
    let text = scene.shell("w1", &line)?;
    ensure!(text.contains(&free.to_string()), "{text}");
    Ok(())
}
