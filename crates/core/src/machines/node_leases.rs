//! Leases of one node: which grants count and may be used now, which ports are held, and how many are wanted.
//!
//! In each round, in this order: [`NodeLeases::decide`]; compute the node state with its result in
//! [`crate::node::NodeFacts::grants`]; [`NodeLeases::applying`]; apply; [`NodeLeases::applied`]; store
//! [`NodeLeases::memory`]; report. Counts of ports, answers of the store and the use of destinations come in between.

use super::{GrantGate, GrantMemory, HeldPorts, PortDemand, ReportNumber};
use crate::model::{AddressPorts, NodeRecord};
use crate::node::{NodeGrants, WorkerState};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Leases of one node.
#[derive(Clone, Debug, Default)]
pub struct NodeLeases {
    gate: GrantGate,
    held: HeldPorts,
    demand: PortDemand,
    /// Ports granted, by address.
    granted: BTreeMap<IpAddr, u32>,
    /// Ports in use towards the busiest destination of each address.
    busiest: BTreeMap<IpAddr, u32>,
    /// The last record was older than one that was applied.
    older: bool,
}

/// What this node reports about its leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseReport {
    /// For [`NodeRecord::acknowledged`].
    pub acknowledged: u64,
    /// For [`NodeRecord::held`].
    pub held: AddressPorts,
    /// For [`NodeRecord::demand`].
    pub in_use: BTreeMap<IpAddr, u32>,
    /// For [`NodeRecord::wanted_ports`].
    pub wanted: BTreeMap<IpAddr, u32>,
}

impl NodeLeases {
    /// `memory`: what the predecessor left.
    pub fn new(memory: GrantMemory) -> Self {
        Self {
            gate: GrantGate::new(memory),
            ..Self::default()
        }
    }

    /// Takes over, once, what this node's record says at the start of the agent. To be called before a report, also where
    /// no round was possible yet.
    pub fn adopt(&mut self, record: &NodeRecord) {
        self.held.adopt(record);
        self.demand.adopt(record);
    }

    /// Grants for this round. `record`: this node's.
    pub fn decide(&mut self, record: &NodeRecord) -> NodeGrants {
        self.adopt(record);
        self.older = self.gate.is_older(record);
        let mut grants = self.gate.decide(record);
        self.granted.clear();
        for grant in &grants.usable {
            let ports = grant.ranges.iter();
            let ports = ports.map(|range| u32::from(range.last - range.first) + 1);
            *self.granted.entry(grant.address).or_default() += ports.sum::<u32>();
        }
        grants.usable = self.held.admit(&grants.usable);
        grants
    }

    /// Records that rules with the ranges of this state are about to be put into the kernel.
    pub fn applying(&mut self, worker: &WorkerState) {
        self.held.applying(&ranges(worker));
    }

    /// Records that this state, made with [`Self::decide`] for this record, is in the kernel.
    pub fn applied(&mut self, worker: &WorkerState, record: &NodeRecord, now_ms: u64) {
        self.gate.applied(record);
        self.held.applied(ranges(worker), self.gate.epoch(), now_ms);
    }

    /// Whether the last record was older than one that was applied: the store went back.
    pub fn is_older(&self) -> bool {
        self.older
    }

    /// Part that outlives the agent. Stored before the next report.
    pub fn memory(&self) -> &GrantMemory {
        self.gate.memory()
    }

