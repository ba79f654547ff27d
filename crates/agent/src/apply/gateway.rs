//! The gateway role of this node. [`GatewayRole`] decides; this module collects its inputs, logs its decisions, and
//! passes its commands to the data path.

use crate::clock::now_secs;
use crate::observe::conflicts::SegmentListener;
use crate::observe::probe::HeardSlot;
use egret_core::machines::{
    DrainReport, ExternalLink, GatewayCommand, GatewayFitness, GatewayInputs,
};
use egret_core::machines::{GatewayLiveness, GatewayRole, GroupNodes};
use egret_core::model::{AddressClaim, MacAddress, NodeName, Snapshot};
use egret_core::node::GatewayState;
use egret_datapath::gateway::Heard;
use egret_datapath::node::{GatewayOpened, NodeGateway};
use egret_datapath::presence::l2::conflict::Claim;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) struct Gateway {
    role: GatewayRole,
    listener: SegmentListener,
    /// Counters that show whether probes of other nodes arrive at this node.
    heard: HeardSlot,
    /// Version that the tables should have; 0 without an external link.
    version: u64,
    /// Version of the tables at the last load.
    loaded_version: u64,
    /// The role is fully removed: this node is no gateway.
    left: bool,
    /// Number of takeovers, per served address, since the agent started.
    takeovers: BTreeMap<IpAddr, u64>,
}

/// Inputs of one decision, beside the data path.
pub(crate) struct RoundInputs<'a> {
    /// The objects.
    pub(crate) snapshot: &'a Snapshot,
    /// Gateway part of the node state, as planned.
    pub(crate) planned: &'a GatewayState,
    /// Addresses of this node's own devices.
    pub(crate) local: &'a BTreeSet<IpAddr>,
    /// Liveness of the other gateways.
    pub(crate) liveness: &'a GatewayLiveness,
    /// Gateways that answer and stay behind.
    pub(crate) lagging: &'a GroupNodes,
    /// Result of [`Gateway::decide_link`] in this round.
    pub(crate) link_up: bool,
    /// Milliseconds since the main loop started.
    pub(crate) now_ms: u64,
}

/// Inputs of a decision about a node that is no gateway any more.
pub(crate) struct Departed<'a> {
    /// The objects.
    pub(crate) snapshot: &'a Snapshot,
    /// The gateway state that it goes on with.
    pub(crate) planned: &'a GatewayState,
    /// Result of [`Gateway::decide_link`] in this round.
    pub(crate) link_up: bool,
    /// Milliseconds since the main loop started.
    pub(crate) now_ms: u64,
}

impl Gateway {
    pub(crate) fn new(node: &NodeName, heard: HeardSlot, listener: SegmentListener) -> Self {
        Gateway {
            role: GatewayRole::new(node.clone()),
            listener,
            heard,
            version: 0,
            loaded_version: 0,
            left: false,
            takeovers: BTreeMap::new(),
        }
    }

    /// Whether others may count on this gateway.
    pub(crate) fn fitness(&self) -> &GatewayFitness {
        &self.role.fitness
    }

    /// Mutable access, for answers from the external network.
    pub(crate) fn fitness_mut(&mut self) -> &mut GatewayFitness {
        &mut self.role.fitness
    }

    /// Whether the external link counts. `planned`: the last round's gateway state.
    pub(crate) fn decide_link(
        &mut self,
        snapshot: &Snapshot,
        planned: Option<&GatewayState>,
        link: (&ExternalLink, &BTreeSet<IpAddr>),
        liveness: &GatewayLiveness,
        now_ms: u64,
    ) -> bool {
        let before = self.fitness().leaves();
        let role = &mut self.role;
        let counts = role.decide_link(snapshot, planned, link, liveness, now_ms);
        match (before, self.fitness().leaves(), self.fitness().lost()) {
            (false, true, Some(why)) => {
                tracing::warn!(why, "this gateway has no route out: others serve")
            }
            (true, false, _) => tracing::info!("this gateway serves again"),
            _ => {}
        }
        counts
    }

    /// Records that the data path is prepared: `opened` is the backend that it has just opened, if any.
    pub(crate) fn prepared(
        &mut self,
        path: &NodeGateway,
        opened: Option<GatewayOpened>,
        external: Option<u32>,
    ) {
        self.left = false;
        if let Some(ifindex) = external {
            self.listener.listen(ifindex);
        }
        if !opened.map_or(path.is_attached(), |opened| opened.again) {
            self.role.detached();
        }
        if let Some(opened) = opened {
            self.role.attached(opened.forwards);
            self.loaded_version = path.backend().map_or(0, |backend| backend.version());
            self.hear(path);
        }
    }

    /// Opens the counters of the programs that are attached now.
    fn hear(&self, path: &NodeGateway) {
        let heard = path.pins().and_then(|pins| {
            Heard::open(pins)
                .inspect_err(|error| tracing::warn!(%error, "the gateway's counters"))
                .ok()
        });
        self.set_heard(heard);
    }

    fn set_heard(&self, heard: Option<Heard>) {
        if let Ok(mut slot) = self.heard.lock() {
            *slot = heard;
        }
    }

