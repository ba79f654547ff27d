//! Monitored traffic during the loss and the return of a gateway.

use super::screen::{Screen, time};
use crate::capture::{Capture, CaptureReport, Direction};
use crate::process::wait_for;
use crate::slowness::relaxed;
use crate::traffic::{BusyFlows, BusyReport, IdleFlows, IdleReport, ProbeReport, UdpProbe, server};
use crate::{Lab, LabError};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Rate of each transfer, bytes per second: always packets in flight, and little work for a small machine.
const PACE: u64 = 1_000_000;
/// Number of transfers.
const BUSY: usize = 6;
/// Bytes that all transfers together carry while they are observed: three seconds at full rate.
const WATCHED_BYTES: u64 = BUSY as u64 * PACE * 3;
/// Longest wait for these bytes.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest gap that the loss of a gateway may cause. The promise is 300 ms; on a busy machine the programs themselves
/// may wait longer than that for a processor.
const OUTAGE_MAX: Duration = Duration::from_millis(1000);
/// Longest stall of a TCP transfer: the gap, and TCP's retransmission timeout (RFC 6298), which doubles with each
/// attempt.
const STALL_MAX: Duration = Duration::from_millis(2500);

/// Flows of both families from selected pods of all workers.
pub(super) struct Traffic {
    idle: Vec<IdleFlows>,
    busy: Vec<BusyFlows>,
    probes: Vec<(&'static str, UdpProbe)>,
    capture: Capture,
}

/// Results of the flows.
pub(super) struct Report {
    idle: Vec<IdleReport>,
    busy: Vec<BusyReport>,
    probes: Vec<(&'static str, ProbeReport)>,
    capture: CaptureReport,
}

impl Traffic {
    /// Opens all flows. Until the end, packets towards the servers from other sources than `expected` are captured at
    /// the router.
    pub(super) fn start(
        lab: &Lab,
        servers: [IpAddr; 2],
        expected: [IpAddr; 2],
    ) -> anyhow::Result<Self> {
        let layout = lab.layout()?;
        let router = layout.host("router");
        let device = router.and_then(|router| router.links.first());
        let device = device.map_or("eth0", |link| &link.device);
        let is_offending = move |packet: &crate::capture::Packet| {
            packet.direction == Direction::In
                && servers.contains(&packet.destination)
                && !expected.contains(&packet.source)
        };
        let capture = Capture::start(&lab.place("router")?, device, is_offending)?;
        let pods = ["a1", "a2", "a3"].map(|pod| lab.place(&format!("pod/default/{pod}")));
        let [one, two, three] = pods;
        let (one, two, three) = (one?, two?, three?);
        let [v4, v6] = servers;
        let echo = |address| SocketAddr::new(address, server::ECHO_PORTS[0]);
        Ok(Self {
            capture,
            idle: vec![
                IdleFlows::start(&one, echo(v4), 10)?,
                IdleFlows::start(&two, echo(v6), 10)?,
            ],
            busy: vec![
                BusyFlows::start_paced(&two, v4, 2, 1, Some(PACE))?,
                BusyFlows::start_paced(&three, v6, 1, 2, Some(PACE))?,
            ],
            probes: vec![
                ("IPv4", UdpProbe::start(&three, echo(v4))?),
                ("IPv6", UdpProbe::start(&one, echo(v6))?),
            ],
        })
    }

    /// Waits until the transfers have carried [`WATCHED_BYTES`] more, or `is_enough`.
    pub(super) fn watch(&self, is_enough: impl Fn() -> bool) -> Result<(), LabError> {
        let carried = || self.busy.iter().map(BusyFlows::bytes).sum::<u64>();
        let wanted = carried() + WATCHED_BYTES;
        let all_broken = || self.busy.iter().map(BusyFlows::broken).sum::<usize>() == BUSY;
        wait_for("transfers to go on", TIMEOUT, || {
            carried() >= wanted || all_broken() || is_enough()
        })
    }

