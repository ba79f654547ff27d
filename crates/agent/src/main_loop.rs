//! The loop that alone touches the kernel.

mod owed;
mod stand;
mod tell;
mod upkeep;

use crate::Config;
use crate::board::Board;
use crate::canary::{Measured, Order, Shown};
use crate::chain;
use crate::cni::{Asked, Desk, Round};
use crate::conflicts::Detection;
use crate::facts::{Links, Wanted, pod_addresses};
use crate::flows;
use crate::gateway::Gateway;
use crate::neighbours::{Heard, Orders, Watch};
use crate::pod_devices::PodDevices;
use crate::port_use::Ranges;
use crate::probe::{HeardSlot, Seen, Targets};
use crate::remembered::Remembered;
use crate::report::SeenHere;
use crate::socket::Query;
use crate::source::{Newest, Status};
use crate::standing::Standing;
use crate::surroundings::Routers;
use crate::traffic::Traffic;
use crate::uncovered::Uncovered;
use egret_core::machines::Destination;
use egret_core::model::{NodeName, Snapshot};
use egret_core::node::{CniPath, GatewayState, TunnelIndex};
use egret_core::node::{External, NodeFacts, NodeOutcome, PathFacts, node_state};
use egret_core::numbers::{FULL_DESTINATION_SECS, FULL_DESTINATIONS_MAX};
use egret_core::obstacle::{self, Obstacle};
use egret_datapath::node::{ExternalLink, NodeDatapath, NodeDatapathError};
use egret_datapath::presence::l2::conflict::Claim;
use egret_datapath::route::RouteError;
use egret_datapath::uplink::LookError;
use egret_objects::View;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Poll interval for state without change notifications; bounds how long drift lasts.
const TICK: Duration = Duration::from_millis(500);
/// Everything is compared with the kernel this often, whatever was told.
const COMPARE_ALL: Duration = Duration::from_secs(30);
/// After something has told that it changed, this long passes before the next look.
const SETTLE: Duration = Duration::from_millis(20);
/// The same while a pod waits: its own device has told of itself, and its round needs no comparison of everything.
const SETTLE_WHILE_PODS_WAIT: Duration = Duration::from_millis(200);
/// Ports in use are counted this often.
const COUNT_PORTS: Duration = Duration::from_secs(5);
/// Events taken up before the kernel is touched again.
const BURST_MAX: usize = 64;
/// Full destinations are refused anew this often, well before the kernel forgets them.
const REFUSE_AGAIN: Duration = Duration::from_secs(FULL_DESTINATION_SECS / 3);

/// What wakes the loop.
pub(crate) enum Event {
    /// There is a new view of the objects.
    View(Newest),
    /// The objects cannot be read; what is known stays.
    SourceError(String),
    /// What the probes say.
    Gateways(Seen),
    /// What was heard on the external network.
    Neighbours(Heard),
    /// A link, address, route or rule has changed.
    Links,
    /// Machines on the external segment have said that they have addresses that this gateway serves.
    Claims(Vec<Claim>),
    /// All flows of the node, as asked for.
    Flows(flows::Read),
    /// Destinations towards which a lease is used up, and how often one was left out for lack of room.
    Full(BTreeSet<Destination>, u64),
    /// Somebody asks.
    Query(Query),
    /// The CNI plugin tells of a pod.
    Cni(Asked),
    /// What canaries have shown.
    Canaries(Shown),
    /// The canary device was made anew.
    CanaryDevice(u32),
}

/// The ways to the threads that work for the loop.
pub(crate) struct Ways {
    /// To whoever writes this node's status.
    pub(crate) status: Sender<Status>,
    /// To whoever probes gateways.
    pub(crate) probes: Sender<Targets>,
    /// To the same: the counters of the programs that answer others' probes.
    pub(crate) heard: HeardSlot,
    /// To whoever asks on the external network.
    pub(crate) neighbours: Orders,
    /// To whoever follows the ports in use.
    pub(crate) ranges: Sender<Ranges>,
    /// To whoever reads all flows: the number of the change that wants them.
    pub(crate) flows: Sender<u64>,
    /// To whoever sends canaries.
    pub(crate) canaries: Sender<Order>,
    /// Back to the loop itself, for threads that come and go.
    pub(crate) events: Sender<Event>,
}

