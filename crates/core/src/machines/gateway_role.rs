//! The role of one gateway node: what its gateway state becomes in the kernel, and what is said on its external segment.
//!
//! [`crate::node::node_state`] plans the gateway state from the objects. How much of it holds now is decided here:
//!
//! ```text
//!   planned state -- external link does not count --> version 0: nobody sends through it (its tables stay)
//!                 -- just joined, others serve -----> version 0 for the join delay
//!                 -- first alive in an address's order, and nobody else has it --> it answers ARP and ND for it
//! ```
//! In each round, in this order: [`GatewayRole::decide_link`]; plan; attach the data path ([`GatewayRole::attached`]); apply
//! [`GatewayRole::effective`] ([`GatewayRole::loaded`]); [`GatewayRole::decide`]; apply [`GatewayRole::effective`] again: a
//! gateway announces only what it can steer. Between rounds, [`GatewayRole::handle_deadline`] and [`GatewayRole::drain`].

use super::{
    Announcer, AnnouncerCommand, ConflictCommand, ConflictInputs, Conflicts, Entrance,
    ExternalLink, GatewayFitness, GatewayLiveness, answering_nodes,
};
use crate::model::{AddressClaim, MacAddress, NodeName, NodeRecord, Snapshot};
use crate::node::{GatewayState, Presence};
use crate::numbers::CONFLICTS_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the gateway is to do on its external segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GatewayCommand {
    /// This node answers ARP and ND for the address from now on; the tables say so.
    Announce(IpAddr),
    /// It answers no more.
    Withdraw(IpAddr),
    /// Send a gratuitous ARP (IPv4) or an unsolicited NA with the override flag (IPv6).
    SendGratuitous(IpAddr),
    /// Ask the segment who has the address, without saying that this node does (RFC 5227, RFC 4862).
    Probe(IpAddr),
}

impl GatewayCommand {
    /// The address that it is about.
    pub fn address(&self) -> IpAddr {
        match self {
            GatewayCommand::Announce(address)
            | GatewayCommand::Withdraw(address)
            | GatewayCommand::SendGratuitous(address)
            | GatewayCommand::Probe(address) => *address,
        }
    }
}

/// What a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct GatewayInputs<'a> {
    /// The objects.
    pub snapshot: &'a Snapshot,
    /// The gateway part of the node's state, as planned.
    pub planned: &'a GatewayState,
    /// Addresses that this node's kernel has.
    pub local: &'a BTreeSet<IpAddr>,
    /// Hardware address of the external device; `None`: no data path is attached.
    pub mac: Option<MacAddress>,
    /// The other gateways.
    pub liveness: &'a GatewayLiveness,
    /// What [`GatewayRole::decide_link`] said in this round.
    pub link_up: bool,
    /// Milliseconds, monotonic, from any start.
    pub now_ms: u64,
    /// Seconds since the Unix epoch: when a conflict was first heard is told to people.
    pub now_secs: i64,
}

/// The gateway state as it is to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveGateway {
    /// What the data path gets. Its version is what probes are answered with; 0: nobody sends through this gateway.
    pub state: GatewayState,
    /// What the node's status tells: the version of the tables in the kernel; 0 without an external link that counts.
    pub steering_version: u64,
}

/// The role of one gateway node.
#[derive(Debug)]
pub struct GatewayRole {
    me: NodeName,
    /// Whether others may count on this gateway.
    pub fitness: GatewayFitness,
    announcer: Announcer,
    conflicts: Conflicts,
    claims: BTreeMap<IpAddr, AddressClaim>,
    /// While a data path is attached.
    join: Option<Entrance>,
    /// Its tables hold what was planned, not only what an earlier agent left.
    loaded: bool,
}

impl GatewayRole {
    /// For this node, before a data path is attached.
    pub fn new(me: NodeName) -> Self {
        Self {
            fitness: GatewayFitness::new(me.clone()),
            announcer: Announcer::new(me.clone()),
            me,
            conflicts: Conflicts::default(),
            claims: BTreeMap::new(),
            join: None,
            loaded: false,
        }
    }

