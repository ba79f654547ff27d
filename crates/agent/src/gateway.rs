//! The gateway role of this node: what it announces, and which version others are told. The data path carries it out.

use crate::observe::conflicts::{Around, Detection};
use crate::standing::Standing;
use egret_core::machines::{Announcer, AnnouncerCommand, Entrance, answering_nodes};
use egret_core::model::{AddressClaim, MacAddress, NodeName, Snapshot};
use egret_core::node::{GatewayState, Presence};
use egret_datapath::node::{ExternalLink, GatewayOpened, NodeGateway};
use egret_datapath::presence::l2::conflict::Claim;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) struct Gateway {
    announcer: Announcer,
    detection: Detection,
    /// Whether others are told the version of the tables, or 0. `None`: no backend is open.
    entrance: Option<Entrance>,
    /// The version that the tables are brought to; 0 without an external link.
    version: u64,
    /// The version that they had when they were loaded last.
    loaded_version: u64,
    /// Nothing of the role is left: this node is no gateway.
    left: bool,
    /// How often this node began to announce each address that it serves.
    takeovers: BTreeMap<IpAddr, u64>,
    /// Whether others may count on it.
    pub(crate) standing: Standing,
}

impl Gateway {
    pub(crate) fn new(node: &NodeName, standing: Standing, detection: Detection) -> Self {
        Gateway {
            announcer: Announcer::new(node.clone()),
            detection,
            entrance: None,
            version: 0,
            loaded_version: 0,
            left: false,
            takeovers: BTreeMap::new(),
            standing,
        }
    }

    /// Takes up what the data path has prepared: `opened` is the backend that it has opened, if it has.
    pub(crate) fn prepared(
        &mut self,
        path: &NodeGateway,
        opened: Option<GatewayOpened>,
        external: Option<&ExternalLink>,
    ) {
        self.left = false;
        if let Some(external) = external {
            self.detection.listen(external.device.index);
        }
        if let Some(opened) = opened {
            let before = self.entrance.take().filter(|_| opened.again);
            self.entrance = Some(before.unwrap_or_else(|| Entrance::new(opened.forwards)));
            self.loaded_version = path.backend().map_or(0, |backend| backend.version());
            self.standing.attached(path.pins());
        } else if !path.is_attached() {
            self.entrance = None;
        }
    }

    /// The state that the data path is to carry out, with the announcer's flags. Without an external link the tables are
    /// kept, but probes are told version 0: nobody sends through a gateway that cannot send on. Before its [`Entrance`]
    /// they are told the same.
    pub(crate) fn effective(&mut self, state: &GatewayState, link_up: bool) -> GatewayState {
        self.takeovers
            .retain(|address, _| state.addresses.contains_key(address));
        for address in state.addresses.keys() {
            // Shown from 0 on, so that the first take-over is a rise too.
            self.takeovers.entry(*address).or_default();
        }
        self.version = if link_up { state.version } else { 0 };
        let entered = self.entrance.as_ref().is_some_and(Entrance::entered);
        let announcing = self.announcer.announcing();
        let mut state = state.clone();
        state.version = if entered { self.version } else { 0 };
        for (address, steering) in &mut state.addresses {
            steering.announce = announcing.contains(address);
        }
        state
    }

    /// The data path has tried to load the tables.
    pub(crate) fn tables_loaded(&mut self, path: &NodeGateway) {
        if path.is_loaded() {
            self.loaded_version = self.version;
        }
    }

