//! Ranges that nodes have, whatever the records of addresses say: a record may have been deleted, edited, or restored from
//! a backup. Ranges that no lease contains count as taken until their node has given them back.
//!
//! Node records also contain which ranges rest. They count only where the record of the address is made anew: where there
//! is one, it is written first.

use super::blocks::{BLOCK_FIRST, BLOCKS_END, blocks_of, in_blocks, ranges_of};
use super::{AddressWork, Cluster, LeaseWork, is_here};
use crate::model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Ranges of one node by address.
type ByAddress = BTreeMap<IpAddr, BTreeSet<PortRange>>;

/// Ranges of one address by node.
type ByNode = BTreeMap<NodeName, BTreeSet<PortRange>>;

/// Ranges of each address by node.
#[derive(Debug, Default)]
pub(in crate::plan) struct Claims {
    /// Granted, draining or held.
    had: BTreeMap<IpAddr, ByNode>,
    /// Given up, and not to be leased yet.
    resting: BTreeMap<IpAddr, ByNode>,
    /// Epochs of tables that gateways have loaded from a newer record than the store has.
    newer: BTreeMap<IpAddr, BTreeMap<NodeName, u64>>,
}

impl Claims {
    pub(in crate::plan) fn of(snapshot: &Snapshot) -> Self {
        let mut claims = Self::default();
        for record in snapshot.node_records.values() {
            claims.add(record);
        }
        claims
    }

    pub(in crate::plan) fn add(&mut self, record: &NodeRecord) {
        let add = |all: &mut BTreeMap<IpAddr, ByNode>, mine: ByAddress| {
            for (address, ranges) in mine {
                let nodes = all.entry(address).or_default();
                nodes.insert(record.node.clone(), ranges);
            }
        };
        add(&mut self.had, had(record));
        add(&mut self.resting, of_grants(&record.resting));
        for (address, epoch) in &record.newer_tables {
            let nodes = self.newer.entry(*address).or_default();
            nodes.insert(record.node.clone(), *epoch);
        }
    }

    pub(in crate::plan) fn remove(&mut self, record: &NodeRecord) {
        let remove = |all: &mut BTreeMap<IpAddr, ByNode>, mine: ByAddress| {
            for address in mine.into_keys() {
                if let Some(nodes) = all.get_mut(&address) {
                    nodes.remove(&record.node);
                    if nodes.is_empty() {
                        all.remove(&address);
                    }
                }
            }
        };
        remove(&mut self.had, had(record));
        remove(&mut self.resting, of_grants(&record.resting));
        for address in record.newer_tables.keys() {
            if let Some(nodes) = self.newer.get_mut(address) {
                nodes.remove(&record.node);
                if nodes.is_empty() {
                    self.newer.remove(address);
                }
            }
        }
    }

    /// Tables of the address that are newer than its record in the store was, by node and epoch.
    pub(super) fn newer(&self, address: IpAddr) -> impl Iterator<Item = (&NodeName, u64)> {
        let nodes = self.newer.get(&address).into_iter().flatten();
        nodes.map(|(node, epoch)| (node, *epoch))
    }

    /// Nodes whose record contains ranges of the address that rest.
    pub(in crate::plan) fn resting(&self, address: IpAddr) -> impl Iterator<Item = &NodeName> {
        let nodes = self.resting.get(&address);
        nodes.into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether the node has ranges of the address.
    pub(super) fn has(&self, address: IpAddr, node: &NodeName) -> bool {
        let nodes = self.had.get(&address);
        nodes.is_some_and(|nodes| nodes.contains_key(node))
    }
}

/// What a node's record says that leases depend on.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::plan) struct Concerns {
    /// Epoch of its grants, and the acknowledged one; whether its agent has reported.
    pub(in crate::plan) epochs: (u64, u64, bool),
    /// By address.
    by_address: BTreeMap<IpAddr, Concern>,
}

/// The same of one address.
#[derive(Debug, Default, PartialEq, Eq)]
struct Concern {
    granted: BTreeSet<PortRange>,
    claimed: BTreeSet<PortRange>,
    /// Also where it is withdrawn: that it is no longer held ends a lease.
    held: BTreeSet<PortRange>,
    use_of_ports: PortUse,
    newer_table: Option<u64>,
}

impl Concern {
    /// What matters whatever is free.
    fn without_use(&self) -> ([&BTreeSet<PortRange>; 3], Option<usize>, Option<u64>) {
        let ranges = [&self.granted, &self.claimed, &self.held];
        (ranges, self.use_of_ports.wants, self.newer_table)
    }
}

