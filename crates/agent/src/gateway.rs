//! The gateway role of this node: eBPF programs, steering tables, announcements.

use crate::error::chain;
use crate::observe::conflicts::{Around, Detection};
use crate::observe::facts::Links;
use crate::path::{GatewayDatapath, Path as Forwarding};
use crate::standing::Standing;
use egret_core::machines::{Announcer, AnnouncerCommand, Entrance, answering_nodes};
use egret_core::model::{AddressClaim, MacAddress, NodeName, Snapshot};
use egret_core::node::{GatewayState, Reach, Tunnel};
use egret_datapath::damage::Found;
use egret_datapath::gateway::announce::{SolicitedNodes, gratuitous};
use egret_datapath::gateway::conflict::Claim;
use egret_datapath::gateway::netdev::NetdevGateway;
use egret_datapath::gateway::{Carried, GatewayConfig, GatewayDriver};
use egret_datapath::route::Device;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What is attached now.
struct Attached {
    config: GatewayConfig,
    driver: Forwarding,
    solicited: SolicitedNodes,
    /// Its tables hold what this agent wanted, not only what an earlier one left.
    loaded: bool,
    /// The version of these tables; 0 while nobody may send through this gateway.
    version: u64,
    /// Whether others are told that version, or 0.
    entrance: Entrance,
}

pub(crate) struct Gateway {
    pin_directory: PathBuf,
    choice: GatewayDatapath,
    announcer: Announcer,
    detection: Detection,
    attached: Option<Attached>,
    /// Nothing of a gateway is left here: this node is none.
    clean: bool,
    /// How often this node began to announce each address that it serves.
    takeovers: BTreeMap<IpAddr, u64>,
    /// Why there is no data path, for the node's condition.
    pub(crate) trouble: Option<String>,
    /// Whether others may count on it.
    pub(crate) standing: Standing,
}

impl Gateway {
    pub(crate) fn new(
        node: &NodeName,
        pin_directory: &Path,
        choice: GatewayDatapath,
        (standing, detection): (Standing, Detection),
    ) -> Self {
        Gateway {
            pin_directory: pin_directory.into(),
            choice,
            announcer: Announcer::new(node.clone()),
            detection,
            attached: None,
            clean: false,
            takeovers: BTreeMap::new(),
            trouble: None,
            standing,
        }
    }

    /// Attaches the programs, or adopts them; a change of devices attaches anew. Tables are not touched.
    pub(crate) fn attach(&mut self, tunnel: &Tunnel, device: &Device, links: &Links) {
        self.clean = false;
        let Some((external, v4, v6)) = &links.external else {
            self.trouble = Some("this gateway node has no external device".into());
            return;
        };
        self.detection.listen(external.index);
        let config = GatewayConfig {
            tunnel_ifindex: device.index,
            external_ifindex: external.index,
            own_index: tunnel.index,
            tunnel_mtu: tunnel.mtu,
            external_mac: external.mac.as_slice().try_into().unwrap_or_default(),
            external_v4: *v4,
            external_v6: *v6,
        };
        if self
            .attached
            .as_ref()
            .is_some_and(|attached| attached.config == config)
        {
            return;
        }
        let before = self.attached.take();
        match Forwarding::open(self.choice, &self.pin_directory, &config) {
            Ok(mut driver) => {
                let mut solicited = SolicitedNodes::new(external.index, &external.name);
                solicited.adopt(&driver.addresses());
                let (loaded, entrance) = match before {
                    Some(before) => (before.loaded, before.entrance),
                    None => (false, Entrance::new(driver.forwards())),
                };
                let version = driver.version();
                let ebpf = matches!(driver, Forwarding::Ebpf(_));
                self.standing
                    .attached(ebpf.then_some(self.pin_directory.as_path()));
                self.attached = Some(Attached {
                    config,
                    driver,
                    solicited,
                    loaded,
                    version,
                    entrance,
                });
                self.trouble = None;
            }
            Err(error) => {
                let text = chain(&error);
                if self.trouble.as_ref() != Some(&text) {
                    tracing::error!(error = text, "the gateway's data path cannot be set up");
                }
                self.trouble = Some(text);
            }
        }
    }

    /// What others have done to programs and to tables (large ones only where `deep`); the next [`Self::attach`] and [`Self::apply`]
    /// mend it.
    pub(crate) fn verify(&mut self, deep: bool) -> Found {
        let Some(attached) = &mut self.attached else {
            return Found::new();
        };
        let (pins, config) = (&self.pin_directory, &attached.config);
        let (damage, lost) = attached.driver.verify(deep, pins, config);
        if lost {
            self.attached = None;
        }
        damage
    }

