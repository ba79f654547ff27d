//! Leases of the node in the loop: grants for a round, the report before new ports are used, answers of the store, and
//! demand.

use super::MainLoop;
use crate::observe::port_use::PortUsage;
use crate::report::StatusAnswer;
use egret_core::machines::group_nodes;
use egret_core::model::{NodeName, PairedPod, Snapshot};
use egret_core::node::{NodeGrants, PodPairings};
use egret_core::numbers::FULL_DESTINATIONS_MAX;

impl MainLoop {
    /// Grants that count in this round; `None` without a record.
    pub(super) fn grants(&mut self, snapshot: &Snapshot) -> Option<NodeGrants> {
        let record = snapshot.node_records.get(&self.config.node)?;
        let was_older = self.leases.is_older();
        let grants = self.leases.decide(record);
        match (was_older, self.leases.is_older()) {
            (false, true) => tracing::warn!(
                epoch = record.grants_epoch,
                applied = self.leases.memory().epoch,
                "the store went back to an older state: only ports that both states grant are used"
            ),
            (true, false) => tracing::info!("the store has caught up with what this node applied"),
            _ => {}
        }
        Some(grants)
    }

    /// Addresses that pods are paired to: those of the last round, or what this agent or its predecessor reported. The
    /// state file counts before the record, which may be from a restored store.
    pub(super) fn pairings(&self, snapshot: &Snapshot) -> PodPairings {
        if let Some(pairings) = &self.pairings {
            return pairings.clone();
        }
        let record = snapshot.node_records.get(&self.config.node);
        let mut reported = self.remembered.paired.clone();
        let is_remembered = |one: &PairedPod| {
            let mut remembered = self.remembered.paired.iter();
            remembered.any(|known| known.pod == one.pod && known.policy == one.policy)
        };
        let recorded = record.into_iter().flat_map(|record| &record.paired);
        reported.extend(recorded.filter(|one| !is_remembered(one)).cloned());
        PodPairings::adopt(reported)
    }

    /// Decides again which gateways stay behind their groups.
    pub(super) fn update_lag(&mut self, snapshot: &Snapshot) {
        let groups = group_nodes(snapshot);
        let own = self.gateway.version(self.datapath.gateway());
        let own = (&self.config.node, own);
        let (now_ms, gateways) = (self.now_ms(), &self.inputs.gateways);
        let before: Vec<NodeName> = self.lag.lagging().values().flatten().cloned().collect();
        if !self.lag.update(&groups, gateways, Some(own), now_ms) {
            return;
        }
        let after = || self.lag.lagging().values().flatten();
        for node in after().filter(|node| !before.contains(node)) {
            tracing::warn!(gateway = %node, "gateway answers and its tables stay behind: left out");
        }
        for node in before.iter().filter(|node| after().all(|now| now != *node)) {
            tracing::info!(gateway = %node, "gateway no longer stays behind");
        }
    }

    /// Takes up an answer of the store.
    pub(super) fn take_up_answer(&mut self, answer: StatusAnswer) {
        match answer {
            StatusAnswer::Written(number, held) => {
                let usable = self.leases.written(number, held);
                self.schedule.request_round_if(usable);
            }
            StatusAnswer::NoRecord => self.leases.lost(),
        }
    }

    /// Takes up the use of ports. That more are wanted is reported at once.
    pub(super) fn take_up_ports(&mut self, usage: PortUsage) {
        let PortUsage {
            full,
            busiest,
            left_out,
        } = usage;
        let now_ms = self.now_ms();
        if self.leases.busiest(busiest, now_ms) {
            self.report_now();
        }
        if full == self.inputs.full {
            return;
        }
        if left_out > 0 {
            let limit = FULL_DESTINATIONS_MAX;
            tracing::warn!(left_out, limit, "too many full destinations to refuse all");
        }
        for new in full.difference(&self.inputs.full) {
            tracing::warn!(egress = %new.egress, destination = %new.address, protocol = new.protocol,
                port = new.port, "all leased source ports are in use towards this destination: new flows are refused");
        }
        self.inputs.full = full;
        self.refuse_full();
        self.schedule.request_round();
    }

    /// Reports what has changed without a round.
    pub(super) fn report_now(&mut self) {
        if let Some(view) = self.inputs.view.take() {
            self.report(&view);
            self.inputs.view = Some(view);
        }
    }
}