impl Concerns {
    pub(in crate::plan) fn of(record: &NodeRecord) -> Self {
        let mut concerns: BTreeMap<IpAddr, Concern> = BTreeMap::new();
        for (address, claimed) in had(record) {
            concerns.entry(address).or_default().claimed = claimed;
        }
        for (address, held) in &record.held {
            concerns.entry(*address).or_default().held = held.iter().copied().collect();
        }
        for (address, epoch) in &record.newer_tables {
            concerns.entry(*address).or_default().newer_table = Some(*epoch);
        }
        for grant in &record.grants {
            let concern = concerns.entry(grant.address).or_default();
            concern.granted.extend(&grant.ranges);
        }
        for address in record.demand.keys().chain(record.wanted_ports.keys()) {
            let concern = concerns.entry(*address).or_default();
            concern.use_of_ports = PortUse::of(record, *address);
        }
        Self {
            epochs: (
                record.grants_epoch,
                record.acknowledged,
                record.underlay_addresses.is_empty(),
            ),
            by_address: concerns,
        }
    }

    /// Addresses that the record names.
    pub(in crate::plan) fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.by_address.keys()
    }

    /// Addresses of which two records say something else than how many ports are used.
    pub(in crate::plan) fn differing(&self, other: &Self) -> BTreeSet<IpAddr> {
        self.differing_by(other, |was, is| was.without_use() != is.without_use())
    }

    /// Addresses of which two records say something else about use alone. It matters to leases only where ports are scarce
    /// ([`AddressWork::reclaim`]).
    pub(in crate::plan) fn used_otherwise(&self, other: &Self) -> BTreeSet<IpAddr> {
        self.differing_by(other, |was, is| {
            was.without_use() == is.without_use() && was.use_of_ports != is.use_of_ports
        })
    }

    fn differing_by(
        &self,
        other: &Self,
        differs: impl Fn(&Concern, &Concern) -> bool,
    ) -> BTreeSet<IpAddr> {
        let none = Concern::default();
        let all = self.by_address.keys().chain(other.by_address.keys());
        let differs = |address: &&IpAddr| {
            let was = self.by_address.get(*address).unwrap_or(&none);
            let is = other.by_address.get(*address).unwrap_or(&none);
            differs(was, is)
        };
        all.filter(differs).copied().collect()
    }
}

/// What a node reports of its use of an address, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortUse {
    /// Measured by its agent; `None`: no more than a first grant was ever needed.
    pub(super) wants: Option<usize>,
    /// Rounded up to a power of two, so that it changes seldom.
    pub(super) used: usize,
}

impl PortUse {
    pub(super) fn of(record: &NodeRecord, address: IpAddr) -> Self {
        let used = record.demand.get(&address).map(|ports| in_blocks(*ports));
        Self {
            wants: record
                .wanted_ports
                .get(&address)
                .map(|ports| in_blocks(*ports)),
            used: used.map_or(0, |used| {
                if used == 0 {
                    0
                } else {
                    used.next_power_of_two()
                }
            }),
        }
    }
}

/// Ranges of these grants.
fn of_grants<'g>(grants: impl IntoIterator<Item = &'g Grant>) -> ByAddress {
    let mut all = ByAddress::new();
    for grant in grants {
        all.entry(grant.address).or_default().extend(&grant.ranges);
    }
    all
}

/// Ranges that a node was granted, drains or holds.
fn had(record: &NodeRecord) -> ByAddress {
    let mut all = of_grants(record.grants.iter().chain(&record.draining));
    for (address, ranges) in &record.held {
        all.entry(*address).or_default().extend(ranges);
    }
    all
}

impl AddressWork {
    /// Makes leases of blocks that nodes have and the record does not contain, and of those that rest if the record is made
    /// anew. Whoever holds a block that rests begins its rest again.
    pub(super) fn adopt(&mut self, cluster: &Cluster<'_>, findings: &mut BTreeSet<Finding>) {
        self.take_out_remembered(cluster);
        let mut owners: Vec<Option<usize>> = vec![None; BLOCKS_END];
        for (number, work) in self.leases.iter().enumerate() {
            for block in work.lease.ranges.iter().flat_map(blocks_of) {
                owners[block] = Some(number);
            }
        }
        let address = self.record.address;
        let is_new = self.is_new(cluster);
        for (node, ranges) in cluster.claims.had.get(&address).into_iter().flatten() {
            let is_here = is_here(cluster.snapshot, node);
            let mut missing: BTreeSet<usize> = BTreeSet::new();
            let mut taken: BTreeSet<usize> = BTreeSet::new();
            for block in ranges.iter().flat_map(blocks_of) {
                match owners[block] {
                    None if block >= BLOCK_FIRST => {
                        missing.insert(block);
                    }
                    Some(number) if self.leases[number].lease.node != *node => {
                        taken.insert(block);
                    }
                    Some(number) if is_here => self.rest_again(number),
                    _ => {}
                }
            }
            // A node that is gone or fenced gave its ranges back through its leases, unless these are lost.
            if !missing.is_empty() && (is_here || is_new) {
                for block in &missing {
                    owners[*block] = Some(self.leases.len());
                }
                self.adopt_blocks(node, &missing, LeaseState::Draining);
            }
            if !taken.is_empty() && is_here {
                findings.insert(self.held_twice(node, &taken));
            }
        }
        let resting = cluster.claims.resting.get(&address).filter(|_| is_new);
        for (node, ranges) in resting.into_iter().flatten() {
            let blocks = ranges.iter().flat_map(blocks_of);
            let free = blocks.filter(|block| owners[*block].is_none() && *block >= BLOCK_FIRST);
            let free: BTreeSet<usize> = free.collect();
            for block in &free {
                owners[*block] = Some(self.leases.len());
            }
            if !free.is_empty() {
                // Gateways may steer them still: it rests once none does.
                self.adopt_blocks(node, &free, LeaseState::Fenced);
            }
        }
    }