    /// This node is no gateway (any more).
    pub fn reset(&mut self) {
        *self = Self::new(self.me.clone());
    }

    /// A data path is attached, or another in its place. `forwards`: if it is the first, it goes on forwarding what an
    /// earlier agent left, so that others count on it already.
    pub fn attached(&mut self, forwards: bool) {
        self.join.get_or_insert_with(|| Entrance::new(forwards));
    }

    /// The data path is gone and must be attached anew.
    pub fn detached(&mut self) {
        (self.join, self.loaded) = (None, false);
    }

    /// The data path holds the tables of [`Self::effective`].
    pub fn loaded(&mut self) {
        self.loaded |= self.join.is_some();
    }

    /// Whether the external link counts. `planned`: the last round's gateway state, `None` before the first.
    pub fn decide_link(
        &mut self,
        snapshot: &Snapshot,
        planned: Option<&GatewayState>,
        (link, local): (&ExternalLink, &BTreeSet<IpAddr>),
        liveness: &GatewayLiveness,
        now_ms: u64,
    ) -> bool {
        let addresses = planned.map_or_else(BTreeMap::new, |state| {
            answering_nodes(snapshot, state, (&self.me, local), &liveness.live)
        });
        let fitness = &mut self.fitness;
        fitness.decide_uplink(snapshot, link, &addresses, liveness, now_ms)
    }

    /// Decides what others may count on and what this node announces. Not before liveness is settled, or this node takes
    /// everything over for a moment.
    pub fn decide(&mut self, inputs: &GatewayInputs<'_>) {
        let GatewayInputs {
            snapshot,
            planned,
            local,
            liveness,
            now_ms,
            ..
        } = *inputs;
        let live = liveness.serving();
        let mut addresses = answering_nodes(snapshot, planned, (&self.me, local), &live);
        let serves = |nodes: &BTreeSet<NodeName>| nodes.iter().any(|node| live.contains(node));
        let others = addresses.values().any(serves);
        let fit = inputs.link_up && self.loaded;
        if let Some(join) = &mut self.join {
            join.update(fit, others, now_ms);
        }
        let joined = self.has_joined();
        // Where routers lead to the gateways, nobody answers.
        addresses.retain(|address, _| {
            let steering = planned.addresses.get(address);
            steering.is_some_and(|steering| steering.presence == Presence::L2)
        });
        let served = addresses.keys().copied().collect();
        let seen = (liveness.alone, liveness.reached);
        self.fitness.limit(&mut addresses, seen, now_ms);
        // Before its first use, the segment is asked who has an address.
        let chosen = self.announcer.chosen(&addresses, &live, joined);
        let conflicts = self.conflict_inputs(inputs, served, chosen.clone());
        self.conflicts.update(conflicts, now_ms);
        let record = snapshot.node_records.get(&self.me);
        self.update_claims(record, inputs.now_secs);
        addresses
            .retain(|address, _| !chosen.contains(address) || self.conflicts.may_announce(address));
        self.announcer.update(&addresses, &live, joined, now_ms);
    }

    fn conflict_inputs(
        &self,
        inputs: &GatewayInputs<'_>,
        served: BTreeSet<IpAddr>,
        chosen: BTreeSet<IpAddr>,
    ) -> ConflictInputs {
        let records = || inputs.snapshot.node_records.values();
        let mut used = self.announcer.announcing();
        used.extend(records().flat_map(|record| &record.announcing));
        let mut held = inputs.local.clone();
        let of_others = records().filter(|record| record.node != self.me);
        held.extend(of_others.flat_map(|r| r.external_addresses.iter().map(|net| net.addr())));
        held.retain(|address| served.contains(address));
        let mut gateways: BTreeSet<MacAddress> = records().filter_map(|r| r.external_mac).collect();
        gateways.insert(inputs.mac.unwrap_or(MacAddress([0; 6])));
        ConflictInputs {
            served,
            chosen,
            used,
            held,
            gateways,
        }
    }

