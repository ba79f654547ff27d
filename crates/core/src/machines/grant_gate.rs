//! Grants of this node over a store that goes back to an older state, for example because a backup was restored.
//!
//! ```text
//!   grantsEpoch >= the applied one --> its grants count, and flows outside of them end
//!   grantsEpoch <  the applied one --> new flows only in ranges of both records, no flow ends
//! ```
//!
//! The ranges of a record from a backup may be another worker's meanwhile, and those of the newer record may be given
//! away by a controller that does not know them. Ranges of both are this node's in either case.

use crate::model::{Grant, NodeRecord, PortBlocks};
use crate::node::NodeGrants;
use serde::{Deserialize, Serialize};

/// Part of the machine that outlives the agent. A node without it takes any record for current.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantMemory {
    /// The highest [`NodeRecord::grants_epoch`] applied.
    pub epoch: u64,
    /// Grants of the record with that epoch.
    pub grants: Vec<Grant>,
}

/// Decides which grants of the record count.
#[derive(Clone, Debug, Default)]
pub struct GrantGate {
    memory: GrantMemory,
}

impl GrantGate {
    /// The machine of an agent whose predecessor left this.
    pub fn new(memory: GrantMemory) -> Self {
        Self { memory }
    }

    /// Part to store before the applied epoch is reported.
    pub fn memory(&self) -> &GrantMemory {
        &self.memory
    }

    /// Whether the record is older than one that was applied: the store went back.
    pub fn is_older(&self, record: &NodeRecord) -> bool {
        record.grants_epoch < self.memory.epoch
    }

    /// Grants that count with this record.
    pub fn decide(&self, record: &NodeRecord) -> NodeGrants {
        if !self.is_older(record) {
            return NodeGrants::of(record);
        }
        let before = &self.memory.grants;
        let in_both = record.grants.iter().filter_map(|grant| {
            let same = before
                .iter()
                .filter(|old| old.address == grant.address && old.gateway == grant.gateway);
            let (mut known, mut epoch) = (PortBlocks::default(), grant.epoch);
            for old in same {
                known = known.union(&PortBlocks::of(&old.ranges));
                epoch = epoch.max(old.epoch);
            }
            let ranges = PortBlocks::of(&grant.ranges).intersection(&known).ranges();
            (!ranges.is_empty()).then(|| Grant {
                ranges,
                epoch,
                ..grant.clone()
            })
        });
        NodeGrants {
            usable: in_both.collect(),
            flows: None,
        }
    }

    /// Records that the kernel has what [`Self::decide`] returned for this record. Returns whether the memory has
    /// changed.
    pub fn applied(&mut self, record: &NodeRecord) -> bool {
        if self.is_older(record) {
            return false;
        }
        let memory = GrantMemory {
            epoch: record.grants_epoch,
            grants: record.grants.clone(),
        };
        let changed = memory != self.memory;
        self.memory = memory;
        changed
    }

    /// The highest epoch applied.
    pub fn epoch(&self) -> u64 {
        self.memory.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressPorts, GatewayName, NodeName, PortRange};
    use crate::node::ports_of;
    use proptest::prelude::*;

    fn grant(first: u16, last: u16, epoch: u64) -> Grant {
        Grant {
            address: "192.0.2.1".parse().unwrap(),
            gateway: GatewayName("edge".into()),
            ranges: vec![PortRange { first, last }],
            epoch,
        }
    }

    fn record(epoch: u64, grants: &[Grant], draining: &[Grant]) -> NodeRecord {
        NodeRecord {
            grants: grants.to_vec(),
            draining: draining.to_vec(),
            grants_epoch: epoch,
            ..NodeRecord::new(NodeName("a".into()))
        }
    }

    #[test]
    fn a_current_record_counts_as_it_is_and_flows_outside_of_it_end() {
        let mut gate = GrantGate::default();
        let first = record(5, &[grant(1024, 1279, 5)], &[]);
        assert_eq!(gate.decide(&first).usable, first.grants);
        assert!(gate.applied(&first));
        assert!(!gate.applied(&first), "stored once");
        let next = record(6, &[grant(1024, 1087, 5)], &[grant(1088, 1279, 6)]);
        let decided = gate.decide(&next);
        assert_eq!(decided.usable, next.grants);
        let flows = decided.flows.unwrap().ranges();
        let all = PortRange {
            first: 1024,
            last: 1279,
        };
        assert_eq!(flows.values().next().unwrap(), &[all]);
    }

    #[test]
    fn of_an_older_record_only_ranges_that_both_have_are_used_and_no_flow_ends() {
        let mut gate = GrantGate::default();
        gate.applied(&record(9, &[grant(1024, 1279, 9)], &[]));
        // The restart of the agent comes with the store's way back.
        let gate = GrantGate::new(gate.memory().clone());
        let backup = record(4, &[grant(1152, 1407, 4)], &[]);
        assert!(gate.is_older(&backup));
        let decided = gate.decide(&backup);
        assert_eq!(decided.usable, [grant(1152, 1279, 9)]);
        assert_eq!(decided.flows, None);
        let empty = gate.decide(&record(4, &[], &[]));
        assert_eq!((empty.usable, empty.flows), (Vec::new(), None));
        let mut gate = gate;
        assert!(!gate.applied(&backup));
        assert_eq!(gate.epoch(), 9);
        let after = record(10, &[grant(2048, 2111, 10)], &[]);
        assert_eq!(gate.decide(&after).usable, after.grants);
        assert!(gate.decide(&after).flows.is_some());
    }

    #[test]
    fn a_record_of_a_controller_without_epochs_ends_no_flow() {
        let gate = GrantGate::default();
        let old = record(0, &[grant(1024, 1279, 3)], &[]);
        let decided = gate.decide(&old);
        assert_eq!((decided.usable, decided.flows), (old.grants, None));
    }

    proptest! {
        /// Property: whatever records come in which order, no flow is opened outside the newest applied grants by an
        /// older record, and the epoch never goes back.
        #[test]
        fn an_older_record_gives_nothing_new(records in prop::collection::vec((0u64..6, 0u16..8, 1u16..5), 1..20)) {
            let mut gate = GrantGate::default();
            for (epoch, block, length) in records {
                let first = 1024 + block * 64;
                let record = record(epoch, &[grant(first, first + length * 64 - 1, epoch)], &[]);
                let (before, known) = (gate.epoch(), ports_of(gate.memory().grants.iter()));
                let decided = gate.decide(&record);
                let usable: AddressPorts = ports_of(decided.usable.iter());
                prop_assert!(ports_of(record.grants.iter()).contains(&usable));
                if epoch < before {
                    prop_assert!(known.contains(&usable));
                    prop_assert!(decided.flows.is_none());
                }
                gate.applied(&record);
                prop_assert!(gate.epoch() >= before);
            }
        }
    }
}