pub(crate) struct MainLoop {
    config: Config,
    datapath: NodeDatapath,
    gateway: Gateway,
    board: Arc<Board>,
    ways: Ways,
    cni: Desk,
    started: Instant,
    view: Option<Box<View>>,
    /// When the oldest view came that is not carried out yet.
    asked: Option<Instant>,
    traffic: Traffic,
    seen: Seen,
    ever_live: BTreeSet<NodeName>,
    remembered: Remembered,
    /// Facts about links, while nothing has told that they may have changed.
    links: Option<Links>,
    routers: Routers,
    pod_devices: PodDevices,
    uncovered: Uncovered,
    links_stale: bool,
    outcome: Option<NodeOutcome>,
    ports: BTreeMap<IpAddr, u32>,
    ports_counted: Option<Instant>,
    /// The last change whose flows were asked for.
    flows_asked: Option<u64>,
    /// Destinations towards which a lease is used up.
    full: BTreeSet<Destination>,
    /// What is looked up now and then, only to be told.
    seen_here: SeenHere,
    /// When the kernel was told so.
    full_told: Instant,
    told_ranges: Ranges,
    told_targets: Targets,
    told_watch: Watch,
    told_status: Option<Status>,
    /// What canaries measure.
    told_measured: Measured,
    /// What they have shown.
    canaries: Shown,
    /// Index of the canary device, where there is one.
    canary_device: Option<u32>,
    /// Version of the record when it was told.
    told_version: u64,
    trouble: Option<String>,
    /// What of others' firewalls refuses our packets, as last looked at.
    obstacles: Vec<Obstacle>,
    /// The objects or the gateways' liveness changed since the last round.
    news: bool,
    /// Something told of a change of links, routes, rules, next hops or neighbours since the last look.
    links_changed: bool,
    looked: Instant,
    compared: Instant,
}

impl MainLoop {
    pub(crate) fn new(
        config: &Config,
        datapath: NodeDatapath,
        board: &Arc<Board>,
        ways: Ways,
        cni: Desk,
    ) -> Self {
        let standing = Standing::new(&config.node, ways.heard.clone());
        let detection = Detection::new(ways.events.clone());
        MainLoop {
            config: config.clone(),
            datapath,
            gateway: Gateway::new(&config.node, standing, detection),
            board: board.clone(),
            ways,
            cni,
            started: Instant::now(),
            view: None,
            asked: None,
            traffic: Traffic::default(),
            seen: Seen::default(),
            ever_live: BTreeSet::new(),
            remembered: Remembered::load(&config.state_directory),
            links: None,
            routers: Routers::default(),
            pod_devices: PodDevices::default(),
            uncovered: Uncovered::default(),
            links_stale: true,
            outcome: None,
            ports: BTreeMap::new(),
            ports_counted: None,
            flows_asked: None,
            full: BTreeSet::new(),
            seen_here: SeenHere::default(),
            full_told: Instant::now(),
            told_ranges: Ranges::new(),
            told_targets: Targets::default(),
            told_watch: Watch::default(),
            told_status: None,
            told_measured: Measured::default(),
            canaries: Shown::default(),
            canary_device: None,
            told_version: 0,
            trouble: Some("no objects read yet".into()),
            obstacles: Vec::new(),
            news: false,
            links_changed: false,
            looked: Instant::now(),
            compared: Instant::now(),
        }
    }

    /// With the device at whose ingress canaries appear, where there is one.
    pub(crate) fn measuring(self, canary_device: Option<u32>) -> Self {
        MainLoop {
            canary_device,
            ..self
        }
    }

