//! Scripts from seeds. Each seed switches off a random half of the kinds of faults ("swarm testing", Groce et al.,
//! ISSTA 2012): histories with few kinds of faults go further than histories with all of them.

use crate::script::{Cluster, Script};
use crate::step::{Client, Fate, Kind, Part, Place, Step};
use fastrand::Rng;

/// Kinds of steps, and their weights. Those behind [`CALM`] are faults.
const WEIGHTS: [(Choice, u32); 35] = [
    (Choice::Round, 10),
    (Choice::Wait, 6),
    (Choice::Sync, 16),
    (Choice::Agent, 12),
    (Choice::Status, 8),
    (Choice::Probe, 8),
    (Choice::Plan, 6),
    (Choice::Write, 12),
    (Choice::Open, 8),
    (Choice::Close, 5),
    (Choice::AddPod, 6),
    (Choice::RemovePod, 4),
    (Choice::Repoint, 1),
    (Choice::AgentDies, 1),
    (Choice::BadStatus, 3),
    (Choice::BadWrite, 3),
    (Choice::Lead, 1),
    (Choice::LeadToo, 1),
    (Choice::CutApi, 1),
    (Choice::CutNodes, 1),
    (Choice::Kill, 1),
    (Choice::Reboot, 1),
    (Choice::Freeze, 1),
    (Choice::DeleteNode, 1),
    (Choice::DeleteGatewayNode, 1),
    (Choice::Replace, 1),
    (Choice::Fence, 1),
    (Choice::Downgrade, 1),
    (Choice::Clock, 1),
    (Choice::DeleteAddress, 1),
    (Choice::DeleteRecord, 1),
    (Choice::Restore, 1),
    (Choice::LongWait, 2),
    (Choice::Burst, 1),
    (Choice::Mend, 6),
];

/// Number of kinds of steps that are always there.
const CALM: usize = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Round,
    Wait,
    Sync,
    Agent,
    Status,
    Probe,
    Plan,
    Write,
    Open,
    Close,
    AddPod,
    RemovePod,
    Repoint,
    AgentDies,
    BadStatus,
    BadWrite,
    Lead,
    LeadToo,
    CutApi,
    CutNodes,
    Kill,
    Reboot,
    Freeze,
    DeleteNode,
    DeleteGatewayNode,
    Replace,
    Fence,
    Downgrade,
    Clock,
    DeleteAddress,
    DeleteRecord,
    Restore,
    LongWait,
    Burst,
    Mend,
}

/// Every so many seeds nothing fails, and gateways are drained: no flow may be interrupted.
const MAINTENANCE_EVERY: u64 = 8;

/// Steps between two drains, at most.
const DRAIN_EVERY: usize = 60;

/// A generator of steps.
struct Generator {
    rng: Rng,
    cluster: Cluster,
    /// Repairs of faults that are in force.
    repairs: Vec<Step>,
}

/// The script of a seed.
pub fn script(seed: u64, steps: usize) -> Script {
    let mut rng = Rng::with_seed(seed);
    let free = if rng.bool() { rng.usize(8..=16) } else { 0 };
    let cluster = Cluster {
        workers: rng.usize(2..=4),
        gateways: rng.usize(1..=3),
        mixed: rng.u8(0..4) == 0,
        addresses: rng.usize(1..=3),
        ports: if free > 0 {
            64
        } else {
            [64, 128, 256][rng.usize(0..3)]
        },
        announcer_only: rng.u8(0..4) == 0,
        free,
    };
    let is_maintenance = seed.is_multiple_of(MAINTENANCE_EVERY);
    let weights = WEIGHTS
        .iter()
        .enumerate()
        .map(|(number, (choice, weight))| {
            let is_on = number < CALM || *choice == Choice::Mend || rng.bool();
            let is_calm = number < CALM || *choice == Choice::LongWait;
            let is_on = if is_maintenance { is_calm } else { is_on };
            (*choice, if is_on { *weight } else { 0 })
        });
    let mut weights: Vec<(Choice, u32)> = weights.collect();
    // Agents of the version before acknowledge nothing, so that no node shows that the store has gone back.
    let is_old = weights.contains(&(Choice::Downgrade, 1));
    let restores = weights
        .iter_mut()
        .filter(|(choice, _)| *choice == Choice::Restore);
    restores
        .filter(|_| is_old)
        .for_each(|(_, weight)| *weight = 0);
    let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let mut generator = Generator {
        rng,
        cluster,
        repairs: Vec::new(),
    };
    let mut script = Script {
        cluster,
        steps: Vec::with_capacity(steps),
    };
    while script.steps.len() < steps {
        let mut left = generator.rng.u32(0..total);
        let chosen = weights.iter().find(|(_, weight)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found
        });
        let (choice, _) = chosen.expect("the number is below the sum");
        generator.add(*choice, &mut script.steps);
    }
    // Numbers of their own, so that drains change nothing else in the history of a seed.
    let mut rng = Rng::with_seed(!seed);
    if is_maintenance || rng.u8(0..4) == 0 {
        add_drains(&mut script, &mut rng);
    }
    script.steps.truncate(steps);
    script
}

