//! What the agent counts, under names that `docs/metrics.md` lists (a test compares).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// A gauge or counter by reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    /// Why.
    pub reason: String,
}

/// A gauge by egress address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByAddress {
    /// The egress address.
    pub address: String,
}

/// A counter by kind of thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    /// Which kind ([`egret_datapath::damage::Damage`]).
    pub kind: String,
}

/// A gauge by gateway node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByGateway {
    /// Name of the gateway's node.
    pub gateway: String,
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    /// The registry that is served.
    pub registry: Registry,
    /// Worker packets dropped or refused, by reason.
    pub worker_packets: Family<ByReason, Gauge<u64, AtomicU64>>,
    /// Gateway packets, by what became of them.
    pub gateway_packets: Family<ByReason, Gauge<u64, AtomicU64>>,
    /// Packets at the uplinks' programs, by what became of them.
    pub uplink_packets: Family<ByReason, Gauge<u64, AtomicU64>>,
    /// Whether a gateway answers this node's probes.
    pub gateway_live: Family<ByGateway, Gauge>,
    /// Gateways that stopped answering.
    pub gateway_losses: Counter,
    /// States carried out.
    pub applies: Counter,
    /// States that could not be carried out.
    pub apply_errors: Counter,
    /// Seconds to carry a state out.
    pub apply_seconds: Histogram,
    /// Damage by others that was found and mended.
    pub repairs: Family<ByKind, Counter>,
    /// Flows ended by policy changes.
    pub ended_flows: Counter,
    /// Source ports in use.
    pub ports_in_use: Family<ByAddress, Gauge>,
    /// Source ports that may be used.
    pub ports_leased: Family<ByAddress, Gauge>,
    /// Destinations towards which a lease is used up.
    pub full_destinations: Family<ByAddress, Gauge>,
    /// Flows that the kernel could not enter into its table.
    pub insert_failed: Gauge<u64, AtomicU64>,
    /// Pod addresses that policies select on this node.
    pub selected_pods: Gauge,
    /// Addresses that this node announces.
    pub announcing: Gauge,
    /// Steering version of this node's gateway.
    pub steering_version: Gauge<u64, AtomicU64>,
    /// Findings in the objects that this node reads.
    pub findings: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("egret_agent"),
            worker_packets: Family::default(),
            gateway_packets: Family::default(),
            uplink_packets: Family::default(),
            gateway_live: Family::default(),
            gateway_losses: Counter::default(),
            applies: Counter::default(),
            apply_errors: Counter::default(),
            // 0.1 ms to about 6 s.
            apply_seconds: Histogram::new(exponential_buckets(0.0001, 3.0, 11)),
            repairs: Family::default(),
            ended_flows: Counter::default(),
            ports_in_use: Family::default(),
            ports_leased: Family::default(),
            full_destinations: Family::default(),
            insert_failed: Gauge::default(),
            selected_pods: Gauge::default(),
            announcing: Gauge::default(),
            steering_version: Gauge::default(),
            findings: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        let worker =
            "Packets that the worker's ruleset dropped or refused since it was made, by reason";
        r.register("worker_packets", worker, self.worker_packets.clone());
        let gateway = "Packets at the gateway's eBPF programs since they were loaded, by outcome";
        r.register("gateway_packets", gateway, self.gateway_packets.clone());
        let uplink = "Packets at the uplinks' eBPF programs since they were loaded, by outcome";
        r.register("uplink_packets", uplink, self.uplink_packets.clone());
        let live = "Whether the gateway answers this node's probes (1) or not (0)";
        r.register("gateway_live", live, self.gateway_live.clone());
        r.register(
            "gateway_losses",
            "Gateways that stopped answering",
            self.gateway_losses.clone(),
        );
        r.register(
            "applies",
            "States carried out in the kernel",
            self.applies.clone(),
        );
        r.register(
            "apply_errors",
            "States that could not be carried out",
            self.apply_errors.clone(),
        );
        r.register(
            "apply_seconds",
            "Seconds to carry a state out",
            self.apply_seconds.clone(),
        );
        r.register(
            "repairs",
            "Damage by others that was found and mended",
            self.repairs.clone(),
        );
        r.register(
            "ended_flows",
            "Flows that policy changes ended",
            self.ended_flows.clone(),
        );
        r.register(
            "ports_in_use",
            "Source ports in use, by address",
            self.ports_in_use.clone(),
        );
        r.register(
            "ports_leased",
            "Source ports that may be used, by address",
            self.ports_leased.clone(),
        );
        r.register(
            "full_destinations",
            "Destinations towards which every leased port is in use, by address",
            self.full_destinations.clone(),
        );
        r.register(
            "insert_failed",
            "Flows that the kernel could not track, of this node as a whole; lost without a word when a lease is used up",
            self.insert_failed.clone(),
        );
        r.register(
            "selected_pods",
            "Pod addresses here that policies select",
            self.selected_pods.clone(),
        );
        r.register(
            "announcing",
            "Egress addresses that this node announces",
            self.announcing.clone(),
        );
        r.register(
            "steering_version",
            "Steering version of the gateway",
            self.steering_version.clone(),
        );
        r.register(
            "findings",
            "Objects with something to mend",
            self.findings.clone(),
        );
    }
}
