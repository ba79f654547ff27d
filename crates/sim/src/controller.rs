//! One of two controllers: reads the store late, plans with the real planner, and writes one object at a time.

use crate::sabotage::Sabotage;
use crate::step::{Fate, Kind};
use crate::store::{Reader, Refused, Store};
use egret_core::model::{AddressRecord, LeaseState, NodeName, NodeRecord};
use egret_core::plan::planner::Planner;
use egret_core::plan::{ClusterPlan, PlanTime};
use std::collections::VecDeque;
use std::net::IpAddr;

/// One write of a plan.
#[derive(Clone, Debug)]
pub enum Write {
    /// An address record.
    Address(Box<AddressRecord>),
    /// The same, whatever version the store has.
    Forced(Box<AddressRecord>),
    /// The controller's part of a node record, and the record as it was read.
    Record(Box<NodeRecord>, Option<Box<NodeRecord>>),
    /// An address record goes, if it has this version.
    NoAddress(IpAddr, u64),
    /// A node record goes.
    NoRecord(NodeName),
}

impl Write {
    /// Makes the write.
    pub fn make(&self, store: &mut Store) -> Result<(), Refused> {
        match self {
            Write::Address(record) => store.write_address(record),
            Write::Forced(record) => {
                let mut record = record.clone();
                let known = store.state().addresses.get(&record.address);
                record.resource_version = known.map_or(0, |known| known.resource_version);
                store.write_address(&record)
            }
            Write::Record(record, seen) => store.write_record(record, seen.as_deref()),
            Write::NoAddress(address, version) => store.delete_address(*address, Some(*version)),
            Write::NoRecord(node) => {
                store.delete_record(node);
                Ok(())
            }
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Write::Address(_) | Write::Forced(_) | Write::NoAddress(..) => Kind::Addresses,
            Write::Record(..) | Write::NoRecord(_) => Kind::Records,
        }
    }
}

/// A term of leadership.
#[derive(Clone, Copy, Debug)]
struct Term {
    number: u64,
    began_ms: u64,
    began_secs: i64,
}

/// One controller.
pub struct Controller {
    /// What it has read.
    pub reader: Reader,
    /// Seconds by which its wall clock is ahead.
    pub clock_secs: i64,
    term: Option<Term>,
    planner: Option<Planner>,
    queue: VecDeque<Write>,
}

impl Controller {
    /// A controller that does not lead.
    pub fn new(reader: Reader) -> Self {
        Self {
            reader,
            clock_secs: 0,
            term: None,
            planner: None,
            queue: VecDeque::new(),
        }
    }

    /// Whether it believes to lead.
    pub fn leads(&self) -> bool {
        self.term.is_some()
    }

    /// Writes that are left of its plan.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Begins a term. As in the program, its number is the wall clock in nanoseconds; `count` stands for the nanoseconds.
    pub fn lead(&mut self, now_ms: u64, count: u64) {
        let now = i64::try_from(now_ms / 1000).expect("short runs");
        let began_secs = 1_000_000 + now + self.clock_secs;
        let number = u64::try_from(began_secs.max(0)).unwrap_or(0) * 1_000_000_000 + count;
        self.term = Some(Term {
            number,
            began_ms: now_ms,
            began_secs,
        });
        self.queue.clear();
    }

    /// Ends its term.
    pub fn follow(&mut self) {
        self.term = None;
        self.queue.clear();
        self.planner = None;
    }

    /// Plans; earlier writes that were not made are forgotten.
    pub fn plan(&mut self, now_ms: u64, sabotage: Option<Sabotage>) {
        let Some(term) = self.term else { return };
        let passed = (now_ms - term.began_ms) / 1000;
        let time = PlanTime {
            now_secs: term.began_secs + i64::try_from(passed).expect("short runs"),
            term: term.number,
        };
        let view = self.reader.view.clone();
        match &mut self.planner {
            Some(planner) => drop(planner.follow(view, time)),
            none => *none = Some(Planner::new(view, time)),
        }
        let planner = self.planner.as_ref().expect("made above");
        let plan = planner.plan();
        self.queue = match sabotage {
            Some(Sabotage::NoHoldDown | Sabotage::NoFence) => {
                writes(&self.reader, &edited(plan, time, sabotage))
            }
            _ => writes(&self.reader, plan),
        };
        if sabotage == Some(Sabotage::StaleGrowth) {
            for write in &mut self.queue {
                if let Write::Address(record) = write {
                    *write = Write::Forced(record.clone());
                }
            }
        }
    }

    /// Takes the next write of the plan.
    pub fn next_write(&mut self) -> Option<Write> {
        self.queue.pop_front()
    }

    /// Makes a write, and learns what became of it.
    pub fn write(&mut self, store: &mut Store, write: &Write, fate: Fate) {
        let before = store.changes(write.kind());
        let made = match fate {
            Fate::Made | Fate::Unanswered | Fate::Twice => write.make(store),
            Fate::Refused | Fate::Late => Err(Refused::Conflict),
        };
        match made {
            Ok(()) if fate != Fate::Unanswered => {
                if store.changes(write.kind()) > before {
                    self.reader.wrote(store, write.kind());
                }
            }
            _ => self.queue.clear(),
        }
    }
}

/// The writes of a plan, in their order.
fn writes(reader: &Reader, plan: &ClusterPlan) -> VecDeque<Write> {
    let view = &reader.view;
    let address = |address: &IpAddr| Write::Address(Box::new(plan.addresses[address].clone()));
    let record = |node: &NodeName| {
        let spec = &plan.node_records[node];
        let seen = view.node_records.get(node).cloned();
        let known = seen
            .clone()
            .unwrap_or_else(|| NodeRecord::new(node.clone()));
        let record = NodeRecord {
            tunnel_index: spec.tunnel_index,
            grants: spec.grants.clone(),
            draining: spec.draining.clone(),
            resting: spec.resting.clone(),
            fenced: spec.fenced.clone(),
            grants_epoch: spec.grants_epoch,
            pod_prefixes: spec.pod_prefixes.clone(),
            ..known
        };
        Write::Record(Box::new(record), seen.map(Box::new))
    };
    let deletion = |address: &IpAddr| {
        let record = view.addresses.get(address)?;
        Some(Write::NoAddress(*address, record.resource_version))
    };
    let addresses = plan.address_writes.iter().map(address);
    let records = plan.node_writes.iter().map(record);
    let deletions = plan.address_deletions.iter().filter_map(deletion);
    let no_records = plan.node_deletions.iter().cloned().map(Write::NoRecord);
    addresses
        .chain(records)
        .chain(deletions)
        .chain(no_records)
        .collect()
}

/// The plan as a broken planner would make it.
fn edited(plan: &ClusterPlan, time: PlanTime, sabotage: Option<Sabotage>) -> ClusterPlan {
    let mut plan = plan.clone();
    for (address, record) in &mut plan.addresses {
        let before = record.leases.len();
        match sabotage {
            Some(Sabotage::NoHoldDown) => record.leases.retain(|l| l.state != LeaseState::HoldDown),
            _ => {
                let mut changed = false;
                for lease in record
                    .leases
                    .iter_mut()
                    .filter(|l| l.state == LeaseState::Fenced)
                {
                    lease.state = LeaseState::HoldDown;
                    lease.since_secs = time.now_secs;
                    changed = true;
                }
                if changed && !plan.address_writes.contains(address) {
                    plan.address_writes.push(*address);
                }
            }
        }
        if record.leases.len() != before && !plan.address_writes.contains(address) {
            plan.address_writes.push(*address);
        }
    }
    plan
}