    pub(crate) fn run(mut self, inbox: &Receiver<Event>, stop: &AtomicBool) {
        let mut tick = Instant::now() + TICK;
        while !stop.load(Ordering::Relaxed) {
            let wait = self.wait(tick);
            match inbox.recv_timeout(wait) {
                Ok(event) => {
                    self.take_up(event);
                    for event in inbox.try_iter().take(BURST_MAX) {
                        self.take_up(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let ticked = Instant::now() >= tick;
            if ticked {
                tick = Instant::now() + TICK;
            }
            let compare = self.compared.elapsed() >= COMPARE_ALL;
            let settle = match self.cni.is_untried() {
                true => SETTLE_WHILE_PODS_WAIT,
                false => SETTLE,
            };
            let told = self.links_changed && self.looked.elapsed() >= settle;
            if compare || told || ticked {
                self.repair(compare, told);
            }
            // What could not be carried out is tried again.
            let failed = self.trouble.is_some() || self.datapath.gateway().last_error().is_some();
            let again = ticked && failed;
            let now_ms = self.now_ms();
            let enters = self.entrance_at().is_some_and(|at| at <= now_ms);
            if self.news || again || enters {
                self.news = false;
                self.round();
            } else if ticked {
                self.rest();
            }
            if ticked && self.datapath.worker().pending_flow_cleanup().is_some() {
                self.ask_again();
            }
            self.overdue();
            let now_ms = self.now_ms();
            self.gateway.announce(self.datapath.gateway(), now_ms);
            self.ask();
            self.board.round(self.trouble.clone());
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wait(&self, tick: Instant) -> Duration {
        // What a round could not carry out is tried again with the next tick.
        if self.news && self.trouble.is_none() {
            return Duration::ZERO;
        }
        let due = self.gateway.next_deadline().into_iter();
        let due = due.chain(self.entrance_at()).min().unwrap_or(u64::MAX);
        let announce = Duration::from_millis(due.saturating_sub(self.now_ms()));
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let look = match self.links_changed {
            true => until(self.looked + SETTLE),
            false => TICK,
        };
        until(tick).min(announce).min(look)
    }

    /// When this gateway begins to count. What cannot be carried out is tried again in its own time.
    fn entrance_at(&self) -> Option<u64> {
        let due = self.gateway.entrance_at();
        due.filter(|_| self.trouble.is_none())
    }

    fn take_up(&mut self, event: Event) {
        match event {
            Event::View(newest) => {
                if let Some((mut view, since)) = newest.take() {
                    self.asked.get_or_insert(since);
                    self.cni.dress(&mut view.snapshot);
                    self.view = Some(view);
                    self.pod_devices.stir();
                    self.news = true;
                }
            }
            Event::SourceError(error) => {
                tracing::warn!(error, "the objects cannot be read: what is known stays");
            }
            Event::Gateways(seen) => {
                self.ever_live.extend(seen.live.iter().cloned());
                self.board.with(|metrics| {
                    metrics.gateway_losses.inc_by(seen.losses);
                });
                if seen.lapsed {
                    let now_ms = self.now_ms();
                    self.gateway.repeat(now_ms);
                }
                self.seen = seen;
                self.news = true;
            }
            Event::Neighbours(heard) => self.heard(heard),
            Event::Links => {
                self.links_changed = true;
                self.links_stale = true;
                self.look_soon();
            }
            Event::Claims(claims) => {
                let now_ms = self.now_ms();
                self.news |= self.gateway.heard(&claims, now_ms);
            }
            Event::Flows(read) => self.end_owed(read),
            Event::Full(full, left_out) => {
                if left_out > 0 {
                    tracing::warn!(
                        left_out,
                        limit = FULL_DESTINATIONS_MAX,
                        "too many full destinations to refuse all"
                    );
                }
                for new in full.difference(&self.full) {
                    tracing::warn!(egress = %new.egress, destination = %new.address, protocol = new.protocol,
                        port = new.port, "all leased source ports are in use towards this destination: new flows are refused");
                }
                self.full = full;
                self.refuse_full();
                self.news = true;
            }
            Event::Cni(asked) => {
                let snapshot = self.view.as_mut().map(|view| &mut view.snapshot);
                self.news |= self.cni.take(asked, snapshot);
            }
            Event::Canaries(shown) => {
                self.news |= shown.broken != self.canaries.broken;
                self.canaries = shown;
            }
            Event::CanaryDevice(index) => {
                self.canary_device = Some(index);
                self.news = true;
            }
            Event::Query(query) => query.answer(
                self.view.as_deref(),
                &self.outcome,
                (&self.seen, &self.canaries),
            ),
        }
    }

    /// Facts and objects to state, state to kernel, and what came of it to the status.
    fn round(&mut self) {
        let view = self.view.take();
        if let Some(view) = &view {
            self.trouble = self.carry_out(&view.snapshot).err();
            if let Some(trouble) = &self.trouble {
                tracing::warn!(trouble, "the node's state is not carried out");
            } else if let Some(asked) = self.asked.take() {
                let seconds = asked.elapsed().as_secs_f64();
                self.board
                    .with(|metrics| metrics.programming_seconds.observe(seconds));
            }
        }
        // Before anything is read, counted or told: pods wait.
        self.cni.after(&Round {
            snapshot: view.as_ref().map(|view| &view.snapshot),
            outcome: self.outcome.as_ref().filter(|_| self.trouble.is_none()),
            trouble: self.trouble.as_deref(),
            flows_ended: self.datapath.worker().pending_flow_cleanup().is_none(),
        });
        self.ask_for_flows();
        if let Some(view) = &view {
            self.count_if_due();
            self.report(view);
        }
        self.view = view;
    }

    /// Pods that have waited long enough.
    fn overdue(&mut self) {
        self.cni.overdue(&Round {
            snapshot: self.view.as_ref().map(|view| &view.snapshot),
            outcome: self.outcome.as_ref().filter(|_| self.trouble.is_none()),
            trouble: self.trouble.as_deref(),
            flows_ended: self.datapath.worker().pending_flow_cleanup().is_none(),
        });
    }

    fn carry_out(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let node = self.config.node.clone();
        let links = self.look(snapshot).map_err(|e| chain(&e))?;
        self.seen_here.foreign_marks = links.foreign_marks.clone();
        self.routers.look(self.datapath.worker().routing());
        let path = self.path_facts(snapshot).map_err(|e| chain(&e))?;
        let routing = self.datapath.worker().routing();
        let looked = self.pod_devices.look(routing, snapshot, &node);
        looked.map_err(|e| chain(&e))?;
        let link_up = self.link_up(snapshot, &links);
        let external = links.external_fact();
        let facts = NodeFacts {
            path,
            external: external.map(|external| External {
                link_up,
                ..external
            }),
            uncovered: self.uncovered.lasting(Instant::now()),
            ..self.facts(&links)
        };
        let mut outcome = node_state(snapshot, &facts, &node).map_err(|e| chain(&e))?;
        self.uncovered.follow(&outcome.uncovered, Instant::now());
        self.prepare(&outcome, &links)?;
        self.retarget(snapshot, &outcome);
        let local = links.local_addresses.clone();
        self.links = Some(links);
        if !self.seen.settled {
            return Err("waiting for the gateways' first answers".into());
        }
        match outcome.state.gateway.take() {
            Some(wanted) => {
                let own = outcome.state.tunnel.index;
                let effective = self.serve((snapshot, &wanted), own, &local, link_up);
                outcome.state.gateway = Some(effective);
            }
            None => self.gateway.leave(),
        }
        let applied = self.apply(&outcome);
        self.gateway.tables_loaded(self.datapath.gateway());
        // Answers to probes carry the version that has just been applied.
        self.retarget(snapshot, &outcome);
        applied?;
        self.follow_flows(&outcome);
        self.measure(&outcome);
        self.remember(&outcome);
        // What a gateway serves is known from now on, and is decided by.
        self.news |= self.outcome.is_none() && outcome.state.gateway.is_some();
        self.look_for_obstacles(&outcome);
        obstacle::discount(&mut outcome, &self.obstacles);
        self.outcome = Some(outcome);
        Ok(())
    }

    /// The tunnel device, and the gateway's programs: probes need them before anything else is decided.
    fn prepare(&mut self, outcome: &NodeOutcome, links: &Links) -> Result<(), String> {
        let state = &outcome.state;
        let external = links.external.clone();
        let external = external.map(|(device, v4, v6)| ExternalLink { device, v4, v6 });
        let changed = self.links.as_ref() != Some(links);
        let opened = self.datapath.prepare(state, external.as_ref(), changed);
        let opened = opened.map_err(|error| chain(&error))?;
        if state.gateway.is_some() {
            let path = self.datapath.gateway();
            self.gateway.prepared(path, opened, external.as_ref());
        }
        Ok(())
    }

    /// Decides what this gateway announces, and returns the state that says so. Tables are loaded before: a gateway
    /// announces only what it can steer.
    fn serve(
        &mut self,
        (snapshot, wanted): (&Snapshot, &GatewayState),
        own: TunnelIndex,
        local: &BTreeSet<IpAddr>,
        link_up: bool,
    ) -> GatewayState {
        let tables = self.gateway.effective(wanted, link_up);
        self.datapath.load_tables(&tables, own);
        let path = self.datapath.gateway();
        self.gateway.tables_loaded(path);
        let loaded = |name: &&NodeName| self.seen.versions.get(*name).is_some_and(|v| *v > 0);
        let live = self.seen.live.iter().filter(loaded).cloned().collect();
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.gateway.decide(
            (snapshot, wanted),
            (&self.config.node, local),
            (&live, self.seen.alone, self.seen.reached),
            (path, link_up),
            now_ms,
        );
        self.gateway.effective(wanted, link_up)
    }

    fn apply(&mut self, outcome: &NodeOutcome) -> Result<(), String> {
        let applied = self.datapath.apply(&outcome.state, &self.cni.idle());
        let applied = applied.map_err(|error| {
            if matches!(error, NodeDatapathError::Worker(_)) {
                self.board.with(|metrics| {
                    metrics.apply_errors.inc();
                });
            }
            chain(&error)
        })?;
        self.board.with(|metrics| {
            metrics.applies.inc();
            let seconds = applied.worker_time.as_secs_f64();
            metrics.apply_seconds.observe(seconds);
        });
        for name in &applied.sysctls {
            tracing::info!(name, "node-wide setting changed; --cleanup puts it back");
        }
        self.tell_ended(applied.ended_flows);
        if self.grants_changed(outcome) {
            self.ports_counted = None;
        }
        applied
            .uplink_error
            .map_or(Ok(()), |error| Err(chain(&error)))
    }

    /// What the kernel shows of the ways of pods' packets. Where the operator has said that they pass the stack, nobody
    /// looks.
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

    /// Facts about links; looked up where something has told that they may have changed.
    fn look(&mut self, snapshot: &Snapshot) -> Result<Links, RouteError> {
        let wanted = Wanted::of(snapshot, &self.config.node);
        match &self.links {
            Some(links) if !self.links_stale && links.wanted == wanted => Ok(links.clone()),
            _ => {
                // What changes from here on is told again.
                self.links_stale = false;
                let looked = Links::look(self.datapath.worker().routing(), wanted);
                self.links_stale = looked.is_err();
                looked
            }
        }
    }

    fn facts(&self, links: &Links) -> NodeFacts {
        NodeFacts {
            external: links.external_fact(),
            underlay_mtu: links.underlay_mtu,
            underlay_devices: links.underlay_devices.clone(),
            live: self.seen.live.clone(),
            ever_live: self.ever_live.clone(),
            settled: self.seen.settled,
            versions: self.seen.versions.clone(),
            announcing: self.gateway.announcing(),
            previous_groups: self.remembered.groups.clone(),
            last_group_members: self.remembered.members.clone(),
            local_addresses: links.local_addresses.clone(),
            attached: match self.datapath.gateway().carries_next_hops() {
                true => links.attached.clone(),
                false => BTreeMap::new(),
            },
            path: PathFacts::default(),
            devices: self.pod_devices.devices(),
            detached: self.pod_devices.detached(),
            unknown_pods: self.config.unknown_pods,
            foreign_marks: links.foreign_marks.clone(),
            canary_device: self.canary_device,
            broken_paths: self.canaries.broken.clone(),
            pod_routes: self.pod_devices.pod_routes(),
            uncovered: BTreeSet::new(),
        }
    }

    fn remember(&mut self, outcome: &NodeOutcome) {
        let now = Remembered {
            groups: outcome.groups.clone(),
            members: outcome.group_members.clone(),
        };
        if now != self.remembered {
            if let Err(error) = now.save(&self.config.state_directory) {
                tracing::warn!(%error, "the groups' numbers cannot be written down");
            }
            self.remembered = now;
        }
    }
}
