//! The main loop: the only thread that writes to the kernel.

mod event;
mod external_link;
mod flow_cleanup;
mod leases;
mod maintenance;
mod reports;
mod upkeep;
mod values;
mod view;

pub(crate) use event::Event;

use crate::apply::{Gateway, Remembered, RoundInputs};
use crate::cni::{PendingCalls, Round};
use crate::config::Config;
use crate::observe::canary::{self, Order};
use crate::observe::conflicts::SegmentListener;
use crate::observe::facts::{LinkQuery, Links, pod_addresses};
use crate::observe::neighbours::Orders;
use crate::observe::port_use::Ranges;
use crate::observe::probe::{HeardSlot, TargetSender};
use crate::observe::source::Reading;
use crate::report::{Health, Numbered};
use egret_core::error::with_causes;
use egret_core::machines::SteeringMemory;
use egret_core::machines::{Departure, DrainPhase, GatewayLag, NodeLeases, PeerMemory, Schedule};
use egret_core::model::Snapshot;
use egret_core::node::{CniPath, GatewayState, TunnelIndex};
use egret_core::node::{External, NodeFacts, NodeOutcome, PathFacts, PodPairings, Policies};
use egret_core::numbers::OLDER_RECORDS_MS;
use egret_core::obstacle;
use egret_datapath::node::{ExternalInterface, NodeDatapath, NodeDatapathError};
use egret_datapath::route::RouteError;
use egret_datapath::uplink::LookError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use values::{Inputs, LastSent, Reports};

/// Events processed before the kernel is written again.
const BURST_MAX: usize = 64;

/// Channels to the threads that serve the loop.
pub(crate) struct Channels {
    /// To the thread that writes this node's status.
    pub(crate) status: Sender<Numbered>,
    /// To the thread that probes gateways.
    pub(crate) probes: TargetSender,
    /// To the same thread: counters of the programs that answer other nodes' probes.
    pub(crate) heard: HeardSlot,
    /// To the thread that sends ARP and ND requests on the external network.
    pub(crate) neighbours: Orders,
    /// To the thread that follows the source ports in use.
    pub(crate) ranges: Sender<Ranges>,
    /// To the thread that dumps all flows: the number of the change that needs the dump.
    pub(crate) flows: Sender<u64>,
    /// To the thread that sends canaries.
    pub(crate) canaries: Sender<Order>,
    /// Back to the loop itself, for threads that start later.
    pub(crate) events: Sender<Event>,
}

pub(crate) struct MainLoop {
    config: Config,
    channels: Channels,
    started: Instant,
    inputs: Inputs,
    last_sent: LastSent,
    schedule: Schedule,
    reports: Reports,
    /// Calls of the CNI plugin that wait for a round.
    cni: PendingCalls,
    datapath: NodeDatapath,
    gateway: Gateway,
    /// Leases of this node.
    leases: NodeLeases,
    /// Gateways that answer and stay behind.
    lag: GatewayLag,
    /// The time after this node was a gateway.
    departure: Departure,
    /// It is in that time.
    departing: bool,
    /// How far the drain of this gateway was at the last tick.
    drain_seen: Option<DrainPhase>,
    /// Peers that were gateways.
    peers: PeerMemory,
    /// Addresses that this node's pods are paired to; `None` before the first round.
    pairings: Option<PodPairings>,
    /// Tables that this gateway has loaded.
    tables: SteeringMemory,
    /// Kernel content since the last round that was applied.
    outcome: Option<NodeOutcome>,
    /// Error of the last round, if it was not applied.
    last_error: Option<String>,
    remembered: Remembered,
}

