//! Free port blocks of one address, and the selection of a first grant from them.

use crate::hash::StableHash;
use crate::model::{NodeName, PortRange};
use crate::numbers::{BLOCK_PORTS, LEASE_PORT_FIRST, LEASE_RANGES_MAX};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// First block that may be leased.
pub(super) const BLOCK_FIRST: usize = (LEASE_PORT_FIRST / BLOCK_PORTS) as usize;
/// Number of the first block behind the last one.
pub(super) const BLOCKS_END: usize = 65_536 / BLOCK_PORTS as usize;

/// Number of hashed positions that are tried before all positions are searched.
const SCATTER_ATTEMPTS: u64 = 16;

/// The blocks of a range.
pub(super) fn blocks_of(range: &PortRange) -> impl Iterator<Item = usize> + use<> {
    usize::from(range.first / BLOCK_PORTS)..=usize::from(range.last / BLOCK_PORTS)
}

/// Number of blocks of these ranges.
pub(super) fn blocks_in(ranges: &[PortRange]) -> usize {
    ranges.iter().map(|range| blocks_of(range).count()).sum()
}

/// Blocks that this many ports fill.
pub(super) fn in_blocks(ports: u32) -> usize {
    usize::try_from(ports.div_ceil(BLOCK_PORTS.into())).unwrap_or(usize::MAX)
}

/// The ranges that these blocks make, neighbours together.
pub(super) fn ranges_of(blocks: &BTreeSet<usize>) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = Vec::new();
    for block in blocks {
        let (first, last) = ports_of(*block, 1);
        match ranges.last_mut() {
            Some(range) if range.last.checked_add(1) == Some(first) => range.last = last,
            _ => ranges.push(PortRange { first, last }),
        }
    }
    ranges
}

/// First and last port of this many blocks.
fn ports_of(block: usize, count: usize) -> (u16, u16) {
    let port = |block: usize| u16::try_from(block * usize::from(BLOCK_PORTS));
    let last = port(block + count - 1).expect("blocks end with the ports");
    (
        port(block).expect("blocks end with the ports"),
        last + (BLOCK_PORTS - 1),
    )
}

/// Size of a first grant in blocks, a power of two: at most `initial_ports`, and at most half of an equal share, so
/// that each expected worker can have twice as much.
pub(super) fn first_grant(initial_ports: u16, expected_workers: u32) -> usize {
    let all_ports = (BLOCKS_END - BLOCK_FIRST) as u64 * u64::from(BLOCK_PORTS);
    let share = all_ports / (2 * u64::from(expected_workers.max(1)));
    let blocks = u64::from(initial_ports).min(share) / u64::from(BLOCK_PORTS);
    // At most 504 (half of all ports), so that it fits.
    1 << blocks.max(1).ilog2()
}

/// Free blocks of one address.
pub(super) struct Blocks([bool; BLOCKS_END]);

impl Blocks {
    /// All leasable blocks, except these.
    pub(super) fn without<'a>(taken: impl Iterator<Item = &'a PortRange>) -> Self {
        let mut free = [true; BLOCKS_END];
        free[..BLOCK_FIRST].fill(false);
        for range in taken {
            let (first, last) = (range.first / BLOCK_PORTS, range.last / BLOCK_PORTS);
            free[usize::from(first)..=usize::from(last)].fill(false);
        }
        Self(free)
    }

    /// Number of free blocks.
    pub(super) fn count(&self) -> usize {
        self.0.iter().filter(|free| **free).count()
    }

    /// Takes a grant of `size` blocks, or the largest smaller power of two that is free; `None` if nothing is free.
    pub(super) fn take(
        &mut self,
        address: IpAddr,
        node: &NodeName,
        size: usize,
    ) -> Option<Vec<PortRange>> {
        let mut size = size;
        while size > 0 {
            // One range per block up to four: unpredictable ports need scattered ranges (RFC 6056).
            let ranges = size.min(LEASE_RANGES_MAX);
            if let Some(found) = self.scatter(address, node, ranges, size / ranges) {
                return Some(found);
            }
            size /= 2;
        }
        None
    }

    /// Takes `count` ranges of `length` blocks, aligned to their length to avoid fragmentation. A hash selects them:
    /// unpredictable without the list, and the same for the same input.
    fn scatter(
        &mut self,
        address: IpAddr,
        node: &NodeName,
        count: usize,
        length: usize,
    ) -> Option<Vec<PortRange>> {
        let hash = StableHash::new("scatter").address(address).text(&node.0);
        let free = |free: &[bool], start: usize| free[start..start + length].iter().all(|f| *f);
        let slots = BLOCKS_END / length;
        let mut starts: BTreeSet<usize> = BTreeSet::new();
        for attempt in 0..SCATTER_ATTEMPTS {
            let slot = hash.number(attempt).finish() % slots as u64;
            let start = usize::try_from(slot).expect("a slot number is small") * length;
            if starts.len() < count && free(&self.0, start) {
                starts.insert(start);
            }
        }
        // Little is free: search all positions, from an offset that differs from worker to worker.
        let offset = usize::try_from(hash.finish() % slots as u64).expect("a slot number is small");
        let all = (0..slots).map(|slot| (slot + offset) % slots * length);
        for start in all.filter(|start| free(&self.0, *start)) {
            if starts.len() == count {
                break;
            }
            starts.insert(start);
        }
        if starts.len() < count {
            return None;
        }
        let range = |start: usize| {
            self.0[start..start + length].fill(false);
            let (first, last) = ports_of(start, length);
            PortRange { first, last }
        };
        Some(starts.into_iter().map(range).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_grants_follow_the_rule() {
        // 64512 / (2 * 6) = 5376, so the limit of 1024 holds: 16 blocks.
        assert_eq!(first_grant(1024, 6), 16);
        // 64512 / (2 * 100) = 322: 256 ports.
        assert_eq!(first_grant(1024, 100), 4);
        assert_eq!(first_grant(1024, 100_000), 1, "never less than a block");
        assert_eq!(first_grant(64, 1), 1);
        assert_eq!(first_grant(0, 0), 1);
        assert_eq!(
            first_grant(u16::MAX, 1),
            256,
            "half of 1008 is 504: 256 is the power below"
        );
    }

    #[test]
    fn a_grant_is_four_equal_scattered_aligned_ranges() {
        let mut blocks = Blocks::without([].iter());
        let address = IpAddr::from([192, 0, 2, 1]);
        let ranges = blocks.take(address, &NodeName("w".into()), 16).unwrap();
        assert_eq!(ranges.len(), 4);
        for range in &ranges {
            assert_eq!(range.last - range.first, 255);
            assert_eq!(range.first % 256, 0);
        }
        let gaps = ranges
            .windows(2)
            .filter(|w| w[0].last + 1 != w[1].first)
            .count();
        assert!(gaps > 0, "scattered: {ranges:?}");
    }

    #[test]
    fn every_block_is_given_out_once_and_then_none() {
        let mut blocks = Blocks::without([].iter());
        let address = IpAddr::from([192, 0, 2, 1]);
        let mut given = std::collections::BTreeSet::new();
        let mut n = 0;
        while let Some(ranges) = blocks.take(address, &NodeName(format!("w{n}")), 16) {
            n += 1;
            for range in ranges {
                for block in range.first / 64..=range.last / 64 {
                    assert!(block >= 16 && given.insert(block), "block {block} twice");
                }
            }
        }
        assert_eq!(given.len(), 1008);
    }
}
