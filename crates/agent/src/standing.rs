//! Whether others may count on this gateway, beyond its own programs and carrier. Decided by
//! [`egret_core::machines::GatewayFitness`]; here are its log and the counters that tell whether somebody reaches this node.

use crate::observe::probe::HeardSlot;
use egret_core::condition::Reason;
use egret_core::machines::{ExternalLink, GatewayFitness, GatewayLiveness};
use egret_core::model::{NodeName, Snapshot};
use egret_datapath::gateway::Heard;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

pub(crate) struct Standing {
    me: NodeName,
    fitness: GatewayFitness,
    heard: HeardSlot,
}

impl Standing {
    pub(crate) fn new(me: &NodeName, heard: HeardSlot) -> Self {
        Standing {
            me: me.clone(),
            fitness: GatewayFitness::new(me.clone()),
            heard,
        }
    }

    /// The programs are attached, or others than before: their counters say whether somebody reaches this node.
    pub(crate) fn attached(&self, pins: Option<&Path>) {
        let heard = pins.and_then(|pins| {
            Heard::open(pins)
                .inspect_err(|error| tracing::warn!(%error, "the gateway's counters"))
                .ok()
        });
        if let Ok(mut slot) = self.heard.lock() {
            *slot = heard;
        }
    }

    /// This node is no gateway.
    pub(crate) fn forget(&mut self) {
        self.attached(None);
        *self = Standing::new(&self.me, self.heard.clone());
    }

    pub(crate) fn silent(&mut self, silent: BTreeSet<IpAddr>) {
        self.fitness.set_silent(silent);
    }

    pub(crate) fn asked(&mut self, address: IpAddr, now_ms: u64) {
        self.fitness.question_sent(address, now_ms);
    }

    pub(crate) fn taken(&mut self, address: IpAddr) {
        self.fitness.answered(address);
    }

    /// Whether the external link counts. `addresses`: those that this node may announce, each with all nodes that may.
    pub(crate) fn decide_uplink(
        &mut self,
        snapshot: &Snapshot,
        link: &ExternalLink,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
        gateways: &GatewayLiveness,
        now_ms: u64,
    ) -> bool {
        let before = self.fitness.leaves();
        let fitness = &mut self.fitness;
        let counts = fitness.decide_uplink(snapshot, link, addresses, gateways, now_ms);
        match (before, self.fitness.leaves(), self.fitness.lost()) {
            (false, true, Some(why)) => {
                tracing::warn!(why, "this gateway has no way out: others serve")
            }
            (true, false, _) => tracing::info!("this gateway serves again"),
            _ => {}
        }
        counts
    }

    /// Takes away what this node must not announce.
    pub(crate) fn limit(
        &mut self,
        addresses: &mut BTreeMap<IpAddr, BTreeSet<NodeName>>,
        seen: (bool, bool),
        now_ms: u64,
    ) {
        let announced_all = self.fitness.given_up().is_empty();
        self.fitness.limit(addresses, seen, now_ms);
        match (announced_all, self.fitness.given_up().is_empty()) {
            (false, true) => tracing::info!("addresses are announced by their order again"),
            (true, false) => tracing::warn!("no other gateway answers: this one gives way"),
            _ => {}
        }
    }

    /// Addresses to ask for on the external network now.
    pub(crate) fn questions(&mut self, now_ms: u64) -> Vec<IpAddr> {
        self.fitness.questions(now_ms)
    }

    /// Since the last decision something else holds.
    pub(crate) fn is_stale(&self) -> bool {
        self.fitness.is_stale()
    }

    /// When to ask next.
    pub(crate) fn asks_at(&self) -> Option<u64> {
        self.fitness.asks_at()
    }

    /// When to decide next, although nothing has changed.
    pub(crate) fn decides_at(&self) -> Option<u64> {
        self.fitness.decides_at()
    }

    /// Whether there is no way out, by this node's own measurement.
    pub(crate) fn uplink_lost(&self) -> bool {
        self.fitness.lost().is_some()
    }

    /// For the node's condition.
    pub(crate) fn reports(&self) -> Vec<(Reason, String)> {
        self.fitness.reports()
    }
}
