//! How an agent treats its leases: core's machine for them, over a model kernel, and how it can be broken.

use crate::kernel::{Block, Kernel};
use crate::sabotage::Sabotage;
use egret_core::machines::{GrantMemory, LeaseReport, NodeLeases, ReportNumber};
use egret_core::model::{AddressPorts, NodeRecord, PortBlocks};
use egret_core::node::{NodeGrants, WorkerState};
use egret_core::numbers::BLOCK_PORTS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The leases of one agent process.
#[derive(Clone, Debug)]
pub struct LeaseRules {
    leases: NodeLeases,
    sabotage: Option<Sabotage>,
    /// The version before: it uses each grant at once, and reports what it uses by address alone.
    is_old: bool,
    /// Addresses of its grants, for such a report.
    granted: BTreeSet<IpAddr>,
    /// Epoch of the last record that was acknowledged before it was applied.
    acknowledged: u64,
}

/// A status on its way.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The agent's part of the record.
    pub record: Box<NodeRecord>,
    /// Number of its report.
    number: ReportNumber,
}

impl LeaseRules {
    /// The leases of an agent whose predecessor left this.
    pub fn start(memory: GrantMemory, sabotage: Option<Sabotage>) -> Self {
        Self {
            leases: NodeLeases::new(memory),
            sabotage,
            is_old: false,
            granted: BTreeSet::new(),
            acknowledged: 0,
        }
    }

    /// Makes it the version before.
    pub fn make_old(&mut self) {
        self.is_old = true;
    }

    /// Whether it is the version before.
    pub fn is_old(&self) -> bool {
        self.is_old
    }

    /// What is left for a later process.
    pub fn memory(&self) -> &GrantMemory {
        self.leases.memory()
    }

    /// Grants for this round.
    pub fn decide(&mut self, record: &NodeRecord) -> NodeGrants {
        let grants = self.leases.decide(record);
        if self.is_old {
            let addresses = record.grants.iter().map(|grant| grant.address);
            self.granted = addresses.collect();
            return NodeGrants {
                usable: record.grants.clone(),
                flows: None,
            };
        }
        match self.sabotage {
            Some(Sabotage::IgnoreEpochs) => NodeGrants::of(record),
            Some(Sabotage::UseBeforeHeld) if !self.leases.is_older() => NodeGrants::of(record),
            _ => grants,
        }
    }

    /// A report that the kernel has this record, which it has not yet; `None` after the first one.
    pub fn acknowledge_first(&mut self, record: &NodeRecord) -> Option<Outgoing> {
        if self.acknowledged >= record.grants_epoch {
            return None;
        }
        self.acknowledged = record.grants_epoch;
        let granted = record.grants.iter();
        let held = granted.map(|grant| (grant.address, grant.ranges.as_slice()));
        let report = LeaseReport {
            acknowledged: record.grants_epoch,
            held: held.collect(),
            ..self.leases.report()
        };
        Some(self.outgoing(record.clone(), report))
    }

    /// The kernel is about to get these rules.
    pub fn applying(&mut self, worker: &WorkerState) {
        self.leases.applying(worker);
    }

    /// The kernel has them.
    pub fn applied(
        &mut self,
        worker: &WorkerState,
        record: &NodeRecord,
        kernel: &Kernel,
        now_ms: u64,
    ) {
        self.leases.applied(worker, record, now_ms);
        let addresses: BTreeSet<IpAddr> = kernel.blocks().map(|(address, _)| address).collect();
        let number = |ports: usize| u32::try_from(ports).expect("few flows");
        let in_use = addresses.iter().map(|a| (*a, number(kernel.ports(*a))));
        let blocks = address_ports(kernel.blocks());
        self.leases
            .counted(&in_use.collect(), blocks, (now_ms, now_ms));
        let busiest = addresses.iter().map(|a| (*a, number(kernel.busiest(*a))));
        self.leases.busiest(busiest.collect(), now_ms);
    }

    /// Whether there is something to do although nothing has happened.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.leases.is_count_due(now_ms)
    }

    /// What to report now, written into the agent's part of a record.
    pub fn report(&mut self, record: NodeRecord) -> Outgoing {
        let report = self.leases.report();
        self.outgoing(record, report)
    }

    fn outgoing(&mut self, record: NodeRecord, report: LeaseReport) -> Outgoing {
        let number = self.leases.sent(report.held.clone());
        if self.is_old {
            let mut demand = report.in_use;
            for address in &self.granted {
                demand.entry(*address).or_default();
            }
            let record = NodeRecord { demand, ..record };
            return Outgoing {
                record: Box::new(record),
                number,
            };
        }
        let record = NodeRecord {
            acknowledged: report.acknowledged,
            held: report.held.ranges(),
            demand: report.in_use,
            wanted_ports: report.wanted,
            ..record
        };
        Outgoing {
            record: Box::new(record),
            number,
        }
    }

    /// The store has accepted this status.
    pub fn accepted(&mut self, status: &Outgoing) {
        let held = AddressPorts::from(status.record.held.clone());
        self.leases.written(status.number, held);
    }

    /// The store has no record to write the status to.
    pub fn lost(&mut self) {
        self.leases.lost();
    }
}

/// Blocks as a value of core.
fn address_ports(blocks: impl Iterator<Item = Block>) -> AddressPorts {
    let mut all: BTreeMap<IpAddr, PortBlocks> = BTreeMap::new();
    for (address, block) in blocks {
        let own = all.entry(address).or_default();
        own.insert_port(block * BLOCK_PORTS);
    }
    let mut ports = AddressPorts::default();
    for (address, blocks) in &all {
        ports.add(*address, blocks);
    }
    ports
}
