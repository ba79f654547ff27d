//! Metrics of the agent. The table in `docs/metrics.md` is generated from names, kinds, labels and help texts here.

use egret_core::model::AddressClaim;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

/// A gauge or counter by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    /// The reason.
    pub reason: String,
}

/// A gauge by egress address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByAddress {
    /// The egress address.
    pub address: String,
}

/// A counter by policy and egress address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByPolicyAndAddress {
    /// The policy, as `egret_controller_policy_ready` names it, or `other`.
    pub policy: String,
    /// The egress address, or `other`.
    pub address: String,
}

/// A counter by egress address and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByAddressAndDirection {
    /// The egress address, or `other`.
    pub address: String,
    /// `out` to the network outside, or `in` from it.
    pub direction: String,
}

/// A counter by kind of drift.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    /// Which kind ([`egret_datapath::drift::Drift`]).
    pub kind: String,
}

/// A gauge by gateway group and address family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByGatewayAndFamily {
    /// Name of the `EgressGateway`.
    pub gateway: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
}

/// A gauge by gateway node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
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
    /// Gateway packets, by verdict.
    pub gateway_packets: Family<ByReason, Gauge<u64, AtomicU64>>,
    /// Packets at the uplinks' programs, by verdict.
    pub uplink_packets: Family<ByReason, Gauge<u64, AtomicU64>>,
    /// Packets that left this node with an egress address.
    pub sent_packets: Family<ByPolicyAndAddress, Counter>,
    /// Bytes of these packets.
    pub sent_bytes: Family<ByPolicyAndAddress, Counter>,
    /// Connections that were given a source port.
    pub connections: Family<ByPolicyAndAddress, Counter>,
    /// Packets that this gateway carried.
    pub carried_packets: Family<ByAddressAndDirection, Counter>,
    /// Bytes of these packets.
    pub carried_bytes: Family<ByAddressAndDirection, Counter>,
    /// Packets that this gateway dropped.
    pub dropped_packets: Family<ByAddressAndDirection, Counter>,
    /// Takeovers: this node began to announce an address.
    pub takeovers: Family<ByAddress, Counter>,
    /// Whether a gateway answers this node's probes.
    pub gateway_live: Family<ByGateway, Gauge>,
    /// Whether canaries of a path are lost.
    pub path_broken: Family<ByGatewayAndFamily, Gauge>,
    /// Gateways that stopped answering.
    pub gateway_losses: Counter,
    /// States applied.
    pub applies: Counter,
    /// States whose apply failed.
    pub apply_errors: Counter,
    /// Seconds to apply a state.
    pub apply_seconds: Histogram,
    /// Seconds from a changed view of the objects to the kernel's acknowledgement.
    pub programming_seconds: Histogram,
    /// Drift that was detected and repaired.
    pub repairs: Family<ByKind, Counter>,
    /// Flows ended by policy changes.
    pub ended_flows: Counter,
    /// Source ports in use.
    pub ports_in_use: Family<ByAddress, Gauge>,
    /// Source ports that this node wants.
    pub ports_wanted: Family<ByAddress, Gauge>,
    /// Source ports in this node's leases.
    pub ports_leased: Family<ByAddress, Gauge>,
    /// Destinations towards which a lease is exhausted.
    pub full_destinations: Family<ByAddress, Gauge>,
    /// Flows that the kernel could not insert into its table.
    pub insert_failed: Gauge<u64, AtomicU64>,
    /// Pod addresses that policies select on this node.
    pub selected_pods: Gauge,
    /// Addresses that this node announces.
    pub announcing: Gauge,
    /// Addresses that another machine claims, as this gateway observes.
    pub address_conflicts: Family<ByAddress, Gauge>,
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
            sent_packets: Family::default(),
            sent_bytes: Family::default(),
            connections: Family::default(),
            carried_packets: Family::default(),
            carried_bytes: Family::default(),
            dropped_packets: Family::default(),
            takeovers: Family::default(),
            gateway_live: Family::default(),
            path_broken: Family::default(),
            gateway_losses: Counter::default(),
            applies: Counter::default(),
            apply_errors: Counter::default(),
            apply_seconds: seconds(),
            programming_seconds: seconds(),
            repairs: Family::default(),
            ended_flows: Counter::default(),
            ports_in_use: Family::default(),
            ports_wanted: Family::default(),
            ports_leased: Family::default(),
            full_destinations: Family::default(),
            insert_failed: Gauge::default(),
            selected_pods: Gauge::default(),
            announcing: Gauge::default(),
            address_conflicts: Family::default(),
            steering_version: Gauge::default(),
            findings: Gauge::default(),
        };
        metrics.register();
        metrics.register_traffic();
        metrics
    }
}

