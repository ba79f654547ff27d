//! Checks every packet towards the server, on both sides of the router.
//!
//! The allowed sources change while a test runs. A change is a marker packet from a separate machine that passes both
//! devices: packets that a capture delivers after the marker were on the wire after it, however late the capture is
//! read.

use crate::chaos::{Scene, wait};
use anyhow::Context;
use egret_lab::Capture;
use egret_lab::capture::{Direction, Packet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Markers go to this UDP port of the server and above.
const MARKER_PORT: u16 = 40_000;
/// Phases that fit below the ephemeral ports of an answer.
const PHASES_MAX: usize = 2_000;
const TCP: u8 = 6;
/// Time to live of packets that have crossed no router (Linux's default).
const FIRST_HOPS: u8 = 64;

/// Allowed packets.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    /// Allowed sources.
    pub sources: BTreeSet<IpAddr>,
    /// Allowed sources whose own stack may not send a TCP reset: it must not answer in place of a pod.
    pub no_reset: BTreeSet<IpAddr>,
}

impl Phase {
    /// Allows only these sources.
    pub fn only(sources: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            sources: sources.into_iter().collect(),
            no_reset: BTreeSet::new(),
        }
    }
}

/// Shared by both captures: the allowed sources of each phase, and the frames that may carry egress addresses.
#[derive(Debug, Default)]
struct Law {
    phases: Mutex<Vec<Phase>>,
    /// Machines that route and that send markers: their own packets are ignored.
    ignored: BTreeSet<IpAddr>,
    servers: BTreeSet<IpAddr>,
    /// Egress addresses, and the hardware addresses of gateways: only these may send from those.
    egress: BTreeSet<IpAddr>,
    gateways: BTreeSet<[u8; 6]>,
    /// A gateway may report errors about a packet to an egress address to the server, under its own address.
    gateway_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Side {
    phase: usize,
    markers: usize,
    counts: BTreeMap<(usize, IpAddr, u8), u64>,
    wrong: BTreeMap<String, u64>,
}

/// Running captures.
pub struct Watch {
    law: Arc<Law>,
    sides: Vec<(Arc<Mutex<Side>>, Capture)>,
    clock: UdpSocket,
    server: IpAddr,
}

/// Result of the captures.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Packets to the server on both sides, by source and protocol (IANA number).
    pub counts: BTreeMap<(IpAddr, u8), u64>,
    /// The same, by phase and source.
    pub by_phase: BTreeMap<(usize, IpAddr), u64>,
    /// Packets that were not allowed.
    pub wrong: u64,
    /// The first of these packets, as text.
    pub examples: Vec<String>,
    /// Packets that a capture lost.
    pub lost: u64,
}

impl Verdict {
    /// Packets with this source.
    pub fn from(&self, source: IpAddr) -> u64 {
        let counts = self.counts.iter().filter(|((from, _), _)| *from == source);
        counts.map(|(_, count)| count).sum()
    }

    /// Packets with one of these sources.
    pub fn from_any(&self, sources: &[IpAddr]) -> u64 {
        sources.iter().map(|source| self.from(*source)).sum()
    }

    /// Passes if nothing was wrong or lost, and TCP, UDP and echo of every source in `right` were seen.
    ///
    /// # Panics
    /// Otherwise.
    pub fn assert_clean(&self, right: &[IpAddr]) {
        assert!(
            self.wrong == 0 && self.lost == 0,
            "{} packets with a wrong source, {} lost by the captures; seen: {:?}\n{}",
            self.wrong,
            self.lost,
            self.counts,
            self.examples.join("\n")
        );
        for source in right {
            let icmp = if source.is_ipv4() { 1 } else { 58 };
            for protocol in [TCP, 17, icmp] {
                let count = self.counts.get(&(*source, protocol)).copied();
                let seen = &self.counts;
                assert!(
                    count.unwrap_or_default() > 0,
                    "no packet of protocol {protocol} from {source}: {seen:?}"
                );
            }
        }
    }
}

