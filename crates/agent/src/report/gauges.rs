//! Sets the metrics from values of the main loop.

use super::full_destinations;
use super::gateway_report::GatewayReport;
use super::metrics::{ByAddress, ByGateway, ByGatewayAndFamily, ByReason, Metrics};
use crate::observe::canary::Shown;
use egret_core::machines::{Destination, GatewayLiveness};
use egret_core::node::NodeOutcome;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Measured values of this node.
pub(crate) struct Figures<'a> {
    /// Kernel content, once a round has been applied.
    pub(crate) outcome: Option<&'a NodeOutcome>,
    /// Liveness of the gateways, from probes.
    pub(crate) gateways: &'a GatewayLiveness,
    /// Packets that the worker's ruleset dropped or refused, by reason.
    pub(crate) refused_packets: &'a BTreeMap<String, u64>,
    /// Source ports in use, by egress address.
    pub(crate) ports: &'a BTreeMap<IpAddr, u32>,
    /// Source ports wanted, by egress address, where the first grant did not suffice.
    pub(crate) wanted: &'a BTreeMap<IpAddr, u32>,
    /// Destinations towards which a lease is exhausted.
    pub(crate) full: &'a BTreeSet<Destination>,
}

/// Sets the metrics of the worker, and of the gateways as it probes them.
pub(crate) fn worker(metrics: &mut Metrics, figures: &Figures<'_>) {
    let Figures {
        outcome,
        gateways: seen,
        refused_packets,
        ports,
        wanted,
        full,
    } = *figures;
    metrics.full_destinations.clear();
    for (address, count) in full_destinations(full) {
        let label = ByAddress {
            address: address.to_string(),
        };
        let gauge = metrics.full_destinations.get_or_create(&label);
        gauge.set(i64::from(count));
    }
    for (reason, packets) in refused_packets {
        let label = ByReason {
            reason: reason.clone(),
        };
        metrics.worker_packets.get_or_create(&label).set(*packets);
    }
    metrics.gateway_live.clear();
    for gateway in seen.versions.keys().chain(&seen.live) {
        let label = ByGateway {
            gateway: gateway.0.clone(),
        };
        let live = i64::from(seen.live.contains(gateway));
        metrics.gateway_live.get_or_create(&label).set(live);
    }
    for (gauges, values) in [
        (&metrics.ports_in_use, ports),
        (&metrics.ports_wanted, wanted),
    ] {
        gauges.clear();
        for (address, value) in values {
            let label = ByAddress {
                address: address.to_string(),
            };
            gauges.get_or_create(&label).set(i64::from(*value));
        }
    }
    let Some(outcome) = outcome else { return };
    metrics.selected_pods.set(selected_pods(outcome) as i64);
    metrics.findings.set(outcome.findings.len() as i64);
    metrics.ports_leased.clear();
    for target in outcome.state.worker.targets.values() {
        let label = ByAddress {
            address: target.address.to_string(),
        };
        let ports = target
            .ranges
            .iter()
            .map(|r| i64::from(r.last) - i64::from(r.first) + 1);
        // Canaries have a part of the same ranges.
        let gauge = metrics.ports_leased.get_or_create(&label);
        gauge.set(gauge.get().max(ports.sum()));
    }
}

fn selected_pods(outcome: &NodeOutcome) -> usize {
    let worker = &outcome.state.worker;
    let canaries = worker.canary.as_ref().map_or(0, |c| c.sources.len());
    worker.pods.len() - canaries
}

/// Sets the metrics of the gateway role, and the counters of its backend.
pub(crate) fn gateway(
    metrics: &mut Metrics,
    gateway: &GatewayReport,
    counters: &BTreeMap<&'static str, u64>,
) {
    for (reason, packets) in counters {
        let label = ByReason {
            reason: (*reason).into(),
        };
        metrics.gateway_packets.get_or_create(&label).set(*packets);
    }
    metrics.announcing.set(gateway.announcing.len() as i64);
    metrics.steering_version.set(gateway.version);
}

/// Sets one gauge for each path that canaries have measured.
pub(crate) fn canaries(metrics: &mut Metrics, shown: &Shown) {
    metrics.path_broken.clear();
    for path in &shown.paths {
        let v6 = path.egress.is_ipv6();
        let label = ByGatewayAndFamily {
            gateway: path.group.gateway.0.clone(),
            family: if v6 { "IPv6" } else { "IPv4" }.into(),
        };
        let mut broken = shown.broken.iter();
        let broken = broken.any(|one| one.group == path.group && one.v6 == v6);
        let gauge = metrics.path_broken.get_or_create(&label);
        gauge.set(gauge.get().max(i64::from(broken)));
    }
}

/// Sets the counters of the programs at the uplinks.
pub(crate) fn uplink(metrics: &mut Metrics, counters: &BTreeMap<&'static str, u64>) {
    for (reason, packets) in counters {
        let label = ByReason {
            reason: (*reason).into(),
        };
        metrics.uplink_packets.get_or_create(&label).set(*packets);
    }
}