/// 0.1 ms to about 6 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 3.0, 11))
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        let worker =
            "Packets that the worker's ruleset dropped or rejected since it was created, by reason";
        r.register("worker_packets", worker, self.worker_packets.clone());
        let gateway = "Packets at the gateway's eBPF programs (or netdev rules) since they were loaded, by outcome";
        r.register("gateway_packets", gateway, self.gateway_packets.clone());
        let uplink = "Packets at the uplinks' eBPF programs since they were loaded, by outcome";
        r.register("uplink_packets", uplink, self.uplink_packets.clone());
        let live = "Whether the gateway answers this node's probes (1) or not (0)";
        r.register("gateway_live", live, self.gateway_live.clone());
        let broken = "Whether canaries of a gateway group are lost (1) or come back (0)";
        r.register("path_broken", broken, self.path_broken.clone());
        r.register(
            "gateway_losses",
            "Gateways that stopped answering probes",
            self.gateway_losses.clone(),
        );
        r.register(
            "applies",
            "Node states applied to the kernel",
            self.applies.clone(),
        );
        r.register(
            "apply_errors",
            "Node states that could not be applied",
            self.apply_errors.clone(),
        );
        r.register(
            "apply_seconds",
            "Seconds to apply a node state: the worker's ruleset, routes and flows, every round",
            self.apply_seconds.clone(),
        );
        r.register(
            "programming_seconds",
            "Seconds from a changed view of the objects to the kernel's acknowledgement of all of it",
            self.programming_seconds.clone(),
        );
        r.register(
            "repairs",
            "Drift that was detected and repaired",
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
            "ports_wanted",
            "Source ports that this node wants, by address, where the first grant did not suffice",
            self.ports_wanted.clone(),
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
            "Flows of this node that the kernel could not track; lost without an error when a lease is used up",
            self.insert_failed.clone(),
        );
        r.register(
            "selected_pods",
            "Pod addresses of this node that policies select",
            self.selected_pods.clone(),
        );
        r.register(
            "announcing",
            "Egress addresses that this node announces",
            self.announcing.clone(),
        );
        r.register(
            "address_conflicts",
            "Egress addresses that a machine which is no gateway answers for on the external segment (1)",
            self.address_conflicts.clone(),
        );
        r.register(
            "steering_version",
            "Steering version of the gateway",
            self.steering_version.clone(),
        );
        r.register("findings", "Invalid objects", self.findings.clone());
    }

    /// A registry with a sample in every family, so that its encoding names every metric: for `docs/metrics.md`.
    pub fn with_samples() -> Self {
        let metrics = Metrics::default();
        // Destructured without `..`: a new field does not compile until it is here.
        let Metrics {
            registry: _,
            worker_packets,
            gateway_packets,
            uplink_packets,
            sent_packets,
            sent_bytes,
            connections,
            carried_packets,
            carried_bytes,
            dropped_packets,
            takeovers,
            gateway_live,
            path_broken,
            gateway_losses: _,
            applies: _,
            apply_errors: _,
            apply_seconds: _,
            programming_seconds: _,
            repairs,
            ended_flows: _,
            ports_in_use,
            ports_wanted,
            ports_leased,
            full_destinations,
            insert_failed: _,
            selected_pods: _,
            announcing: _,
            address_conflicts,
            steering_version: _,
            findings: _,
        } = &metrics;
        for family in [worker_packets, gateway_packets, uplink_packets] {
            family.get_or_create(&ByReason::default()).set(0);
        }
        for family in [sent_packets, sent_bytes, connections] {
            family
                .get_or_create(&ByPolicyAndAddress::default())
                .inc_by(0);
        }
        for family in [carried_packets, carried_bytes, dropped_packets] {
            family
                .get_or_create(&ByAddressAndDirection::default())
                .inc_by(0);
        }
        for family in [
            ports_in_use,
            ports_wanted,
            ports_leased,
            full_destinations,
            address_conflicts,
        ] {
            family.get_or_create(&ByAddress::default()).set(0);
        }
        takeovers.get_or_create(&ByAddress::default()).inc_by(0);
        repairs.get_or_create(&ByKind::default()).inc_by(0);
        gateway_live.get_or_create(&ByGateway::default()).set(0);
        path_broken
            .get_or_create(&ByGatewayAndFamily::default())
            .set(0);
        metrics
    }

    /// Sets the gauges of addresses that another machine claims.
    pub(crate) fn show_conflicts(&self, claims: &BTreeMap<IpAddr, AddressClaim>) {
        self.address_conflicts.clear();
        for address in claims.keys() {
            let label = ByAddress {
                address: address.to_string(),
            };
            self.address_conflicts.get_or_create(&label).set(1);
        }
    }

    fn register_traffic(&mut self) {
        let r = &mut self.registry;
        r.register(
            "sent_packets",
            "Packets that left this node with an egress address",
            self.sent_packets.clone(),
        );
        r.register(
            "sent_bytes",
            "Bytes that left this node with an egress address, from the IP header on",
            self.sent_bytes.clone(),
        );
        r.register(
            "connections",
            "Connections that were given a source port",
            self.connections.clone(),
        );
        r.register(
            "carried_packets",
            "Packets that this gateway carried: out to the network outside, in from it",
            self.carried_packets.clone(),
        );
        r.register(
            "carried_bytes",
            "Bytes that this gateway carried, from the IP header on",
            self.carried_bytes.clone(),
        );
        r.register(
            "dropped_packets",
            "Packets that this gateway dropped, from (out) or for (in) the address; by eBPF gateways only",
            self.dropped_packets.clone(),
        );
        r.register(
            "takeovers",
            "Times that this node began to announce the address: its first announcement, and failovers",
            self.takeovers.clone(),
        );
    }
}
