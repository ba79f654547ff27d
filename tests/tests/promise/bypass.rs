//! P1 where pods' packets bypass the host stack (by a stand-in for a network plugin): two selected pods, one of them on
//! a node that is also a gateway, send continuously over both families during disturbances; every packet that passes
//! the router is checked. Nothing masquerades there: a packet that is not reinjected in time shows its pod's address.

use anyhow::Result;
use egret_lab::{Hurt, Place, Topology};
use egret_tests::chaos::{Kind, Load, Phase, Scene, Watch, egress, ip, repetitions, wait};
use egret_tests::standin::Standin;
use egret_tests::steps::Group;
use egret_tests::tests;
use std::net::IpAddr;

pub fn groups() -> Vec<Group> {
    tests![
        past_the_stack_agents_start_again_and_again,
        past_the_stack_policies_are_edited,
        past_the_stack_policies_start_and_end,
        past_the_stack_all_gateways_go_and_the_device_with_them
    ]
}

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const E1: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
const E2: [&str; 2] = ["192.168.122.223", "fd00:122::223"];
/// Hosts with selected pods.
const NODES: [&str; 2] = ["w1", "wg1"];

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64], cni: none,
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: none,
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: clock, links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// Repetitions: every disturbance takes a second or two, so fewer than where packets pass the host stack.
fn times() -> usize {
    repetitions().div_ceil(5)
}

fn ips(texts: [&str; 2]) -> Vec<IpAddr> {
    texts.map(ip).to_vec()
}

fn pods(scene: &Scene) -> Result<Vec<Place>> {
    Ok(vec![scene.pod("a1")?, scene.pod("a2")?])
}

/// A lab whose pods bypass the host stack of their nodes; the agents are configured for it.
fn up(test: &str) -> Result<(Scene, Standin)> {
    let scene = Scene::up(test, &Topology::from_yaml(TOPOLOGY)?)?;
    let standin = Standin::compile(test)?;
    for node in NODES {
        standin.take_over(scene.lab(), node)?;
    }
    wait("the nodes to see it", || {
        NODES.iter().all(|node| {
            let record = scene.object("EgressNode", node).unwrap_or_default();
            let capabilities = record["status"]["capabilities"].as_array().cloned();
            capabilities.is_some_and(|all| all.iter().any(|one| one == "cni-path-bpf"))
        })
    })?;
    Ok((scene, standin))
}

/// A policy for all destinations, continuous traffic, and captures that allow E1 only.
struct Calm {
    // In the order in which they must end.
    load: Load,
    watch: Watch,
    scene: Scene,
    _standin: Standin,
}

fn calm(test: &str) -> Result<Calm> {
    let (scene, standin) = up(test)?;
    scene.put_ready("main", &egress("main", &ips(E1), &[]))?;
    scene.wait_live("w1", &["g1", "wg1"])?;
    let watch = Watch::start(&scene, &[ips(E1), ips(E2)].concat())?;
    watch.phase(Phase::only(ips(E1)))?;
    let load = Load::start(&pods(&scene)?, &ips(SERVERS))?;
    load.wait_answers()?;
    Ok(Calm {
        load,
        watch,
        scene,
        _standin: standin,
    })
}

/// Every source was seen all the time, and no other.
fn finish(calm: Calm, right: &[IpAddr]) -> Result<()> {
    calm.load.wait_answers()?;
    let verdict = calm.watch.stop()?;
    calm.load.stop();
    verdict.assert_clean(right);
    let count = verdict.from_any(right);
    println!("{count} packets with the right source, 0 with a wrong one, 0 lost by the captures");
    assert!(
        count > 10 * times() as u64,
        "too little traffic: {count} packets"
    );
    Ok(())
}

fn past_the_stack_agents_start_again_and_again() -> Result<()> {
    let calm = calm("pastagents")?;
    for turn in 0..times() {
        // Killed, and stopped in order.
        calm.scene.restart_agents(&NODES, turn % 2 == 0)?;
        calm.load.wait_turns()?;
    }
    finish(calm, &ips(E1))
}

