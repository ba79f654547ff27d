//! Whether others may count on this gateway, beyond its own programs and carrier: whether anybody in the cluster reaches it,
//! and whether anybody outside answers it. Decided by `core::machines`.

use crate::observe::facts::Links;
use crate::observe::probe::{HeardSlot, Seen};
use egret_core::condition::Reason;
use egret_core::machines::{Isolation, Others, Uplink};
use egret_core::model::{NodeName, Snapshot};
use egret_core::numbers::TUNNEL_PORT;
use egret_datapath::gateway::Heard;
use egret_datapath::route::WayOut;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

pub(crate) struct Standing {
    me: NodeName,
    isolation: Isolation,
    /// What the isolation said at the last decision.
    given_up: BTreeSet<IpAddr>,
    uplink: Uplink,
    /// Next hops of the external device that do not answer.
    silent: BTreeSet<IpAddr>,
    /// Why there is no way out, by this node's own measurement.
    lost: Option<String>,
    heard: HeardSlot,
}

/// The external link, as the main loop has seen it.
pub(crate) struct ExternalLink<'a> {
    pub(crate) links: &'a Links,
    /// Addresses that this node may announce, each with all nodes that may.
    pub(crate) addresses: &'a BTreeMap<IpAddr, BTreeSet<NodeName>>,
}

impl Standing {
    pub(crate) fn new(me: &NodeName, heard: HeardSlot) -> Self {
        Standing {
            me: me.clone(),
            isolation: Isolation::new(me.clone()),
            given_up: BTreeSet::new(),
            uplink: Uplink::new(me.clone()),
            silent: BTreeSet::new(),
            lost: None,
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
        self.silent = silent;
    }

    pub(crate) fn asked(&mut self, address: IpAddr, now_ms: u64) {
        self.isolation.asked(address, now_ms);
    }

    pub(crate) fn taken(&mut self, address: IpAddr) {
        self.isolation.answered(address);
    }

    /// Whether the external link counts, though it has carrier.
    pub(crate) fn decide_uplink(
        &mut self,
        snapshot: &Snapshot,
        external: &ExternalLink<'_>,
        seen: &Seen,
        now_ms: u64,
    ) -> bool {
        let addresses = external.addresses;
        self.lost = addresses
            .keys()
            .map(IpAddr::is_ipv6)
            .collect::<BTreeSet<bool>>()
            .into_iter()
            .find_map(|v6| self.lost_way(external.links, v6));
        let serves = |node: &NodeName| {
            let loaded = seen.versions.get(node).is_some_and(|version| *version > 0);
            loaded && seen.live.contains(node)
        };
        let others = addresses.values().flatten();
        let others = others.filter(|node| **node != self.me);
        let answering = others.filter(|node| seen.live.contains(*node));
        let answering: BTreeSet<NodeName> = answering.cloned().collect();
        let is_lost = |node: &NodeName| {
            let record = snapshot.node_records.get(node);
            record.is_some_and(|record| record.uplink_lost)
        };
        let others = Others {
            serve: !addresses.is_empty()
                && addresses
                    .values()
                    .all(|nodes| nodes.iter().any(|node| *node != self.me && serves(node))),
            are_lost: answering.iter().all(is_lost),
            answering,
        };
        let before = self.uplink.leaves();
        self.uplink.update(self.lost.is_some(), &others, now_ms);
        match (before, self.uplink.leaves(), &self.lost) {
            (false, true, Some(why)) => {
                tracing::warn!(why, "this gateway has no way out: others serve")
            }
            (true, false, _) => tracing::info!("this gateway serves again"),
            _ => {}
        }
        !self.uplink.leaves()
    }

    fn lost_way(&self, links: &Links, v6: bool) -> Option<String> {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let device = &links.external.as_ref()?.0.name;
        match &links.ways_out[usize::from(v6)] {
            WayOut::By(hops) if hops.is_subset(&self.silent) => {
                let names: Vec<String> = hops.iter().map(IpAddr::to_string).collect();
                Some(format!(
                    "{device} has carrier, and no next hop of it answers for {family}: {}",
                    names.join(", ")
                ))
            }
            WayOut::Elsewhere => Some(format!(
                "{device} has no route to other networks for {family}, and the default route leads to another device"
            )),
            WayOut::By(_) | WayOut::Direct => None,
        }
    }

    /// Takes away what this node must not announce.
    pub(crate) fn limit(
        &mut self,
        addresses: &mut BTreeMap<IpAddr, BTreeSet<NodeName>>,
        seen: (bool, bool),
        now_ms: u64,
    ) {
        let (alone, reached) = seen;
        self.isolation.update(addresses, alone, reached, now_ms);
        let given_up = self.isolation.given_up();
        if given_up.is_empty() != self.given_up.is_empty() {
            match given_up.is_empty() {
                true => tracing::info!("addresses are announced by their order again"),
                false => tracing::warn!("no other gateway answers: this one gives way"),
            }
        }
        addresses.retain(|address, _| !given_up.contains(address));
        self.given_up = given_up;
    }

    /// Addresses to ask for on the external network now.
    pub(crate) fn questions(&mut self, now_ms: u64) -> Vec<IpAddr> {
        self.isolation.handle_deadline(now_ms);
        self.isolation.drain()
    }

    /// Since the last decision something else holds.
    pub(crate) fn is_stale(&self) -> bool {
        self.isolation.given_up() != self.given_up
    }

    /// When to ask next.
    pub(crate) fn asks_at(&self) -> Option<u64> {
        self.isolation.next_deadline()
    }

    /// When to decide next, although nothing has changed.
    pub(crate) fn decides_at(&self) -> Option<u64> {
        self.uplink.next_deadline()
    }

    /// Whether there is no way out, by this node's own measurement.
    pub(crate) fn uplink_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// For the node's condition.
    pub(crate) fn reports(&self) -> Vec<(Reason, String)> {
        let mut all = Vec::new();
        if let Some(why) = &self.lost {
            let so = match self.uplink.leaves() {
                true => "this gateway serves no more, others do",
                false => "it goes on serving, since no other gateway does better",
            };
            all.push((Reason::NoUplink, format!("{why}; {so}")));
        }
        if !self.given_up.is_empty() {
            let why = match self.isolation.taken() {
                Some(address) => {
                    format!("another machine on its external network answers for {address}")
                }
                None => "no packet of another node comes in by the tunnel".to_owned(),
            };
            let text = format!(
                "no other gateway answers its probes, and {why}: it announces nothing that others may serve; \
                 see its link to the nodes, and open UDP {TUNNEL_PORT} there in both directions"
            );
            all.push((Reason::CutOff, text));
        }
        all
    }
}