impl Watch {
    /// Starts captures on every device of the host `router`. `egress`: the addresses that only gateways may send from.
    /// Before the first [`Watch::phase`] everything is allowed.
    ///
    /// # Errors
    /// The lab has no hosts `router`, `server` and `clock`.
    pub fn start(scene: &Scene, egress: &[IpAddr]) -> anyhow::Result<Self> {
        let layout = scene.lab().layout()?;
        let host = |name: &str| layout.host(name).with_context(|| format!("no {name}"));
        let addresses = |name: &str| anyhow::Ok(host(name)?.addresses().collect::<BTreeSet<_>>());
        let mut law = Law {
            ignored: addresses("router")?,
            servers: addresses("server")?,
            egress: egress.iter().copied().collect(),
            ..Law::default()
        };
        law.ignored.extend(addresses("clock")?);
        let gateways = layout.hosts.iter();
        for host in gateways.filter(|h| h.roles.contains(&egret_lab::topology::Role::Gateway)) {
            law.gateways
                .extend(host.links.iter().filter_map(|link| mac(&link.mac)));
            law.gateway_addresses.extend(host.addresses());
        }
        let server = *law
            .servers
            .iter()
            .find(|a| a.is_ipv4())
            .context("no IPv4")?;
        let law = Arc::new(law);
        let place = scene.host("router")?;
        let mut sides = Vec::new();
        for link in &host("router")?.links {
            let side = Arc::new(Mutex::new(Side::default()));
            let (law, inner) = (Arc::clone(&law), Arc::clone(&side));
            let judge = move |packet: &Packet| judge(&law, &mut lock(&inner), packet);
            sides.push((side, Capture::start(&place, &link.device, judge)?));
        }
        let clock = scene
            .host("clock")?
            .run(|| UdpSocket::bind("0.0.0.0:0"))??;
        Ok(Self {
            law,
            sides,
            clock,
            server,
        })
    }

    /// From the return on, exactly the packets of `phase` are allowed. Returns the phase's number.
    ///
    /// # Errors
    /// The marker does not pass the router.
    pub fn phase(&self, phase: Phase) -> anyhow::Result<usize> {
        let number = {
            let mut phases = lock(&self.law.phases);
            assert!(phases.len() < PHASES_MAX, "markers need a port each");
            phases.push(phase);
            phases.len()
        };
        let target = SocketAddr::new(self.server, MARKER_PORT + number as u16);
        let mut turn = 0;
        wait("the marker to pass the router", || {
            // Each iteration takes 2 ms: a lost marker is sent again after a while.
            if turn % 50 == 0 {
                // An error is the answer to an earlier marker: no process listens at that port.
                let _ = self.clock.send_to(&[0], target);
            }
            turn += 1;
            self.sides
                .iter()
                .all(|(side, _)| lock(side).phase == number)
        })?;
        Ok(number)
    }

    /// Result up to now.
    pub fn so_far(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for (side, capture) in &self.sides {
            for ((phase, source, protocol), count) in &lock(side).counts {
                *verdict.counts.entry((*source, *protocol)).or_default() += count;
                *verdict.by_phase.entry((*phase, *source)).or_default() += count;
            }
            let report = capture.so_far();
            verdict.wrong += report.offending_count;
            verdict.lost += report.dropped;
            let wrong = lock(side).wrong.clone();
            let why = wrong
                .into_iter()
                .map(|(why, count)| format!("{count} x {why}"));
            verdict.examples.extend(why);
            verdict
                .examples
                .extend(report.offending.iter().map(ToString::to_string));
        }
        verdict
    }