    /// The planned state, reduced to what may take effect now.
    pub(crate) fn effective(&mut self, planned: &GatewayState, link_up: bool) -> GatewayState {
        self.takeovers
            .retain(|address, _| planned.addresses.contains_key(address));
        for address in planned.addresses.keys() {
            // Start at 0, so that the first takeover increments the counter.
            self.takeovers.entry(*address).or_default();
        }
        let effective = self.role.effective(planned, link_up);
        self.version = effective.steering_version;
        effective.state
    }

    /// Records that the data path tried to load the tables of [`Self::effective`].
    pub(crate) fn tables_loaded(&mut self, path: &NodeGateway) {
        if path.is_loaded() {
            self.loaded_version = self.version;
            self.role.loaded();
        }
    }

    /// Decides which addresses to announce. Call it once liveness is settled and tables are loaded.
    pub(crate) fn decide(&mut self, inputs: &RoundInputs<'_>, path: &NodeGateway) {
        let announced_all = self.fitness().given_up().is_empty();
        let claims = self.role.claims().clone();
        self.role.decide(&GatewayInputs {
            snapshot: inputs.snapshot,
            planned: inputs.planned,
            local: inputs.local,
            mac: path.external().map(|(_, mac)| MacAddress(mac)),
            liveness: inputs.liveness,
            lagging: inputs.lagging,
            link_up: inputs.link_up,
            now_ms: inputs.now_ms,
            now_secs: now_secs(),
        });
        self.listener.follow(self.role.served());
        match (announced_all, self.fitness().given_up().is_empty()) {
            (false, true) => tracing::info!("addresses are announced by their order again"),
            (true, false) => tracing::warn!("no other gateway answers: this one gives way"),
            _ => {}
        }
        for (address, claim) in &claims {
            if !self.role.claims().contains_key(address) {
                tracing::info!(%address, mac = %claim.mac, "the other machine no longer answers for the egress address");
            }
        }
    }

    /// Decides for a node that is no gateway any more and goes on to forward; returns the state to apply.
    pub(crate) fn depart(&mut self, departed: &Departed<'_>) -> GatewayState {
        self.role.depart(departed.snapshot, departed.now_ms);
        self.effective(departed.planned, departed.link_up)
    }

    /// Records the number of packets that this gateway has forwarded.
    pub(crate) fn counted(&mut self, packets: u64, now_ms: u64) {
        self.role.counted(packets, now_ms);
    }

    /// How far the drain of this gateway is.
    pub(crate) fn drain_report(&self, now_ms: u64) -> Option<DrainReport> {
        self.role.drain_report(now_ms)
    }

    /// Processes claims of machines on the external segment. True if they change the status or a decision.
    pub(crate) fn heard(&mut self, claims: &[Claim], now_ms: u64) -> bool {
        let mut changed = false;
        for Claim { address, mac } in claims {
            let mac = MacAddress(*mac);
            if self.role.heard(*address, mac, now_ms) {
                tracing::warn!(%address, %mac, "a machine that is no gateway answers for an egress address");
                changed = true;
            }
        }
        changed
    }

    /// Addresses of this node that other machines claim.
    pub(crate) fn claims(&self) -> &BTreeMap<IpAddr, AddressClaim> {
        self.role.claims()
    }

    /// Repeats the announcements: another gateway may have announced the same addresses for a moment.
    pub(crate) fn repeat(&mut self, now_ms: u64) {
        self.role.repeat(now_ms);
    }

    /// Sends the announcements that are due on the segment.
    pub(crate) fn announce(&mut self, path: &NodeGateway, now_ms: u64) {
        self.role.handle_deadline(now_ms);
        for command in self.role.drain() {
            match &command {
                GatewayCommand::Announce(address) => {
                    *self.takeovers.entry(*address).or_default() += 1;
                    tracing::info!(%address, "announcing");
                }
                GatewayCommand::Withdraw(address) => {
                    tracing::info!(%address, "no longer announcing")
                }
                GatewayCommand::SendGratuitous(_) | GatewayCommand::Probe(_) => {}
            }
            path.carry_out(&command);
        }
    }

    /// When [`Self::announce`], or a question about contested addresses, is due.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.role.next_deadline()
    }

    /// When [`Self::decide`] is due without an event.
    pub(crate) fn decides_at(&self) -> Option<u64> {
        self.role.decides_at()
    }

    pub(crate) fn announcing(&self) -> BTreeSet<IpAddr> {
        self.role.announcing()
    }

    /// Version of the tables in the kernel; 0 without an external link. Answers to probes carry it once others may
    /// count on this gateway.
    pub(crate) fn version(&self, path: &NodeGateway) -> u64 {
        match path.is_attached() {
            true => self.loaded_version,
            false => 0,
        }
    }

    /// Number of takeovers per served address.
    pub(crate) fn takeovers(&self) -> &BTreeMap<IpAddr, u64> {
        &self.takeovers
    }

    /// Removes the role: this node is not, or no longer, a gateway.
    pub(crate) fn leave(&mut self) {
        if self.left {
            return;
        }
        self.left = true;
        self.role.reset();
        self.set_heard(None);
        self.takeovers.clear();
        self.listener.end();
    }
}
