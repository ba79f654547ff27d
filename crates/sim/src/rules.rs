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
        }
    }

    /// What is left for a later process.
    pub fn memory(&self) -> &GrantMemory {
        self.leases.memory()
    }

    /// Grants for this round.
    pub fn decide(&mut self, record: &NodeRecord) -> NodeGrants {
        let grants = self.leases.decide(record);
        match self.sabotage {
            Some(Sabotage::IgnoreEpochs) => NodeGrants::of(record),
            _ => grants,
        }
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