    /// Ends the captures. Packets that passed before are counted.
    ///
    /// # Errors
    /// A capture failed.
    pub fn stop(self) -> anyhow::Result<Verdict> {
        // All queued packets are before one more marker.
        let last = lock(&self.law.phases).last().cloned().unwrap_or_default();
        if !last.sources.is_empty() {
            self.phase(last)?;
        }
        Ok(self.so_far())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

fn judge(law: &Law, side: &mut Side, packet: &Packet) -> bool {
    if !law.servers.contains(&packet.destination) {
        return false;
    }
    if is_link_local(packet.source) {
        // Neighbour discovery of the router itself: nothing forwarded has such a source (RFC 4291 2.5.6).
        return false;
    }
    if law.ignored.contains(&packet.source) {
        let marker = packet.ports.and_then(|(_, to)| to.checked_sub(MARKER_PORT));
        if let Some(number) = marker
            .map(usize::from)
            .filter(|n| (1..=PHASES_MAX).contains(n))
        {
            side.phase = side.phase.max(number);
            side.markers += 1;
        }
        return false;
    }
    if law.gateway_addresses.contains(&packet.source)
        && reported(packet).is_some_and(|about| law.egress.contains(&about))
    {
        return false;
    }
    let key = (side.phase, packet.source, packet.protocol);
    *side.counts.entry(key).or_default() += 1;
    match problem(law, side.phase, packet) {
        None => false,
        Some(why) => {
            *side.wrong.entry(why).or_default() += 1;
            true
        }
    }
}

fn problem(law: &Law, phase: usize, packet: &Packet) -> Option<String> {
    let Packet {
        source, protocol, ..
    } = packet;
    if packet.direction == Direction::In && law.egress.contains(source) {
        let from: [u8; 6] = packet.bytes.get(6..12)?.try_into().ok()?;
        if !law.gateways.contains(&from) {
            return Some(format!(
                "phase {phase}: {source} not by a gateway but {from:02x?}"
            ));
        }
    }
    let phases = lock(&law.phases);
    let allowed = phases.get(phase.checked_sub(1)?)?;
    if !allowed.sources.contains(source) {
        return Some(format!(
            "phase {phase}: source {source} protocol {protocol}"
        ));
    }
    let is_reset = *protocol == TCP && tcp_flags(packet).is_some_and(|flags| flags & 4 != 0);
    // At this point a pod's packet has left its node.
    let is_own = hops_left(packet) == Some(FIRST_HOPS) && packet.direction == Direction::In;
    (is_reset && is_own && allowed.no_reset.contains(source))
        .then(|| format!("phase {phase}: reset from {source}"))
}

/// The destination of the packet that an ICMP or ICMPv6 error (RFC 792, RFC 4443) is about.
fn reported(packet: &Packet) -> Option<IpAddr> {
    let ip = packet.bytes.get(14..)?;
    match packet.source {
        IpAddr::V4(_) if packet.protocol == 1 => {
            let icmp = ip.get(usize::from(ip[0] & 15) * 4..)?;
            let destination: [u8; 4] = icmp.get(24..28)?.try_into().ok()?;
            matches!(icmp[0], 3 | 11 | 12).then(|| destination.into())
        }
        IpAddr::V6(_) if packet.protocol == 58 => {
            let icmp = ip.get(40..)?;
            let destination: [u8; 16] = icmp.get(32..48)?.try_into().ok()?;
            (icmp[0] < 128).then(|| destination.into())
        }
        _ => None,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Time to live or hop limit.
fn hops_left(packet: &Packet) -> Option<u8> {
    let offset = if packet.source.is_ipv4() { 8 } else { 7 };
    packet.bytes.get(14 + offset).copied()
}

/// Byte 13 of the TCP header of a packet without IPv6 extension headers.
fn tcp_flags(packet: &Packet) -> Option<u8> {
    let ip = packet.bytes.get(14..)?;
    let header = match packet.source {
        IpAddr::V4(_) => usize::from(ip.first()? & 15) * 4,
        IpAddr::V6(_) => 40,
    };
    ip.get(header + 13).copied()
}
