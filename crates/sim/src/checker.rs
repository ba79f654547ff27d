//! The checker: what kernels hold and do, whatever anybody planned. It shares no code with the planner, the agents'
//! decisions or `core::check`.
//!
//! Its one assumption about people: the Node object of a gateway is deleted, or the gateway fenced, only when the machine is
//! off or empty. So such a gateway is not looked at, until it has read all records after that has ended.

use crate::cluster::HOLD_DOWN_SECS;
use crate::kernel::{Block, Exit, Flow};
use crate::machine::Machine;
use egret_core::model::{Lease, LeaseState, NodeName, Snapshot};
use egret_core::numbers::BLOCK_PORTS;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A rule that a run can violate. P and R numbers: docs/properties.md and `nat-behaviour.md` section 12.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// P1: a packet of a selected pod leaves with another source than its policy's.
    WrongSource,
    /// P4, R1: two machines may send from one block, or have flows in it, and gateways let both through.
    TwoOwners,
    /// R3: packets of a machine are let through from a block that another node used within the hold-down.
    RestTooShort,
    /// R2: a machine opens a flow in a block that a live gateway of its group does not claim to have yet.
    UsedBeforeMade,
    /// R2: a gateway answers with a version whose leases its tables lack.
    VersionWithoutTable,
    /// P3: a flow that got replies loses its way although nothing has failed: gateways are drained at most.
    Interrupted,
    /// P3, P5: everything is whole again for minutes, and a pod cannot open a flow or gets no replies.
    NotServed,
    /// Ports do not come back: leases are left although nobody has used them for longer than any delay.
    NeverFree,
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// Number of the step after which it was found; the number of steps where it was found after the last one.
    pub step: usize,
    /// What was found.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after step {}: {}", self.rule, self.step, self.text)
    }
}

/// Seconds by which a hold-down may be short: times in records are whole seconds.
const ROUNDING_SECS: u64 = 2;

/// The last machine whose packets with a source in a block were let through.
#[derive(Debug)]
struct LastUse {
    node: NodeName,
    machine: usize,
    at_ms: u64,
}

/// The state of the network.
pub struct Network<'a> {
    /// The machines, by node.
    pub machines: &'a [Machine],
    /// The objects as they are.
    pub objects: &'a Snapshot,
    /// Nodes whose record was ever deleted or restored.
    pub disturbed: &'a BTreeSet<NodeName>,
    /// Addresses whose record somebody deleted or restored.
    pub torn: &'a BTreeSet<IpAddr>,
    /// Addresses whose record somebody restored.
    pub restored: &'a BTreeSet<IpAddr>,
    /// Whether packets pass between two nodes.
    pub connected: &'a dyn Fn(usize, usize) -> bool,
    /// Milliseconds since the beginning.
    pub now_ms: u64,
}

impl Network<'_> {
    /// Gateways that are looked at.
    fn gateways(&self) -> impl Iterator<Item = (usize, &Machine)> {
        let all = self.machines.iter().enumerate();
        all.filter(|(_, machine)| {
            let node = self.objects.nodes.get(&machine.name);
            let is_here = node.is_some_and(|node| node.maintenance.fence.is_none());
            machine.is_gateway && machine.is_known && is_here
        })
    }

    /// Whether some gateway lets packets of this machine from this block out, if they reach it.
    fn is_admitted(&self, node: usize, block: Block) -> bool {
        let machine = &self.machines[node];
        self.gateways()
            .any(|(number, gateway)| match number == node {
                true => machine.kernel.exits.get(&block.0) == Some(&Exit::Local),
                false => {
                    let tables = gateway.kernel.gateway.as_ref();
                    tables.is_some_and(|tables| tables.admit(block, machine.underlay))
                }
            })
    }

    /// Whether packets of this machine from this block get out now, by some gateway that it sends to.
    pub fn passes(&self, node: usize, block: Block) -> bool {
        let machine = &self.machines[node];
        match machine.kernel.exits.get(&block.0) {
            None | Some(Exit::Nowhere) => false,
            Some(Exit::Local) => self.gateways().any(|(number, _)| number == node),
            Some(Exit::Tunnel(members)) => self.gateways().any(|(number, gateway)| {
                members.contains(&gateway.underlay)
                    && !gateway.is_frozen
                    && (self.connected)(node, number)
                    && gateway
                        .kernel
                        .gateway
                        .as_ref()
                        .is_some_and(|tables| tables.admit(block, machine.underlay))
            }),
        }
    }
}