    /// Decides what to announce. Call once liveness is settled. `me` and `local`: this node, and the addresses that its
    /// kernel has. `live`, `alone`, `reached`: other gateways that answer and forward, and what [`egret_core::machines::GatewayLiveness`] says.
    pub(crate) fn decide(
        &mut self,
        snapshot: &Snapshot,
        state: &GatewayState,
        (me, local): (&NodeName, &BTreeSet<IpAddr>),
        (live, alone, reached): (&BTreeSet<NodeName>, bool, bool),
        link_up: bool,
        now_ms: u64,
    ) {
        let mut addresses = answering_nodes(snapshot, state, (me, local), live);
        let serves = |nodes: &BTreeSet<NodeName>| nodes.iter().any(|node| live.contains(node));
        let others = addresses.values().any(serves);
        let entered = self.attached.as_mut().is_some_and(|attached| {
            let fit = link_up && attached.loaded;
            attached.entrance.update(fit, others, now_ms);
            attached.entrance.entered()
        });
        // Where routers lead to the gateways, nobody answers.
        addresses.retain(|address, _| {
            let steering = state.addresses.get(address);
            steering.is_some_and(|steering| steering.reach == Reach::L2)
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
            mac: self.external_mac().unwrap_or(MacAddress([0; 6])),
            announcing: self.announcer.announcing(),
        };
        self.detection
            .update(&around, served, chosen.clone(), now_ms);
        addresses
            .retain(|address, _| !chosen.contains(address) || self.detection.may_announce(address));
        self.announcer.update(&addresses, live, entered, now_ms);
    }

    /// Hardware address of the external device, while its data path is set up.
    pub(crate) fn external_mac(&self) -> Option<MacAddress> {
        let attached = self.attached.as_ref()?;
        Some(MacAddress(attached.config.external_mac))
    }

    /// Takes up what machines on the external segment have said. True if there is something new to tell or decide.
    pub(crate) fn heard(&mut self, claims: &[Claim], now_ms: u64) -> bool {
        self.detection.heard(claims, now_ms)
    }

    /// Machines that have addresses which this node would announce.
    pub(crate) fn claims(&self) -> &BTreeMap<IpAddr, AddressClaim> {
        self.detection.claims()
    }

    /// Brings tables and multicast groups to the state, with the announcer's flags. Without an external link the tables
    /// are kept, but probes are told version 0: nobody sends through a gateway that cannot send on. Before
    /// its [`Entrance`] they are told the same.
    pub(crate) fn apply(&mut self, state: &GatewayState, own: u16, link_up: bool) {
        let announcing = self.announcer.announcing();
        self.takeovers
            .retain(|address, _| state.addresses.contains_key(address));
        for address in state.addresses.keys() {
            // Shown from 0 on, so that the first take-over is a rise too.
            self.takeovers.entry(*address).or_default();
        }
        let Some(attached) = &mut self.attached else {
            return;
        };
        let mut state = state.clone();
        if !link_up {
            state.version = 0;
        }
        let version = state.version;
        if !attached.entrance.entered() {
            state.version = 0;
        }
        for (address, steering) in &mut state.addresses {
            steering.announce = announcing.contains(address);
        }
        match attached.driver.apply(&state, own) {
            Ok(()) => {
                if !attached.loaded {
                    match attached.driver.remove_other(&self.pin_directory) {
                        Ok(false) => {}
                        Ok(true) => tracing::info!("the other kind of gateway data path removed"),
                        Err(error) => {
                            tracing::warn!(error = %chain(&error), "removing the other data path")
                        }
                    }
                }
                attached.loaded = true;
                attached.version = version;
                self.trouble = None;
            }
            Err(error) => {
                let text = chain(&error);
                tracing::error!(error = text, "the steering tables cannot be written");
                self.trouble = Some(text);
            }
        }
        let on_segment = state.addresses.iter();
        let on_segment = on_segment.filter(|(_, steering)| steering.reach == Reach::L2);
        let served = on_segment.map(|(address, _)| *address).collect();
        if let Err(errors) = attached.solicited.set(&served) {
            for error in errors {
                tracing::warn!(error = %chain(&error), "a solicited-node group cannot be joined");
            }
        }
    }

    /// Another gateway may have announced for a moment what this one announces.
    pub(crate) fn repeat(&mut self, now_ms: u64) {
        self.announcer.repeat(now_ms);
    }

    /// Sends what is due to be announced.
    pub(crate) fn announce(&mut self, now_ms: u64) {
        if let Some(attached) = &self.attached {
            let GatewayConfig {
                external_ifindex,
                external_mac,
                ..
            } = attached.config;
            for address in self.detection.act(external_ifindex, external_mac, now_ms) {
                self.send(address);
            }
        }
        self.announcer.handle_deadline(now_ms);
        for command in self.announcer.drain() {
            match command {
                AnnouncerCommand::Announce(address) => {
                    *self.takeovers.entry(address).or_default() += 1;
                    tracing::info!(%address, "announcing");
                }
                AnnouncerCommand::Withdraw(address) => {
                    tracing::info!(%address, "no longer announcing")
                }
                AnnouncerCommand::SendGratuitous(address) => self.send(address),
            }
        }
    }

    fn send(&self, address: IpAddr) {
        let Some(attached) = &self.attached else {
            return;
        };
        let GatewayConfig {
            external_ifindex,
            external_mac,
            ..
        } = attached.config;
        if let Err(error) = gratuitous(external_ifindex, external_mac, address) {
            tracing::warn!(%address, error = %chain(&error), "the take-over could not be announced");
        }
    }

    /// When [`Self::announce`] is due, or a question of its [`Standing`].
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let probes = self.detection.next_deadline();
        let due = [
            self.standing.asks_at(),
            self.announcer.next_deadline(),
            probes.filter(|_| self.attached.is_some()),
        ];
        due.into_iter().flatten().min()
    }

