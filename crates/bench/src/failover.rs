//! Outages when a gateway fails or leaves: the longest time without an answer of a 5 ms UDP probe, for each cause.

use crate::cluster;
use crate::figure::Report;
use anyhow::Result;
use egret_lab::Hurt;
use egret_lab::traffic::UdpProbe;
use egret_tests::chaos::{Scene, ip};
use std::net::SocketAddr;
use std::time::Duration;

const PART: &str = "failover";
const GATEWAYS: [&str; 3] = ["g1", "g2", "g3"];
/// Cause of a gateway's outage.
#[derive(Clone, Copy)]
enum Outage {
    /// Fault of the machine or its agent.
    Hurt(Hurt),
    /// Regular end of its agent.
    Term,
    /// Removal of the label that selects its node.
    Unselected,
    /// Loss of its external link alone.
    ExternalLink,
}

impl Outage {
    /// Whether the others must take over, which costs packets; otherwise forwarding continues without the agent.
    fn is_costly(self) -> bool {
        !matches!(
            self,
            Outage::Hurt(Hurt::Agent | Hurt::Freeze) | Outage::Term
        )
    }
}

/// Causes for gateways on the nodes' segment.
const WAYS: [(Outage, &str); 6] = [
    (Outage::Hurt(Hurt::Links), "links down"),
    (Outage::Hurt(Hurt::Power), "power cut"),
    (Outage::Unselected, "label removed"),
    (Outage::Hurt(Hurt::Agent), "agent killed"),
    (Outage::Hurt(Hurt::Freeze), "agent frozen"),
    (Outage::Term, "agent ended by SIGTERM"),
];
/// Time before and after, so that the outage is measured completely.
const AROUND: Duration = Duration::from_millis(300);

/// Measures every cause once per round, three times for those that cost packets; gateways take turns.
pub fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let mut hosts = vec![cluster::worker("w1", 1, &[("a1", "MyApp")])];
    hosts.extend(GATEWAYS.map(cluster::gateway));
    let scene = cluster::up("bench-failover", &hosts)?;
    measure_in(&scene, &WAYS, report, rounds)?;
    drop(scene);
    let scene = cluster::up_with_edge("bench-failover-edge", "w1", &GATEWAYS)?;
    let causes = [(Outage::ExternalLink, "external link down")];
    measure_in(&scene, &causes, report, rounds)
}

fn measure_in(
    scene: &Scene,
    causes: &[(Outage, &str)],
    report: &mut Report,
    rounds: usize,
) -> Result<()> {
    cluster::start_policy(scene, &GATEWAYS)?;
    for round in 0..rounds * 3 {
        for (cause, name) in causes {
            if !cause.is_costly() && round >= rounds {
                continue;
            }
            let gateway = GATEWAYS[round % GATEWAYS.len()];
            let ms = outage(scene, gateway, *cause)?;
            report.add(PART, name, "ours", "ms", ms);
        }
    }
    Ok(())
}

fn outage(scene: &Scene, gateway: &str, cause: Outage) -> Result<f64> {
    let pod = scene.pod("a1")?;
    let probe = UdpProbe::start(&pod, SocketAddr::new(ip(cluster::SERVER), 5001))?;
    std::thread::park_timeout(AROUND);
    match cause {
        Outage::Hurt(how) => scene.lab().kill(gateway, how)?,
        Outage::Term => scene.end_agent(gateway)?,
        Outage::Unselected => scene.select_gateway(gateway, false)?,
        Outage::ExternalLink => scene.plug_external(gateway, false)?,
    }
    let others: Vec<&str> = GATEWAYS
        .into_iter()
        .filter(|name| *name != gateway)
        .collect();
    if cause.is_costly() {
        scene.wait_live("w1", &others)?;
    }
    std::thread::park_timeout(AROUND);
    let gap = probe.stop().longest_gap;
    match cause {
        Outage::Hurt(_) | Outage::Term => scene.lab().start(gateway)?,
        Outage::Unselected => scene.select_gateway(gateway, true)?,
        Outage::ExternalLink => scene.plug_external(gateway, true)?,
    }
    scene.wait_agents(&[gateway])?;
    // The next one needs a settled cluster: gateways that failed just now are trusted later.
    for host in ["w1"].into_iter().chain(GATEWAYS) {
        scene.wait_live(host, &GATEWAYS)?;
    }
    Ok(gap.as_secs_f64() * 1e3)
}
