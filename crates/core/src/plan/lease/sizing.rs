//! How many ports each worker of an address has: first grants, growth, and withdrawal of what is idle or scarce.
//!
//! - A worker with a selected pod gets a first grant at once, sized by the workers that the address really has.
//! - A worker that wants more gets more, at most half of what is free at a time, the one with the fewest first.
//! - Ranges that a worker does not want any more are withdrawn; the ports of a first grant stay.
//! - While little is free, ports come back from those who have more than they need; while nothing is free and a worker has
//!   none, also from those who have more than their share (max-min fairness).

use super::blocks::{self, Blocks, blocks_in, blocks_of, in_blocks, ranges_of};
use super::claims::PortUse;
use super::{AddressWork, Cluster, LeaseWork};
use crate::model::*;
use crate::numbers::{BLOCK_PORTS, LEASE_FLOOR_PORTS};
use crate::plan::demand::Demand;
use std::collections::{BTreeMap, BTreeSet};

/// Free blocks, those on their way back included, below which ports come back from workers that have more than they need:
/// a new worker finds some without waiting for a hold-down.
const RESERVE_BLOCKS: usize = 32;

/// A first grant takes at most this part of what is free.
const FIRST_GRANT_PART: usize = 8;

/// What one worker has and needs, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    has: usize,
    /// Measured by its agent; `None`: no more than a first grant was ever needed.
    wants: Option<usize>,
    /// Fewer would end flows early or refuse new ones soon.
    needs: usize,
    /// Its agent has applied all that it was told, so what it wants is an answer to what it has.
    is_current: bool,
}

impl AddressWork {
    /// Grants and withdraws ranges.
    pub(super) fn size(&mut self, cluster: &Cluster<'_>, demand: Option<&Demand<'_>>) {
        let Some(demand) = demand else { return };
        let reserved = cluster.snapshot.reserved(self.record.address).ranges();
        self.withdraw_reserved(&reserved);
        let mut shares = self.shares(cluster, demand);
        self.shrink(demand, &mut shares);
        if self.record.restored.is_some() {
            return;
        }
        let ranges = self.leases.iter().flat_map(|work| &work.lease.ranges);
        let mut free = Blocks::without(ranges.chain(&reserved));
        self.grant_first(demand, &mut shares, &mut free);
        self.grow(&mut shares, &mut free);
        self.reclaim(&shares, &free);
    }