    /// Time of a count of ports in use that is due before the next regular one.
    pub fn is_count_due(&self, now_ms: u64) -> bool {
        self.held.count_at().is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Records a complete count of ports in use that began at `began_ms`. Addresses with grants are listed without a
    /// port in use, too.
    pub fn counted(
        &mut self,
        counts: &BTreeMap<IpAddr, u32>,
        blocks: AddressPorts,
        (began_ms, now_ms): (u64, u64),
    ) {
        self.held.counted(blocks, began_ms);
        let mut all = counts.clone();
        for address in self.granted.keys() {
            all.entry(*address).or_default();
        }
        self.demand.counted(&all, now_ms);
    }

    /// Takes up the use of the busiest destinations. Returns whether other numbers of ports are wanted.
    pub fn busiest(&mut self, busiest: BTreeMap<IpAddr, u32>, now_ms: u64) -> bool {
        self.busiest = busiest;
        self.measure(now_ms)
    }

    /// Decides again how many ports are wanted. Returns whether that has changed.
    pub fn measure(&mut self, now_ms: u64) -> bool {
        self.demand.measured(&self.granted, &self.busiest, now_ms)
    }

    /// What to report now.
    pub fn report(&self) -> LeaseReport {
        let held = self.held.report();
        LeaseReport {
            acknowledged: held.acknowledged,
            held: held.held,
            in_use: self.demand.in_use(),
            wanted: self.demand.wanted(),
        }
    }

    /// Records that a status with these ports held is handed to the writer.
    pub fn sent(&mut self, held: AddressPorts) -> ReportNumber {
        self.held.sent(held)
    }

    /// Records that the status of this number is written. Returns whether new ports may be used.
    pub fn written(&mut self, number: ReportNumber, held: AddressPorts) -> bool {
        let waited = self.held.is_waiting();
        self.held.accepted(number, held);
        waited
    }

    /// Records that this node's record does not exist any more.
    pub fn lost(&mut self) {
        self.held.lost();
    }
}

/// Ranges in the rules of this state, by address.
fn ranges(worker: &WorkerState) -> AddressPorts {
    let targets = worker.targets.values();
    targets
        .map(|target| (target.address, target.ranges.as_slice()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GatewayName, Grant, NodeName, PortRange};
    use crate::node::{Target, TargetId, TrafficKeyId};
    use crate::numbers::DRAIN_SETTLE_MS;

    const NOW: u64 = 9_000;

    fn address() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn grant(first: u16, last: u16) -> Grant {
        Grant {
            address: address(),
            gateway: GatewayName("edge".into()),
            ranges: vec![PortRange { first, last }],
            epoch: 1,
        }
    }

    fn record(epoch: u64, grants: &[Grant]) -> NodeRecord {
        NodeRecord {
            grants: grants.to_vec(),
            grants_epoch: epoch,
            ..NodeRecord::new(NodeName("a".into()))
        }
    }

    /// A round whose state has exactly the grants that may be used; returns them.
    fn round(leases: &mut NodeLeases, record: &NodeRecord, now_ms: u64) -> Vec<Grant> {
        let grants = leases.decide(record).usable;
        let targets = grants.iter().enumerate().map(|(number, grant)| {
            let target = Target {
                address: grant.address,
                group: 1,
                ranges: grant.ranges.clone(),
                traffic_key: TrafficKeyId(1),
                quotas: Default::default(),
            };
            (TargetId(number as u64), target)
        });
        let worker = WorkerState {
            targets: targets.collect(),
            ..WorkerState::default()
        };
        leases.applying(&worker);
        leases.applied(&worker, record, now_ms);
        grants
    }

    fn write(leases: &mut NodeLeases) -> bool {
        let held = leases.report().held;
        let number = leases.sent(held.clone());
        leases.written(number, held)
    }

    #[test]
    fn a_grant_is_reported_used_wanted_more_of_withdrawn_and_given_back() {
        let mut leases = NodeLeases::default();
        let first = record(3, &[grant(1024, 1087)]);
        assert_eq!(round(&mut leases, &first, NOW), []);
        assert_eq!(leases.report().acknowledged, 0, "nothing was counted yet");
        leases.counted(&BTreeMap::new(), AddressPorts::default(), (NOW, NOW));
        let said = leases.report();
        assert_eq!(said.acknowledged, 3);
        assert_eq!(said.in_use, [(address(), 0)].into());
        assert!(write(&mut leases), "ports have waited for it");
        assert!(!write(&mut leases));
        assert_eq!(round(&mut leases, &first, NOW), first.grants);

        assert!(!leases.busiest([(address(), 16)].into(), NOW));
        assert!(leases.busiest([(address(), 17)].into(), NOW));
        assert_eq!(leases.report().wanted, [(address(), 128)].into());

        let none = record(4, &[]);
        assert_eq!(round(&mut leases, &none, NOW), []);
        let said = leases.report();
        assert_eq!((said.acknowledged, said.held.is_empty()), (4, false));
        assert!(!leases.is_count_due(NOW + DRAIN_SETTLE_MS - 1));
        let late = NOW + DRAIN_SETTLE_MS;
        assert!(leases.is_count_due(late));
        leases.counted(&BTreeMap::new(), AddressPorts::default(), (late, late));
        assert!(leases.report().held.is_empty());
        assert!(leases.measure(late), "what is not granted is not wanted");
        assert!(leases.report().wanted.is_empty());
    }

    #[test]
    fn before_a_round_was_possible_an_agent_repeats_its_predecessor() {
        let held = BTreeMap::from([(address(), grant(1024, 1087).ranges)]);
        let before = NodeRecord {
            acknowledged: 3,
            held: held.clone(),
            demand: [(address(), 64)].into(),
            wanted_ports: [(address(), 256)].into(),
            ..record(3, &[])
        };
        let mut leases = NodeLeases::default();
        leases.adopt(&before);
        let said = leases.report();
        assert_eq!((said.acknowledged, said.held.ranges()), (3, held));
        assert_eq!(
            (said.in_use, said.wanted),
            (before.demand, before.wanted_ports)
        );
    }

    #[test]
    fn a_record_from_a_backup_is_not_acknowledged() {
        let mut leases = NodeLeases::new(GrantMemory {
            epoch: 9,
            grants: vec![grant(1024, 1087)],
        });
        let backup = record(4, &[grant(1024, 1215)]);
        leases.decide(&backup);
        leases.counted(&BTreeMap::new(), AddressPorts::default(), (NOW, NOW));
        write(&mut leases);
        assert_eq!(
            round(&mut leases, &backup, NOW)[0].ranges,
            grant(1024, 1087).ranges
        );
        assert!(leases.is_older());
        assert_eq!(leases.report().acknowledged, 9);
        assert_eq!(leases.memory().epoch, 9);
    }
}
