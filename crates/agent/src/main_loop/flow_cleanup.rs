//! Asynchronous deletion of flows: a separate thread dumps them, the main loop deletes them.

use super::MainLoop;
use crate::observe::flows::ConntrackDump;
use egret_core::error::with_causes;

impl MainLoop {
    /// Requests a dump of the flows, once for each change that left flows to delete.
    pub(super) fn ask_for_flows(&mut self) {
        let owed = self.datapath.worker().pending_flow_cleanup();
        if owed != self.last_sent.flows_change
            && owed.is_none_or(|change| self.channels.flows.send(change).is_ok())
        {
            self.last_sent.flows_change = owed;
        }
    }

    /// Ends the flows in the dump that a change moved away from their source address. After an error the dump is
    /// requested again at the next tick.
    pub(super) fn end_owed(&mut self, read: ConntrackDump) {
        let change = read.change;
        let ended = read.flows.and_then(|flows| {
            let ended = self.datapath.worker().finish_flow_cleanup(change, flows);
            ended.map_err(|error| with_causes(&error))
        });
        match ended {
            Ok(flows) => self.tell_ended(flows),
            Err(error) => tracing::warn!(error, "cannot end the flows of changed pods"),
        }
    }

    /// Requests the dump again if it did not arrive.
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
