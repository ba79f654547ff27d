//! What the loop tells others of the node: to whom probes go, figures, the status.

use super::MainLoop;
use crate::canary::{Measured, Order};
use crate::probe::Targets;
use crate::report;
use egret_core::model::{NodeName, Snapshot};
use egret_core::node::NodeOutcome;
use egret_objects::View;
use std::collections::BTreeMap;

impl MainLoop {
    /// Probes every gateway but this node itself.
    pub(super) fn retarget(&mut self, snapshot: &Snapshot, outcome: &NodeOutcome) {
        let tunnel = &outcome.state.tunnel;
        let me = self
            .datapath
            .tunnel()
            .map(|device| (tunnel.index, tunnel.underlay, device.index));
        let nodes = || outcome.state.peers.iter();
        let mut targets = Targets {
            me,
            peers: BTreeMap::new(),
            answers: self.datapath.gateway().probe_version().map(|version| {
                let nodes = nodes().map(|(index, peer)| (*index, peer.underlay));
                (version, nodes.collect())
            }),
            cut_off: self.links.as_ref().is_some_and(|links| !links.underlay_up),
        };
        for (index, peer) in outcome.state.peers.iter().filter(|(_, peer)| peer.gateway) {
            let name = NodeName(peer.node.clone());
            let Some(node) = snapshot.nodes.get(&name) else {
                continue;
            };
            let gateways = snapshot.gateways.values();
            let settings = gateways
                .filter(|gateway| gateway.nodes.matches(&node.labels))
                .map(|gateway| (gateway.probe_interval_ms, gateway.probe_failures))
                .min();
            if let Some((interval_ms, failures)) = settings {
                targets
                    .peers
                    .insert(name, (*index, peer.underlay, interval_ms, failures));
            }
        }
        if targets != self.told_targets && self.ways.probes.send(targets.clone()).is_ok() {
            self.told_targets = targets;
        }
    }

    /// Tells which ways canaries are to measure.
    pub(super) fn measure(&mut self, outcome: &NodeOutcome) {
        let measured = Measured {
            paths: outcome.canaries.clone(),
            mtu: outcome.state.tunnel.mtu,
        };
        let order = Order::Measure(measured.clone());
        if measured != self.told_measured && self.ways.canaries.send(order).is_ok() {
            self.told_measured = measured;
        }
    }

    /// Something has changed that canaries may meet.
    pub(super) fn look_soon(&self) {
        // Without a canary device nobody listens.
        let _ = self.ways.canaries.send(Order::LookSoon);
    }

    pub(super) fn report(&mut self, view: &View) {
        let takeovers = self.gateway.takeovers();
        self.traffic.read(&mut self.datapath, takeovers);
        report::metrics(
            &self.board,
            self.outcome.as_ref(),
            &self.seen,
            self.traffic.reasons(),
            (&self.ports, &self.full),
        );
        self.board
            .with(|metrics| report::canary_metrics(metrics, &self.canaries));
        let (traffic, outcome) = (&self.traffic, self.outcome.as_ref());
        self.board.with(|metrics| traffic.show(metrics, outcome));
        let (gateway, path) = (&self.gateway, self.datapath.gateway());
        let counters = self.traffic.counters();
        self.board
            .with(|metrics| report::gateway_metrics(metrics, (gateway, path), counters));
        self.board
            .with(|metrics| metrics.show_conflicts(self.gateway.claims()));
        self.board
            .with(|metrics| report::uplink_metrics(metrics, counters));
        let Some(record) = view.snapshot.node_records.get(&self.config.node) else {
            return;
        };
        if !self.seen.settled {
            return;
        }
        let status = report::status(
            record,
            view,
            self.outcome.as_ref().filter(|_| self.trouble.is_none()),
            (gateway, path),
            (self.links.as_ref(), &self.routers),
            (&self.ports, &self.full, &self.seen_here),
            (self.trouble.as_deref(), &self.obstacles),
        );
        // Told already and not yet written is enough; told, written and lost (a record made anew) is not.
        let lost = record.resource_version != self.told_version && *record != status.record;
        if (lost || self.told_status.as_ref() != Some(&status))
            && self.ways.status.send(status.clone()).is_ok()
        {
            self.told_version = record.resource_version;
            self.told_status = Some(status);
        }
    }
}
