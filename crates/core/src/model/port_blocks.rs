//! Sets of port blocks: of one egress address, and of several.

use super::record::PortRange;
use crate::numbers::BLOCK_PORTS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

const WORD_BITS: u16 = 64;
const WORDS: usize = 16;
/// 65,536 ports in blocks of [`BLOCK_PORTS`].
const BLOCKS: u16 = 1024;

/// A set of port blocks of one address. Block `n` has the source ports `n * 64` to `n * 64 + 63`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortBlocks([u64; WORDS]);

impl PortBlocks {
    /// Every block of which a range has a port.
    pub fn of<'a>(ranges: impl IntoIterator<Item = &'a PortRange>) -> Self {
        let mut blocks = Self::default();
        for range in ranges {
            for block in range.first / BLOCK_PORTS..=range.last / BLOCK_PORTS {
                blocks.insert(block);
            }
        }
        blocks
    }

    /// Adds the block of a port.
    pub fn insert_port(&mut self, port: u16) {
        self.insert(port / BLOCK_PORTS);
    }

    fn insert(&mut self, block: u16) {
        self.0[usize::from(block / WORD_BITS)] |= 1 << (block % WORD_BITS);
    }

    fn contains(&self, block: u16) -> bool {
        self.0[usize::from(block / WORD_BITS)] & (1 << (block % WORD_BITS)) != 0
    }

    /// Whether the block of this port is in the set.
    pub fn contains_port(&self, port: u16) -> bool {
        self.contains(port / BLOCK_PORTS)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Number of ports.
    pub fn ports(&self) -> u32 {
        let blocks: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        blocks * u32::from(BLOCK_PORTS)
    }

    /// Blocks of either set.
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// Blocks of both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// Blocks of this set that the other one lacks.
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    fn zip(&self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|word| {
            join(self.0[word], other.0[word])
        }))
    }

    /// The set as the fewest ranges, sorted.
    pub fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for block in (0..BLOCKS).filter(|block| self.contains(*block)) {
            let first = block * BLOCK_PORTS;
            let last = first + (BLOCK_PORTS - 1);
            match ranges.last_mut() {
                Some(range) if first > 0 && range.last == first - 1 => range.last = last,
                _ => ranges.push(PortRange { first, last }),
            }
        }
        ranges
    }
}

/// Sets of port blocks by egress address; no set is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "BTreeMap<IpAddr, Vec<PortRange>>",
    into = "BTreeMap<IpAddr, Vec<PortRange>>"
)]
pub struct AddressPorts(BTreeMap<IpAddr, PortBlocks>);

impl AddressPorts {
    /// Adds blocks of an address.
    pub fn add(&mut self, address: IpAddr, blocks: &PortBlocks) {
        if !blocks.is_empty() {
            let own = self.0.entry(address).or_default();
            *own = own.union(blocks);
        }
    }

    /// Blocks of an address.
    pub fn of(&self, address: IpAddr) -> PortBlocks {
        self.0.get(&address).copied().unwrap_or_default()
    }

    /// Addresses with blocks.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    /// Blocks by address, none of them empty.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &PortBlocks)> {
        self.0.iter().map(|(address, blocks)| (*address, blocks))
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Blocks of either value.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (address, blocks) in other.iter() {
            all.add(address, blocks);
        }
        all
    }

    /// Blocks of both values.
    pub fn intersection(&self, other: &Self) -> Self {
        self.each(|address, own| own.intersection(&other.of(address)))
    }

    /// Blocks that the other value lacks.
    pub fn difference(&self, other: &Self) -> Self {
        self.each(|address, own| own.difference(&other.of(address)))
    }

    /// Whether every block of the other value is in this one.
    pub fn contains(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    fn each(&self, join: impl Fn(IpAddr, &PortBlocks) -> PortBlocks) -> Self {
        let mut joined = Self::default();
        for (address, blocks) in self.iter() {
            joined.add(address, &join(address, blocks));
        }
        joined
    }

    /// The fewest ranges of each address, sorted.
    pub fn ranges(&self) -> BTreeMap<IpAddr, Vec<PortRange>> {
        self.iter()
            .map(|(address, blocks)| (address, blocks.ranges()))
            .collect()
    }
}

impl<'a> FromIterator<(IpAddr, &'a [PortRange])> for AddressPorts {
    fn from_iter<T: IntoIterator<Item = (IpAddr, &'a [PortRange])>>(all: T) -> Self {
        let mut ports = Self::default();
        for (address, ranges) in all {
            ports.add(address, &PortBlocks::of(ranges));
        }
        ports
    }
}

impl From<BTreeMap<IpAddr, Vec<PortRange>>> for AddressPorts {
    fn from(all: BTreeMap<IpAddr, Vec<PortRange>>) -> Self {
        all.iter()
            .map(|(address, ranges)| (*address, ranges.as_slice()))
            .collect()
    }
}

impl From<AddressPorts> for BTreeMap<IpAddr, Vec<PortRange>> {
    fn from(ports: AddressPorts) -> Self {
        ports.ranges()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn ranges_that_touch_are_one_and_the_last_port_is_in_the_last_block() {
        let blocks = PortBlocks::of(&[range(1024, 1087), range(1088, 1151), range(65472, 65535)]);
        assert_eq!(blocks.ranges(), [range(1024, 1151), range(65472, 65535)]);
        assert_eq!(blocks.ports(), 192);
        assert!(blocks.contains_port(65535) && !blocks.contains_port(65471));
        assert_eq!(
            PortBlocks::of(&[range(0, 65535)]).ranges(),
            [range(0, 65535)]
        );
    }

    proptest! {
        /// Property: the operations are those of sets of block numbers.
        #[test]
        fn they_are_sets(a in prop::collection::btree_set(0u16..1024, 0..40), b in prop::collection::btree_set(0u16..1024, 0..40)) {
            let of = |set: &BTreeSet<u16>| {
                let ranges: Vec<PortRange> = set.iter().map(|n| range(n * 64, n * 64 + 63)).collect();
                PortBlocks::of(&ranges)
            };
            let (x, y) = (of(&a), of(&b));
            prop_assert_eq!(x.union(&y), of(&(&a | &b)));
            prop_assert_eq!(x.intersection(&y), of(&(&a & &b)));
            prop_assert_eq!(x.difference(&y), of(&(&a - &b)));
            prop_assert_eq!(PortBlocks::of(&x.ranges()), x);
        }
    }
}
