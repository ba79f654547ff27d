//! One step of a script. A step that makes no sense where it stands changes nothing, so that scripts can be shortened.

use std::fmt;
use std::str::{FromStr, SplitWhitespace};

/// Who reads the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// A controller.
    Controller(usize),
    /// The agent of a node.
    Agent(usize),
}

/// Where something happens in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The API server.
    Api,
    /// A controller.
    Controller(usize),
    /// A node.
    Node(usize),
}

/// Kinds of objects that are watched one by one: order is kept within a kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Nodes,
    Pods,
    Policies,
    Addresses,
    Records,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 5] = [
        Kind::Nodes,
        Kind::Pods,
        Kind::Policies,
        Kind::Addresses,
        Kind::Records,
    ];
    const NAMES: [&'static str; 5] = ["nodes", "pods", "policies", "addresses", "records"];
}

/// What becomes of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is made, and the client is told.
    Made,
    /// It is refused, or lost on its way.
    Refused,
    /// It is made, and the answer is lost.
    Unanswered,
    /// The client gives up; the store makes it at a later [`Step::Land`].
    Late,
    /// It is made, the client is told, and it is made again at a later [`Step::Land`].
    Twice,
}

impl Fate {
    const ALL: [Fate; 5] = [
        Fate::Made,
        Fate::Refused,
        Fate::Unanswered,
        Fate::Late,
        Fate::Twice,
    ];
    const NAMES: [&'static str; 5] = ["made", "refused", "unanswered", "late", "twice"];
}

/// Which flows of a node end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All.
    All,
    /// Every second one.
    Half,
    /// Those of pods that are gone.
    Orphans,
}

impl Part {
    const ALL: [Part; 3] = [Part::All, Part::Half, Part::Orphans];
    const NAMES: [&'static str; 3] = ["all", "half", "orphans"];
}

/// One step. Nodes, controllers, pods, policies and addresses are numbers from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Milliseconds pass, and nobody does anything but send packets.
    Wait(u64),
    /// Every process that can run does everything that is due, once. Then milliseconds pass.
    Round(u64),
    /// A pod appears on a node.
    AddPod(usize, usize),
    /// A pod is gone.
    RemovePod(usize),
    /// A policy gets another address.
    Repoint(usize, usize),
    /// A client reads this number of changes of one kind.
    Sync(Client, Kind, usize),
    /// The agent of a node makes a round of its main loop.
    Agent(usize),
    /// The same, and its process ends after this number of parts of the round.
    AgentDies(usize, usize),
    /// The agent's newest status is written.
    Status(usize, Fate),
    /// The store makes the oldest late write.
    Land,
    /// The agent probes its gateways for a quarter of a second.
    Probe(usize),
    /// A leading controller plans, and drops what is left of its earlier plan.
    Plan(usize),
    /// A controller makes the next write of its plan.
    Write(usize, Fate),
    /// A controller begins to lead. The other one stops.
    Lead(usize),
    /// A controller begins to lead, and the other one does not notice.
    LeadToo(usize),
    /// Packets between two places are lost.
    Cut(Place, Place),
    /// They arrive again.
    Join(Place, Place),
    /// The agent's process ends.
    Kill(usize),
    /// The agent's process starts. Its first lists lack this number of changes of each kind.
    Start(usize, usize),
    /// The machine starts anew: its kernel is empty.
    Reboot(usize),
    /// The machine stops: neither kernel nor agent does anything.
    Freeze(usize),
    /// It goes on.
    Thaw(usize),
    /// The Node object is deleted.
    DeleteNode(usize),
    /// The Node object is made again.
    CreateNode(usize),
    /// Another machine takes the place and the name of this one, which is switched off.
    Replace(usize),
    /// An operator fences the node.
    Fence(usize),
    /// The fence is taken back.
    Unfence(usize),
    /// An operator drains the node: `egret drain`, `kubectl cordon`.
    Drain(usize),
    /// The node is in service again.
    Undrain(usize),
    /// The agent's process ends, and one of the version before starts.
    Downgrade(usize),
    /// A wall clock jumps by this number of seconds.
    Clock(Place, i64),
    /// A pod opens flows to a destination.
    Open {
        /// The pod.
        pod: usize,
        /// The destination.
        destination: usize,
        /// Number of flows.
        flows: usize,
    },
    /// Flows of a node end.
    Close(usize, Part),
    /// It is an error if a pod cannot open a flow now, or gets no replies.
    Served(usize),
    /// Somebody deletes an `EgressAddress`.
    DeleteAddress(usize),
    /// Somebody deletes an `EgressNode`.
    DeleteRecord(usize),
    /// A backup of the store is made.
    Backup,
    /// The newest backup of Egret's records is restored.
    Restore,
}