fn past_the_stack_policies_are_edited() -> Result<()> {
    let calm = calm("pastedits")?;
    let lists: [&[&str]; 3] = [
        &["203.0.113.0/24", "2001:db8:1::/64"],
        &["203.0.113.0/28", "198.51.100.0/24", "2001:db8::/32"],
        &[],
    ];
    let before = calm.load.opened(Kind::LongTcp);
    for turn in 0..times() {
        let list = lists[turn % lists.len()];
        calm.scene
            .put_ready("main", &egress("main", &ips(E1), list))?;
        calm.load.wait_turns()?;
    }
    let opened = calm.load.opened(Kind::LongTcp);
    assert_eq!(opened, before, "flows that stay selected live on");
    let both = || Phase::only([ips(E1), ips(E2)].concat());
    for turn in 0..times() {
        let to = if turn % 2 == 0 { E2 } else { E1 };
        calm.watch.phase(both())?;
        calm.scene
            .put_ready("main", &egress("main", &ips(to), &[]))?;
        calm.watch.phase(Phase::only(ips(to)))?;
        calm.load.wait_turns()?;
    }
    finish(calm, &[ips(E1), ips(E2)].concat())
}

fn past_the_stack_policies_start_and_end() -> Result<()> {
    let (scene, _standin) = up("paststart")?;
    scene.wait_live("w1", &["g1", "wg1"])?;
    let layout = scene.lab().layout()?;
    let hosts = layout.hosts.iter().filter(|host| host.is_node());
    let own: Vec<IpAddr> = hosts
        .flat_map(|host| host.pods.iter().flat_map(|pod| pod.addresses.clone()))
        .collect();
    let watch = Watch::start(&scene, &ips(E1))?;
    let anything = || Phase::only([own.clone(), ips(E1)].concat());
    let manifest = egress("main", &ips(E1), &[]);
    watch.phase(anything())?;
    let load = Load::start(&pods(&scene)?, &ips(SERVERS))?;
    let mut on = Vec::new();
    for _ in 0..times() {
        load.wait_answers()?;
        scene.put_ready("main", &manifest)?;
        on.push(watch.phase(Phase::only(ips(E1)))?);
        load.wait_turns()?;
        watch.phase(anything())?;
        scene.take(&manifest)?;
        let counts = |watch: &Watch| -> Vec<u64> {
            let verdict = watch.so_far();
            own.iter().map(|pod| verdict.from(*pod)).collect()
        };
        let before = counts(&watch);
        wait("the pods to leave by their own addresses again", || {
            let now = counts(&watch);
            let gone = scene.object("Egress", "default.main").is_none();
            gone && now.iter().zip(&before).all(|(now, before)| now > before)
        })?;
    }
    let verdict = watch.stop()?;
    load.stop();
    verdict.assert_clean(&ips(E1));
    let seen = verdict.by_phase.iter();
    let seen = seen.filter(|((phase, source), _)| on.contains(phase) && ips(E1).contains(source));
    let right: u64 = seen.map(|(_, count)| count).sum();
    println!(
        "{} starts: {right} packets with the egress address after Ready",
        times()
    );
    assert!(
        right > times() as u64,
        "too little traffic: {right} packets"
    );
    Ok(())
}

fn past_the_stack_all_gateways_go_and_the_device_with_them() -> Result<()> {
    let calm = calm("pastlost")?;
    for _ in 0..times() {
        calm.scene.lab().kill("g1", Hurt::Links)?;
        for node in NODES {
            calm.scene.shell(node, "ip link delete egret-lift")?;
        }
        calm.load.wait_turns()?;
        calm.scene.lab().start("g1")?;
        calm.load.wait_answers()?;
    }
    finish(calm, &ips(E1))
}
