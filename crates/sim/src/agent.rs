//! One agent process: the real decisions of core over what it has read and probed, carried out in a model kernel.

use crate::kernel::{Kernel, Tables};
use crate::rules::{LeaseRules, Outgoing};
use crate::sabotage::Sabotage;
use crate::store::Reader;
use egret_core::machines::{
    ExternalLink, GatewayInputs, GatewayLag, GatewayLiveness, GatewayRole, GrantMemory, Liveness,
    LivenessCommand, OutboundRoute, ProbeSettings, SteeringMemory, group_nodes,
};
use egret_core::model::{MacAddress, NodeName, NodeRecord};
use egret_core::node::{
    External, GatewayState, NodeFacts, NodeOutcome, UnknownPodsPolicy, node_state, probe_targets,
};
use egret_core::numbers::{OLDER_RECORDS_MS, PROBE_INTERVAL_MS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What an agent keeps on disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Newest grants that its kernel had.
    pub grants: GrantMemory,
    /// Highest epoch of its steering tables.
    pub steering_version: u64,
    /// Epochs of its steering tables.
    pub steering_epochs: BTreeMap<IpAddr, u64>,
}

/// The machine that an agent runs on.
pub struct Host<'a> {
    pub name: &'a NodeName,
    pub underlay: IpAddr,
    pub is_gateway: bool,
    pub kernel: &'a mut Kernel,
    pub disk: &'a mut Disk,
    pub now_ms: u64,
    pub sabotage: Option<Sabotage>,
}

/// Parts of a round, in their order. A process that ends in between leaves what it has done.
mod part {
    pub const HALF_TABLES: usize = 1;
    pub const TABLES: usize = 2;
    pub const ANNOUNCE: usize = 3;
    pub const WORKER: usize = 4;
    pub const STATUS: usize = 5;
}

/// One agent process.
pub struct Agent {
    /// What it has read.
    pub reader: Reader,
    /// Status to write, newest only.
    pub outbox: Option<Outgoing>,
    /// Something has happened since its last round.
    pub has_news: bool,
    liveness: Liveness,
    /// A round has set the gateways to probe.
    peers_are_set: bool,
    probe_ms: u64,
    seen: GatewayLiveness,
    targets: BTreeMap<NodeName, IpAddr>,
    role: GatewayRole,
    planned: Option<GatewayState>,
    steering: SteeringMemory,
    /// Time of the first round.
    first_round_ms: Option<u64>,
    lag: GatewayLag,
    rules: LeaseRules,
}

impl Agent {
    /// A process that starts on a machine.
    pub fn start(name: &NodeName, reader: Reader, disk: &Disk, sabotage: Option<Sabotage>) -> Self {
        Self {
            reader,
            outbox: None,
            has_news: true,
            liveness: Liveness::new(7),
            peers_are_set: false,
            probe_ms: 0,
            seen: GatewayLiveness::default(),
            targets: BTreeMap::new(),
            role: GatewayRole::new(name.clone()),
            planned: None,
            steering: SteeringMemory::new(disk.steering_version, disk.steering_epochs.clone()),
            first_round_ms: None,
            lag: GatewayLag::default(),
            rules: LeaseRules::start(disk.grants.clone(), sabotage),
        }
    }

    /// Makes it an agent of the version before, which acknowledges nothing.
    pub fn make_old(&mut self) {
        self.rules.make_old();
    }

    /// Whether it is one.
    pub fn is_old(&self) -> bool {
        self.rules.is_old()
    }

    /// Gateways that answer, and the versions in their last answers.
    pub fn gateways(&self) -> &GatewayLiveness {
        &self.seen
    }

    /// Probes for a quarter of a second. `answer`: the version in the answer of the machine with this address, if it
    /// answers.
    pub fn probe(
        &mut self,
        now_ms: u64,
        kernel: &mut Kernel,
        answer: impl Fn(IpAddr) -> Option<u64>,
    ) {
        self.probe_ms = self.probe_ms.max(now_ms);
        for _ in 0..5 {
            self.probe_ms += PROBE_INTERVAL_MS;
            self.liveness.handle_deadline(self.probe_ms);
            for command in self.liveness.drain() {
                let LivenessCommand::SendProbe { peer, nonce } = command else {
                    continue;
                };
                let target = self.targets.get(&peer);
                if let Some(version) = target.and_then(|underlay| answer(*underlay)) {
                    self.liveness
                        .reply_received(&peer, nonce, version, self.probe_ms);
                }
            }
        }
        self.liveness.drain();
        let seen = GatewayLiveness {
            live: self.liveness.live(),
            versions: self.liveness.versions(),
            settled: self.peers_are_set && self.liveness.settled(),
            ..GatewayLiveness::default()
        };
        kernel.ever_live.extend(seen.live.iter().cloned());
        self.has_news |= seen != self.seen;
        self.seen = seen;
    }