    /// When [`Self::decide`] is due although nothing has changed.
    pub(crate) fn entrance_at(&self) -> Option<u64> {
        let attached = self.attached.as_ref();
        let entrance = attached.and_then(|attached| attached.entrance.next_deadline());
        let conflicts = attached.and_then(|_| self.detection.decision_at());
        let due = [entrance, conflicts, self.standing.decides_at()];
        due.into_iter().flatten().min()
    }

    pub(crate) fn announcing(&self) -> BTreeSet<IpAddr> {
        self.announcer.announcing()
    }

    /// The version of the tables that the kernel has; 0 without an external link. Probes are told it from the entrance on.
    pub(crate) fn version(&self) -> u64 {
        self.attached
            .as_ref()
            .map_or(0, |attached| attached.version)
    }

    pub(crate) fn datapath(&self) -> Option<String> {
        self.attached
            .as_ref()
            .map(|attached| attached.driver.name().to_string())
    }

    /// What this gateway's data path does not do, for the node's condition.
    pub(crate) fn lacks(&self) -> Option<String> {
        self.attached.as_ref()?.driver.lacks()
    }

    /// Whether tunnel packets for a next hop get up the stack: only the eBPF program knows them. While none is attached
    /// yet, it is what will be tried first.
    pub(crate) fn carries_next_hops(&self) -> bool {
        let attached = self.attached.as_ref();
        attached.is_none_or(|attached| matches!(attached.driver, Forwarding::Ebpf(_)))
    }

    /// Its tables hold what this agent wanted.
    pub(crate) fn is_loaded(&self) -> bool {
        let attached = self.attached.as_ref();
        self.trouble.is_none() && attached.is_some_and(|attached| attached.loaded)
    }

    /// The steering version to answer probes with, where the agent has to.
    pub(crate) fn answers(&self) -> Option<u64> {
        let attached = self.attached.as_ref()?;
        matches!(attached.driver, Forwarding::Nftables { .. }).then(|| attached.driver.version())
    }

    pub(crate) fn counters(&mut self) -> BTreeMap<&'static str, u64> {
        self.attached
            .as_mut()
            .map(|attached| attached.driver.counters())
            .unwrap_or_default()
    }

    /// Has [`Self::detach`] look for leftovers once more.
    pub(crate) fn look_again(&mut self) {
        self.clean = false;
    }

    /// What was carried and dropped, by egress address.
    pub(crate) fn traffic(&mut self) -> BTreeMap<IpAddr, Carried> {
        let attached = self.attached.as_mut();
        attached.map_or_else(BTreeMap::new, |attached| attached.driver.traffic())
    }

    /// How often this node began to announce each address that it serves.
    pub(crate) fn takeovers(&self) -> &BTreeMap<IpAddr, u64> {
        &self.takeovers
    }

    /// This node is no gateway (any more): nothing of it stays.
    pub(crate) fn detach(&mut self) {
        if self.clean {
            return;
        }
        self.attached = None;
        self.standing.forget();
        self.takeovers.clear();
        self.trouble = None;
        self.announcer
            .update(&BTreeMap::new(), &BTreeSet::new(), false, 0);
        self.announcer.drain();
        self.detection.end();
        let tables = NetdevGateway::remove().map_err(|error| chain(&error));
        let programs = GatewayDriver::remove(&self.pin_directory).map_err(|error| chain(&error));
        self.clean = tables.is_ok() && programs.is_ok();
        for (what, removed) in [("nftables gateway", tables), ("gateway programs", programs)] {
            match removed {
                Ok(true) => tracing::info!("{what} removed: this node is no gateway any more"),
                Ok(false) => {}
                Err(error) => tracing::warn!(error, "removing {what}"),
            }
        }
    }
}
