//! The role of one gateway node: the part of its gateway state that is in force, and its announcements on the external
//! segment.
//!
//! [`crate::node::node_state`] plans the gateway state from the objects. This machine decides which part of it is in
//! force now:
//!
//! ```text
//!   planned state -- external link does not count --> version 0: nobody sends through it (its tables stay)
//!                 -- just joined, others serve -----> version 0 for the join delay
//!                 -- drained, others have taken over -> version 0: nobody sends through it (its tables stay)
//!                 -- first alive in an address's order, and nobody else has it --> it answers ARP and ND for it
//! ```
//!
//! In each round, in this order: [`GatewayRole::decide_link`]; plan; attach the data path ([`GatewayRole::attached`]);
//! apply [`GatewayRole::effective`] ([`GatewayRole::loaded`]); [`GatewayRole::decide`]; apply
//! [`GatewayRole::effective`] again: a gateway announces only what it can steer. Between rounds,
//! [`GatewayRole::handle_deadline`] and [`GatewayRole::drain`].

use super::succession::{Candidates, Heard, Succession};
use super::{
    Announcer, AnnouncerCommand, ConflictCommand, ConflictInputs, Conflicts, Drain, DrainReport,
    Entrance, ExternalLink, GatewayFitness, GatewayLiveness, GroupNodes, answering_nodes,
};
use crate::model::{AddressClaim, MacAddress, NodeName, NodeRecord, Snapshot};
use crate::node::GatewayState;
use crate::numbers::CONFLICTS_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Command for the external segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GatewayCommand {
    /// Begin to announce the address; the tables already answer ARP and ND for it.
    Announce(IpAddr),
    /// Stop announcing the address.
    Withdraw(IpAddr),
    /// Send a gratuitous ARP (IPv4) or an unsolicited NA with the override flag (IPv6).
    SendGratuitous(IpAddr),
    /// Send an ARP probe or neighbour solicitation for the address, without claiming it (RFC 5227, RFC 4862).
    Probe(IpAddr),
}

impl GatewayCommand {
    /// Address of the command.
    pub fn address(&self) -> IpAddr {
        match self {
            GatewayCommand::Announce(address)
            | GatewayCommand::Withdraw(address)
            | GatewayCommand::SendGratuitous(address)
            | GatewayCommand::Probe(address) => *address,
        }
    }
}

/// Inputs of a decision.
#[derive(Clone, Copy, Debug)]
pub struct GatewayInputs<'a> {
    /// All objects.
    pub snapshot: &'a Snapshot,
    /// The gateway part of the node's state, as planned.
    pub planned: &'a GatewayState,
    /// Addresses that this node's kernel has.
    pub local: &'a BTreeSet<IpAddr>,
    /// Hardware address of the external device; `None`: no data path is attached.
    pub mac: Option<MacAddress>,
    /// Liveness of the other gateways.
    pub liveness: &'a GatewayLiveness,
    /// Gateways that answer and stay behind their group, this node included.
    pub lagging: &'a GroupNodes,
    /// Result of [`GatewayRole::decide_link`] in this round.
    pub link_up: bool,
    /// Milliseconds, monotonic, from any start.
    pub now_ms: u64,
    /// Seconds since the Unix epoch: time of the first observation in reported conflicts.
    pub now_secs: i64,
}

/// The gateway state to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveGateway {
    /// State for the data path. Probes are answered with its version; 0: nobody sends through this gateway.
    pub state: GatewayState,
    /// Steering version for the node's status: that of the tables in the kernel; 0 without an external link that
    /// counts.
    pub steering_version: u64,
}

/// The role of one gateway node.
#[derive(Debug)]
pub struct GatewayRole {
    me: NodeName,
    /// Whether other nodes may count on this gateway.
    pub fitness: GatewayFitness,
    announcer: Announcer,
    conflicts: Conflicts,
    claims: BTreeMap<IpAddr, AddressClaim>,
    /// Join delay; `None` while no data path is attached.
    join: Option<Entrance>,
    /// Its tables contain the planned state, not only an earlier agent's.
    loaded: bool,
    drain: Drain,
    /// Served addresses that no other gateway could take over.
    alone_for: BTreeSet<IpAddr>,
    /// Own hardware address on the external segment.
    mac: Option<MacAddress>,
    /// Announcements of other gateways, as heard on the external segment.
    heard: Heard,
}

