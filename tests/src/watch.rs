//! Packets that leave the cluster, captured at the router, and the source that the server sees.

use crate::Cluster;
use crate::cluster::{DEADLINE, echo};
use anyhow::{Context, ensure};
use egret_lab::capture::{Capture, Direction, Packet};
use egret_lab::process::wait_for;
use egret_lab::topology::Role;
use egret_lab::traffic::ping_source;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_lab::{Lab, Place};
use std::net::IpAddr;
use std::time::Duration;

/// Bridge of the server's segment.
const OUTSIDE: &str = "br-outside";

/// Whether a packet is an error about a packet that came in, and not a packet of a pod.
pub fn is_icmp_error(packet: &Packet) -> bool {
    let is_v4 = packet.source.is_ipv4();
    let kind = packet.bytes.get(14 + if is_v4 { 20 } else { 40 });
    match (packet.protocol, kind) {
        (1, Some(kind)) => matches!(kind, 3 | 11 | 12),
        (58, Some(kind)) => *kind < 128,
        _ => false,
    }
}

/// Captures on all devices of the router that face the cluster.
pub struct Leaving {
    captures: Vec<Capture>,
    sources: Vec<Capture>,
}

impl Leaving {
    /// Watches from now on for forbidden packets from the cluster to the segment `outside`. ICMP errors that gateways
    /// send under their own address (too big, expired) are ignored.
    ///
    /// # Errors
    /// There is no router, or a capture fails.
    pub fn watch(
        cluster: &Cluster,
        is_wrong: impl Fn(&Packet) -> bool + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        Self::of(cluster.lab(), is_wrong)
    }

    /// As [`Self::watch`], for any lab.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn of(
        lab: &Lab,
        is_wrong: impl Fn(&Packet) -> bool + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let layout = lab.layout()?;
        let router = layout.host("router").context("the router")?;
        let networks: Vec<_> = router
            .links
            .iter()
            .filter(|link| link.bridge == OUTSIDE)
            .flat_map(|link| link.addresses.clone())
            .collect();
        let gateways: Vec<IpAddr> = layout
            .hosts
            .iter()
            .filter(|host| host.roles.contains(&Role::Gateway))
            .flat_map(|host| host.addresses().collect::<Vec<_>>())
            .collect();
        let place = lab.place("router")?;
        let (mut captures, mut sources) = (Vec::new(), Vec::new());
        for link in router.links.iter().filter(|link| link.bridge != OUTSIDE) {
            let (networks, gateways) = (networks.clone(), gateways.clone());
            let leaves = move |packet: &Packet| {
                packet.direction == Direction::In
                    && !(is_icmp_error(packet) && gateways.contains(&packet.source))
                    && networks
                        .iter()
                        .any(|network| network.contains(&packet.destination))
            };
            let (all, is_wrong) = (leaves.clone(), is_wrong.clone());
            let wrong = move |packet: &Packet| leaves(packet) && is_wrong(packet);
            captures.push(Capture::start(&place, &link.device, wrong)?);
            sources.push(Capture::start(&place, &link.device, all)?);
        }
        Ok(Self { captures, sources })
    }

    /// Ends the captures. Passes if no forbidden packet was seen, nothing was lost, and at least one packet left at all
    /// (otherwise the captures would prove nothing).
    ///
    /// # Errors
    /// Otherwise, with the packets.
    pub fn clean(self) -> anyhow::Result<()> {
        let mut left = 0;
        for capture in self.sources {
            left += capture.stop()?.offending_count;
        }
        ensure!(left > 0, "the captures saw nothing at all");
        for capture in self.captures {
            capture.stop()?.clean().map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// Number of forbidden packets so far.
    pub fn wrong(&self) -> u64 {
        self.captures
            .iter()
            .map(|capture| capture.so_far().offending_count)
            .sum()
    }

    /// Ends the captures; returns the number of forbidden packets.
    ///
    /// # Errors
    /// A capture lost packets.
    pub fn count(self) -> anyhow::Result<u64> {
        let mut wrong = 0;
        for capture in self.captures {
            let report = capture.stop()?;
            ensure!(
                report.dropped == 0,
                "the capture lost {} packets",
                report.dropped
            );
            wrong += report.offending_count;
        }
        Ok(wrong)
    }
}

/// How long one try waits for an answer where the source may be changing. A change cuts open connections, and a client
/// that only receives is not told (docs/datapath.md): a new request finds the source.
const TRY: Duration = Duration::from_secs(3);

/// Source addresses that the server sees for a place, by TCP, UDP and ping.
///
/// # Errors
/// No answer in time.
pub fn seen_sources(place: &Place, server: IpAddr) -> anyhow::Result<[IpAddr; 3]> {
    sources_within(place, server, DEADLINE)
}

fn sources_within(place: &Place, server: IpAddr, time: Duration) -> anyhow::Result<[IpAddr; 3]> {
    let who = || format!("{} to {server}", place.name());
    Ok([
        tcp_source_within(place, echo(server), time)
            .with_context(who)?
            .ip(),
        udp_echo(place, echo(server), 32, time)
            .with_context(who)?
            .ip(),
        ping_source(place, server).with_context(who)?,
    ])
}

/// Checks that the server sees this source for a place by TCP, UDP and ping.
///
/// # Errors
/// Another source, or no answer in time.
pub fn expect_source(place: &Place, server: IpAddr, source: IpAddr) -> anyhow::Result<()> {
    let seen = seen_sources(place, server)?;
    compare(place, server, source, seen)
}

fn compare(place: &Place, server: IpAddr, source: IpAddr, seen: [IpAddr; 3]) -> anyhow::Result<()> {
    ensure!(
        seen == [source; 3],
        "{} to {server}: TCP, UDP and ping came from {seen:?}, not from {source}",
        place.name()
    );
    Ok(())
}

/// Waits until the server sees this source for a place by TCP, UDP and ping: for effects that no status shows, such as
/// those of a deleted policy.
///
/// # Errors
/// Another source, or no answer, until the deadline.
pub fn wait_source(place: &Place, server: IpAddr, source: IpAddr) -> anyhow::Result<()> {
    let mut last = Ok(());
    let waited = wait_for("the source of a place", DEADLINE, || {
        let seen = sources_within(place, server, TRY);
        last = seen.and_then(|seen| compare(place, server, source, seen));
        last.is_ok()
    });
    match waited {
        Ok(()) => Ok(()),
        Err(_) => last,
    }
}
