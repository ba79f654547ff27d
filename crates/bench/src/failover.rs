//! Outages when a gateway goes: the longest time without an answer of a 5 ms UDP probe, for each way to go.

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
const WAYS: [(Hurt, &str); 4] = [
    (Hurt::Links, "links down"),
    (Hurt::Power, "power cut"),
    (Hurt::Agent, "agent killed"),
    (Hurt::Freeze, "agent frozen"),
];
/// Time before and after, so that the outage is whole.
const AROUND: Duration = Duration::from_millis(300);

/// Every way as often as there are rounds, three times as often for those that cost packets; each gateway in its turn.
pub fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let mut hosts = vec![cluster::worker("w1", 1, &[("a1", "MyApp")])];
    hosts.extend(GATEWAYS.map(cluster::gateway));
    let scene = cluster::up("bench-failover", &hosts)?;
    cluster::start_policy(&scene, &GATEWAYS)?;
    for round in 0..rounds * 3 {
        for (how, name) in WAYS {
            let costly = matches!(how, Hurt::Links | Hurt::Power);
            if !costly && round >= rounds {
                continue;
            }
            let gateway = GATEWAYS[round % GATEWAYS.len()];
            let ms = outage(&scene, gateway, how)?;
            report.add(PART, name, "ours", "ms", ms);
        }
    }
    Ok(())
}

fn outage(scene: &Scene, gateway: &str, how: Hurt) -> Result<f64> {
    let pod = scene.pod("a1")?;
    let probe = UdpProbe::start(&pod, SocketAddr::new(ip(cluster::SERVER), 5001))?;
    std::thread::park_timeout(AROUND);
    scene.lab().kill(gateway, how)?;
    let others: Vec<&str> = GATEWAYS
        .into_iter()
        .filter(|name| *name != gateway)
        .collect();
    if matches!(how, Hurt::Links | Hurt::Power) {
        scene.wait_live("w1", &others)?;
    }
    std::thread::park_timeout(AROUND);
    let gap = probe.stop().longest_gap;
    scene.lab().start(gateway)?;
    scene.wait_agents(&[gateway])?;
    // The next one goes from a settled cluster: gateways that died just now are trusted later.
    for host in ["w1"].into_iter().chain(GATEWAYS) {
        scene.wait_live(host, &GATEWAYS)?;
    }
    Ok(gap.as_secs_f64() * 1e3)
}