impl GatewayRole {
    /// The role of this node, before a data path is attached.
    pub fn new(me: NodeName) -> Self {
        Self {
            fitness: GatewayFitness::new(me.clone()),
            announcer: Announcer::new(me.clone()),
            me,
            conflicts: Conflicts::default(),
            claims: BTreeMap::new(),
            join: None,
            loaded: false,
            drain: Drain::default(),
            alone_for: BTreeSet::new(),
            mac: None,
            heard: Heard::default(),
        }
    }

    /// Resets the role: this node is no gateway (any more).
    pub fn reset(&mut self) {
        *self = Self::new(self.me.clone());
    }

    /// Records that a data path was attached or replaced. `forwards`: a first data path continues to forward with an
    /// earlier agent's tables, so other nodes count on it already.
    pub fn attached(&mut self, forwards: bool) {
        self.join.get_or_insert_with(|| Entrance::new(forwards));
    }

    /// Records that the data path was lost and must be attached again.
    pub fn detached(&mut self) {
        (self.join, self.loaded) = (None, false);
    }

    /// Records that the data path contains the tables of [`Self::effective`].
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

    /// Decides whether other nodes may count on this gateway and which addresses it announces. Do not call before
    /// liveness is settled, or this node takes over everything for a moment.
    pub fn decide(&mut self, inputs: &GatewayInputs<'_>) {
        let GatewayInputs {
            snapshot,
            planned,
            local,
            liveness,
            now_ms,
            ..
        } = *inputs;
        self.mac = inputs.mac;
        let live = liveness.serving();
        let mut addresses = answering_nodes(snapshot, planned, (&self.me, local), &live);
        let all = addresses.clone();
        let serves = |nodes: &BTreeSet<NodeName>| nodes.iter().any(|node| live.contains(node));
        let others = addresses.values().any(serves);
        let fit = inputs.link_up && self.loaded;
        if let Some(join) = &mut self.join {
            join.update(fit, others, now_ms);
        }
        let joined = self.has_joined();
        addresses.retain(|address, _| {
            let steering = planned.addresses.get(address);
            steering.is_some_and(|steering| steering.presence.is_announced())
        });
        let served = addresses.keys().copied().collect();
        let seen = (liveness.alone, liveness.reached);
        self.fitness.limit(&mut addresses, seen, now_ms);
        let me = self.me.clone();
        let candidates = Candidates {
            me: &me,
            snapshot,
            lagging: inputs.lagging,
            live: &live,
            joined,
        };
        let able = candidates.able(&addresses);
        candidates.limit(&mut addresses);
        // Before the first use of an address, the segment is probed for it.
        let chosen = self.announcer.chosen(&addresses, &live, joined);
        let conflicts = self.conflict_inputs(inputs, served, chosen.clone());
        self.conflicts.update(conflicts, now_ms);
        let record = snapshot.node_records.get(&self.me);
        self.update_claims(record, inputs.now_secs);
        addresses
            .retain(|address, _| !chosen.contains(address) || self.conflicts.may_announce(address));
        let succession = Succession {
            candidates: &candidates,
            addresses: &addresses,
            heard: &self.heard,
        };
        let handed_over = |address| !able.contains(&address) || succession.has_taken_over(address);
        self.announcer
            .update(&addresses, &live, joined, handed_over, now_ms);
        self.alone_for = candidates.alone_for(&all);
        let node = snapshot.nodes.get(&self.me);
        let asked = node.is_some_and(|node| node.maintenance.drain.is_some());
        self.update_drain(asked, now_ms);
    }

    /// Decides for a node that is no gateway any more, by its label or because its Node object is gone, and still
    /// forwards: it answers until another gateway announces, and then workers leave it.
    pub fn depart(&mut self, snapshot: &Snapshot, now_ms: u64) {
        let (me, heard) = (&self.me, &self.heard);
        let records = snapshot.node_records.values();
        let others: Vec<&NodeRecord> = records.filter(|record| record.node != *me).collect();
        let handed_over = |address| {
            let reports = |record: &&NodeRecord| record.announcing.contains(&address);
            others.iter().any(reports) || heard.of_any(address)
        };
        let nobody = BTreeSet::new();
        self.announcer
            .update(&BTreeMap::new(), &nobody, false, handed_over, now_ms);
        self.alone_for.clear();
        self.update_drain(true, now_ms);
    }