/// The checker of one run.
#[derive(Debug, Default)]
pub struct Checker {
    last_use: BTreeMap<Block, LastUse>,
}

impl Checker {
    /// Looks at everything after a step.
    pub fn look(&mut self, network: &Network<'_>) -> Result<(), (Rule, String)> {
        self.owners(network)?;
        self.uses(network)?;
        claims(network)
    }

    /// P4: every block that two machines could use.
    fn owners(&self, network: &Network<'_>) -> Result<(), (Rule, String)> {
        let mut users: Vec<(Block, usize)> = Vec::with_capacity(64);
        for (node, machine) in network.machines.iter().enumerate() {
            users.extend(machine.kernel.usable.iter().map(|block| (*block, node)));
            users.extend(machine.kernel.blocks().map(|block| (block, node)));
        }
        users.sort_unstable();
        users.dedup();
        for same in users
            .chunk_by(|one, other| one.0 == other.0)
            .filter(|same| same.len() > 1)
        {
            let block = same[0].0;
            let mut admitted = same
                .iter()
                .filter(|(_, node)| network.is_admitted(*node, block));
            if let (Some((_, one)), Some((_, other))) = (admitted.next(), admitted.next()) {
                let text = format!(
                    "{} and {} both have {}, and gateways let both through",
                    network.machines[*one].name,
                    network.machines[*other].name,
                    show(block)
                );
                return Err((Rule::TwoOwners, text));
            }
        }
        Ok(())
    }

    /// R3: every flow whose packets get out uses its block now. Idle flows count: they may send at any time.
    fn uses(&mut self, network: &Network<'_>) -> Result<(), (Rule, String)> {
        let rest_ms = (HOLD_DOWN_SECS - ROUNDING_SECS) * 1000;
        for (node, machine) in network.machines.iter().enumerate() {
            if machine.is_frozen {
                continue;
            }
            for block in machine.kernel.blocks() {
                if !network.passes(node, block) {
                    continue;
                }
                let (name, number, at_ms) = (&machine.name, machine.number, network.now_ms);
                let entry = self.last_use.entry(block);
                let last = entry.or_insert_with(|| LastUse {
                    node: name.clone(),
                    machine: number,
                    at_ms,
                });
                let rested_ms = at_ms - last.at_ms;
                // Which blocks have rested since the backup, nobody knows until some node shows that it was restored.
                let is_restored = network.restored.contains(&block.0);
                if last.node != *name && rested_ms < rest_ms && !is_restored {
                    let text = format!(
                        "{name} sends from {}, which {} (machine {}) used {rested_ms} ms ago",
                        show(block),
                        last.node,
                        last.machine
                    );
                    return Err((Rule::RestTooShort, text));
                }
                if last.machine != number || last.node != *name {
                    *last = LastUse {
                        node: name.clone(),
                        machine: number,
                        at_ms,
                    };
                }
                last.at_ms = at_ms;
            }
        }
        Ok(())
    }