impl MainLoop {
    pub(crate) fn new(
        config: &Config,
        datapath: NodeDatapath,
        health: &Arc<Health>,
        channels: Channels,
        cni: PendingCalls,
    ) -> Self {
        let listener = SegmentListener::new(Event::notify(&channels.events, Event::Claims));
        let heard = channels.heard.clone();
        let remembered = Remembered::load(&config.state_directory);
        MainLoop {
            config: config.clone(),
            channels,
            started: Instant::now(),
            inputs: Inputs::default(),
            last_sent: LastSent::default(),
            schedule: Schedule::new(0),
            reports: Reports::new(health),
            cni,
            datapath,
            gateway: Gateway::new(&config.node, heard, listener),
            leases: NodeLeases::new(remembered.grants.clone()),
            lag: GatewayLag::default(),
            departure: Departure::default(),
            departing: false,
            drain_seen: None,
            peers: PeerMemory::default(),
            pairings: None,
            tables: SteeringMemory::new(
                remembered.steering_version,
                remembered.steering_epochs.clone(),
            ),
            outcome: None,
            last_error: Some("no objects read yet".into()),
            remembered,
        }
    }

    /// Sets the device at whose ingress canaries appear, where there is one.
    pub(crate) fn measuring(mut self, canary_device: Option<u32>) -> Self {
        self.inputs.canary_device = canary_device;
        self
    }