    fn shares<'d>(
        &self,
        cluster: &Cluster<'_>,
        demand: &Demand<'d>,
    ) -> BTreeMap<&'d NodeName, Share> {
        let mut shares: BTreeMap<&NodeName, Share> = BTreeMap::new();
        for node in &demand.workers {
            shares.insert(*node, self.needs(cluster, node));
        }
        for work in self
            .leases
            .iter()
            .filter(|work| work.lease.state.is_usable())
        {
            if let Some(share) = shares.get_mut(&work.lease.node) {
                share.has += blocks_in(&work.lease.ranges);
            }
        }
        shares
    }

    fn needs(&self, cluster: &Cluster<'_>, node: &NodeName) -> Share {
        let Some(record) = cluster.snapshot.node_records.get(node) else {
            return Share::default();
        };
        let reported = PortUse::of(record, self.record.address);
        Share {
            has: 0,
            wants: reported.wants,
            needs: needs(reported),
            is_current: record.acknowledged > 0 && record.acknowledged >= record.grants_epoch,
        }
    }

    /// Grants a first lease to each worker that has none.
    fn grant_first(
        &mut self,
        demand: &Demand<'_>,
        shares: &mut BTreeMap<&NodeName, Share>,
        free: &mut Blocks,
    ) {
        let workers = u32::try_from(shares.len()).unwrap_or(u32::MAX);
        let expected = demand.gateway.expected_workers.unwrap_or(0).max(workers);
        let size = blocks::first_grant(demand.gateway.initial_ports, expected);
        for (node, share) in shares.iter_mut().filter(|(_, share)| share.has == 0) {
            let part = power_of_two_up_to(free.count() / FIRST_GRANT_PART);
            let granted = self.grant(node, size.min(part), free, "a selected pod is bound to it");
            share.has = granted;
            if granted == 0 {
                self.say(format!("no block is free for {node}"));
                self.exhausted.insert((*node).clone());
            }
        }
    }

    /// Grants more to workers that want more, those with the fewest first.
    fn grow(&mut self, shares: &mut BTreeMap<&NodeName, Share>, free: &mut Blocks) {
        let mut asking: Vec<(&NodeName, Share)> = shares
            .iter()
            .filter(|(_, share)| {
                share.has > 0 && share.wants.is_some_and(|wants| wants > share.has)
            })
            .map(|(node, share)| (*node, *share))
            .collect();
        asking.sort_by_key(|(node, share)| (share.has, *node));
        for (node, mut share) in asking {
            let most = share.has + free.count().div_ceil(2);
            let wants = share.wants.unwrap_or(0).min(most);
            while share.has < wants {
                let size = power_of_two_up_to(wants - share.has);
                let granted = self.grant(node, size, free, "it wants more");
                if granted == 0 {
                    break;
                }
                share.has += granted;
            }
            shares.insert(node, share);
        }
    }

    /// Grants up to `size` blocks; returns how many.
    fn grant(&mut self, node: &NodeName, size: usize, free: &mut Blocks, why: &str) -> usize {
        let Some(ranges) = free.take(self.record.address, node, size) else {
            return 0;
        };
        let granted = blocks_in(&ranges);
        let ports = granted * usize::from(BLOCK_PORTS);
        self.say(format!("{ports} ports granted to {node}: {why}"));
        self.steering_changed = true;
        self.leases.push(LeaseWork {
            lease: Lease {
                node: node.clone(),
                ranges,
                epoch: 0,
                withdrawn: None,
                state: LeaseState::Granted,
                since_secs: self.now_secs,
            },
            renumber: true,
            withdraw: false,
        });
        granted
    }

    /// Withdraws whole leases, the newest first, from workers that want at most half of what they have.
    fn shrink(&mut self, demand: &Demand<'_>, shares: &mut BTreeMap<&NodeName, Share>) {
        let first = in_blocks(demand.gateway.initial_ports.into());
        for (node, share) in shares.iter_mut().filter(|(_, share)| share.is_current) {
            let wants = share.wants.unwrap_or(0).max(first);
            if share.has < 2 * wants {
                continue;
            }
            for number in self.newest_first(node) {
                let blocks = blocks_in(&self.leases[number].lease.ranges);
                if share.has - blocks >= wants {
                    self.withdraw(number, "the node does not want it any more");
                    share.has -= blocks;
                }
            }
        }
    }

    /// Withdraws from the richest while little is free.
    fn reclaim(&mut self, shares: &BTreeMap<&NodeName, Share>, free: &Blocks) {
        // What drains on a node without selected pods may do so for as long as that node is silent.
        let returns = |work: &&LeaseWork| match work.lease.state {
            LeaseState::Granted | LeaseState::Active => false,
            LeaseState::Draining => shares.contains_key(&work.lease.node),
            LeaseState::Vanished | LeaseState::Fenced | LeaseState::HoldDown => true,
        };
        let returning = self.leases.iter().filter(returns);
        let returning: usize = returning.map(|work| blocks_in(&work.lease.ranges)).sum();
        let mut missing = RESERVE_BLOCKS.saturating_sub(free.count() + returning);
        let mut left: BTreeMap<&NodeName, Share> = shares.clone();
        while missing > 0 {
            let spare = |share: &Share| share.has.saturating_sub(share.needs);
            let richest = left
                .iter()
                .max_by_key(|(node, share)| (spare(share), *node));
            let Some((node, share)) = richest.filter(|(_, share)| spare(share) > 0) else {
                break;
            };
            let blocks = spare(share).min(missing).min(share.has.div_ceil(2));
            let node = *node;
            self.withdraw_blocks(node, blocks, "ports are scarce, and the node needs fewer");
            left.entry(node).and_modify(|share| share.has -= blocks);
            missing -= blocks;
        }
        // A floor for everybody: workers without ports get some of those that have more than their share.
        let without = self.exhausted.len().saturating_sub(returning);
        let share = shares.values().map(|share| share.has).sum::<usize>() / shares.len().max(1);
        let mut missing = without.min(missing);
        while missing > 0 {
            let richest = left.iter().max_by_key(|(node, share)| (share.has, *node));
            let Some((node, richest)) = richest.filter(|(_, one)| one.has > share.max(1)) else {
                break;
            };
            let blocks = (richest.has - share.max(1)).min(missing);
            let node = *node;
            self.withdraw_blocks(
                node,
                blocks,
                "other nodes have none, and it has more than its share",
            );
            left.entry(node).and_modify(|share| share.has -= blocks);
            missing -= blocks;
        }
    }

    /// Usable leases of the node, those of the highest epoch first.
    fn newest_first(&self, node: &NodeName) -> Vec<usize> {
        let mut mine: Vec<usize> = (0..self.leases.len())
            .filter(|number| {
                let lease = &self.leases[*number].lease;
                lease.node == *node && lease.state.is_usable()
            })
            .collect();
        mine.sort_by_key(|number| {
            let work = &self.leases[*number];
            let epoch = if work.renumber {
                u64::MAX
            } else {
                work.lease.epoch
            };
            (std::cmp::Reverse(epoch), work.lease.ranges.first().copied())
        });
        mine
    }

    fn withdraw(&mut self, number: usize, why: &str) {
        let work = &mut self.leases[number];
        work.lease.state = LeaseState::Draining;
        work.lease.since_secs = self.now_secs;
        work.withdraw = true;
        let ports = blocks_in(&work.lease.ranges) * usize::from(BLOCK_PORTS);
        let text = format!("{ports} ports of {} are withdrawn: {why}", work.lease.node);
        self.say(text);
    }

    /// Withdraws usable leases of blocks that have become the address's holder's.
    fn withdraw_reserved(&mut self, reserved: &[PortRange]) {
        let reserved: BTreeSet<usize> = reserved.iter().flat_map(blocks_of).collect();
        for number in 0..self.leases.len() {
            let lease = &self.leases[number].lease;
            let all: BTreeSet<usize> = lease.ranges.iter().flat_map(blocks_of).collect();
            if !lease.state.is_usable() || all.is_disjoint(&reserved) {
                continue;
            }
            let kept: BTreeSet<usize> = all.difference(&reserved).copied().collect();
            if !kept.is_empty() {
                self.divide(number, &kept);
            }
            self.withdraw(number, "the ports are those of the address's holder");
        }
    }

    /// Withdraws this many blocks of the node's newest leases, and divides a lease of which a part stays.
    fn withdraw_blocks(&mut self, node: &NodeName, blocks: usize, why: &str) {
        let mut missing = blocks;
        for number in self.newest_first(node) {
            if missing == 0 {
                return;
            }
            let lease = &self.leases[number].lease;
            let all: BTreeSet<usize> = lease.ranges.iter().flat_map(blocks_of).collect();
            if all.len() > missing {
                let kept = all.iter().take(all.len() - missing).copied().collect();
                self.divide(number, &kept);
            }
            let blocks = blocks_in(&self.leases[number].lease.ranges);
            self.withdraw(number, why);
            missing = missing.saturating_sub(blocks);
        }
    }

    /// Divides a lease: the blocks `kept` become a lease of their own in the same state, and this one has the rest.
    fn divide(&mut self, number: usize, kept: &BTreeSet<usize>) {
        let work = &self.leases[number];
        let all = work.lease.ranges.iter().flat_map(blocks_of);
        let rest: BTreeSet<usize> = all.filter(|block| !kept.contains(block)).collect();
        let first = Lease {
            ranges: ranges_of(kept),
            ..work.lease.clone()
        };
        let (rest, renumber) = (ranges_of(&rest), work.renumber);
        self.leases[number].lease.ranges = rest;
        self.leases.push(LeaseWork {
            lease: first,
            renumber,
            withdraw: false,
        });
    }
}

