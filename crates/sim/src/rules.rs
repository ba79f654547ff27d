//! How an agent treats its leases: which grants its kernel may use, what it reports to hold, which flows it ends.

use crate::kernel::{Block, Kernel};
use crate::sabotage::Sabotage;
use egret_core::model::{Grant, NodeRecord, PortRange};
use egret_core::numbers::BLOCK_PORTS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What an agent remembers of its leases. `acknowledged` is on disk; the rest is found in the kernel after a restart.
#[derive(Clone, Debug, Default)]
pub struct LeaseRules {
    /// Highest epoch of grants that the kernel ever had.
    pub acknowledged: u64,
    /// Grants of that epoch: the usable ones, by block.
    granted: BTreeSet<Block>,
    /// Blocks in the newest status that the store has, as far as this agent knows.
    reported: BTreeSet<Block>,
    /// Ports that it asked for, by address.
    wanted: BTreeMap<IpAddr, u32>,
}

/// What to do with one record.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The record with those grants alone that may be used now.
    pub record: NodeRecord,
    /// Blocks that wait for a report.
    pub waiting: BTreeSet<Block>,
    /// Blocks in which flows may go on; `None`: no flow is ended now.
    pub tolerated: Option<BTreeSet<Block>>,
}

impl LeaseRules {
    /// The rules of an agent that starts on this kernel.
    pub fn start(acknowledged: u64, kernel: &Kernel) -> Self {
        Self {
            acknowledged,
            granted: kernel.usable.clone(),
            reported: kernel.usable.clone(),
            wanted: BTreeMap::new(),
        }
    }

    /// Decides about a record.
    pub fn decide(&self, record: &NodeRecord, sabotage: Option<Sabotage>) -> Decision {
        let is_older =
            record.grants_epoch < self.acknowledged && sabotage != Some(Sabotage::IgnoreEpochs);
        let granted = blocks_of_grants(&record.grants);
        let allowed: BTreeSet<Block> = match is_older {
            true => granted.intersection(&self.granted).copied().collect(),
            false => granted.clone(),
        };
        let held = blocks_of_map(&record.held);
        let is_reported = |block: &&Block| {
            self.reported.contains(block)
                || held.contains(block)
                || sabotage == Some(Sabotage::UseBeforeHeld)
        };
        let usable: BTreeSet<Block> = allowed.iter().filter(is_reported).copied().collect();
        let waiting = allowed.difference(&usable).copied().collect();
        let draining = blocks_of_grants(&record.draining);
        let cut = record.grants.iter().filter_map(|grant| {
            let ranges = grant
                .ranges
                .iter()
                .flat_map(|range| within(grant.address, *range, &usable));
            let ranges: Vec<PortRange> = ranges.collect();
            (!ranges.is_empty()).then(|| Grant {
                ranges,
                ..grant.clone()
            })
        });
        Decision {
            record: NodeRecord {
                grants: cut.collect(),
                ..record.clone()
            },
            waiting,
            tolerated: (!is_older).then(|| granted.union(&draining).copied().collect()),
        }
    }

    /// The kernel has the grants of this record.
    pub fn applied(&mut self, record: &NodeRecord) {
        if record.grants_epoch >= self.acknowledged {
            self.acknowledged = record.grants_epoch;
            self.granted = blocks_of_grants(&record.grants);
        }
    }

    /// What the agent holds, for its status.
    pub fn held(
        &self,
        kernel: &Kernel,
        waiting: &BTreeSet<Block>,
    ) -> BTreeMap<IpAddr, Vec<PortRange>> {
        let mut all = kernel.usable.clone();
        all.extend(waiting);
        all.extend(kernel.blocks());
        let mut held: BTreeMap<IpAddr, Vec<PortRange>> = BTreeMap::new();
        for (address, block) in all {
            let ranges = held.entry(address).or_default();
            let (first, last) = (block * BLOCK_PORTS, block * BLOCK_PORTS + (BLOCK_PORTS - 1));
            match ranges.last_mut() {
                Some(before) if u32::from(before.last) + 1 == u32::from(first) => {
                    before.last = last
                }
                _ => ranges.push(PortRange { first, last }),
            }
        }
        held
    }

    /// A status with these blocks is being written: others are not reported any more.
    pub fn sending(&mut self, held: &BTreeMap<IpAddr, Vec<PortRange>>) {
        let held = blocks_of_map(held);
        self.reported.retain(|block| held.contains(block));
    }

    /// The store has a status with these blocks.
    pub fn written(&mut self, held: &BTreeMap<IpAddr, Vec<PortRange>>) {
        self.reported = blocks_of_map(held);
    }

    /// Ports that it wants of each granted address, rises only: a simulated run is shorter than the time after which
    /// demand falls.
    pub fn wanted(
        &mut self,
        kernel: &Kernel,
        addresses: impl Iterator<Item = IpAddr>,
        first: u32,
    ) -> BTreeMap<IpAddr, u32> {
        let addresses: BTreeSet<IpAddr> = addresses.collect();
        for address in &addresses {
            let busiest = u32::try_from(kernel.busiest(*address)).expect("few flows");
            let wanted = first.max(4 * busiest).next_power_of_two();
            if 4 * busiest > first {
                let known = self.wanted.entry(*address).or_default();
                *known = (*known).max(wanted);
            }
        }
        self.wanted.retain(|address, _| addresses.contains(address));
        self.wanted.clone()
    }
}

fn blocks(address: IpAddr, range: PortRange) -> impl Iterator<Item = Block> {
    (range.first / BLOCK_PORTS..=range.last / BLOCK_PORTS).map(move |block| (address, block))
}

/// Parts of a range that consist of these blocks.
fn within(address: IpAddr, range: PortRange, usable: &BTreeSet<Block>) -> Vec<PortRange> {
    let mut parts: Vec<PortRange> = Vec::new();
    for (_, block) in blocks(address, range).filter(|block| usable.contains(block)) {
        let (first, last) = (block * BLOCK_PORTS, block * BLOCK_PORTS + (BLOCK_PORTS - 1));
        match parts.last_mut() {
            Some(before) if u32::from(before.last) + 1 == u32::from(first) => before.last = last,
            _ => parts.push(PortRange { first, last }),
        }
    }
    parts
}

/// Blocks of these grants.
pub fn blocks_of_grants(grants: &[Grant]) -> BTreeSet<Block> {
    let each = |grant: &Grant| {
        let address = grant.address;
        let ranges: Vec<PortRange> = grant.ranges.clone();
        ranges
            .into_iter()
            .flat_map(move |range| blocks(address, range))
    };
    grants.iter().flat_map(each).collect()
}

fn blocks_of_map(map: &BTreeMap<IpAddr, Vec<PortRange>>) -> BTreeSet<Block> {
    let each = |(address, ranges): (&IpAddr, &Vec<PortRange>)| {
        let address = *address;
        let ranges = ranges.clone();
        ranges
            .into_iter()
            .flat_map(move |range| blocks(address, range))
    };
    map.iter().flat_map(each).collect()
}