    pub(crate) fn run(mut self, inbox: &Receiver<Event>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match inbox.recv_timeout(self.sleep()) {
                Ok(event) => {
                    self.take_up(event);
                    for event in inbox.try_iter().take(BURST_MAX) {
                        self.take_up(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now_ms = self.now_ms();
            let turn = self.schedule.begin_turn(self.cni.has_unprocessed(), now_ms);
            if turn.verifies() {
                self.repair(turn);
            }
            // A failed apply is retried.
            let failed =
                self.last_error.is_some() || self.datapath.gateway().last_error().is_some();
            let (decides_at, now_ms) = (self.decides_at(), self.now_ms());
            let schedule = &mut self.schedule;
            if schedule.take_round(turn, failed, decides_at, now_ms) {
                self.round();
            } else if turn.tick {
                self.rest();
            }
            if turn.tick {
                self.follow_drain();
            }
            if turn.tick && self.datapath.worker().pending_flow_cleanup().is_some() {
                self.request_again();
            }
            self.overdue();
            let now_ms = self.now_ms();
            self.gateway.announce(self.datapath.gateway(), now_ms);
            self.ask();
            self.reports.health.round(self.last_error.clone());
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Time to wait for an event.
    fn sleep(&self) -> Duration {
        let due = self.gateway.next_deadline().into_iter();
        let due = due.chain(self.decides_at()).min();
        let failed = self.last_error.is_some();
        Duration::from_millis(self.schedule.sleep_ms(failed, due, self.now_ms()))
    }

    /// Time at which the gateway role decides again without an event. A failed apply is retried on its own timer
    /// instead.
    fn decides_at(&self) -> Option<u64> {
        let departure = self.departure.next_deadline();
        let due = [
            self.gateway.decides_at(),
            self.lag.next_deadline(),
            self.peers.next_deadline(),
            departure.filter(|_| self.departing),
        ];
        let due = due.into_iter().flatten().min();
        due.filter(|_| self.last_error.is_none())
    }

    fn take_up(&mut self, event: Event) {
        match event {
            Event::Source(Reading::View(newest)) => {
                if let Some((mut view, since)) = newest.take() {
                    self.cni.overlay(&mut view.snapshot);
                    self.take_up_view(view, since);
                }
            }
            Event::Source(Reading::Failed(error)) => {
                tracing::warn!(error, "cannot read the objects; keeping the last view");
            }
            Event::Gateways(seen) => {
                self.inputs.ever_live.extend(seen.live.iter().cloned());
                self.reports.health.with(|metrics| {
                    metrics.gateway_losses.inc_by(seen.losses);
                });
                if seen.lapsed {
                    let now_ms = self.now_ms();
                    self.gateway.repeat(now_ms);
                }
                self.inputs.gateways = seen;
                self.schedule.request_round();
            }
            Event::Neighbours(heard) => self.heard(heard),
            Event::Links => {
                self.schedule.kernel_changed();
                self.inputs.links_stale = true;
                self.look_soon();
            }
            Event::Claims(claims) => {
                let now_ms = self.now_ms();
                self.schedule
                    .request_round_if(self.gateway.heard(&claims, now_ms));
            }
            Event::Flows(read) => self.end_owed(read),
            Event::Ports(usage) => self.take_up_ports(usage),
            Event::Status(answer) => self.take_up_answer(answer),
            Event::Cni(call) => {
                let snapshot = self.inputs.view.as_mut().map(|view| &mut view.snapshot);
                self.schedule
                    .request_round_if(self.cni.take(call, snapshot));
            }
            Event::Canaries(canary::Report::Shown(shown)) => self.take_up_canaries(shown),
            Event::Canaries(canary::Report::Device(index)) => {
                self.inputs.canary_device = Some(index);
                self.schedule.request_round();
            }
            Event::Query(query) => query.answer(
                self.inputs.view.as_deref(),
                &self.outcome,
                (&self.inputs.gateways, &self.inputs.canaries),
            ),
        }
    }

    /// One round: computes the state from facts and objects, applies it, and puts the outcome into the status.
    fn round(&mut self) {
        let view = self.inputs.view.take();
        if let Some(view) = &view {
            self.last_error = self.carry_out(&view.snapshot).err();
            if let Some(error) = &self.last_error {
                tracing::warn!(error, "cannot apply the node state");
            } else if let Some(asked) = self.inputs.view_since.take() {
                let seconds = asked.elapsed().as_secs_f64();
                self.reports
                    .health
                    .with(|metrics| metrics.programming_seconds.observe(seconds));
            }
        }
        // Answer the CNI before anything is read, counted or reported: pods wait.
        self.cni.after(&Round {
            snapshot: view.as_ref().map(|view| &view.snapshot),
            outcome: self.outcome.as_ref().filter(|_| self.last_error.is_none()),
            last_error: self.last_error.as_deref(),
            flows_ended: self.datapath.worker().pending_flow_cleanup().is_none(),
        });
        self.ask_for_flows();
        if let Some(view) = &view {
            self.count_if_due();
            self.report(view);
        }
        self.inputs.view = view;
    }

    /// Answers CNI calls that have reached their time limit.
    fn overdue(&mut self) {
        self.cni.overdue(&Round {
            snapshot: self.inputs.view.as_ref().map(|view| &view.snapshot),
            outcome: self.outcome.as_ref().filter(|_| self.last_error.is_none()),
            last_error: self.last_error.as_deref(),
            flows_ended: self.datapath.worker().pending_flow_cleanup().is_none(),
        });
    }

    fn carry_out(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let node = self.config.node.clone();
        let policies = Policies::of(snapshot);
        self.decide_departure(snapshot);
        let query = self.link_query(snapshot, &policies);
        let links = self.look(query).map_err(|e| with_causes(&e))?;
        self.reports.findings.foreign_marks = links.foreign_marks.clone();
        self.inputs.routers.look(self.datapath.worker().routing());
        let path = self.path_facts(snapshot).map_err(|e| with_causes(&e))?;
        let routing = self.datapath.worker().routing();
        let looked = self.inputs.pod_devices.look(routing, snapshot, &node);
        looked.map_err(|e| with_causes(&e))?;
        let link_up = self.link_up(snapshot, &links);
        self.update_lag(snapshot);
        let grants = self.grants(snapshot);
        let external = links.external_fact();
        let facts = NodeFacts {
            path,
            external: external.map(|external| External {
                link_up,
                ..external
            }),
            uncovered: self.inputs.uncovered.lasting(Instant::now()),
            grants,
            pairings: self.pairings(snapshot),
            full_addresses: self.inputs.full.iter().map(|full| full.egress).collect(),
            ..self.facts(&links)
        };
        let mut outcome = self.decide_state(&policies, &facts)?;
        self.inputs
            .uncovered
            .follow(&outcome.uncovered, Instant::now());
        self.pairings = Some(outcome.pairings.clone());
        self.prepare(&outcome, &links)?;
        self.update_probe_targets(snapshot, &outcome);
        let local = links.local_addresses.clone();
        self.inputs.links = Some(links);
        if !self.inputs.gateways.settled {
            return Err("waiting for the gateways' first answers".into());
        }
        match outcome.state.gateway.take() {
            Some(planned) if self.departing => {
                outcome.state.gateway = Some(self.depart(snapshot, &planned, link_up));
            }
            Some(mut planned) => {
                self.keep_unknown_tables(snapshot)?;
                let records = snapshot.addresses.values();
                let kept = self.tables.keep_newer(&mut planned, records);
                if !kept.is_empty() {
                    tracing::debug!(addresses = ?kept, "the store's leases are older than the loaded tables");
                }
                let liveness = self.inputs.gateways.clone();
                let inputs = RoundInputs {
                    snapshot,
                    planned: &planned,
                    local: &local,
                    liveness: &liveness,
                    lagging: &self.lag.lagging().clone(),
                    link_up,
                    now_ms: self.now_ms(),
                };
                let effective = self.serve(outcome.state.tunnel.index, &inputs);
                outcome.state.gateway = Some(effective);
            }
            None => self.gateway.leave(),
        }
        self.leases.applying(&outcome.state.worker);
        let applied = self.apply(&outcome);
        self.gateway.tables_loaded(self.datapath.gateway());
        if let Some(state) = &outcome.state.gateway
            && self.datapath.gateway().is_loaded()
            && !self.departing
        {
            self.tables.loaded(state, snapshot.addresses.values());
        }
        // Answers to probes carry the version that has just been applied.
        self.update_probe_targets(snapshot, &outcome);
        applied?;
        if let Some(record) = snapshot.node_records.get(&node) {
            let now_ms = self.now_ms();
            let worker = &outcome.state.worker;
            self.leases.applied(worker, record, now_ms);
            self.leases.measure(now_ms);
        }
        self.follow_flows(&outcome);
        self.measure(&outcome);
        self.remember(&outcome);
        // The addresses that the gateway serves are known from now on, so its role is decided in another round.
        self.schedule
            .request_round_if(self.outcome.is_none() && outcome.state.gateway.is_some());
        self.look_for_obstacles(&outcome);
        obstacle::discount(&mut outcome, &self.reports.obstacles);
        self.outcome = Some(outcome);
        Ok(())
    }

    /// Leaves the kernel's tables alone while records are older than what the agent before this one loaded, for as long
    /// as a released range rests.
    fn keep_unknown_tables(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        match self.tables.waits_for(snapshot.addresses.values()) {
            Some(address) if self.now_ms() < OLDER_RECORDS_MS => Err(format!(
                "the record of {address} is older than this gateway's table: waiting for a newer one"
            )),
            Some(_) => {
                self.tables.forget_unknown();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Creates the tunnel device and attaches the gateway's programs: probes need them before anything else is decided.
    fn prepare(&mut self, outcome: &NodeOutcome, links: &Links) -> Result<(), String> {
        let state = &outcome.state;
        let external = links.external.clone();
        let external = external.map(|(device, v4, v6)| ExternalInterface { device, v4, v6 });
        let changed = self.inputs.links.as_ref() != Some(links);
        let opened = self.datapath.prepare(state, external.as_ref(), changed);
        let opened = opened.map_err(|error| with_causes(&error))?;
        if state.gateway.is_some() {
            let path = self.datapath.gateway();
            let ifindex = external.map(|external| external.device.index);
            self.gateway.prepared(path, opened, ifindex);
        }
        Ok(())
    }

    /// Decides which addresses this gateway announces, and returns the state with them. Tables are loaded first: a
    /// gateway announces only addresses that it can steer.
    fn serve(&mut self, own: TunnelIndex, inputs: &RoundInputs<'_>) -> GatewayState {
        let RoundInputs {
            planned, link_up, ..
        } = *inputs;
        let tables = self.gateway.effective(planned, link_up);
        self.datapath.load_tables(&tables, own);
        let path = self.datapath.gateway();
        self.gateway.tables_loaded(path);
        self.gateway.decide(inputs, path);
        self.gateway.effective(planned, link_up)
    }

    fn apply(&mut self, outcome: &NodeOutcome) -> Result<(), String> {
        let applied = self.datapath.apply(&outcome.state, &self.cni.idle());
        let applied = applied.map_err(|error| {
            if matches!(error, NodeDatapathError::Worker(_)) {
                self.reports.health.with(|metrics| {
                    metrics.apply_errors.inc();
                });
            }
            with_causes(&error)
        })?;
        self.reports.health.with(|metrics| {
            metrics.applies.inc();
            let seconds = applied.worker_time.as_secs_f64();
            metrics.apply_seconds.observe(seconds);
        });
        for name in &applied.sysctls {
            tracing::info!(name, "node-wide setting changed; --cleanup restores it");
        }
        self.tell_ended(applied.ended_flows);
        if self.grants_changed(outcome) {
            self.schedule.count_ports_soon();
        }
        applied
            .uplink_error
            .map_or(Ok(()), |error| Err(with_causes(&error)))
    }

    /// Devices and programs that pods' packets take, read from the kernel. Nothing is read where the operator has
    /// configured that packets pass netfilter.
    fn path_facts(&mut self, snapshot: &Snapshot) -> Result<PathFacts, LookError> {
        let choice = self.config.cni_path;
        let seen = match choice {
            CniPath::Netfilter => PathFacts::default(),
            CniPath::Auto | CniPath::Bpf => {
                let pods = pod_addresses(snapshot, &self.config.node);
                self.datapath.uplink().look(&pods)?
            }
        };
        Ok(PathFacts { choice, ..seen })
    }

    fn grants_changed(&self, outcome: &NodeOutcome) -> bool {
        self.outcome.as_ref().map(|before| &before.granted) != Some(&outcome.granted)
    }

    /// Facts about links; read again after a notification that they may have changed.
    fn look(&mut self, query: LinkQuery) -> Result<Links, RouteError> {
        match &self.inputs.links {
            Some(links) if !self.inputs.links_stale && links.query == query => Ok(links.clone()),
            _ => {
                // Cleared before the read: a change during the read sets it again.
                self.inputs.links_stale = false;
                let looked = Links::look(self.datapath.worker().routing(), query);
                self.inputs.links_stale = looked.is_err();
                looked
            }
        }
    }

    fn facts(&self, links: &Links) -> NodeFacts {
        NodeFacts {
            external: links.external_fact(),
            underlay_mtu: links.underlay_mtu,
            underlay_devices: links.underlay_devices.clone(),
            live: self.inputs.gateways.live.clone(),
            ever_live: self.inputs.ever_live.clone(),
            settled: self.inputs.gateways.settled,
            versions: self.inputs.gateways.versions.clone(),
            lagging: self.lag.lagging().clone(),
            steering_version: self.tables.version(),
            grants: None,
            announcing: self.gateway.announcing(),
            previous_groups: self.remembered.groups.clone(),
            last_group_members: self.remembered.members.clone(),
            local_addresses: links.local_addresses.clone(),
            attached: match self.datapath.gateway().carries_next_hops() {
                true => links.attached.clone(),
                false => BTreeMap::new(),
            },
            path: PathFacts::default(),
            devices: self.inputs.pod_devices.devices(),
            detached: self.inputs.pod_devices.detached(),
            unknown_pods: self.config.unknown_pods,
            foreign_marks: links.foreign_marks.clone(),
            canary_device: self.inputs.canary_device,
            broken_paths: self.inputs.canaries.broken.clone(),
            pod_routes: self.inputs.pod_devices.pod_routes(),
            uncovered: BTreeSet::new(),
            pairings: PodPairings::default(),
            full_addresses: BTreeSet::new(),
        }
    }

    fn remember(&mut self, outcome: &NodeOutcome) {
        let now = Remembered {
            groups: outcome.groups.clone(),
            members: outcome.group_members.clone(),
            grants: self.leases.memory().clone(),
            paired: outcome.paired.clone(),
            steering_version: self.tables.version(),
            steering_epochs: self.tables.epochs(),
        };
        if now != self.remembered {
            if let Err(error) = now.save(&self.config.state_directory) {
                tracing::warn!(%error, "cannot write the state file");
            }
            self.remembered = now;
        }
    }
}
