//! Steering tables of a gateway over a store that goes back to an older state.
//!
//! A record whose epoch is lower than that of the loaded table is from a backup: its ranges may belong to others
//! meanwhile. The table stays until the record has an epoch that is at least as high. The version never goes back either:
//! workers and the controller compare it with epochs of grants and withdrawals.
//!
//! An agent that has restarted knows the epochs of the tables that its predecessor loaded, not the tables. While a record
//! is older than such a table (a list from a cache that lags, a backup), the kernel keeps what it has.

use crate::model::AddressRecord;
use crate::node::{GatewayState, Steering};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Tables that were loaded, by address, with the epoch of their record.
#[derive(Clone, Debug, Default)]
pub struct SteeringMemory {
    /// `None`: loaded by an agent before this one.
    tables: BTreeMap<IpAddr, (u64, Option<Steering>)>,
    version: u64,
}

impl SteeringMemory {
    /// `version`: the highest steering version that this node ever had; `epochs`: those of the tables in the kernel.
    pub fn new(version: u64, epochs: BTreeMap<IpAddr, u64>) -> Self {
        let tables = epochs.into_iter();
        Self {
            tables: tables
                .map(|(address, epoch)| (address, (epoch, None)))
                .collect(),
            version,
        }
    }

    /// Epochs of the loaded tables, for the next agent.
    pub fn epochs(&self) -> BTreeMap<IpAddr, u64> {
        let tables = self.tables.iter();
        tables
            .map(|(address, (epoch, _))| (*address, *epoch))
            .collect()
    }