/// Drains gateways, and takes them into service again.
fn add_drains(script: &mut Script, rng: &mut Rng) {
    let cluster = script.cluster;
    let mut drained = vec![false; cluster.gateways];
    let mut position = rng.usize(0..DRAIN_EVERY);
    while position < script.steps.len() {
        let number = rng.usize(0..cluster.gateways);
        let node = cluster.workers + number;
        let step = match drained[number] {
            false => Step::Drain(node),
            true => Step::Undrain(node),
        };
        drained[number] = !drained[number];
        script.steps.insert(position, step);
        position += rng.usize(1..DRAIN_EVERY);
    }
}

impl Generator {
    fn node(&mut self) -> usize {
        self.rng.usize(0..self.cluster.nodes())
    }

    fn worker(&mut self) -> usize {
        self.rng.usize(0..self.cluster.workers)
    }

    fn host(&mut self) -> usize {
        match self.cluster.mixed {
            true => self.node(),
            false => self.worker(),
        }
    }

    fn pod(&mut self) -> usize {
        self.rng.usize(0..3 * self.cluster.policies())
    }

    /// The first controller leads most of the time, so it is chosen more often.
    fn controller(&mut self) -> usize {
        usize::from(self.rng.u8(0..4) == 0)
    }

    fn client(&mut self) -> Client {
        match self.rng.u8(0..4) {
            0 => Client::Controller(self.controller()),
            _ => Client::Agent(self.node()),
        }
    }

    fn kind(&mut self) -> Kind {
        Kind::ALL[[0, 1, 2, 3, 3, 4, 4][self.rng.usize(0..7)]]
    }

    fn changes(&mut self) -> usize {
        [1, 2, 100][self.rng.usize(0..3)]
    }

    fn bad(&mut self) -> Fate {
        [Fate::Refused, Fate::Unanswered, Fate::Late, Fate::Twice][self.rng.usize(0..4)]
    }

    /// Adds a fault, and remembers what repairs it.
    fn fault(&mut self, steps: &mut Vec<Step>, fault: Step, repair: Step) {
        steps.push(fault);
        self.repairs.push(repair);
    }

    fn add(&mut self, choice: Choice, steps: &mut Vec<Step>) {
        match choice {
            Choice::Round => steps.push(Step::Round(self.rng.u64(0..3_000))),
            Choice::Wait => steps.push(Step::Wait(self.rng.u64(1..4_000))),
            Choice::LongWait => {
                let ms = [20_000, 61_000, 118_000, 121_000, 130_000, 3_600_000];
                steps.push(Step::Wait(ms[self.rng.usize(0..ms.len())]));
            }
            Choice::Sync => {
                let step = Step::Sync(self.client(), self.kind(), self.changes());
                steps.push(step);
            }
            Choice::Agent => steps.push(Step::Agent(self.node())),
            Choice::Status => steps.push(Step::Status(self.node(), Fate::Made)),
            Choice::BadStatus => {
                let step = Step::Status(self.node(), self.bad());
                steps.push(step);
                self.repairs.push(Step::Land);
            }
            Choice::Probe => steps.push(Step::Probe(self.node())),
            Choice::Plan => steps.push(Step::Plan(self.controller())),
            Choice::Write => steps.push(Step::Write(self.controller(), Fate::Made)),
            Choice::BadWrite => {
                let step = Step::Write(self.controller(), self.bad());
                steps.push(step);
                self.repairs.push(Step::Land);
            }
            Choice::Open | Choice::Burst => {
                let flows = if choice == Choice::Burst {
                    40
                } else {
                    self.rng.usize(1..4)
                };
                let (pod, destination) = (self.pod(), self.rng.usize(0..3));
                steps.push(Step::Open {
                    pod,
                    destination,
                    flows,
                });
            }
            Choice::Close => {
                let part =
                    [Part::All, Part::Half, Part::Orphans, Part::Orphans][self.rng.usize(0..4)];
                steps.push(Step::Close(self.node(), part));
            }
            Choice::AddPod => {
                let step = Step::AddPod(self.pod(), self.host());
                steps.push(step);
            }
            Choice::RemovePod => steps.push(Step::RemovePod(self.pod())),
            Choice::Repoint => {
                let policy = self.rng.usize(0..self.cluster.policies());
                steps.push(Step::Repoint(
                    policy,
                    self.rng.usize(0..self.cluster.addresses),
                ));
            }
            Choice::Mend => {
                if !self.repairs.is_empty() {
                    let one = self.rng.usize(0..self.repairs.len());
                    steps.push(self.repairs.swap_remove(one));
                }
            }
            _ => self.add_fault(choice, steps),
        }
    }

