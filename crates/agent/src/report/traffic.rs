//! Traffic counters of the kernel, read periodically, as metrics.

use super::metrics::{ByAddress, ByAddressAndDirection, ByPolicyAndAddress, Metrics};
use egret_core::node::NodeOutcome;
use egret_core::numbers::TRAFFIC_ACCOUNTS_MAX;
use egret_datapath::gateway::Flow;
use egret_datapath::node::Counters;
use egret_datapath::worker::GUARD_IPVS;
use egret_datapath::worker::driver::Counted;
use prometheus_client::metrics::counter::Counter;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Minimum interval between two reads of the counters.
const READ_EVERY: Duration = Duration::from_secs(2);
/// How long after the last one dropped packets of IPVS are reported.
const IPVS_REPORTED: Duration = Duration::from_secs(300);
/// Label for all addresses and policies beyond the limit.
const OTHER: &str = "other";

/// Last values of the kernel's counters.
#[derive(Default)]
pub(crate) struct Traffic {
    read: Option<Instant>,
    worker: Counted,
    counters: Counters,
    takeovers: BTreeMap<IpAddr, u64>,
    ipvs_dropped: Option<Instant>,
}

impl Traffic {
    /// Whether a read is due.
    pub(crate) fn is_due(&self) -> bool {
        self.read.is_none_or(|at| at.elapsed() >= READ_EVERY)
    }

    /// Updates the counters. If the worker's cannot be read, the last values stay.
    pub(crate) fn update(&mut self, mut counters: Counters, takeovers: BTreeMap<IpAddr, u64>) {
        self.read = Some(Instant::now());
        if let Some(worker) = counters.worker.take() {
            let dropped = |counted: &Counted| counted.0.get(GUARD_IPVS).copied().unwrap_or(0);
            // A counter that is lower than before began again with a new ruleset.
            if dropped(&worker) > 0 && dropped(&worker) != dropped(&self.worker) {
                self.ipvs_dropped = Some(Instant::now());
            }
            self.worker = worker;
        }
        self.counters = counters;
        self.takeovers = takeovers;
    }

    /// Whether packets that IPVS would have sent past the gateways were dropped within [`IPVS_REPORTED`].
    pub(crate) fn ipvs_dropped(&self) -> bool {
        self.ipvs_dropped
            .is_some_and(|at| at.elapsed() < IPVS_REPORTED)
    }

    /// Last counters of gateway and uplinks.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Packets that the worker's ruleset dropped or refused.
    pub(crate) fn reasons(&self) -> &BTreeMap<String, u64> {
        &self.worker.0
    }

    /// Writes the counters into the metrics. Series without a counter are removed.
    pub(crate) fn show(&self, metrics: &mut Metrics, outcome: Option<&NodeOutcome>) {
        metrics.sent_packets.clear();
        metrics.sent_bytes.clear();
        metrics.connections.clear();
        for (id, account) in outcome.iter().flat_map(|outcome| &outcome.traffic_keys) {
            let Some(traffic) = self.worker.1.get(id) else {
                continue;
            };
            let (policy, address) = match account {
                Some(account) => (account.policy.to_string(), account.address.to_string()),
                None => (OTHER.to_owned(), OTHER.to_owned()),
            };
            let label = ByPolicyAndAddress { policy, address };
            let set = |family: &Family<ByPolicyAndAddress>, value| {
                store(&family.get_or_create(&label), value);
            };
            set(&metrics.sent_packets, traffic.sent.packets);
            set(&metrics.sent_bytes, traffic.sent.bytes);
            set(&metrics.connections, traffic.connections);
        }
        self.show_gateway(metrics);
    }

    fn show_gateway(&self, metrics: &mut Metrics) {
        metrics.carried_packets.clear();
        metrics.carried_bytes.clear();
        metrics.dropped_packets.clear();
        metrics.takeovers.clear();
        for (number, (address, carried)) in self.counters.carried.iter().enumerate() {
            let named = |direction: &str, flow: &Flow| {
                let label = ByAddressAndDirection {
                    address: name(number, address),
                    direction: direction.to_owned(),
                };
                let add = |family: &Family<ByAddressAndDirection>, value| {
                    family.get_or_create(&label).inc_by(value);
                };
                add(&metrics.carried_packets, flow.packets);
                add(&metrics.carried_bytes, flow.bytes);
                if let Some(dropped) = flow.dropped {
                    add(&metrics.dropped_packets, dropped);
                }
            };
            named("out", &carried.out);
            named("in", &carried.back);
        }
        for (number, (address, times)) in self.takeovers.iter().enumerate() {
            let address = name(number, address);
            let label = ByAddress { address };
            metrics.takeovers.get_or_create(&label).inc_by(*times);
        }
    }
}

type Family<Label> = prometheus_client::metrics::family::Family<Label, Counter>;

/// Label of an address: its own for the first ones, `other` beyond the limit.
fn name(number: usize, address: &IpAddr) -> String {
    match number < TRAFFIC_ACCOUNTS_MAX {
        true => address.to_string(),
        false => OTHER.to_owned(),
    }
}

fn store(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(packets: u64) -> Counters {
        let reasons = [(GUARD_IPVS.to_owned(), packets)].into();
        Counters {
            worker: Some((reasons, BTreeMap::new())),
            ..Counters::default()
        }
    }

    #[test]
    fn packets_that_ipvs_sends_past_are_reported_when_the_counter_rises() {
        let mut traffic = Traffic::default();
        traffic.update(counted(0), BTreeMap::new());
        assert!(!traffic.ipvs_dropped());
        traffic.update(counted(3), BTreeMap::new());
        assert!(traffic.ipvs_dropped());
        // A new ruleset counts from zero again.
        traffic.ipvs_dropped = None;
        traffic.update(counted(3), BTreeMap::new());
        assert!(!traffic.ipvs_dropped());
        traffic.update(counted(1), BTreeMap::new());
        assert!(traffic.ipvs_dropped());
    }
}