impl Step {
    /// Whether the step is part of a calm history: nothing fails, and every write arrives. Planned maintenance is calm.
    pub fn is_calm(self) -> bool {
        match self {
            Step::Wait(_)
            | Step::Round(_)
            | Step::AddPod(..)
            | Step::RemovePod(_)
            | Step::Repoint(..)
            | Step::Sync(..)
            | Step::Agent(_)
            | Step::Probe(_)
            | Step::Plan(_)
            | Step::Lead(_)
            | Step::Drain(_)
            | Step::Undrain(_)
            | Step::Open { .. }
            | Step::Close(..)
            | Step::Served(_)
            | Step::Backup => true,
            Step::Status(_, fate) | Step::Write(_, fate) => fate == Fate::Made,
            _ => false,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Controller(number) => write!(f, "controller{number}"),
            Client::Agent(number) => write!(f, "node{number}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Api => f.write_str("api"),
            Place::Controller(number) => write!(f, "controller{number}"),
            Place::Node(number) => write!(f, "node{number}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Step::Wait(ms) => write!(f, "wait {ms}"),
            Step::Round(ms) => write!(f, "round {ms}"),
            Step::AddPod(pod, node) => write!(f, "add-pod {pod} {node}"),
            Step::RemovePod(pod) => write!(f, "remove-pod {pod}"),
            Step::Repoint(policy, address) => write!(f, "repoint {policy} {address}"),
            Step::Sync(client, kind, changes) => {
                write!(f, "sync {client} {} {changes}", Kind::NAMES[kind as usize])
            }
            Step::Agent(node) => write!(f, "agent {node}"),
            Step::AgentDies(node, parts) => write!(f, "agent-dies {node} {parts}"),
            Step::Status(node, fate) => write!(f, "status {node} {}", Fate::NAMES[fate as usize]),
            Step::Land => f.write_str("land"),
            Step::Probe(node) => write!(f, "probe {node}"),
            Step::Plan(controller) => write!(f, "plan {controller}"),
            Step::Write(controller, fate) => {
                write!(f, "write {controller} {}", Fate::NAMES[fate as usize])
            }
            Step::Lead(controller) => write!(f, "lead {controller}"),
            Step::LeadToo(controller) => write!(f, "lead-too {controller}"),
            Step::Cut(one, other) => write!(f, "cut {one} {other}"),
            Step::Join(one, other) => write!(f, "join {one} {other}"),
            Step::Kill(node) => write!(f, "kill {node}"),
            Step::Start(node, lag) => write!(f, "start {node} {lag}"),
            Step::Reboot(node) => write!(f, "reboot {node}"),
            Step::Freeze(node) => write!(f, "freeze {node}"),
            Step::Thaw(node) => write!(f, "thaw {node}"),
            Step::DeleteNode(node) => write!(f, "delete-node {node}"),
            Step::CreateNode(node) => write!(f, "create-node {node}"),
            Step::Replace(node) => write!(f, "replace {node}"),
            Step::Fence(node) => write!(f, "fence {node}"),
            Step::Unfence(node) => write!(f, "unfence {node}"),
            Step::Drain(node) => write!(f, "drain {node}"),
            Step::Undrain(node) => write!(f, "undrain {node}"),
            Step::Downgrade(node) => write!(f, "downgrade {node}"),
            Step::Clock(place, seconds) => write!(f, "clock {place} {seconds}"),
            Step::Open {
                pod,
                destination,
                flows,
            } => write!(f, "open {pod} {destination} {flows}"),
            Step::Close(node, part) => write!(f, "close {node} {}", Part::NAMES[part as usize]),
            Step::Served(pod) => write!(f, "served {pod}"),
            Step::DeleteAddress(address) => write!(f, "delete-address {address}"),
            Step::DeleteRecord(node) => write!(f, "delete-record {node}"),
            Step::Backup => f.write_str("backup"),
            Step::Restore => f.write_str("restore"),
        }
    }
}

/// Words of one line.
struct Words<'a>(SplitWhitespace<'a>);

impl Words<'_> {
    fn word(&mut self) -> Result<&str, String> {
        self.0
            .next()
            .ok_or_else(|| "the line ends too early".to_owned())
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.word()?;
        word.parse()
            .map_err(|_| format!("{word} is no such number"))
    }