    /// Decides what to announce. Call once liveness is settled and tables are loaded. `me` and `local`: this node, and the
    /// addresses that its kernel has. `live`, `alone`, `reached`: other gateways that answer and forward, and what
    /// [`egret_core::machines::GatewayLiveness`] says.
    pub(crate) fn decide(
        &mut self,
        (snapshot, state): (&Snapshot, &GatewayState),
        (me, local): (&NodeName, &BTreeSet<IpAddr>),
        (live, alone, reached): (&BTreeSet<NodeName>, bool, bool),
        (path, link_up): (&NodeGateway, bool),
        now_ms: u64,
    ) {
        let mut addresses = answering_nodes(snapshot, state, (me, local), live);
        let serves = |nodes: &BTreeSet<NodeName>| nodes.iter().any(|node| live.contains(node));
        let others = addresses.values().any(serves);
        let entered = self.entrance.as_mut().is_some_and(|entrance| {
            let fit = link_up && path.has_loaded();
            entrance.update(fit, others, now_ms);
            entrance.entered()
        });
        // Where routers lead to the gateways, nobody answers.
        addresses.retain(|address, _| {
            let steering = state.addresses.get(address);
            steering.is_some_and(|steering| steering.presence == Presence::L2)
        });
        let served = addresses.keys().copied().collect();
        self.standing
            .limit(&mut addresses, (alone, reached), now_ms);
        // Before its first use, the segment is asked who has an address.
        let chosen = self.announcer.chosen(&addresses, live, entered);
        let around = Around {
            snapshot,
            node: me,
            local,
            mac: MacAddress(path.external().map_or([0; 6], |(_, mac)| mac)),
            announcing: self.announcer.announcing(),
        };
        self.detection
            .update(&around, served, chosen.clone(), now_ms);
        addresses
            .retain(|address, _| !chosen.contains(address) || self.detection.may_announce(address));
        self.announcer.update(&addresses, live, entered, now_ms);
    }

    /// Takes up what machines on the external segment have said. True if there is something new to tell or decide.
    pub(crate) fn heard(&mut self, claims: &[Claim], now_ms: u64) -> bool {
        self.detection.heard(claims, now_ms)
    }

    /// Machines that have addresses which this node would announce.
    pub(crate) fn claims(&self) -> &BTreeMap<IpAddr, AddressClaim> {
        self.detection.claims()
    }

    /// Another gateway may have announced for a moment what this one announces.
    pub(crate) fn repeat(&mut self, now_ms: u64) {
        self.announcer.repeat(now_ms);
    }

    /// Has sent what is due to be announced.
    pub(crate) fn announce(&mut self, path: &NodeGateway, now_ms: u64) {
        if let Some((ifindex, mac)) = path.external() {
            for address in self.detection.act(ifindex, mac, now_ms) {
                path.announce(&AnnouncerCommand::SendGratuitous(address));
            }
        }
        self.announcer.handle_deadline(now_ms);
        for command in self.announcer.drain() {
            match &command {
                AnnouncerCommand::Announce(address) => {
                    *self.takeovers.entry(*address).or_default() += 1;
                    tracing::info!(%address, "announcing");
                }
                AnnouncerCommand::Withdraw(address) => {
                    tracing::info!(%address, "no longer announcing")
                }
                AnnouncerCommand::SendGratuitous(_) => {}
            }
            path.announce(&command);
        }
    }

    /// When [`Self::announce`] is due, or a question of its [`Standing`].
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let probes = self.detection.next_deadline();
        let due = [
            self.standing.asks_at(),
            self.announcer.next_deadline(),
            probes.filter(|_| self.entrance.is_some()),
        ];
        due.into_iter().flatten().min()
    }

    /// When [`Self::decide`] is due although nothing has changed.
    pub(crate) fn entrance_at(&self) -> Option<u64> {
        let entrance = self.entrance.as_ref();
        let conflicts = entrance.and_then(|_| self.detection.decision_at());
        let entrance = entrance.and_then(Entrance::next_deadline);
        let due = [entrance, conflicts, self.standing.decides_at()];
        due.into_iter().flatten().min()
    }

    pub(crate) fn announcing(&self) -> BTreeSet<IpAddr> {
        self.announcer.announcing()
    }

    /// The version of the tables that the kernel has; 0 without an external link. Probes are told it from the entrance on.
    pub(crate) fn version(&self, path: &NodeGateway) -> u64 {
        match path.is_attached() {
            true => self.loaded_version,
            false => 0,
        }
    }

    /// How often this node began to announce each address that it serves.
    pub(crate) fn takeovers(&self) -> &BTreeMap<IpAddr, u64> {
        &self.takeovers
    }

    /// This node is no gateway (any more).
    pub(crate) fn leave(&mut self) {
        if self.left {
            return;
        }
        self.left = true;
        self.entrance = None;
        self.standing.forget();
        self.takeovers.clear();
        self.announcer
            .update(&BTreeMap::new(), &BTreeSet::new(), false, 0);
        self.announcer.drain();
        self.detection.end();
    }
}
