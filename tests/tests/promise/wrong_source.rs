//! P1: a packet of a selected pod to a selected destination leaves with its egress address or not at all.
//!
//! Every disturbance is repeated 50 times (`EGRET_TEST_REPETITIONS`) while two selected pods, one of them on a node
//! that is also a gateway, send continuously over both families; every packet that passes the router is checked. Each
//! test also asserts that the right packets were seen and that no capture lost one.

use anyhow::Result;
use egret_lab::{Hurt, Place, Topology};
use egret_tests::chaos::{Kind, Noise, Phase, Scene, Watch, egress, ip, repetitions};
use egret_tests::crowded;
use egret_tests::steps::Group;
use egret_tests::tests;
use std::net::IpAddr;

pub fn groups() -> Vec<Group> {
    // The longest first.
    tests![
        policy_started_with_live_flows,
        address_edited_with_live_flows,
        destinations_edited_with_live_flows,
        all_gateways_down,
        ruleset_replaced,
        agent_killed_and_restarted,
        foreign_flush,
        foreign_rules_clear_the_mark,
        foreign_tables_come_and_go_while_the_agents_are_dead,
        lease_exhausted,
    ]
}

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const E1: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
const E2: [&str; 2] = ["192.168.122.223", "fd00:122::223"];
/// Hosts with selected pods.
const NODES: [&str; 2] = ["w1", "wg1"];

/// A worker, a node that is worker and gateway, a gateway; `clock` sends the markers of the captures.
const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: nft,
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: clock, links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

fn ips(texts: [&str; 2]) -> Vec<IpAddr> {
    texts.map(ip).to_vec()
}

fn up(test: &str) -> Result<Scene> {
    Scene::up(test, &Topology::from_yaml(TOPOLOGY)?)
}