    /// Ends all flows; each idle connection exchanges one more line before.
    pub(super) fn stop(self) -> Result<Report, LabError> {
        // Probes wait for late answers, all at the same time.
        let probes = std::thread::scope(|scope| {
            let stop = |(name, probe): (_, UdpProbe)| (name, scope.spawn(|| probe.stop()));
            let threads: Vec<_> = self.probes.into_iter().map(stop).collect();
            let join = |(name, thread): (_, std::thread::ScopedJoinHandle<'_, _>)| {
                (name, thread.join().expect("a probe does not panic"))
            };
            threads.into_iter().map(join).collect()
        });
        Ok(Report {
            probes,
            busy: self.busy.into_iter().map(BusyFlows::stop).collect(),
            idle: self.idle.into_iter().map(IdleFlows::stop).collect(),
            capture: self.capture.stop()?,
        })
    }
}

impl Report {
    /// Shows and checks everything. With `may_pause` a short outage is allowed, otherwise no packet may be lost.
    pub(super) fn show(&self, screen: &mut Screen, may_pause: bool) {
        self.show_tcp(screen);
        for (family, probe) in &self.probes {
            let is_right = match may_pause {
                true => probe.longest_gap < relaxed(OUTAGE_MAX),
                false => probe.lost == 0,
            };
            let ProbeReport { sent, lost, .. } = probe;
            screen.check(
                is_right && probe.errors.is_empty(),
                &format!(
                    "UDP every 5 ms by {family}    {lost} of {sent} lost, longest silence {}{}",
                    time(probe.longest_gap),
                    listed(probe.errors.iter())
                ),
            );
        }
        self.show_sources(screen);
    }

    fn show_tcp(&self, screen: &mut Screen) {
        let idle: usize = self.idle.iter().map(|report| report.flows).sum();
        let slowest = self.idle.iter().map(|report| report.slowest).max();
        let broken: Vec<&String> = self.idle.iter().flat_map(|report| &report.broken).collect();
        screen.check(
            broken.is_empty(),
            &format!(
                "{idle} idle TCP connections   {} broken, slowest answer {}{}",
                broken.len(),
                time(slowest.unwrap_or_default()),
                listed(broken.iter())
            ),
        );
        let bytes: u64 = self
            .busy
            .iter()
            .map(|busy| busy.uploaded + busy.downloaded)
            .sum();
        let stall = self.busy.iter().map(|report| report.longest_stall).max();
        let stall = stall.unwrap_or_default();
        let broken: Vec<&String> = self.busy.iter().flat_map(|report| &report.broken).collect();
        screen.check(
            broken.is_empty() && stall < relaxed(STALL_MAX),
            &format!(
                "{BUSY} TCP transfers           {} broken, {:.1} MB carried, longest standstill {}{}",
                broken.len(),
                bytes as f64 / 1e6,
                time(stall),
                listed(broken.iter())
            ),
        );
    }

    fn show_sources(&self, screen: &mut Screen) {
        let idle = self.idle.iter().flat_map(|report| &report.sources);
        let probes = self.probes.iter().flat_map(|(_, probe)| &probe.sources);
        let sources: BTreeSet<IpAddr> = idle.chain(probes).map(SocketAddr::ip).collect();
        let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
        let towards = self.capture.counts.iter();
        let towards = towards.filter(|(key, _)| key.direction == Direction::In);
        let packets: u64 = towards.map(|(_, count)| count).sum();
        let problem = self.capture.clean().err();
        screen.check(
            problem.is_none(),
            &format!(
                "captured at the router    {} of {packets} packets have another source than {}{}",
                self.capture.offending_count,
                sources.join(" and "),
                listed(problem.iter())
            ),
        );
    }
}

/// Items, one per line, below a line.
fn listed<T: std::fmt::Display>(lines: impl Iterator<Item = T>) -> String {
    lines.map(|line| format!("\n  {line}")).collect()
}
