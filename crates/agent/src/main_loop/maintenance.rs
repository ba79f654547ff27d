//! Drain of this gateway, and the time after it was one.

use super::MainLoop;
use crate::apply::Departed;
use crate::observe::facts::LinkQuery;
use egret_core::error::with_causes;
use egret_core::machines::DrainPhase;
use egret_core::model::Snapshot;
use egret_core::node::{GatewayState, NodeFacts, NodeOutcome, NotYet, Policies, external_choice};

/// Counters of a gateway's packets for other nodes, and for its own while neighbours still send to it.
const CARRIED: [&str; 7] = [
    "in_forwarded",
    "in_relayed",
    "in_self",
    "out_forwarded",
    "out_local",
    "out_next_hop",
    "relay_forwarded",
];

impl MainLoop {
    /// Decides whether this node, which no `EgressGateway` selects any more, goes on to forward.
    pub(super) fn decide_departure(&mut self, snapshot: &Snapshot) {
        let node = &self.config.node;
        if external_choice(snapshot, node).is_some() {
            self.departure.selected(snapshot, node);
            self.departing = false;
            return;
        }
        let now_ms = self.now_ms();
        let is_gateway = |outcome: &NodeOutcome| outcome.state.gateway.is_some();
        let was_gateway = self.outcome.as_ref().is_some_and(is_gateway);
        let empty = self.departing && self.drain_phase() == Some(DrainPhase::Empty);
        let goes_on = was_gateway && self.departure.goes_on(snapshot, empty, now_ms);
        match (self.departing, goes_on) {
            (false, true) => {
                tracing::info!(
                    "no EgressGateway selects this node any more: it forwards until nothing arrives"
                )
            }
            (true, false) => tracing::info!(empty, "this node is no gateway any more"),
            _ => {}
        }
        self.departing = goes_on;
    }

    /// The devices that a gateway needs that goes on although the objects no longer name it.
    pub(super) fn link_query(&self, snapshot: &Snapshot, policies: &Policies<'_>) -> LinkQuery {
        let query = LinkQuery::of(snapshot, policies, &self.config.node);
        match &self.inputs.links {
            Some(before) if self.departing => query.or(&before.query),
            _ => query,
        }
    }

    /// The state of the node. While it departs, its gateway role, and without its Node object everything, stays as it is.
    pub(super) fn decide_state(
        &mut self,
        policies: &Policies<'_>,
        facts: &NodeFacts,
    ) -> Result<NodeOutcome, String> {
        let decided = policies.node_state(facts, &self.config.node);
        let before = self.outcome.as_ref().filter(|_| self.departing);
        let mut outcome = match (decided, before) {
            (Err(NotYet::NoNode(_) | NotYet::NoRecord(_)), Some(before)) => before.clone(),
            (decided, _) => decided.map_err(|error| with_causes(&error))?,
        };
        if let Some(before) = before {
            let former = before.state.gateway.clone();
            outcome.state.gateway = former.map(|former| GatewayState {
                version: self.gateway.version(self.datapath.gateway()),
                ..former
            });
            for (index, peer) in &before.state.peers {
                let peers = &mut outcome.state.peers;
                peers.entry(*index).or_insert_with(|| peer.clone());
            }
        }
        let now_ms = self.now_ms();
        self.peers.keep(&mut outcome.state.peers, now_ms);
        Ok(outcome)
    }

    /// The part of the role of a gateway that departs: it hands over what it announces.
    pub(super) fn depart(
        &mut self,
        snapshot: &Snapshot,
        planned: &GatewayState,
        link_up: bool,
    ) -> GatewayState {
        let now_ms = self.now_ms();
        self.gateway.depart(&Departed {
            snapshot,
            planned,
            link_up,
            now_ms,
        })
    }

    /// Looks whether packets still arrive at this gateway, while it is drained.
    pub(super) fn follow_drain(&mut self) {
        if self.drain_phase().is_none() {
            self.drain_seen = None;
            return;
        }
        let counters = self.datapath.gateway_counters();
        if counters.is_empty() {
            // What cannot be read is not known to be silent.
            return;
        }
        let packets = CARRIED.iter().filter_map(|name| counters.get(name)).sum();
        let now_ms = self.now_ms();
        self.gateway.counted(packets, now_ms);
        // Silence changes the phase by time alone.
        let phase = self.drain_phase();
        self.schedule.request_round_if(phase != self.drain_seen);
        self.drain_seen = phase;
    }

    fn drain_phase(&self) -> Option<DrainPhase> {
        let report = self.gateway.drain_report(self.now_ms())?;
        Some(report.phase)
    }
}