/// The gateway of the lab, with this many ports in a first grant.
fn gateway(initial_ports: u16) -> String {
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {{name: default}}\nspec:\n  default: true\n  \
        nodeSelector: {{matchLabels: {{egret.dev/gateway: \"true\"}}}}\n  externalInterface: eth0\n  \
        leases: {{initialPorts: {initial_ports}, expectedWorkers: 2}}\n"
    )
}

fn pods(scene: &Scene) -> Result<Vec<Place>> {
    Ok(vec![scene.pod("a1")?, scene.pod("a2")?])
}

/// Addresses of every node.
fn node_addresses(scene: &Scene) -> Result<Vec<IpAddr>> {
    let layout = scene.lab().layout()?;
    let nodes = layout.hosts.iter().filter(|host| host.is_node());
    Ok(nodes.flat_map(|host| host.addresses()).collect())
}

/// A policy for all destinations, continuous traffic, and captures that allow E1 only.
struct Calm {
    // In the order in which they must end.
    noise: Noise,
    watch: Watch,
    scene: Scene,
}

fn calm(test: &str) -> Result<Calm> {
    let scene = up(test)?;
    scene.put_ready("main", &egress("main", &ips(E1), &[]))?;
    scene.wait_live("w1", &["g1", "wg1"])?;
    let watch = Watch::start(&scene, &[ips(E1), ips(E2)].concat())?;
    watch.phase(Phase::only(ips(E1)))?;
    let noise = Noise::start(&pods(&scene)?, &ips(SERVERS))?;
    noise.wait_answers()?;
    Ok(Calm {
        noise,
        watch,
        scene,
    })
}

/// Every source was seen all the time, and no other.
fn finish(Calm { noise, watch, .. }: Calm, right: &[IpAddr]) -> Result<()> {
    noise.wait_answers()?;
    let verdict = watch.stop()?;
    noise.stop();
    verdict.assert_clean(right);
    let (count, times) = (verdict.from_any(right), repetitions());
    println!(
        "{times} times, {count} packets with the right source, 0 with a wrong one, 0 lost by the captures"
    );
    assert!(
        count > 10 * times as u64,
        "too little traffic: {count} packets"
    );
    Ok(())
}

fn ruleset_replaced() -> Result<()> {
    let calm = calm("replaced")?;
    for _ in 0..repetitions().div_ceil(NODES.len()) {
        // A new agent replaces the whole table, whatever it contains.
        calm.scene.restart_agents(&NODES, true)?;
    }
    finish(calm, &ips(E1))
}

/// Cases: N13.
fn agent_killed_and_restarted() -> Result<()> {
    let calm = calm("killed")?;
    for _ in 0..repetitions().div_ceil(NODES.len()) {
        calm.scene.restart_agents(&NODES, false)?;
    }
    finish(calm, &ips(E1))
}

fn foreign_flush() -> Result<()> {
    let calm = calm("flush")?;
    for _ in 0..repetitions() {
        for node in NODES {
            // The masquerade is restored, so that a packet without our table would leave with the node's address.
            let masquerade = "table inet cni { chain post { type nat hook postrouting priority 100; \
                ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; \
                ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade; }; }";
            let line = format!("nft flush ruleset; nft '{masquerade}'");
            calm.scene.shell(node, &line)?;
        }
        calm.noise.wait_turns()?;
    }
    finish(calm, &ips(E1))
}

fn foreign_tables_come_and_go_while_the_agents_are_dead() -> Result<()> {
    let calm = calm("dead")?;
    for node in NODES {
        calm.scene.lab().kill(node, Hurt::Agent)?;
    }
    // Without an owner the kernel treats the table like any other: a whole `nft flush ruleset` would delete it, and no
    // agent runs to repair it. That is not covered; changes to others' own tables are.
    for _ in 0..repetitions() {
        for node in NODES {
            calm.scene.shell(
                node,
                "nft add table inet foreign; nft delete table inet foreign",
            )?;
        }
    }
    for node in NODES {
        calm.scene.lab().start(node)?;
    }
    calm.scene.wait_agents(&NODES)?;
    finish(calm, &ips(E1))
}

fn address_edited_with_live_flows() -> Result<()> {
    let calm = calm("address")?;
    let both = || Phase::only([ips(E1), ips(E2)].concat());
    for turn in 0..repetitions() {
        let to = if turn % 2 == 0 { E2 } else { E1 };
        calm.watch.phase(both())?;
        calm.scene
            .put_ready("main", &egress("main", &ips(to), &[]))?;
        calm.watch.phase(Phase::only(ips(to)))?;
        calm.noise.wait_turns()?;
    }
    finish(calm, &[ips(E1), ips(E2)].concat())
}

fn destinations_edited_with_live_flows() -> Result<()> {
    let calm = calm("destinations")?;
    let lists: [&[&str]; 4] = [
        &["203.0.113.0/24", "2001:db8:1::/64"],
        &["203.0.113.10/32", "2001:db8:1::10/128"],
        &["203.0.113.0/28", "198.51.100.0/24", "2001:db8::/32"],
        &[],
    ];
    let before = calm.noise.opened(Kind::LongTcp);
    for turn in 0..repetitions() {
        let list = lists[turn % lists.len()];
        calm.scene
            .put_ready("main", &egress("main", &ips(E1), list))?;
        calm.noise.wait_turns()?;
    }
    assert_eq!(
        calm.noise.opened(Kind::LongTcp),
        before,
        "flows that stay selected live on"
    );
    finish(calm, &ips(E1))
}

fn policy_started_with_live_flows() -> Result<()> {
    let scene = up("started")?;
    // Every start leases again while the ports of the last ones are still in hold-down: 50 times 2 nodes must fit.
    scene.put(&gateway(256))?;
    scene.wait_live("w1", &["g1", "wg1"])?;
    let nodes = node_addresses(&scene)?;
    let watch = Watch::start(&scene, &ips(E1))?;
    let anything = || Phase::only([nodes.clone(), ips(E1)].concat());
    let start = Phase {
        no_reset: nodes.iter().copied().collect(),
        ..anything()
    };
    let manifest = egress("main", &ips(E1), &[]);
    watch.phase(anything())?;
    let noise = Noise::start(&pods(&scene)?, &ips(SERVERS))?;
    let (mut on, mut between) = (Vec::new(), Vec::new());
    for _ in 0..repetitions() {
        noise.wait_answers()?;
        between.push(watch.phase(start.clone())?);
        scene.put_ready("main", &manifest)?;
        on.push(watch.phase(Phase::only(ips(E1)))?);
        noise.wait_turns()?;
        watch.phase(anything())?;
        scene.take(&manifest)?;
        wait_unselected(&scene, &watch)?;
    }
    let verdict = watch.stop()?;
    noise.stop();
    verdict.assert_clean(&ips(E1));
    let count = |phases: &[usize], sources: &[IpAddr]| -> u64 {
        let seen = verdict.by_phase.iter();
        let seen = seen.filter(|((p, s), _)| phases.contains(p) && sources.contains(s));
        seen.map(|(_, count)| count).sum()
    };
    let (right, early) = (count(&on, &ips(E1)), count(&between, &nodes));
    println!(
        "{} starts: {right} packets with the egress address after Ready, 0 with another; \
         {early} with a node's address between the edit and Ready, none of them a reset",
        repetitions()
    );
    assert!(
        right > repetitions() as u64,
        "too little traffic: {right} packets"
    );
    Ok(())
}

/// Waits until the policy is removed at both nodes and from the status, and its pods leave with their nodes' addresses
/// again.
fn wait_unselected(scene: &Scene, watch: &Watch) -> Result<()> {
    let own: Vec<IpAddr> = {
        let layout = scene.lab().layout()?;
        let nodes = layout
            .hosts
            .iter()
            .filter(|h| NODES.contains(&h.name.as_str()));
        nodes.flat_map(|host| host.addresses()).collect()
    };
    let counts = |watch: &Watch| -> Vec<u64> {
        let verdict = watch.so_far();
        own.iter().map(|node| verdict.from(*node)).collect()
    };
    let before = counts(watch);
    egret_tests::chaos::wait("the pods to leave by their nodes' addresses again", || {
        let now = counts(watch);
        let programmed = NODES.iter().any(|node| {
            let record = scene.object("EgressNode", node).unwrap_or_default();
            let list = record["status"]["programmed"].as_array();
            list.is_some_and(|list| !list.is_empty())
        });
        let gone = scene.object("Egress", "default.main").is_none();
        gone && !programmed && now.iter().zip(&before).all(|(now, before)| now > before)
    })
}

fn all_gateways_down() -> Result<()> {
    let text = TOPOLOGY.replace("roles: [worker, gateway]", "roles: [worker]");
    let scene = Scene::up("down", &Topology::from_yaml(&text)?)?;
    scene.put_ready("main", &egress("main", &ips(E1), &[]))?;
    scene.wait_live("w1", &["g1"])?;
    let watch = Watch::start(&scene, &ips(E1))?;
    watch.phase(Phase::only(ips(E1)))?;
    let noise = Noise::start(&pods(&scene)?, &ips(SERVERS))?;
    noise.wait_answers()?;
    for turn in 0..repetitions() {
        scene.lab().kill("g1", Hurt::Links)?;
        noise.wait_turns()?;
        if turn % 10 == 9 {
            // Also after the death was detected, and once with agents that start during it.
            scene.wait_live("w1", &[])?;
            noise.wait_turns()?;
        }
        scene.lab().start("g1")?;
        if turn % 10 == 9 {
            scene.wait_live("w1", &["g1"])?;
            noise.wait_answers()?;
        }
    }
    scene.wait_live("w1", &["g1"])?;
    finish(
        Calm {
            noise,
            watch,
            scene,
        },
        &ips(E1),
    )
}

/// Foreign rules that break our marking, in the node's own ruleset.
const FOREIGN: [&str; 5] = [
    "chain c { type filter hook prerouting priority -50; meta mark set 0; }",
    "chain c { type filter hook forward priority 0; meta mark set 0; }",
    // A masquerade ahead of our source translation.
    "chain c { type filter hook prerouting priority -50; meta mark set 0; }; \
     chain n { type nat hook postrouting priority 80; ip saddr 10.244.0.0/16 ip daddr 203.0.113.0/24 masquerade; \
     ip6 saddr fd00:244::/32 ip6 daddr 2001:db8:1::/64 masquerade; }",
    // No connection tracking, so no source translation at all.
    "chain r { type filter hook prerouting priority -300; ip saddr 10.244.0.0/16 notrack; ip6 saddr fd00:244::/32 notrack; }; \
     chain c { type filter hook prerouting priority -50; meta mark set 0; }",
    "chain n { type nat hook postrouting priority 80; ip saddr 10.244.0.0/16 ip daddr 203.0.113.0/24 masquerade; \
     ip6 saddr fd00:244::/32 ip6 daddr 2001:db8:1::/64 masquerade; }",
];

fn foreign_rules_clear_the_mark() -> Result<()> {
    let calm = calm("mark")?;
    for turn in 0..repetitions() {
        let rules = FOREIGN[turn % FOREIGN.len()];
        for node in NODES {
            calm.scene
                .shell(node, &format!("nft 'table inet foreign {{ {rules}; }}'"))?;
        }
        calm.noise.wait_turns()?;
        for node in NODES {
            calm.scene.shell(node, "nft delete table inet foreign")?;
        }
        if turn % 10 == 9 {
            calm.noise.wait_answers()?;
        }
    }
    finish(calm, &ips(E1))
}

fn lease_exhausted() -> Result<()> {
    let scene = up("exhausted")?;
    scene.put(&gateway(64))?;
    scene.put_ready("main", &egress("main", &ips(E1), &[]))?;
    scene.wait_live("w1", &["g1", "wg1"])?;
    crowded::take_the_rest(&scene, &ips(E1))?;
    let watch = Watch::start(&scene, &ips(E1))?;
    watch.phase(Phase::only(ips(E1)))?;
    let mut refused = 0;
    for pod in pods(&scene)? {
        for server in ips(SERVERS) {
            refused += pod.run(|| exhaust(server))?;
        }
    }
    let verdict = watch.stop()?;
    verdict.assert_clean(&ips(E1));
    println!(
        "{refused} flows refused or dropped, {} packets with the right source, 0 with a wrong one",
        verdict.from_any(&ips(E1))
    );
    Ok(())
}

/// Uses every TCP, UDP and echo "port" of a lease towards one destination, and tries more.
fn exhaust(server: IpAddr) -> usize {
    use egret_lab::traffic::ping::{PingOptions, ping_here};
    use std::net::{SocketAddr, TcpStream, UdpSocket};
    use std::time::Duration;
    const LEASED: usize = 64;
    let patience = Duration::from_millis(100);
    let target = SocketAddr::new(server, 5000);
    let mut refused = 0;
    let mut streams = Vec::new();
    // A dropped SYN costs the whole timeout, so the attempts end when enough were refused.
    for _ in 0..LEASED + repetitions() {
        match TcpStream::connect_timeout(&target, patience) {
            Ok(stream) => streams.push(stream),
            Err(_) => refused += 1,
        }
    }
    assert!(
        (1..=LEASED).contains(&streams.len()),
        "{} connections",
        streams.len()
    );
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let mut sockets = Vec::new();
    for _ in 0..LEASED + repetitions() {
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(target).expect("a route");
        refused += usize::from(socket.send(b"x").is_err());
        sockets.push(socket);
    }
    let options = PingOptions {
        timeout: Duration::from_millis(20),
        ..PingOptions::default()
    };
    for _ in 0..LEASED + repetitions() {
        refused += usize::from(ping_here(server, &options).is_err());
    }
    assert!(refused >= repetitions(), "only {refused} refused");
    // Existing flows continue.
    for stream in &mut streams {
        use std::io::{Read, Write};
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a deadline");
        stream.write_all(b"alive\n").expect("a flow that lives");
        assert!(stream.read(&mut [0; 128]).expect("an answer") > 0);
    }
    refused
}