    fn update_drain(&mut self, asked: bool, now_ms: u64) {
        self.heard.forget(&self.announcer.handing_over(), now_ms);
        let handed_over = self.announcer.announcing().is_empty();
        let others = self.alone_for.is_empty();
        self.drain.update(asked, others, handed_over, now_ms);
    }

    /// Records the number of packets that this gateway has forwarded so far, for its drain.
    pub fn counted(&mut self, packets: u64, now_ms: u64) {
        self.drain.counted(packets, now_ms);
    }

    /// How far the drain is; `None`: nobody has asked for one.
    pub fn drain_report(&self, now_ms: u64) -> Option<DrainReport> {
        let announcing = self.announcer.announcing();
        let phase = self.drain.phase(announcing.is_empty(), now_ms)?;
        Some(DrainReport {
            phase,
            announcing,
            alone_for: self.alone_for.clone(),
        })
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

    /// Updates the reported conflicts. A time that was reported before stays, also over a restart of the agent.
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

    /// The part of the planned state that is in force now.
    pub fn effective(&self, planned: &GatewayState, link_up: bool) -> EffectiveGateway {
        let announcing = self.announcer.announcing();
        let mut state = planned.clone();
        for (address, steering) in &mut state.addresses {
            steering.announce = announcing.contains(address);
        }
        let steering_version = if link_up { planned.version } else { 0 };
        state.version = if self.has_joined() && !self.drain.has_left() {
            steering_version
        } else {
            0
        };
        EffectiveGateway {
            state,
            steering_version,
        }
    }

    /// Records that a machine on the external segment claims this address. Returns true if there is something new to
    /// decide or report.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddress, now_ms: u64) -> bool {
        let is_other = self.mac.is_some_and(|own| own != mac);
        let is_gateway = is_other && self.conflicts.is_gateway(mac);
        let first = is_gateway && self.heard.insert((address, mac), now_ms);
        let news = self.conflicts.heard(address, mac, now_ms);
        news || first && self.announcer.handing_over().contains(&address)
    }

    /// Repeats all announcements: another gateway may have announced the same addresses for a moment.
    pub fn repeat(&mut self, now_ms: u64) {
        self.announcer.repeat(now_ms);
    }

    /// Makes the probes, defences and announcements that are due on the segment.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        if self.join.is_some() {
            self.conflicts.handle_deadline(now_ms);
        }
        self.announcer.handle_deadline(now_ms);
    }

    /// Latest time of the next call of [`Self::handle_deadline`], or of the next questions of [`Self::fitness`].
    pub fn next_deadline(&self) -> Option<u64> {
        let conflicts = self.conflicts.next_deadline();
        let due = [
            self.fitness.asks_at(),
            self.announcer.next_deadline(),
            conflicts.filter(|_| self.join.is_some()),
        ];
        due.into_iter().flatten().min()
    }

    /// Time of the next decision although nothing has changed.
    pub fn decides_at(&self) -> Option<u64> {
        let join = self.join.as_ref();
        let due = [
            join.and_then(Entrance::next_deadline),
            join.and_then(|_| self.conflicts.decision_at()),
            join.and_then(|_| self.drain.next_deadline()),
            self.fitness.decides_at(),
        ];
        due.into_iter().flatten().min()
    }

    /// Pending commands, in order. They are held back while no data path is attached.
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

    /// Addresses that this node announces.
    pub fn announcing(&self) -> BTreeSet<IpAddr> {
        self.announcer.announcing()
    }

    /// Other machines that have addresses which this node would announce.
    pub fn claims(&self) -> &BTreeMap<IpAddr, AddressClaim> {
        &self.claims
    }

    /// Addresses for which claims by other machines on the segment matter.
    pub fn served(&self) -> &BTreeSet<IpAddr> {
        self.conflicts.served()
    }

    /// Whether its tables contain the planned state.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Whether the join delay is over, so that other nodes may count on this gateway.
    fn has_joined(&self) -> bool {
        self.join.as_ref().is_some_and(Entrance::entered)
    }
}
