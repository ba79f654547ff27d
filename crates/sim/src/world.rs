//! The simulated cluster in motion: takes the steps of a script, and has the checker look after each.

mod faults;
mod watch;

use self::watch::Watch;
use crate::agent::Agent;
use crate::checker::{Checker, Network, Rule, Violation};
use crate::cluster::{self, node_name, pod_address, pod_key};
use crate::controller::{Controller, Write};
use crate::kernel::Opened;
use crate::machine::Machine;
use crate::sabotage::Sabotage;
use crate::script::{Cluster, Script};
use crate::step::{Client, Fate, Kind, Part, Place, Step};
use crate::store::{Reader, Store};
use egret_core::model::{NodeRecord, Snapshot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// A write that its client has given up, and that the store makes later.
enum LateWrite {
    Controller(Write),
    Status(Box<NodeRecord>),
}

/// Late writes that are kept at once; older ones are never made.
const LATE_MAX: usize = 4;

/// Pods that a script can name.
const PODS_MAX: usize = 100;

/// Flows of one node, at most: enough to fill several blocks.
const FLOWS_MAX: usize = 400;

/// The simulated cluster.
pub struct World {
    pub(crate) cluster: Cluster,
    pub(crate) now_ms: u64,
    pub(crate) store: Store,
    pub(crate) machines: Vec<Machine>,
    pub(crate) controllers: [Controller; 2],
    pub(crate) sabotage: Option<Sabotage>,
    origin: Snapshot,
    /// Machines that ever were.
    numbers: usize,
    /// Pods that ever were.
    lives: usize,
    terms: u64,
    cuts: BTreeSet<(Place, Place)>,
    late: VecDeque<LateWrite>,
    checker: Checker,
    watch: Watch,
    /// Addresses that each policy has had.
    had: BTreeMap<usize, Vec<IpAddr>>,
}

impl World {
    /// A cluster in which everything runs and nothing has happened. The first controller leads.
    pub fn new(cluster: Cluster, sabotage: Option<Sabotage>) -> Self {
        let origin = cluster::snapshot(&cluster);
        let store = Store::new(origin.clone());
        let reader = || Reader::list(&store, &origin, 0);
        let mut controllers = [Controller::new(reader()), Controller::new(reader())];
        controllers[0].lead(0, 0);
        let mut machines: Vec<Machine> = (0..cluster.nodes())
            .map(|node| Machine::new(&cluster, node, node))
            .collect();
        for machine in &mut machines {
            machine.agent = Some(Agent::start(
                &machine.name,
                reader(),
                &machine.disk,
                sabotage,
            ));
        }
        let had = (0..cluster.policies()).map(|policy| {
            (
                policy,
                vec![cluster::egress_address(policy % cluster.addresses)],
            )
        });
        Self {
            now_ms: 0,
            machines,
            controllers,
            sabotage,
            numbers: cluster.nodes(),
            lives: 0,
            terms: 0,
            cuts: BTreeSet::new(),
            late: VecDeque::new(),
            checker: Checker::default(),
            watch: Watch::default(),
            had: had.collect(),
            cluster,
            store,
            origin,
        }
    }

    /// Runs a script, then lets the cluster become whole and empty; returns the first violation.
    pub fn run(script: &Script, sabotage: Option<Sabotage>) -> Result<(), Violation> {
        let mut world = World::new(script.cluster, sabotage);
        for (number, step) in script.steps.iter().enumerate() {
            world.watch_step(*step);
            let found = world.take(*step).and_then(|()| world.look());
            let found = found.and_then(|()| world.look_at_flows());
            found.map_err(|(rule, text)| Violation {
                rule,
                step: number + 1,
                text,
            })?;
        }
        let step = script.steps.len();
        world
            .rest()
            .map_err(|(rule, text)| Violation { rule, step, text })
    }

    /// Has the checker look at everything.
    pub(crate) fn look(&mut self) -> Result<(), (Rule, String)> {
        let mut checker = std::mem::take(&mut self.checker);
        let found = checker.look(&self.network(&|one, other| self.nodes_connected(one, other)));
        self.checker = checker;
        found
    }

    fn network<'a>(&'a self, connected: &'a dyn Fn(usize, usize) -> bool) -> Network<'a> {
        Network {
            machines: &self.machines,
            objects: self.store.state(),
            disturbed: self.store.disturbed(),
            torn: self.store.torn(),
            restored: self.store.restored(),
            connected,
            now_ms: self.now_ms,
        }
    }

    fn connected(&self, one: Place, other: Place) -> bool {
        !self.cuts.contains(&(one.min(other), one.max(other)))
    }

    fn nodes_connected(&self, one: usize, other: usize) -> bool {
        self.connected(Place::Node(one), Place::Node(other))
    }

    /// Lets milliseconds pass.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// Takes one step.
    fn take(&mut self, step: Step) -> Result<(), (Rule, String)> {
        match step {
            Step::Wait(ms) => self.wait(ms),
            Step::Round(ms) => {
                self.everyone();
                self.wait(ms);
            }
            Step::Open {
                pod,
                destination,
                flows,
            } => return self.open(pod, destination, flows),
            Step::Served(pod) => return self.is_served(pod),
            Step::AddPod(..) | Step::RemovePod(_) | Step::Repoint(..) | Step::Close(..) => {
                self.take_workload(step);
            }
            Step::Sync(..)
            | Step::Agent(_)
            | Step::AgentDies(..)
            | Step::Status(..)
            | Step::Land
            | Step::Probe(_)
            | Step::Plan(_)
            | Step::Write(..)
            | Step::Lead(_)
            | Step::LeadToo(_) => self.take_process(step),
            _ => self.take_fault(step),
        }
        Ok(())
    }

    fn take_workload(&mut self, step: Step) {
        match step {
            Step::AddPod(pod, node) => {
                let exists = self.store.state().pods.contains_key(&pod_key(pod));
                let runs_pods = self.cluster.mixed || !self.cluster.is_gateway(node);
                let is_here = self.store.state().nodes.contains_key(&node_name(node));
                if exists || !is_here || !runs_pods || pod >= PODS_MAX {
                    return;
                }
                self.lives += 1;
                let object = cluster::pod(&self.cluster, pod, node, self.lives);
                self.store.set_pod(pod_key(pod), Some(object));
            }
            Step::RemovePod(pod) => self.store.set_pod(pod_key(pod), None),
            Step::Repoint(policy, address) => {
                if policy >= self.cluster.policies() || address >= self.cluster.addresses {
                    return;
                }
                self.lives += 1;
                let generation = i64::try_from(self.lives).expect("few");
                self.store
                    .set_policy(cluster::policy(policy, address, generation));
                let had = self.had.entry(policy).or_default();
                had.push(cluster::egress_address(address));
            }
            Step::Close(node, part) => self.close(node, part),
            _ => unreachable!("other steps are taken elsewhere"),
        }
    }

    /// Ends flows.
    pub(crate) fn close(&mut self, node: usize, part: Part) {
        let pods: BTreeSet<IpAddr> = self
            .store
            .state()
            .pods
            .values()
            .flat_map(|pod| pod.addresses.clone())
            .collect();
        let Some(machine) = self
            .machines
            .get_mut(node)
            .filter(|machine| !machine.is_frozen)
        else {
            return;
        };
        let mut number = 0;
        machine.kernel.end(|flow| {
            number += 1;
            match part {
                Part::All => true,
                Part::Half => number % 2 == 0,
                Part::Orphans => !pods.contains(&flow.pod),
            }
        });
        if let Some(agent) = &mut machine.agent {
            agent.has_news = true;
        }
    }

    fn take_process(&mut self, step: Step) {
        match step {
            Step::Sync(client, kind, changes) => self.sync(client, Some(kind), changes),
            Step::Agent(node) => self.agent(node, usize::MAX),
            Step::AgentDies(node, parts) => {
                self.agent(node, parts);
                if let Some(machine) = self.machines.get_mut(node) {
                    machine.agent = None;
                }
            }
            Step::Status(node, fate) => self.status(node, fate),
            Step::Land => self.land(),
            Step::Probe(node) => self.probe(node),
            Step::Plan(controller) => self.plan(controller),
            Step::Write(controller, fate) => self.write(controller, fate),
            Step::Lead(controller) => self.lead(controller, false),
            Step::LeadToo(controller) => self.lead(controller, true),
            _ => unreachable!("other steps are taken elsewhere"),
        }
    }

    /// A client reads changes of one kind, or everything.
    fn sync(&mut self, client: Client, kind: Option<Kind>, changes: usize) {
        let place = match client {
            Client::Controller(number) => Place::Controller(number),
            Client::Agent(number) => Place::Node(number),
        };
        if !self.connected(Place::Api, place) {
            return;
        }
        let store = &self.store;
        let read = |reader: &mut Reader| match kind {
            Some(kind) => reader.sync(store, kind, changes),
            None => reader.sync_all(store),
        };
        match client {
            Client::Controller(number) => {
                if let Some(controller) = self.controllers.get_mut(number) {
                    read(&mut controller.reader);
                }
            }
            Client::Agent(number) => {
                let machine = self.machines.get_mut(number).filter(|m| !m.is_frozen);
                if let Some(agent) = machine.and_then(|machine| machine.agent.as_mut()) {
                    agent.has_news |= read(&mut agent.reader);
                }
            }
        }
    }

    fn agent(&mut self, node: usize, parts: usize) {
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        let made = machine.round(self.now_ms, parts, self.sabotage);
        let read = machine
            .agent
            .as_ref()
            .map_or(0, |agent| agent.reader.position(Kind::Addresses));
        if made && parts == usize::MAX && read >= machine.known_from {
            machine.is_known |= self.store.state().nodes.contains_key(&machine.name);
        }
    }

    fn status(&mut self, node: usize, fate: Fate) {
        let is_connected = self.connected(Place::Api, Place::Node(node));
        let machine = self
            .machines
            .get_mut(node)
            .filter(|machine| !machine.is_frozen);
        let Some(agent) = machine.and_then(|machine| machine.agent.as_mut()) else {
            return;
        };
        let Some(status) = agent.outbox.take() else {
            return;
        };
        let made = match fate {
            Fate::Made | Fate::Unanswered | Fate::Twice if is_connected => {
                if fate == Fate::Twice {
                    self.late
                        .push_back(LateWrite::Status(status.record.clone()));
                }
                Some(self.store.write_status(&status.record).is_ok())
            }
            Fate::Late if is_connected => {
                self.late
                    .push_back(LateWrite::Status(status.record.clone()));
                None
            }
            _ => None,
        };
        match made.filter(|_| fate != Fate::Unanswered) {
            Some(true) => agent.status_written(&status),
            Some(false) => agent.status_lost(),
            // It is tried again, unless there is a newer one by then.
            None => agent.outbox = Some(status),
        }
        self.late.drain(..self.late.len().saturating_sub(LATE_MAX));
    }

    fn land(&mut self) {
        match self.late.pop_front() {
            Some(LateWrite::Controller(write)) => drop(write.make(&mut self.store)),
            Some(LateWrite::Status(status)) => drop(self.store.write_status(&status)),
            None => {}
        }
    }

    fn probe(&mut self, node: usize) {
        let Some(machine) = self.machines.get(node).filter(|machine| !machine.is_frozen) else {
            return;
        };
        let from = machine.underlay;
        let answers: BTreeMap<IpAddr, u64> = self
            .machines
            .iter()
            .enumerate()
            .filter(|(other, machine)| {
                !machine.is_frozen
                    && machine.kernel.peers.contains(&from)
                    && self.nodes_connected(node, *other)
            })
            .filter_map(|(_, machine)| {
                let tables = machine.kernel.gateway.as_ref()?;
                Some((machine.underlay, tables.version))
            })
            .collect();
        let machine = &mut self.machines[node];
        if let Some(agent) = &mut machine.agent {
            let answer = |underlay: IpAddr| answers.get(&underlay).copied();
            agent.probe(self.now_ms, &mut machine.kernel, answer);
        }
    }

    fn plan(&mut self, controller: usize) {
        if let Some(controller) = self.controllers.get_mut(controller) {
            controller.plan(self.now_ms, self.sabotage);
        }
    }

    fn write(&mut self, number: usize, fate: Fate) {
        let is_connected = self.connected(Place::Api, Place::Controller(number));
        let Some(controller) = self.controllers.get_mut(number) else {
            return;
        };
        let Some(write) = controller.next_write() else {
            return;
        };
        let fate = if is_connected { fate } else { Fate::Refused };
        controller.write(&mut self.store, &write, fate);
        if matches!(fate, Fate::Late | Fate::Twice) {
            self.late.push_back(LateWrite::Controller(write));
            self.late.drain(..self.late.len().saturating_sub(LATE_MAX));
        }
    }

    fn lead(&mut self, number: usize, too: bool) {
        let [first, second] = &mut self.controllers;
        let (new, old) = match number {
            0 => (first, second),
            1 => (second, first),
            _ => return,
        };
        if !too {
            old.follow();
        }
        if !new.leads() {
            self.terms += 1;
            new.lead(self.now_ms, self.terms);
        }
    }

    /// A pod opens flows. What it opens is looked at by the checker.
    pub(crate) fn open(
        &mut self,
        pod: usize,
        destination: usize,
        flows: usize,
    ) -> Result<(), (Rule, String)> {
        for _ in 0..flows {
            self.open_one(pod, destination)?;
        }
        Ok(())
    }

    /// Opens one flow; returns whether it gets out, and where.
    pub(crate) fn open_one(
        &mut self,
        pod: usize,
        destination: usize,
    ) -> Result<Option<(usize, crate::kernel::Flow)>, (Rule, String)> {
        let Some(object) = self.store.state().pods.get(&pod_key(pod)) else {
            return Ok(None);
        };
        let place = self
            .machines
            .iter()
            .position(|machine| machine.name == object.node);
        let Some(node) = place.filter(|node| !self.machines[*node].is_frozen) else {
            return Ok(None);
        };
        let kernel = &mut self.machines[node].kernel;
        if kernel.flows().len() >= FLOWS_MAX {
            return Ok(None);
        }
        let opened = kernel.open(pod_address(pod, node), cluster::destination(destination));
        if let Some(agent) = &mut self.machines[node].agent {
            agent.has_news |= opened != Opened::Untouched;
        }
        match opened {
            Opened::Dropped => Ok(None),
            Opened::Untouched => {
                let text = format!("pod{pod} of node{node} leaves as if it were not selected");
                Err((Rule::WrongSource, text))
            }
            Opened::Flow(flow) => {
                let allowed = &self.had[&cluster::policy_of(&self.cluster, pod)];
                let connected = |one, other| self.nodes_connected(one, other);
                self.checker
                    .opened(&self.network(&connected), node, &flow, allowed)?;
                self.watch.add(node, pod, flow);
                Ok(Some((node, flow)))
            }
        }
    }

    /// Whether packets of this block get out from this node now.
    pub(crate) fn passes(&self, node: usize, flow: &crate::kernel::Flow) -> bool {
        let connected = |one, other| self.nodes_connected(one, other);
        self.network(&connected).passes(node, flow.block())
    }

    /// Everything that can run does what is due: controllers first, then agents.
    pub(crate) fn everyone(&mut self) {
        for number in 0..self.controllers.len() {
            self.sync(Client::Controller(number), None, usize::MAX);
            self.plan(number);
            while self.controllers[number].pending() > 0 {
                self.write(number, Fate::Made);
            }
        }
        for node in 0..self.machines.len() {
            self.sync(Client::Agent(node), None, usize::MAX);
            self.probe(node);
            self.agent(node, usize::MAX);
            self.status(node, Fate::Made);
        }
    }
}
