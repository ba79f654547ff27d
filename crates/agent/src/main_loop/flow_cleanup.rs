//! Flows whose end nobody has to wait for: read by a thread of their own, ended here.

use super::MainLoop;
use crate::observe::flows::ConntrackDump;
use egret_core::error::with_causes;

impl MainLoop {
    /// Has the flows read that a change has left to be ended, once for each change.
    pub(super) fn ask_for_flows(&mut self) {
        let owed = self.datapath.worker().pending_flow_cleanup();
        if owed != self.last_sent.flows_change
            && owed.is_none_or(|change| self.channels.flows.send(change).is_ok())
        {
            self.last_sent.flows_change = owed;
        }
    }

    /// The flows are read: those that a change has taken away from their source end. What fails is asked for again at
    /// the next tick.
    pub(super) fn end_owed(&mut self, read: ConntrackDump) {
        let change = read.change;
        let ended = read.flows.and_then(|flows| {
            let ended = self.datapath.worker().finish_flow_cleanup(change, flows);
            ended.map_err(|error| with_causes(&error))
        });
        match ended {
            Ok(flows) => self.tell_ended(flows),
            Err(error) => tracing::warn!(error, "ending the flows of pods that came or went"),
        }
    }

    /// What was asked for and not brought is asked for again.
    pub(super) fn request_again(&mut self) {
        self.last_sent.flows_change = None;
        self.ask_for_flows();
    }

    pub(super) fn tell_ended(&mut self, flows: usize) {
        if flows == 0 {
            return;
        }
        tracing::info!(flows, "flows ended by a policy change");
        self.reports.health.with(|metrics| {
            metrics.ended_flows.inc_by(flows as u64);
        });
        self.schedule.count_ports_soon();
    }
}
