//! How an agent treats its leases: the machines of core that decide which grants its kernel may use, what it reports to
//! hold, and which flows it ends.

use crate::kernel::{Block, Kernel};
use crate::sabotage::Sabotage;
use egret_core::machines::{GrantGate, GrantMemory, HeldPorts, HeldReport, PortDemand};
use egret_core::model::{AddressPorts, Grant, NodeRecord, PortBlocks};
use egret_core::node::NodeGrants;
use egret_core::numbers::BLOCK_PORTS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The machines of one agent process.
#[derive(Clone, Debug)]
pub struct LeaseRules {
    gate: GrantGate,
    held: HeldPorts,
    demand: PortDemand,
    sabotage: Option<Sabotage>,
}

/// A status on its way.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The agent's part of the record.
    pub record: Box<NodeRecord>,
    /// Number of its report.
    number: u64,
}

impl LeaseRules {
    /// The machines of an agent whose predecessor left this.
    pub fn start(memory: GrantMemory, sabotage: Option<Sabotage>) -> Self {
        Self {
            gate: GrantGate::new(memory),
            held: HeldPorts::default(),
            demand: PortDemand::default(),
            sabotage,
        }
    }

    /// What is left for a later process.
    pub fn memory(&self) -> &GrantMemory {
        self.gate.memory()
    }

    /// Grants of this record that count, with those alone usable that the kernel may have now.
    pub fn decide(&mut self, record: &NodeRecord) -> NodeGrants {
        self.held.adopt(record);
        self.demand.adopt(record);
        let mut grants = match self.sabotage {
            Some(Sabotage::IgnoreEpochs) => NodeGrants::of(record),
            _ => self.gate.decide(record),
        };
        let admitted = self.held.admit(&grants.usable);
        if self.sabotage != Some(Sabotage::UseBeforeHeld) {
            grants.usable = admitted;
        }
        grants
    }

    /// The kernel is about to get what has been decided about this record, with these blocks usable.
    pub fn applying(&mut self, usable: &AddressPorts) {
        self.held.applying(usable);
    }

    /// The kernel has it.
    pub fn applied(
        &mut self,
        record: &NodeRecord,
        usable: AddressPorts,
        kernel: &Kernel,
        now_ms: u64,
    ) {
        self.gate.applied(record);
        self.held.applied(usable, self.gate.epoch(), now_ms);
        self.count(kernel, now_ms);
    }

    /// Reads the kernel's flows.
    fn count(&mut self, kernel: &Kernel, now_ms: u64) {
        self.held.counted(address_ports(kernel.blocks()), now_ms);
        let addresses: BTreeSet<IpAddr> = kernel.blocks().map(|(address, _)| address).collect();
        let number = |ports: usize| u32::try_from(ports).expect("few flows");
        let in_use = addresses
            .iter()
            .map(|address| (*address, number(kernel.ports(*address))));
        self.demand.counted(&in_use.collect(), now_ms);
        let busiest = addresses
            .iter()
            .map(|address| (*address, number(kernel.busiest(*address))));
        let mut granted: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for grant in &self.gate.memory().grants {
            let ports = PortBlocks::of(&grant.ranges).ports();
            *granted.entry(grant.address).or_default() += ports;
        }
        self.demand.measured(&granted, &busiest.collect(), now_ms);
    }

    /// Whether there is something to do although nothing has happened.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.held.count_at().is_some_and(|at| at <= now_ms)
    }

    /// What to report now, written into the agent's part of a record.
    pub fn report(&mut self, record: NodeRecord) -> Outgoing {
        let HeldReport { acknowledged, held } = self.held.report();
        self.outgoing(record, acknowledged, held)
    }

    /// What an agent reports that acknowledges the grants of a record before its kernel has them.
    pub fn report_first(
        &mut self,
        record: NodeRecord,
        seen: &NodeRecord,
        kernel: &Kernel,
    ) -> Outgoing {
        let held = address_ports(kernel.blocks());
        let grants = seen
            .grants
            .iter()
            .map(|grant| (grant.address, grant.ranges.as_slice()));
        let held = held.union(&grants.collect());
        self.outgoing(record, seen.grants_epoch.max(self.gate.epoch()), held)
    }

    fn outgoing(&mut self, record: NodeRecord, acknowledged: u64, held: AddressPorts) -> Outgoing {
        let number = self.held.sent(held.clone());
        let record = NodeRecord {
            acknowledged,
            held: held.ranges(),
            demand: self.demand.in_use(),
            wanted_ports: self.demand.wanted(),
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
        self.held.accepted(status.number, held);
    }

    /// The store has no record to write the status to.
    pub fn lost(&mut self) {
        self.held.lost();
    }
}

/// Blocks as a value of core.
pub fn address_ports(blocks: impl Iterator<Item = Block>) -> AddressPorts {
    let mut all: BTreeMap<IpAddr, PortBlocks> = BTreeMap::new();
    for (address, block) in blocks {
        all.entry(address)
            .or_default()
            .insert_port(block * BLOCK_PORTS);
    }
    let mut ports = AddressPorts::default();
    for (address, blocks) in &all {
        ports.add(*address, blocks);
    }
    ports
}

/// The record with these usable grants.
pub fn with_grants(record: &NodeRecord, usable: Vec<Grant>) -> NodeRecord {
    NodeRecord {
        grants: usable,
        ..record.clone()
    }
}