    /// A flow that a pod has just opened on a node; `allowed`: the addresses that its policy has had.
    pub fn opened(
        &self,
        network: &Network<'_>,
        node: usize,
        flow: &Flow,
        allowed: &[IpAddr],
    ) -> Result<(), (Rule, String)> {
        let machine = &network.machines[node];
        if !allowed.contains(&flow.address) {
            let text = format!("a pod of {} leaves with {}", machine.name, flow.address);
            return Err((Rule::WrongSource, text));
        }
        let (Some(agent), Some(Exit::Tunnel(members))) =
            (&machine.agent, machine.kernel.exits.get(&flow.address))
        else {
            return Ok(());
        };
        let epoch = epoch_of(network, &machine.name, flow.block());
        // Without its record, gateways have dropped the table; the flow is lost and nothing worse.
        let Some(epoch) = epoch.filter(|_| !network.torn.contains(&flow.address)) else {
            return Ok(());
        };
        let seen = agent.gateways();
        for (_, gateway) in network.gateways() {
            let tables = gateway.kernel.gateway.as_ref();
            let version = tables.map_or(0, |tables| tables.version);
            let admits = tables.is_some_and(|tables| tables.admit(flow.block(), machine.underlay));
            let answered = seen.versions.get(&gateway.name).copied().unwrap_or(0);
            let counts = members.contains(&gateway.underlay) && seen.live.contains(&gateway.name);
            if counts && !admits && version < epoch && answered <= version {
                let text = format!(
                    "{} opens a flow in {} of epoch {epoch}, and {} is at {version}",
                    machine.name,
                    show(flow.block()),
                    gateway.name
                );
                return Err((Rule::UsedBeforeMade, text));
            }
        }
        Ok(())
    }
}

/// Epoch of the lease by which a node has this block, if gateways are to steer it.
fn epoch_of(network: &Network<'_>, node: &NodeName, (address, block): Block) -> Option<u64> {
    let record = network.objects.addresses.get(&address)?;
    let mut leases = record
        .leases
        .iter()
        .filter(|lease| lease.node == *node && is_steered(lease.state));
    let has = |range: &egret_core::model::PortRange| {
        (range.first / BLOCK_PORTS..=range.last / BLOCK_PORTS).contains(&block)
    };
    leases
        .find(|lease| lease.ranges.iter().any(has))
        .map(|lease| lease.epoch)
}

fn is_steered(state: LeaseState) -> bool {
    !matches!(state, LeaseState::Fenced | LeaseState::HoldDown)
}

/// R2: a version in an answer means that the table has every lease up to it. A table that is newer than the record in the
/// store is left out: the store has gone back. So are nodes whose record somebody deleted: their numbers are lost for a
/// while.
fn claims(network: &Network<'_>) -> Result<(), (Rule, String)> {
    for (_, gateway) in network.gateways() {
        let Some(tables) = gateway
            .kernel
            .gateway
            .as_ref()
            .filter(|tables| tables.version > 0)
        else {
            continue;
        };
        for record in network.objects.addresses.values() {
            if tables.is_newer(record.address, record.epoch)
                || network.torn.contains(&record.address)
            {
                continue;
            }
            // A node that is gone gets a new epoch when it is back.
            let is_known =
                |lease: &&Lease| is_steered(lease.state) && lease.state != LeaseState::Vanished;
            let known = record.leases.iter().filter(is_known);
            for lease in known
                .filter(|lease| lease.epoch.max(lease.withdrawn.unwrap_or(0)) <= tables.version)
            {
                let owner = network.objects.node_records.get(&lease.node);
                let owner = owner.filter(|record| {
                    // Gateways may not have known the address of a node that is gone.
                    let is_here = network.objects.nodes.contains_key(&record.node);
                    is_here && !network.disturbed.contains(&record.node)
                });
                let Some(owner) = owner.map(|record| record.tunnel_index) else {
                    continue;
                };
                let first = lease
                    .ranges
                    .first()
                    .map(|range| (record.address, range.first / BLOCK_PORTS));
                let missing = first.filter(|block| tables.owner(*block) != Some(owner));
                if let Some(block) = missing {
                    let text = format!(
                        "{} answers version {} and does not steer {} of epoch {} to {}",
                        gateway.name,
                        tables.version,
                        show(block),
                        lease.epoch,
                        lease.node
                    );
                    return Err((Rule::VersionWithoutTable, text));
                }
            }
        }
    }
    Ok(())
}

fn show((address, block): Block) -> String {
    let first = u32::from(block) * u32::from(BLOCK_PORTS);
    format!(
        "{address} ports {first}-{}",
        first + u32::from(BLOCK_PORTS) - 1
    )
}
