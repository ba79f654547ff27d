//! Periodic work of the loop: drift detection, port counts, refusal of full destinations, obstacles in foreign forward
//! chains.

use super::MainLoop;
use crate::observe::canary::Shown;
use crate::report::{ByKind, gauges};
use egret_core::error::with_causes;
use egret_core::machines::Turn;
use egret_core::node::{BrokenPath, NodeOutcome};
use egret_core::obstacle::Obstacle;
use egret_datapath::node::Depth;
use std::collections::BTreeSet;
use std::time::Instant;

impl MainLoop {
    /// Work that is due on a tick without events.
    pub(super) fn rest(&mut self) {
        if !self.inputs.full.is_empty() && self.schedule.is_refusal_due(self.now_ms()) {
            self.refuse_full();
        }
        let now = Instant::now();
        let due = self.inputs.pod_devices.is_due(now) || self.inputs.uncovered.is_due(now);
        self.schedule
            .request_round_if(due || self.datapath.uplink().programs_changed());
        let now_ms = self.now_ms();
        if self.leases.measure(now_ms) {
            self.report_now();
        }
        if self.count_if_due() {
            // Legacy iptables tables send no change notifications.
            if let Some(outcome) = self.outcome.take() {
                self.open_forwarding(&outcome);
                // Obstacles decide how many pods are reported as programmed.
                let changed = self.look_for_obstacles(&outcome);
                self.schedule.request_round_if(changed);
                self.outcome = Some(outcome);
            }
            self.report_now();
        }
    }

    /// Detects drift; the next round repairs it.
    pub(super) fn repair(&mut self, turn: Turn) {
        if turn.verify_changed {
            self.datapath.uplink().invalidate();
            self.inputs.pod_devices.invalidate();
        }
        if turn.verify_full {
            self.inputs.links_stale = true;
        }
        if self.outcome.is_none() {
            return;
        }
        let drift = self
            .datapath
            .verify(match (turn.verify_full, turn.verify_changed) {
                (true, _) => Depth::Full,
                (false, true) => Depth::Notified,
                (false, false) => Depth::Unnotified,
            });
        if drift.is_empty() {
            return;
        }
        let told = drift.iter().map(|(kind, what)| format!("{kind}: {what}"));
        let found = told.collect::<Vec<_>>().join("; ");
        tracing::warn!(found, "drift detected, repairing");
        self.reports.health.with(|metrics| {
            for kind in drift.keys() {
                let label = ByKind {
                    kind: kind.word().into(),
                };
                metrics.repairs.get_or_create(&label).inc();
            }
        });
        self.inputs.links_stale = true;
        self.schedule.request_round();
    }

    /// Writes the destinations to refuse into the kernel; the entries expire unless refreshed.
    pub(super) fn refuse_full(&mut self) {
        self.schedule.full_refused(self.now_ms());
        if let Err(error) = self.datapath.worker().refuse_full(&self.inputs.full) {
            tracing::warn!(error = %with_causes(&error), "cannot refuse full destinations");
        }
    }

    fn open_forwarding(&mut self, outcome: &NodeOutcome) {
        if let Err(error) = self.datapath.worker().open_forwarding(&outcome.state) {
            tracing::warn!(error = %with_causes(&error), "cannot open foreign forward chains");
        }
    }

    /// Updates the obstacles in foreign firewalls; returns whether they changed.
    pub(super) fn look_for_obstacles(&mut self, outcome: &NodeOutcome) -> bool {
        let found = match self.datapath.worker().obstacles(&outcome.state) {
            Ok(found) if found == self.reports.obstacles => return false,
            Ok(found) => found.to_vec(),
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "cannot check for obstacles");
                return false;
            }
        };
        for new in found
            .iter()
            .filter(|one| !self.reports.obstacles.contains(one))
        {
            let Obstacle {
                text,
                remedy,
                certain,
                ..
            } = new;
            tracing::warn!(text, remedy, certain, "obstacle found");
        }
        self.reports.obstacles = found;
        true
    }

    /// Counts ports in use if it is due, or if a change asked for it; returns whether it counted.
    pub(super) fn count_if_due(&mut self) -> bool {
        let now_ms = self.now_ms();
        let due = self.schedule.is_count_due(now_ms) || self.leases.is_count_due(now_ms);
        let due = due && self.outcome.is_some();
        if due && let Err(error) = self.count_ports() {
            tracing::warn!(error, "cannot count ports in use");
        }
        due
    }

    fn count_ports(&mut self) -> Result<(), String> {
        let began_ms = self.now_ms();
        self.schedule.ports_counted(began_ms);
        let in_use = self.datapath.worker().ports_in_use();
        let in_use = in_use.map_err(|error| with_causes(&error))?;
        let times = (began_ms, self.now_ms());
        self.leases.counted(&in_use.counts, in_use.blocks, times);
        self.reports.ports = in_use.counts;
        // Read together with the flow dump and not in each round: the call waits for a dump that is under way.
        if let Ok(failed) = self.datapath.worker().insert_failed() {
            self.reports.health.with(|metrics| {
                metrics.insert_failed.set(failed);
            });
        }
        let refused = self.datapath.worker().refused_protocols();
        self.reports.findings.refused = refused.map_err(|error| with_causes(&error))?;
        self.reports.findings.ignores_quotas = self.datapath.worker().ignores_quotas();
        let over = self.datapath.worker().over_quota();
        self.reports.findings.over_quota = over.map_err(|error| with_causes(&error))?;
        Ok(())
    }

    /// Takes the result of a round of canaries, and logs and counts the paths that it found broken or whole again.
    pub(super) fn take_up_canaries(&mut self, shown: Shown) {
        let before = &self.inputs.canaries.broken;
        let is_in = |all: &BTreeSet<BrokenPath>, one: &BrokenPath| {
            all.iter()
                .any(|other| (&other.group, other.v6) == (&one.group, one.v6))
        };
        for one in shown.broken.difference(before) {
            tracing::warn!(gateway = one.group.gateway.0, path = %one, "canaries of a path are lost");
        }
        for one in before.iter().filter(|one| !is_in(&shown.broken, one)) {
            tracing::info!(gateway = one.group.gateway.0, path = %one, "canaries of a path are no longer lost");
        }
        if shown.at.is_some() {
            let found = shown.broken.iter();
            let new: Vec<_> = found.filter(|one| !is_in(before, one)).collect();
            self.reports
                .health
                .with(|metrics| gauges::canary_round(metrics, &new));
        }
        self.schedule.request_round_if(shown.broken != *before);
        self.inputs.canaries = shown;
    }

    pub(super) fn follow_flows(&mut self, outcome: &NodeOutcome) {
        let ranges = outcome.state.worker.leased_ports();
        if ranges != self.last_sent.ranges && self.channels.ranges.send(ranges.clone()).is_ok() {
            self.last_sent.ranges = ranges;
        }
    }
}