    /// Whether a round would change anything.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.has_news
            || self.rules.is_due(now_ms)
            || self.lag.next_deadline().is_some_and(|at| at <= now_ms)
            || self.role.decides_at().is_some_and(|at| at <= now_ms)
    }

    /// One round of the main loop, or its first parts; returns whether the kernel has all of it.
    pub fn round(&mut self, host: &mut Host<'_>, parts: usize) -> bool {
        let (name, now_ms) = (host.name, host.now_ms);
        self.role.handle_deadline(now_ms);
        self.has_news = false;
        let Some(record) = self.reader.view.node_records.get(name) else {
            return false;
        };
        let record = record.clone();
        if host.sabotage == Some(Sabotage::AcknowledgeFirst)
            && let Some(early) = self.rules.acknowledge_first(&record)
        {
            (self.outbox, self.has_news) = (Some(early), true);
            return false;
        }
        let grants = self.rules.decide(&record);
        let snapshot = self.reader.view.clone();
        let local = BTreeSet::new();
        let link = ExternalLink {
            device: Some("eth1".to_owned()),
            carrier: true,
            routes: [OutboundRoute::Direct, OutboundRoute::Direct],
        };
        let link_up = self.role.decide_link(
            &snapshot,
            self.planned.as_ref(),
            (&link, &local),
            &self.seen,
            now_ms,
        );
        let own = host.kernel.gateway.as_ref();
        let own = own.map(|tables| (name, tables.version));
        let groups = group_nodes(&snapshot);
        self.lag.update(&groups, &self.seen, own, now_ms);
        let facts = NodeFacts {
            grants: Some(grants),
            ..self.facts(host, link_up)
        };
        let Ok(mut outcome) = node_state(&snapshot, &facts, name) else {
            return false;
        };
        self.set_targets(&outcome, now_ms);
        if !self.seen.settled {
            return false;
        }
        match outcome.state.gateway.take() {
            Some(mut planned) => {
                let records = snapshot.addresses.values();
                let first_ms = *self.first_round_ms.get_or_insert(now_ms);
                if self.steering.waits_for(records.clone()).is_some() {
                    if now_ms < first_ms.saturating_add(OLDER_RECORDS_MS) {
                        return false;
                    }
                    self.steering.forget_unknown();
                }
                if host.sabotage != Some(Sabotage::IgnoreEpochs) {
                    self.steering.keep_newer(&mut planned, records);
                }
                let inputs = GatewayInputs {
                    snapshot: &snapshot,
                    planned: &planned,
                    local: &local,
                    mac: Some(MacAddress(mac(host.underlay))),
                    liveness: &self.seen.clone(),
                    lagging: &self.lag.lagging().clone(),
                    link_up,
                    now_ms,
                    now_secs: 0,
                };
                self.serve(host, &inputs, parts);
                self.planned = Some(planned);
            }
            None => {
                host.kernel.gateway = None;
                self.planned = None;
                self.role.reset();
            }
        }
        if parts < part::WORKER {
            return false;
        }
        let worker = &outcome.state.worker;
        self.rules.applying(worker);
        host.kernel.apply_worker(&outcome.state);
        host.kernel.groups = outcome.groups.clone();
        host.kernel.members = outcome.group_members.clone();
        self.rules.applied(worker, &record, host.kernel, now_ms);
        if !self.rules.is_old() {
            host.disk.grants = self.rules.memory().clone();
        }
        if parts >= part::STATUS {
            let status = self.status(host, &outcome);
            self.outbox = Some(self.rules.report(status));
        }
        true
    }

    fn facts(&self, host: &Host<'_>, link_up: bool) -> NodeFacts {
        let mut versions = self.seen.versions.clone();
        if host.sabotage == Some(Sabotage::IgnoreEpochs) {
            versions
                .values_mut()
                .for_each(|version| *version = u64::MAX);
        }
        NodeFacts {
            external: host.is_gateway.then(|| External {
                device: "eth1".to_owned(),
                link_up,
                leads_out: [true; 2],
            }),
            underlay_mtu: 1500,
            live: self.seen.live.clone(),
            ever_live: host.kernel.ever_live.clone(),
            settled: self.seen.settled,
            versions,
            lagging: self.lag.lagging().clone(),
            steering_version: self.steering.version(),
            announcing: self.role.announcing(),
            previous_groups: host.kernel.groups.clone(),
            last_group_members: host.kernel.members.clone(),
            unknown_pods: UnknownPodsPolicy::Drop,
            ..NodeFacts::default()
        }
    }

    fn set_targets(&mut self, outcome: &NodeOutcome, now_ms: u64) {
        let targets = probe_targets(&self.reader.view, &outcome.state);
        let settings = targets.iter().map(|(name, target)| {
            let settings = ProbeSettings {
                interval_ms: target.interval_ms,
                failures: target.failures,
            };
            (name.clone(), settings)
        });
        let settings = settings.collect();
        self.liveness
            .set_peers(&settings, self.probe_ms.max(now_ms));
        self.peers_are_set = true;
        let targets = targets
            .into_iter()
            .map(|(name, target)| (name, target.underlay));
        self.targets = targets.collect();
    }

    fn serve(&mut self, host: &mut Host<'_>, inputs: &GatewayInputs<'_>, parts: usize) {
        let GatewayInputs {
            planned, link_up, ..
        } = *inputs;
        let forwards = host
            .kernel
            .gateway
            .as_ref()
            .is_some_and(|tables| tables.version > 0);
        self.role.attached(forwards);
        let tables = host.kernel.gateway.get_or_insert_default();
        if host.sabotage == Some(Sabotage::AnnounceFirst) {
            tables.version = planned.version;
        }
        if parts < part::HALF_TABLES {
            return;
        }
        tables.workers = planned.workers.clone();
        let half = planned.addresses.len() / 2;
        let loaded = match parts {
            part::HALF_TABLES => half,
            _ => planned.addresses.len(),
        };
        for (address, steering) in planned.addresses.iter().take(loaded) {
            tables.blocks.insert(*address, steering.blocks.clone());
            let record = inputs.snapshot.addresses.get(address);
            let epoch = tables.epochs.entry(*address).or_default();
            *epoch = (*epoch).max(record.map_or(0, |record| record.epoch));
        }
        if parts < part::TABLES {
            return;
        }
        tables
            .blocks
            .retain(|address, _| planned.addresses.contains_key(address));
        if parts < part::ANNOUNCE {
            return;
        }
        self.role.loaded();
        self.role.decide(inputs);
        self.role.drain();
        let effective = self.role.effective(planned, link_up);
        tables.announcing = self.role.announcing();
        tables.version = effective.state.version;
        let node = inputs.snapshot.nodes.get(host.name);
        let is_drained = node.is_some_and(|node| node.maintenance.drain.is_some());
        if host.sabotage == Some(Sabotage::LeaveFirst) && is_drained {
            tables.announcing.clear();
            tables.version = 0;
        }
        let records = inputs.snapshot.addresses.values();
        self.steering.loaded(&effective.state, records);
        host.disk.steering_version = self.steering.version();
        host.disk.steering_epochs = self.steering.epochs();
    }

    /// The agent's part of the record, without its leases.
    fn status(&self, host: &Host<'_>, outcome: &NodeOutcome) -> NodeRecord {
        let gateway = host.kernel.gateway.as_ref();
        NodeRecord {
            underlay_addresses: vec![host.underlay],
            steering_version: gateway.map_or(0, |_| self.steering.version()),
            newer_tables: self.steering.newer(self.reader.view.addresses.values()),
            announcing: gateway.map_or_else(BTreeSet::new, |tables| tables.announcing.clone()),
            programmed: outcome.programmed.clone(),
            datapath: gateway.map(|_| "ebpf".to_owned()),
            external_mac: gateway.map(|_| MacAddress(mac(host.underlay))),
            ..NodeRecord::new(host.name.clone())
        }
    }

    /// The store has accepted this status.
    pub fn status_written(&mut self, status: &Outgoing) {
        self.rules.accepted(status);
        self.has_news = true;
    }

    /// The store has no record to write the status to.
    pub fn status_lost(&mut self) {
        self.rules.lost();
        self.has_news = true;
    }
}

fn mac(underlay: IpAddr) -> [u8; 6] {
    match underlay {
        IpAddr::V4(v4) => {
            let [_, _, high, low] = v4.octets();
            [2, 0, 0, 0, high, low]
        }
        IpAddr::V6(_) => [2, 0, 0, 0, 0, 0],
    }
}

impl Tables {
    /// Whether the table of this address is newer than a record with this epoch.
    pub fn is_newer(&self, address: IpAddr, epoch: u64) -> bool {
        self.epochs
            .get(&address)
            .is_some_and(|known| *known > epoch)
    }
}