    /// Addresses whose record is older than the loaded table, with the epoch of the table: the store has gone back.
    pub fn newer<'a>(
        &self,
        records: impl Iterator<Item = &'a AddressRecord>,
    ) -> BTreeMap<IpAddr, u64> {
        let newer = records.filter_map(|record| {
            let (epoch, _) = self.tables.get(&record.address)?;
            (*epoch > record.epoch).then_some((record.address, *epoch))
        });
        newer.collect()
    }

    /// An address whose record is older than the table that an agent before this one loaded: the tables must not be
    /// replaced.
    pub fn waits_for<'a>(
        &self,
        mut records: impl Iterator<Item = &'a AddressRecord>,
    ) -> Option<IpAddr> {
        let is_older = |record: &&AddressRecord| {
            let known = self.tables.get(&record.address);
            known.is_some_and(|(epoch, table)| table.is_none() && record.epoch < *epoch)
        };
        records.find(is_older).map(|record| record.address)
    }

    /// Gives up waiting: whatever the records say replaces tables that are not known.
    pub fn forget_unknown(&mut self) {
        self.tables.retain(|_, (_, table)| table.is_some());
    }

    /// Replaces tables of the planned state that are older than the loaded ones, and its version. `records`: the records
    /// that it was planned from. Returns the addresses whose table stays.
    pub fn keep_newer<'a>(
        &self,
        planned: &mut GatewayState,
        records: impl Iterator<Item = &'a AddressRecord>,
    ) -> Vec<IpAddr> {
        let mut kept = Vec::new();
        for record in records {
            let Some((epoch, Some(table))) = self.tables.get(&record.address) else {
                continue;
            };
            if record.epoch >= *epoch {
                continue;
            }
            let planned = planned.addresses.entry(record.address);
            let planned = planned.or_insert_with(|| table.clone());
            planned.blocks = table.blocks.clone();
            kept.push(record.address);
        }
        planned.version = planned.version.max(self.version);
        kept
    }

    /// Records that the data path has the tables of this state, as [`Self::keep_newer`] left it. Returns whether the
    /// version, which outlives the agent, has changed.
    pub fn loaded<'a>(
        &mut self,
        state: &GatewayState,
        records: impl Iterator<Item = &'a AddressRecord>,
    ) -> bool {
        let mut tables = BTreeMap::new();
        for record in records {
            let before = self.tables.remove(&record.address);
            let known = before.as_ref().map_or(0, |(epoch, _)| *epoch);
            let entry = match state.addresses.get(&record.address) {
                Some(table) if record.epoch >= known => Some((record.epoch, Some(table.clone()))),
                _ => before,
            };
            if let Some(entry) = entry {
                tables.insert(record.address, entry);
            }
        }
        self.tables = tables;
        let before = self.version;
        self.version = before.max(state.version);
        self.version != before
    }

    /// The highest steering version that this node ever had.
    pub fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GatewayName;
    use crate::node::GatewayPeers;
    use proptest::prelude::*;

    fn address() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn state(epoch: u64, owner: Option<u16>) -> (GatewayState, AddressRecord) {
        let blocks = owner.map(|owner| (16, owner)).into_iter().collect();
        let table = Steering {
            blocks,
            ..Steering::default()
        };
        let record = AddressRecord {
            epoch,
            ..AddressRecord::new(address(), GatewayName("edge".into()))
        };
        let state = GatewayState {
            external_device: "eth1".into(),
            addresses: [(address(), table)].into(),
            workers: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            peers: GatewayPeers::default(),
            version: epoch,
        };
        (state, record)
    }

    /// Owner of the block after this record, and the version.
    fn step(memory: &mut SteeringMemory, epoch: u64, owner: Option<u16>) -> (Option<u16>, u64) {
        let (mut planned, record) = state(epoch, owner);
        memory.keep_newer(&mut planned, std::iter::once(&record));
        memory.loaded(&planned, std::iter::once(&record));
        let table = &planned.addresses[&address()];
        (table.blocks.get(&16).copied(), planned.version)
    }

    #[test]
    fn a_table_from_a_backup_does_not_replace_the_loaded_one() {
        let mut memory = SteeringMemory::default();
        assert_eq!(step(&mut memory, 10, Some(1)), (Some(1), 10));
        assert_eq!(step(&mut memory, 4, Some(2)), (Some(1), 10));
        let newer = |epoch| memory.newer(std::iter::once(&state(epoch, None).1));
        assert_eq!(newer(4), [(address(), 10)].into());
        assert!(newer(10).is_empty());
        assert_eq!(step(&mut memory, 5, None), (Some(1), 10));
        assert_eq!(step(&mut memory, 11, Some(3)), (Some(3), 11));
    }

    #[test]
    fn the_version_outlives_the_agent_and_a_deleted_record_is_forgotten() {
        let mut memory = SteeringMemory::default();
        step(&mut memory, 10, Some(1));
        assert_eq!(memory.version(), 10);
        let mut again = SteeringMemory::new(memory.version(), memory.epochs());
        let (_, older) = state(4, Some(2));
        assert_eq!(again.waits_for(std::iter::once(&older)), Some(address()));
        let (_, same) = state(10, Some(1));
        assert_eq!(again.waits_for(std::iter::once(&same)), None);
        again.forget_unknown();
        assert_eq!(again.waits_for(std::iter::once(&older)), None);
        assert_eq!(step(&mut again, 4, Some(2)), (Some(2), 10));
        let (mut empty, _) = state(0, None);
        empty.addresses.clear();
        memory.keep_newer(&mut empty, std::iter::empty());
        assert!(!memory.loaded(&empty, std::iter::empty()));
        assert!(empty.addresses.is_empty());
        assert_eq!(step(&mut memory, 3, Some(2)), (Some(2), 10));
    }

    proptest! {
        /// Property: whatever order records come in, the owner is that of the highest epoch so far, the last one of
        /// equal epochs, and the version never goes back.
        #[test]
        fn the_highest_epoch_owns(records in prop::collection::vec((0u64..8, 0u16..4), 1..30)) {
            let mut memory = SteeringMemory::default();
            let mut best = (0, 0, 0);
            for (epoch, owner) in records {
                if epoch >= best.0 { best = (epoch, owner, epoch); }
                prop_assert_eq!(step(&mut memory, epoch, Some(owner)), (Some(best.1), best.2));
            }
        }
    }
}
