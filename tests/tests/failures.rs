//! P3 and P5: what dies, is frozen, or comes, and that no connection notices.
//!
//! Twenty idle and six busy TCP connections and a UDP packet every 5 ms for each family, all from one selected pod. The
//! outage is printed and bounded coarsely: figures are for the measurements, and this machine may be busy.

use anyhow::Result;
use egret_lab::layout::CONTROL;
use egret_lab::traffic::{
    BusyFlows, IdleFlows, ProbeReport, UdpProbe, ping_source, tcp_source, udp_source,
};
use egret_lab::{Hurt, Topology};
use egret_tests::chaos::{Scene, egress, ip, repetitions, wait};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
const GATEWAYS: [&str; 3] = ["g1", "g2", "g3"];
/// Coarse bound of an outage; the aim is 300 ms on a machine that is not busy.
const OUTAGE_MAX: Duration = Duration::from_secs(3);
/// Bytes that must pass while something is dead: about two seconds of the busy connections.
const MEANWHILE_BYTES: u64 = 4_000_000;
/// Speed of one busy connection, bytes per second.
const PACE: u64 = 400_000;

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: g2, roles: [gateway], links: [{segment: nodes}]}
- {name: g3, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// The same with gateways that send to a segment of their own, of which the egress addresses are.
fn with_external_links() -> String {
    TOPOLOGY
        .replace(
            "192.168.122.0/24, fd00:122::/64",
            "10.10.0.0/24, fd00:10::/64",
        )
        .replace(
            "hosts:",
            "- {name: edge, cidrs: [192.168.122.0/24, fd00:122::/64]}\nhosts:",
        )
        .replace(
            "roles: [gateway], links: [{segment: nodes}]",
            "roles: [gateway], links: [{segment: nodes}, {segment: edge, external: true}]",
        )
}

fn up(test: &str) -> Result<Scene> {
    up_in(test, TOPOLOGY)
}

fn up_in(test: &str, topology: &str) -> Result<Scene> {
    let scene = Scene::up(test, &Topology::from_yaml(topology)?)?;
    scene.put_ready("main", &egress("main", &EGRESS.map(ip), &[]))?;
    scene.wait_live("w1", &GATEWAYS)?;
    scene.wait_agents(&["w1", "g1", "g2", "g3"])?;
    Ok(scene)
}

/// Connections and probes of both families.
struct Load {
    idle: Vec<IdleFlows>,
    busy: Vec<BusyFlows>,
    probes: Vec<UdpProbe>,
}

impl Load {
    fn start(scene: &Scene) -> Result<Self> {
        let pod = scene.pod("a1")?;
        let mut load = Self {
            idle: Vec::new(),
            busy: Vec::new(),
            probes: Vec::new(),
        };
        for server in SERVERS.map(ip) {
            let (first, second) = (SocketAddr::new(server, 5000), SocketAddr::new(server, 5001));
            load.idle.push(IdleFlows::start(&pod, first, 10)?);
            load.busy
                .push(BusyFlows::start_paced(&pod, server, 1, 2, Some(PACE))?);
            load.probes.push(UdpProbe::start(&pod, second)?);
        }
        Ok(load)
    }

    /// Waits until much has passed.
    fn meanwhile(&self) -> Result<()> {
        let bytes = || self.busy.iter().map(BusyFlows::bytes).sum::<u64>();
        let goal = bytes() + MEANWHILE_BYTES;
        wait("the busy connections to carry data", || bytes() >= goal)
    }

    /// No connection broke, and every source was an egress address. The probes' reports.
    fn finish(self) -> Vec<ProbeReport> {
        let egress = EGRESS.map(ip);
        for flows in self.idle {
            let report = flows.stop();
            assert!(
                report.broken.is_empty(),
                "idle connections broke: {:?}",
                report.broken
            );
            assert_eq!(report.flows, 10);
            assert!(
                report
                    .sources
                    .iter()
                    .all(|source| egress.contains(&source.ip()))
            );
        }
        for flows in self.busy {
            let report = flows.stop();
            assert!(
                report.broken.is_empty(),
                "busy connections broke: {:?}",
                report.broken
            );
            assert_eq!(report.flows, 3);
        }
        let reports: Vec<ProbeReport> = self.probes.into_iter().map(UdpProbe::stop).collect();
        for report in &reports {
            assert!(
                report
                    .source_ips()
                    .iter()
                    .all(|source| egress.contains(source))
            );
        }
        reports
    }

    /// As [`Load::finish`], and the outage is bounded.
    fn finish_after_outage(self, what: &str) {
        let reports = self.finish();
        for report in &reports {
            let gap = report.longest_gap;
            println!(
                "{what}: outage {} ms, {} of {} probes lost",
                gap.as_millis(),
                report.lost,
                report.sent
            );
            assert!(gap < OUTAGE_MAX, "{what}: an outage of {gap:?}");
        }
    }

    /// As [`Load::finish`], and nothing at all is lost.
    fn finish_without_loss(self, what: &str) {
        for report in self.finish() {
            let gap = report.longest_gap;
            println!(
                "{what}: {} of {} probes lost, longest gap {} ms",
                report.lost,
                report.sent,
                gap.as_millis()
            );
            assert_eq!(report.lost, 0, "{what}: {:?}", report.errors);
        }
    }
}

fn but(dead: &str) -> Vec<&'static str> {
    GATEWAYS.into_iter().filter(|name| *name != dead).collect()
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

/// Each gateway in its turn goes and comes back, the latter without loss.
fn lost_and_back(
    scene: &Scene,
    how: &str,
    lose: impl Fn(&str) -> Result<()>,
    bring_back: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    // Whichever carries the traffic and whichever announces is among them.
    for gateway in GATEWAYS {
        let load = Load::start(scene)?;
        load.meanwhile()?;
        lose(gateway)?;
        scene.wait_live("w1", &but(gateway))?;
        load.meanwhile()?;
        load.finish_after_outage(&format!("{gateway} lost ({how})"));

        let load = Load::start(scene)?;
        bring_back(gateway)?;
        scene.wait_live("w1", &GATEWAYS)?;
        scene.wait_agents(&[gateway])?;
        load.meanwhile()?;
        load.finish_without_loss(&format!("{gateway} added after {how}"));
    }
    Ok(())
}

#[test]
fn gateway_loses_its_links_and_comes_back() -> Result<()> {
    gateway_lost_and_back("links", Hurt::Links)
}

#[test]
fn gateway_loses_its_power_and_comes_back() -> Result<()> {
    gateway_lost_and_back("power", Hurt::Power)
}

/// It still has its node's link and answers probes, but cannot send on.
#[test]
fn gateway_loses_its_external_link_alone_and_comes_back() -> Result<()> {
    let scene = up_in("external", &with_external_links())?;
    lost_and_back(
        &scene,
        "external link",
        |gateway| scene.plug_external(gateway, false),
        |gateway| scene.plug_external(gateway, true),
    )
}

#[test]
fn gateway_is_no_longer_selected_and_selected_again() -> Result<()> {
    let scene = up("label")?;
    lost_and_back(
        &scene,
        "label removed",
        |gateway| scene.select_gateway(gateway, false),
        |gateway| scene.select_gateway(gateway, true),
    )
}

/// What they leave in the kernel goes on, also after an end in order.
#[test]
fn gateway_agents_end_in_order() -> Result<()> {
    let scene = up("term")?;
    let load = Load::start(&scene)?;
    for gateway in GATEWAYS {
        scene.end_agent(gateway)?;
        load.meanwhile()?;
    }
    for gateway in GATEWAYS {
        scene.lab().start(gateway)?;
        load.meanwhile()?;
    }
    scene.wait_agents(&GATEWAYS)?;
    scene.wait_live("w1", &GATEWAYS)?;
    load.finish_without_loss("agents of all gateways ended by SIGTERM, then running again");
    Ok(())
}

#[test]
fn gateway_agents_killed_and_frozen() -> Result<()> {
    let scene = up("agents")?;
    for how in [Hurt::Agent, Hurt::Freeze] {
        let load = Load::start(&scene)?;
        for gateway in GATEWAYS {
            scene.lab().kill(gateway, how)?;
            load.meanwhile()?;
        }
        for gateway in GATEWAYS {
            scene.lab().start(gateway)?;
            load.meanwhile()?;
        }
        scene.wait_agents(&GATEWAYS)?;
        scene.wait_live("w1", &GATEWAYS)?;
        load.finish_without_loss(&format!(
            "agents of all gateways: {how:?}, then running again"
        ));
    }
    Ok(())
}

#[test]
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
    load.meanwhile()?;
    for report in load.finish() {
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

#[test]
fn worker_agent_dead_or_frozen() -> Result<()> {
    let scene = up("worker")?;
    for how in [Hurt::Agent, Hurt::Freeze] {
        let load = Load::start(&scene)?;
        scene.lab().kill("w1", how)?;
        load.meanwhile()?;
        new_flows_work(&scene)?;
        scene.lab().start("w1")?;
        scene.wait_agents(&["w1"])?;
        load.meanwhile()?;
        new_flows_work(&scene)?;
        load.finish_without_loss(&format!("the worker's agent: {how:?}, then running again"));
    }
    Ok(())
}

/// Every start replaces the whole table; flows that live must neither lose a packet nor be taken for ended ones.
#[test]
fn worker_agent_started_again_and_again() -> Result<()> {
    let scene = up("again")?;
    let load = Load::start(&scene)?;
    for _ in 0..repetitions() {
        scene.restart_agents(&["w1"], false)?;
    }
    load.meanwhile()?;
    load.finish_without_loss(&format!(
        "the worker's agent started {} times",
        repetitions()
    ));
    Ok(())
}

#[test]
fn controller_dead() -> Result<()> {
    let scene = up("controller")?;
    let load = Load::start(&scene)?;
    scene.lab().kill(CONTROL, Hurt::Agent)?;
    load.meanwhile()?;
    new_flows_work(&scene)?;
    // Everything else goes on without it: an agent starts, and a gateway is lost and comes back.
    scene.restart_agents(&["w1", "g1"], false)?;
    new_flows_work(&scene)?;
    load.finish_without_loss("controller dead, agents restarted");
    let load = Load::start(&scene)?;
    scene.lab().kill("g2", Hurt::Power)?;
    scene.wait_live("w1", &["g1", "g3"])?;
    new_flows_work(&scene)?;
    scene.lab().start("g2")?;
    scene.wait_live("w1", &GATEWAYS)?;
    load.meanwhile()?;
    load.finish_after_outage("controller dead, gateway lost and back");
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
