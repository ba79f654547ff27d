//! Fitness of a gateway, beyond its own programs and the carrier of its external device: whether anybody in the cluster
//! reaches it ([`Isolation`]), and whether its external network answers it ([`Uplink`]).

use super::{GatewayLiveness, Isolation, Others, Uplink};
use crate::condition::Reason;
use crate::model::{NodeName, Snapshot};
use crate::numbers::TUNNEL_PORT;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Routes of the external device to other networks, in one address family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OutboundRoute {
    /// No next hop to probe: routes to neighbours only, or no known route.
    #[default]
    Direct,
    /// Routes via these next hops.
    Via(BTreeSet<IpAddr>),
    /// Routes to its own networks only; the default route uses another device.
    OtherDevice,
}

/// The external link of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalLink {
    /// Name of the device; `None`: no device.
    pub device: Option<String>,
    /// It has carrier.
    pub carrier: bool,
    /// Its routes to other networks: IPv4, IPv6.
    pub routes: [OutboundRoute; 2],
}

/// The fitness of one gateway node.
#[derive(Debug)]
pub struct GatewayFitness {
    me: NodeName,
    isolation: Isolation,
    /// Addresses that the isolation machine gave up at the last decision.
    given_up: BTreeSet<IpAddr>,
    uplink: Uplink,
    /// Next hops of the external device that do not answer.
    silent: BTreeSet<IpAddr>,
    /// Why nothing outside is reached, by this node's own measurement.
    lost: Option<String>,
}

impl GatewayFitness {
    /// The fitness of this node.
    pub fn new(me: NodeName) -> Self {
        Self {
            isolation: Isolation::new(me.clone()),
            uplink: Uplink::new(me.clone()),
            me,
            given_up: BTreeSet::new(),
            silent: BTreeSet::new(),
            lost: None,
        }
    }

    /// Sets the next hops that do not answer.
    pub fn set_silent(&mut self, next_hops: BTreeSet<IpAddr>) {
        self.silent = next_hops;
    }

    /// Records that the question for this address was sent.
    pub fn question_sent(&mut self, address: IpAddr, now_ms: u64) {
        self.isolation.asked(address, now_ms);
    }

    /// Records that another machine answers for this address.
    pub fn answered(&mut self, address: IpAddr) {
        self.isolation.answered(address);
    }

    /// Whether the external link counts: it has carrier, and something behind it answers, or no other gateway does
    /// better. `addresses`: those that this node may announce, each with all nodes that may.
    pub fn decide_uplink(
        &mut self,
        snapshot: &Snapshot,
        link: &ExternalLink,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
        liveness: &GatewayLiveness,
        now_ms: u64,
    ) -> bool {
        let families: BTreeSet<bool> = addresses.keys().map(IpAddr::is_ipv6).collect();
        let mut families = families.into_iter();
        self.lost = families.find_map(|v6| self.lost_route(link, v6));
        let others = self.others(snapshot, addresses, liveness);
        self.uplink.update(self.lost.is_some(), &others, now_ms);
        link.carrier && !self.uplink.leaves()
    }

    fn others(
        &self,
        snapshot: &Snapshot,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
        liveness: &GatewayLiveness,
    ) -> Others {
        let is_other = |node: &&NodeName| **node != self.me;
        let others = addresses.values().flatten().filter(is_other);
        let answering = others.filter(|node| liveness.live.contains(*node));
        let answering: BTreeSet<NodeName> = answering.cloned().collect();
        let is_lost = |node: &NodeName| {
            let record = snapshot.node_records.get(node);
            record.is_some_and(|record| record.uplink_lost)
        };
        let is_served = |nodes: &BTreeSet<NodeName>| {
            let mut others = nodes.iter().filter(is_other);
            others.any(|node| liveness.serves(node))
        };
        Others {
            serve: !addresses.is_empty() && addresses.values().all(is_served),
            are_lost: answering.iter().all(is_lost),
            answering,
        }
    }

    fn lost_route(&self, link: &ExternalLink, v6: bool) -> Option<String> {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let device = link.device.as_ref()?;
        match &link.routes[usize::from(v6)] {
            OutboundRoute::Via(hops) if hops.is_subset(&self.silent) => {
                let names: Vec<String> = hops.iter().map(IpAddr::to_string).collect();
                Some(format!(
                    "{device} has carrier, and no next hop of it answers for {family}: {}",
                    names.join(", ")
                ))
            }
            OutboundRoute::OtherDevice => Some(format!(
                "{device} has no route to other networks for {family}, and the default route leads to another device"
            )),
            OutboundRoute::Via(_) | OutboundRoute::Direct => None,
        }
    }

    /// Removes the addresses that this node must not announce.
    pub fn limit(
        &mut self,
        addresses: &mut BTreeMap<IpAddr, BTreeSet<NodeName>>,
        (alone, reached): (bool, bool),
        now_ms: u64,
    ) {
        self.isolation.update(addresses, alone, reached, now_ms);
        self.given_up = self.isolation.given_up();
        addresses.retain(|address, _| !self.given_up.contains(address));
    }

    /// Addresses to ask for on the external network now.
    pub fn questions(&mut self, now_ms: u64) -> Vec<IpAddr> {
        self.isolation.handle_deadline(now_ms);
        self.isolation.drain()
    }

    /// Whether [`Self::limit`] would now remove other addresses than at the last decision.
    pub fn is_stale(&self) -> bool {
        self.isolation.given_up() != self.given_up
    }

    /// Time of the next question.
    pub fn asks_at(&self) -> Option<u64> {
        self.isolation.next_deadline()
    }

    /// Time of the next call of [`Self::decide_uplink`] although nothing has changed.
    pub fn decides_at(&self) -> Option<u64> {
        self.uplink.next_deadline()
    }

    /// Addresses that [`Self::limit`] last removed.
    pub fn given_up(&self) -> &BTreeSet<IpAddr> {
        &self.given_up
    }

    /// Other nodes must not count on this gateway: its external network does not answer, and that of other gateways
    /// does.
    pub fn leaves(&self) -> bool {
        self.uplink.leaves()
    }

    /// Why nothing outside is reached, by this node's own measurement.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Lines for the node's condition.
    pub fn reports(&self) -> Vec<(Reason, String)> {
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

#[cfg(test)]
mod tests;