    fn add_fault(&mut self, choice: Choice, steps: &mut Vec<Step>) {
        let node = self.node();
        let lag = [0, 0, 1, 3, 10][self.rng.usize(0..5)];
        // A gateway that lists stale objects claims a version that it does not have: `SteeringMemory` outlives the agent
        // without its tables.
        let lag = if self.cluster.is_gateway(node) {
            0
        } else {
            lag
        };
        match choice {
            Choice::AgentDies => {
                self.fault(
                    steps,
                    Step::AgentDies(node, self.rng.clone().usize(0..6)),
                    Step::Start(node, lag),
                );
            }
            Choice::Lead => {
                let number = self.rng.usize(0..2);
                steps.push(Step::Lead(number));
            }
            Choice::LeadToo => {
                let number = self.rng.usize(0..2);
                self.fault(
                    steps,
                    Step::LeadToo(number),
                    Step::Lead(self.rng.clone().usize(0..2)),
                );
            }
            Choice::CutApi => {
                let place = match self.rng.u8(0..4) {
                    0 => Place::Controller(self.rng.usize(0..2)),
                    _ => Place::Node(node),
                };
                self.fault(
                    steps,
                    Step::Cut(Place::Api, place),
                    Step::Join(Place::Api, place),
                );
            }
            Choice::CutNodes => {
                let (one, other) = (Place::Node(node), Place::Node(self.node()));
                self.fault(steps, Step::Cut(one, other), Step::Join(one, other));
            }
            Choice::Kill => self.fault(steps, Step::Kill(node), Step::Start(node, lag)),
            Choice::Reboot => self.fault(steps, Step::Reboot(node), Step::Start(node, lag)),
            Choice::Freeze => self.fault(steps, Step::Freeze(node), Step::Thaw(node)),
            Choice::DeleteNode => {
                let node = self.worker();
                self.fault(steps, Step::DeleteNode(node), Step::CreateNode(node));
            }
            Choice::DeleteGatewayNode => {
                let node = self.cluster.workers + self.rng.usize(0..self.cluster.gateways);
                self.fault(steps, Step::DeleteNode(node), Step::CreateNode(node));
            }
            Choice::Replace => steps.push(Step::Replace(node)),
            Choice::Fence => self.fault(steps, Step::Fence(node), Step::Unfence(node)),
            Choice::Downgrade => {
                steps.push(Step::Downgrade(node));
                self.repairs.push(Step::Kill(node));
                self.repairs.push(Step::Start(node, 0));
            }
            Choice::Clock => {
                let seconds = [-86_400, -121, -3, 3, 121, 86_400][self.rng.usize(0..6)];
                let number = self.rng.usize(0..2);
                steps.push(Step::Clock(Place::Controller(number), seconds));
            }
            Choice::DeleteAddress => {
                steps.push(Step::DeleteAddress(
                    self.rng.usize(0..self.cluster.addresses),
                ));
            }
            Choice::DeleteRecord => steps.push(Step::DeleteRecord(node)),
            Choice::Restore => self.fault(steps, Step::Backup, Step::Restore),
            _ => unreachable!("no fault"),
        }
    }
}