    /// Conflicts as they are told. A time that was told before stays, also over a restart of the agent.
    fn update_claims(&mut self, record: Option<&NodeRecord>, now_secs: i64) {
        let conflicts = self.conflicts.conflicts().into_iter().take(CONFLICTS_MAX);
        let told = record.map(|record| &record.conflicts);
        let claims = conflicts.map(|(address, mac)| {
            let known = self.claims.get(&address);
            let known = known.or_else(|| told?.get(&address));
            let known = known.filter(|claim| claim.mac == mac).copied();
            let since_secs = now_secs;
            (address, known.unwrap_or(AddressClaim { mac, since_secs }))
        });
        self.claims = claims.collect();
    }

    /// The planned state as far as it holds now.
    pub fn effective(&self, planned: &GatewayState, link_up: bool) -> EffectiveGateway {
        let announcing = self.announcer.announcing();
        let mut state = planned.clone();
        for (address, steering) in &mut state.addresses {
            steering.announce = announcing.contains(address);
        }
        let steering_version = if link_up { planned.version } else { 0 };
        state.version = if self.has_joined() {
            steering_version
        } else {
            0
        };
        EffectiveGateway {
            state,
            steering_version,
        }
    }

    /// A machine on the external segment says that it has this address. True if there is something new to decide or tell.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddress, now_ms: u64) -> bool {
        self.conflicts.heard(address, mac, now_ms)
    }

    /// Another gateway may have announced for a moment what this one announces: everything is announced again.
    pub fn repeat(&mut self, now_ms: u64) {
        self.announcer.repeat(now_ms);
    }

    /// Does what is due on the segment.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        if self.join.is_some() {
            self.conflicts.handle_deadline(now_ms);
        }
        self.announcer.handle_deadline(now_ms);
    }

    /// When to call [`Self::handle_deadline`], or to ask the questions of [`Self::fitness`], next.
    pub fn next_deadline(&self) -> Option<u64> {
        let conflicts = self.conflicts.next_deadline();
        let due = [
            self.fitness.asks_at(),
            self.announcer.next_deadline(),
            conflicts.filter(|_| self.join.is_some()),
        ];
        due.into_iter().flatten().min()
    }

    /// When to decide next although nothing has changed.
    pub fn decides_at(&self) -> Option<u64> {
        let join = self.join.as_ref();
        let due = [
            join.and_then(Entrance::next_deadline),
            join.and_then(|_| self.conflicts.decision_at()),
            self.fitness.decides_at(),
        ];
        due.into_iter().flatten().min()
    }

    /// What is to be done, in order. Commands are kept while no data path is attached.
    pub fn drain(&mut self) -> Vec<GatewayCommand> {
        let conflicts = match self.join {
            Some(_) => self.conflicts.drain(),
            None => Vec::new(),
        };
        let conflicts = conflicts.into_iter().map(|command| match command {
            ConflictCommand::Probe(address) => GatewayCommand::Probe(address),
            ConflictCommand::Defend(address) => GatewayCommand::SendGratuitous(address),
        });
        let announcer = self.announcer.drain().into_iter();
        let announcer = announcer.map(|command| match command {
            AnnouncerCommand::Announce(address) => GatewayCommand::Announce(address),
            AnnouncerCommand::Withdraw(address) => GatewayCommand::Withdraw(address),
            AnnouncerCommand::SendGratuitous(address) => GatewayCommand::SendGratuitous(address),
        });
        conflicts.chain(announcer).collect()
    }

    /// What this node announces.
    pub fn announcing(&self) -> BTreeSet<IpAddr> {
        self.announcer.announcing()
    }

    /// Machines that have addresses which this node would announce.
    pub fn claims(&self) -> &BTreeMap<IpAddr, AddressClaim> {
        &self.claims
    }

    /// Addresses that are worth hearing of on the segment.
    pub fn served(&self) -> &BTreeSet<IpAddr> {
        self.conflicts.served()
    }

    /// Its tables hold what was planned.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Others may count on this gateway: its join delay is over.
    fn has_joined(&self) -> bool {
        self.join.as_ref().is_some_and(Entrance::entered)
    }
}