    /// Whether the record of the address is made anew.
    pub(super) fn is_new(&self, cluster: &Cluster<'_>) -> bool {
        !cluster
            .snapshot
            .addresses
            .contains_key(&self.record.address)
    }

    /// Makes a fenced lease of all blocks that no lease contains: some of them may be the node's, whose record is missing.
    /// Its record will contain them too, so that they rest although the record of the address is deleted once more, and
    /// although its agent reports nothing.
    pub(super) fn rest_what_is_free(&mut self, node: &NodeName) {
        let ranges = self.leases.iter().flat_map(|work| &work.lease.ranges);
        let taken: BTreeSet<usize> = ranges.flat_map(blocks_of).collect();
        let free = (BLOCK_FIRST..BLOCKS_END).filter(|block| !taken.contains(block));
        let free: BTreeSet<usize> = free.collect();
        if !free.is_empty() {
            self.adopt_blocks(node, &free, LeaseState::Fenced);
        }
    }

    /// Takes blocks out of a fenced or resting lease that are its node's own after all, as long as leases may be forgotten:
    /// the node is here and names them.
    fn take_out_remembered(&mut self, cluster: &Cluster<'_>) {
        if self.record.restored.is_none() {
            return;
        }
        let claimed = cluster.claims.had.get(&self.record.address);
        self.leases.retain_mut(|LeaseWork { lease, .. }| {
            let mine = claimed.and_then(|nodes| nodes.get(&lease.node));
            let Some(mine) = mine.filter(|_| is_here(cluster.snapshot, &lease.node)) else {
                return true;
            };
            if matches!(lease.state, LeaseState::Fenced | LeaseState::HoldDown) {
                let mine: BTreeSet<usize> = mine.iter().flat_map(blocks_of).collect();
                let all: BTreeSet<usize> = lease.ranges.iter().flat_map(blocks_of).collect();
                lease.ranges = ranges_of(&(&all - &mine));
            }
            !lease.ranges.is_empty()
        });
    }

    /// Begins the rest of this lease again if it rests.
    fn rest_again(&mut self, number: usize) {
        let now_secs = self.now_secs;
        let lease = &mut self.leases[number].lease;
        if lease.state == LeaseState::HoldDown {
            lease.since_secs = now_secs;
        }
    }

    fn adopt_blocks(&mut self, node: &NodeName, blocks: &BTreeSet<usize>, state: LeaseState) {
        let has = match state {
            LeaseState::Draining => "has",
            _ => "may have had",
        };
        self.say(format!(
            "{} ports that {node} {has} and no lease contains are taken up as its lease",
            blocks.len() * usize::from(crate::numbers::BLOCK_PORTS)
        ));
        self.steering_changed = true;
        self.leases.push(LeaseWork {
            lease: Lease {
                node: node.clone(),
                ranges: ranges_of(blocks),
                epoch: 0,
                withdrawn: None,
                state,
                since_secs: self.now_secs,
            },
            renumber: true,
            withdraw: state == LeaseState::Draining,
        });
    }

    fn held_twice(&self, node: &NodeName, blocks: &BTreeSet<usize>) -> Finding {
        let ranges: Vec<String> = ranges_of(blocks).iter().map(ToString::to_string).collect();
        Finding {
            object: ObjectRef::of_cluster(Kind::EgressNode, &node.0),
            field: "status.held".into(),
            value: format!("{} {}", self.record.address, ranges.join(",")),
            remedy: "these ports are another node's: gateways drop what this node sends from them; its agent ends such flows \
                     once it is connected again"
                .into(),
        }
    }
}
