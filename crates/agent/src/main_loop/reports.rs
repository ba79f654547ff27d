//! Outputs of the loop: probe targets, canary paths, metrics, the status.

use super::MainLoop;
use crate::apply::Gateway;
use crate::observe::canary::{Measured, Order};
use crate::observe::probe::Targets;
use crate::report::gauges::{self, Figures};
use crate::report::{GatewayReport, StatusInputs, node_status};
use egret_core::model::{MacAddress, Snapshot};
use egret_core::node::{NodeOutcome, probe_targets};
use egret_datapath::gateway::GatewayBackend;
use egret_datapath::node::NodeGateway;
use egret_objects::View;
use std::collections::BTreeMap;

impl MainLoop {
    /// Sets the probe targets: every gateway except this node.
    pub(super) fn update_probe_targets(&mut self, snapshot: &Snapshot, outcome: &NodeOutcome) {
        let tunnel = &outcome.state.tunnel;
        let me = self
            .datapath
            .tunnel()
            .map(|device| (tunnel.index, tunnel.underlay, device.index));
        let nodes = || outcome.state.peers.iter();
        let targets = Targets {
            me,
            peers: probe_targets(snapshot, &outcome.state),
            answers: self.datapath.gateway().probe_version().map(|version| {
                let nodes = nodes().map(|(index, peer)| (*index, peer.underlay));
                (version, nodes.collect())
            }),
            cut_off: self
                .inputs
                .links
                .as_ref()
                .is_some_and(|links| !links.underlay_up),
        };
        if targets != self.last_sent.targets && self.channels.probes.send(targets.clone()).is_ok() {
            self.last_sent.targets = targets;
        }
    }

    /// Sends the paths that canaries measure.
    pub(super) fn measure(&mut self, outcome: &NodeOutcome) {
        let measured = Measured {
            paths: outcome.canaries.clone(),
            mtu: outcome.state.tunnel.mtu,
        };
        let order = Order::Measure(measured.clone());
        if measured != self.last_sent.measured && self.channels.canaries.send(order).is_ok() {
            self.last_sent.measured = measured;
        }
    }

    /// Requests an early canary round after a change that may affect canaries.
    pub(super) fn look_soon(&self) {
        // Without a canary device the thread does not run.
        let _ = self.channels.canaries.send(Order::LookSoon);
    }

    pub(super) fn report(&mut self, view: &View) {
        if self.reports.traffic.is_due() {
            let counters = self.datapath.counters();
            let takeovers = self.gateway.takeovers().clone();
            self.reports.traffic.update(counters, takeovers);
            self.reports.findings.ipvs_dropped = self.reports.traffic.ipvs_dropped();
        }
        let mut gateway = gateway_report(&self.gateway, self.datapath.gateway(), self.now_ms());
        gateway.newer_tables = self.tables.newer(view.snapshot.addresses.values());
        self.show(&gateway);
        let Some(record) = view.snapshot.node_records.get(&self.config.node) else {
            return;
        };
        if !self.inputs.gateways.settled {
            return;
        }
        self.leases.adopt(record);
        let leases = self.leases.report();
        let status = node_status(&StatusInputs {
            record,
            snapshot: &view.snapshot,
            outcome: self.outcome.as_ref().filter(|_| self.last_error.is_none()),
            gateway: &gateway,
            links: self.inputs.links.as_ref(),
            routers: &self.inputs.routers,
            leases: &leases,
            full: &self.inputs.full,
            findings: &self.reports.findings,
            last_error: self.last_error.as_deref(),
            obstacles: &self.reports.obstacles,
        });
        // A status that is sent but not yet written is enough; one that was written and then lost (the record was
        // recreated) is not.
        let lost =
            record.resource_version != self.last_sent.record_version && *record != status.record;
        if lost || self.last_sent.status.as_ref() != Some(&status) {
            let number = self.leases.sent(leases.held);
            if self.channels.status.send((number, status.clone())).is_ok() {
                self.last_sent.record_version = record.resource_version;
                self.last_sent.status = Some(status);
            }
        }
    }

    fn show(&self, gateway: &GatewayReport) {
        let outcome = self.outcome.as_ref();
        let figures = Figures {
            outcome,
            gateways: &self.inputs.gateways,
            refused_packets: self.reports.traffic.reasons(),
            ports: &self.reports.ports,
            wanted: &self.leases.report().wanted,
            full: &self.inputs.full,
        };
        let counters = self.reports.traffic.counters();
        self.reports.health.with(|metrics| {
            gauges::worker(metrics, &figures);
            gauges::canaries(metrics, &self.inputs.canaries);
            self.reports.traffic.show(metrics, outcome);
            gauges::gateway(metrics, gateway, &counters.gateway);
            metrics.show_conflicts(&gateway.claims);
            gauges::uplink(metrics, &counters.uplink);
        });
    }
}

fn gateway_report(gateway: &Gateway, path: &NodeGateway, now_ms: u64) -> GatewayReport {
    let backend = path.backend();
    GatewayReport {
        datapath: backend.map(|backend| backend.name().to_owned()),
        limitations: backend.and_then(GatewayBackend::limitations),
        loaded: path.is_loaded(),
        version: gateway.version(path),
        newer_tables: BTreeMap::new(),
        announcing: gateway.announcing(),
        external_mac: path.external().map(|(_, mac)| MacAddress(mac)),
        claims: gateway.claims().clone(),
        uplink_lost: gateway.fitness().lost().is_some(),
        degraded: gateway.fitness().reports(),
        drain: gateway.drain_report(now_ms),
        last_error: path.last_error().map(str::to_owned),
    }
}