/// Blocks that workers have and need: the ports of a worker that needs fewer than it has can be withdrawn.
pub(in crate::plan) fn needed_blocks(snapshot: &Snapshot, record: &AddressRecord) -> usize {
    let mut usable: BTreeMap<&NodeName, usize> = BTreeMap::new();
    let mut all = 0;
    for lease in &record.leases {
        let blocks = blocks_in(&lease.ranges);
        match lease.state {
            LeaseState::Granted | LeaseState::Active => {
                *usable.entry(&lease.node).or_default() += blocks;
            }
            LeaseState::Draining | LeaseState::Vanished | LeaseState::Fenced => all += blocks,
            LeaseState::HoldDown => {}
        }
    }
    for (node, has) in usable {
        let reported = snapshot.node_records.get(node);
        let reported = reported.map(|reported| PortUse::of(reported, record.address));
        all += has.min(needs(reported.unwrap_or_default()));
    }
    all
}

/// Blocks without which a worker would end flows early or refuse new ones soon.
fn needs(PortUse { wants, used }: PortUse) -> usize {
    wants
        .unwrap_or(0)
        .max(2 * used)
        .max(in_blocks(LEASE_FLOOR_PORTS))
}

/// The highest power of two up to this number; at least one.
fn power_of_two_up_to(number: usize) -> usize {
    1 << number.max(1).ilog2()
}