    fn named<T: Copy>(&mut self, names: &[&str], values: &[T]) -> Result<T, String> {
        let word = self.word()?;
        let found = names.iter().zip(values).find(|(name, _)| **name == word);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("{word} is none of {names:?}"))
    }

    fn place(&mut self) -> Result<Place, String> {
        let word = self.word()?;
        if word == "api" {
            return Ok(Place::Api);
        }
        let number = |name: &str| word.strip_prefix(name).and_then(|rest| rest.parse().ok());
        let controller = number("controller").map(Place::Controller);
        let found = controller.or_else(|| number("node").map(Place::Node));
        found.ok_or_else(|| format!("{word} is no place"))
    }

    fn client(&mut self) -> Result<Client, String> {
        match self.place()? {
            Place::Controller(number) => Ok(Client::Controller(number)),
            Place::Node(number) => Ok(Client::Agent(number)),
            Place::Api => Err("the API is no client".to_owned()),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = Words(line.split_whitespace());
        let verb = words.word()?.to_owned();
        let w = &mut words;
        let step = match verb.as_str() {
            "wait" => Step::Wait(w.number()?),
            "round" => Step::Round(w.number()?),
            "add-pod" => Step::AddPod(w.number()?, w.number()?),
            "remove-pod" => Step::RemovePod(w.number()?),
            "repoint" => Step::Repoint(w.number()?, w.number()?),
            "sync" => Step::Sync(w.client()?, w.named(&Kind::NAMES, &Kind::ALL)?, w.number()?),
            "agent" => Step::Agent(w.number()?),
            "agent-dies" => Step::AgentDies(w.number()?, w.number()?),
            "status" => Step::Status(w.number()?, w.named(&Fate::NAMES, &Fate::ALL)?),
            "land" => Step::Land,
            "probe" => Step::Probe(w.number()?),
            "plan" => Step::Plan(w.number()?),
            "write" => Step::Write(w.number()?, w.named(&Fate::NAMES, &Fate::ALL)?),
            "lead" => Step::Lead(w.number()?),
            "lead-too" => Step::LeadToo(w.number()?),
            "cut" => Step::Cut(w.place()?, w.place()?),
            "join" => Step::Join(w.place()?, w.place()?),
            "kill" => Step::Kill(w.number()?),
            "start" => Step::Start(w.number()?, w.number()?),
            "reboot" => Step::Reboot(w.number()?),
            "freeze" => Step::Freeze(w.number()?),
            "thaw" => Step::Thaw(w.number()?),
            "delete-node" => Step::DeleteNode(w.number()?),
            "create-node" => Step::CreateNode(w.number()?),
            "replace" => Step::Replace(w.number()?),
            "fence" => Step::Fence(w.number()?),
            "unfence" => Step::Unfence(w.number()?),
            "drain" => Step::Drain(w.number()?),
            "undrain" => Step::Undrain(w.number()?),
            "downgrade" => Step::Downgrade(w.number()?),
            "clock" => Step::Clock(w.place()?, w.number()?),
            "open" => Step::Open {
                pod: w.number()?,
                destination: w.number()?,
                flows: w.number()?,
            },
            "close" => Step::Close(w.number()?, w.named(&Part::NAMES, &Part::ALL)?),
            "served" => Step::Served(w.number()?),
            "delete-address" => Step::DeleteAddress(w.number()?),
            "delete-record" => Step::DeleteRecord(w.number()?),
            "backup" => Step::Backup,
            "restore" => Step::Restore,
            other => return Err(format!("{other} is no step")),
        };
        match words.0.next() {
            Some(word) => Err(format!("{word} is too much")),
            None => Ok(step),
        }
    }
}
