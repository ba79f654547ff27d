//! A worker and three gateways, and connections of a selected pod that must survive faults of gateways.

use anyhow::{Result, ensure};
use egret_lab::Topology;
use egret_lab::traffic::{BusyFlows, IdleFlows, ProbeReport, UdpProbe};
use egret_tests::chaos::{Scene, egress, ip, wait};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Addresses of the server.
pub const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
/// Egress addresses of the pod.
pub const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// All gateways.
pub const GATEWAYS: [&str; 3] = ["g1", "g2", "g3"];
/// Coarse limit of an outage; the aim is 300 ms on a machine that is not busy.
pub const OUTAGE_MAX: Duration = Duration::from_secs(3);
/// Rate of one busy connection, bytes per second.
const PACE: u64 = 400_000;
/// Bytes of all busy connections in about two seconds.
const BYTES: u64 = 4_000_000;
/// Idle connections to each address of the server.
const IDLE: usize = 10;

/// Gateways have one link.
pub const TOPOLOGY: &str = "
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

/// The same with gateways that send to a separate segment, which contains the egress addresses.
pub fn with_external_links() -> String {
    TOPOLOGY
        .replace(
            "192.168.122.0/24, fd00:122::/64",
            "10.10.0.0/24, fd00:10::/64",
        )
        .replace(
            "- {name: outside",
            "- {name: edge, cidrs: [192.168.122.0/24, fd00:122::/64]}\n- {name: outside",
        )
        .replace(
            "roles: [gateway], links: [{segment: nodes}]",
            "roles: [gateway], links: [{segment: nodes}, {segment: edge, external: true}]",
        )
}

/// A lab of this topology whose pod uses all three gateways.
///
/// # Errors
/// It does not come up.
pub fn up_in(test: &str, topology: &str) -> Result<Scene> {
    let scene = Scene::up(test, &Topology::from_yaml(topology)?)?;
    scene.put_ready("main", &egress("main", &EGRESS.map(ip), &[]))?;
    scene.wait_live("w1", &GATEWAYS)?;
    scene.wait_agents(&["w1", "g1", "g2", "g3"])?;
    Ok(scene)
}

/// All gateways but one.
pub fn but(gone: &str) -> Vec<&'static str> {
    GATEWAYS.into_iter().filter(|name| *name != gone).collect()
}

/// For each family ten idle and three busy TCP connections and a UDP packet every 5 ms, all from one selected pod.
pub struct Load {
    idle: Vec<IdleFlows>,
    busy: Vec<BusyFlows>,
    probes: Vec<UdpProbe>,
}

impl Load {
    /// Opens the connections.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn start(scene: &Scene) -> Result<Self> {
        let pod = scene.pod("a1")?;
        let mut load = Self {
            idle: Vec::new(),
            busy: Vec::new(),
            probes: Vec::new(),
        };
        for server in SERVERS.map(ip) {
            let (first, second) = (SocketAddr::new(server, 5000), SocketAddr::new(server, 5001));
            load.idle.push(IdleFlows::start(&pod, first, IDLE)?);
            load.busy
                .push(BusyFlows::start_paced(&pod, server, 1, 2, Some(PACE))?);
            load.probes.push(UdpProbe::start(&pod, second)?);
        }
        Ok(load)
    }

    /// Waits until the busy connections have carried this many times [`BYTES`].
    ///
    /// # Errors
    /// The connections stall.
    pub fn pass(&self, times: u32) -> Result<()> {
        let bytes = || self.busy.iter().map(BusyFlows::bytes).sum::<u64>();
        for _ in 0..times {
            let goal = bytes() + BYTES;
            wait("the busy connections to carry data", || bytes() >= goal)?;
        }
        Ok(())
    }

    /// Ends all flows; returns the probes' reports.
    ///
    /// # Errors
    /// A connection broke, or a source was not an egress address.
    pub fn finish(self) -> Result<Vec<ProbeReport>> {
        let idle: Vec<_> = self.idle.into_iter().map(IdleFlows::stop).collect();
        let busy: Vec<_> = self.busy.into_iter().map(BusyFlows::stop).collect();
        let probes: Vec<_> = self.probes.into_iter().map(UdpProbe::stop).collect();
        for report in &idle {
            let broken = &report.broken;
            ensure!(broken.is_empty(), "idle connections broke: {broken:?}");
            ensure!(report.flows == IDLE, "{} idle connections", report.flows);
            right(report.sources.iter().map(SocketAddr::ip))?;
        }
        for report in &busy {
            let broken = &report.broken;
            ensure!(broken.is_empty(), "busy connections broke: {broken:?}");
            ensure!(report.flows == 3, "{} busy connections", report.flows);
        }
        for report in &probes {
            right(report.source_ips().into_iter())?;
        }
        Ok(probes)
    }

    /// As [`Load::finish`], and no gap was longer than `outage`.
    ///
    /// # Errors
    /// Otherwise.
    pub fn finish_within(self, what: &str, outage: Duration) -> Result<()> {
        for report in self.finish()? {
            let gap = report.longest_gap;
            println!(
                "{what}: outage {} ms, {} of {} probes lost",
                gap.as_millis(),
                report.lost,
                report.sent
            );
            ensure!(gap < outage, "{what}: an outage of {gap:?}");
        }
        Ok(())
    }

    /// As [`Load::finish`], and no packet was lost.
    ///
    /// # Errors
    /// Otherwise.
    pub fn finish_without_loss(self, what: &str) -> Result<()> {
        for report in self.finish()? {
            println!(
                "{what}: {} of {} probes lost, longest gap {} ms",
                report.lost,
                report.sent,
                report.longest_gap.as_millis()
            );
            ensure!(report.lost == 0, "{what}: {:?}", report.errors);
        }
        Ok(())
    }
}

/// Checks that all sources are egress addresses.
fn right(mut sources: impl Iterator<Item = IpAddr>) -> Result<()> {
    let strange = sources.find(|source| !EGRESS.map(ip).contains(source));
    ensure!(strange.is_none(), "a source was {strange:?}");
    Ok(())
}
