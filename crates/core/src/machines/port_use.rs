//! Source ports in use per destination, and destinations towards which a lease is exhausted.
//!
//! The same port can serve another destination at the same time (RFC 4787 section 4.1 calls it port overlapping at the
//! outside of one address). So a lease is full towards one destination while others still work, and only flows to that
//! one are refused (design section 7).
//!
//! ```text
//!   a port free --> every port in use: the kernel drops new flows in silence, TCP tries again after 1 s
//!                   (RFC 6298 section 2.1), and the controller grants more ports meanwhile
//!               --> still so after FULL_GRACE_MS without more ports: new flows are refused
//! ```

use crate::model::PortRange;
use crate::numbers::{FULL_DESTINATIONS_MAX, FULL_GRACE_MS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// One destination of one egress address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// The egress address.
    pub egress: IpAddr,
    /// Destination address.
    pub address: IpAddr,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// Source ports in use by destination. A destination is full when every port of the node's ranges is in use towards it.
/// It is free again once one port in 64 (at least one) is unused, so that one connection that ends at the limit does
/// not toggle it.
#[derive(Clone, Debug, Default)]
pub struct PortUse {
    ranges: BTreeMap<IpAddr, Vec<PortRange>>,
    used: BTreeMap<Destination, BTreeSet<u16>>,
    /// Number of destinations by number of ports in use, of each address.
    sizes: BTreeMap<IpAddr, BTreeMap<usize, usize>>,
    /// Full destinations, with the time since which they are full, or since which their address has no more ports.
    full: BTreeMap<Destination, u64>,
    /// A complete dump is being added: nothing is decided before its end.
    in_dump: bool,
    left_out: u64,
}

/// Divisor of the number of ports that must be unused before a full destination is free.
const FREE_PART: usize = 64;

impl PortUse {
    /// Sets the ranges that new flows may use, by egress address. Flows of other addresses are ignored.
    pub fn set_ranges(&mut self, ranges: BTreeMap<IpAddr, Vec<PortRange>>, now_ms: u64) {
        if self.ranges == ranges {
            return;
        }
        let before = std::mem::replace(&mut self.ranges, ranges);
        let kept = |egress: &IpAddr| self.ranges.contains_key(egress);
        self.used.retain(|destination, _| kept(&destination.egress));
        self.sizes.retain(|egress, _| kept(egress));
        for (full, since_ms) in &mut self.full {
            let ports = |of: &BTreeMap<IpAddr, Vec<PortRange>>| of.get(&full.egress).map(capacity);
            if ports(&self.ranges) > ports(&before) {
                *since_ms = now_ms;
            }
        }
        self.judge_all(now_ms);
    }

    fn judge_all(&mut self, now_ms: u64) {
        let all: BTreeSet<Destination> =
            self.used.keys().chain(self.full.keys()).copied().collect();
        for destination in all {
            self.judge(&destination, now_ms);
        }
    }

    /// Removes all flows, before a complete dump is added.
    pub fn forget_flows(&mut self) {
        self.used.clear();
        self.sizes.clear();
        self.in_dump = true;
    }

    /// Ends a complete dump: destinations without any flow become free.
    pub fn told_all(&mut self, now_ms: u64) {
        self.in_dump = false;
        self.judge_all(now_ms);
    }

    /// Adds a flow that uses a port; idempotent.
    pub fn add(&mut self, destination: Destination, port: u16, now_ms: u64) {
        if !self.ranges.contains_key(&destination.egress) {
            return;
        }
        let ports = self.used.entry(destination).or_default();
        if ports.insert(port) {
            let size = ports.len();
            self.resized(destination.egress, size - 1, size);
        }
        self.judge(&destination, now_ms);
    }

    /// Removes a flow that has ended or whose port a new flow may reuse.
    pub fn remove(&mut self, destination: Destination, port: u16, now_ms: u64) {
        let Some(ports) = self.used.get_mut(&destination) else {
            return;
        };
        if ports.remove(&port) {
            let size = ports.len();
            if size == 0 {
                self.used.remove(&destination);
            }
            self.resized(destination.egress, size + 1, size);
        }
        self.judge(&destination, now_ms);
    }

    fn resized(&mut self, egress: IpAddr, before: usize, after: usize) {
        let sizes = self.sizes.entry(egress).or_default();
        if let Some(number) = sizes.get_mut(&before) {
            *number -= 1;
            if *number == 0 {
                sizes.remove(&before);
            }
        }
        if after > 0 {
            *sizes.entry(after).or_default() += 1;
        }
    }

    /// Number of ports in use towards the busiest destination of each address, in whatever ranges.
    pub fn busiest(&self) -> BTreeMap<IpAddr, u32> {
        let most = |sizes: &BTreeMap<usize, usize>| sizes.last_key_value().map(|(size, _)| *size);
        let all = self.ranges.keys().map(|egress| {
            let most = self.sizes.get(egress).and_then(most).unwrap_or(0);
            (*egress, u32::try_from(most).unwrap_or(u32::MAX))
        });
        all.collect()
    }

    /// Destinations whose new flows are to be refused: without a free port for [`FULL_GRACE_MS`]; at most
    /// [`FULL_DESTINATIONS_MAX`].
    pub fn refused(&self, now_ms: u64) -> BTreeSet<Destination> {
        let full = self.full.iter();
        let lasting = full.filter(|(_, since_ms)| now_ms >= since_ms.saturating_add(FULL_GRACE_MS));
        lasting.map(|(destination, _)| *destination).collect()
    }

    /// Number of times that a destination was full and not listed because the list was full: its new flows are dropped
    /// silently.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn judge(&mut self, destination: &Destination, now_ms: u64) {
        if self.in_dump {
            return;
        }
        let ranges = self.ranges.get(&destination.egress).map(Vec::as_slice);
        let capacity = ranges.map_or(0, capacity);
        let ports = self.used.get(destination);
        let enough = |wanted: usize| {
            ports.is_some_and(|ports| {
                ports.len() >= wanted && {
                    let inside = ranges.unwrap_or_default().iter();
                    let used: usize = inside
                        .map(|range| ports.range(range.first..=range.last).count())
                        .sum();
                    used >= wanted
                }
            })
        };
        let was_full = self.full.contains_key(destination);
        let limit = match was_full {
            true => capacity + 1 - (capacity / FREE_PART).max(1),
            false => capacity,
        };
        if capacity == 0 || !enough(limit) {
            self.full.remove(destination);
        } else if !was_full {
            if self.full.len() < FULL_DESTINATIONS_MAX {
                self.full.insert(*destination, now_ms);
            } else {
                self.left_out += 1;
            }
        }
    }
}

/// Number of ports in the ranges.
fn capacity(ranges: impl AsRef<[PortRange]>) -> usize {
    let ranges = ranges.as_ref().iter();
    ranges
        .map(|range| usize::from(range.last - range.first) + 1)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EGRESS: &str = "192.0.2.1";

    fn to(port: u16) -> Destination {
        Destination {
            egress: EGRESS.parse().unwrap(),
            address: "203.0.113.10".parse().unwrap(),
            protocol: 6,
            port,
        }
    }

    fn ranges(ranges: &[(u16, u16)]) -> BTreeMap<IpAddr, Vec<PortRange>> {
        let ranges = ranges
            .iter()
            .map(|&(first, last)| PortRange { first, last })
            .collect();
        BTreeMap::from([(EGRESS.parse().unwrap(), ranges)])
    }

    #[test]
    fn a_destination_is_full_at_the_last_port_and_free_again_below_it() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087), (4096, 4159)]), 0);
        for port in (1024..1088).chain(4096..4159) {
            ports.add(to(443), port, 0);
        }
        assert!(ports.refused(FULL_GRACE_MS).is_empty(), "one port is left");
        ports.add(to(443), 4159, 0);
        ports.add(to(443), 4159, 0);
        ports.add(to(80), 4159, 0);
        assert_eq!(ports.refused(FULL_GRACE_MS), BTreeSet::from([to(443)]));
        ports.remove(to(443), 1030, 0);
        assert!(
            !ports.refused(FULL_GRACE_MS).is_empty(),
            "two of 128 must be free"
        );
        ports.remove(to(443), 1031, 0);
        assert!(ports.refused(FULL_GRACE_MS).is_empty());
    }

    #[test]
    fn ports_of_other_ranges_and_addresses_do_not_count() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]), 0);
        for port in 2048..2200 {
            ports.add(to(443), port, 0);
        }
        assert!(ports.refused(FULL_GRACE_MS).is_empty());
        for port in 1024..1088 {
            let egress = "192.0.2.2".parse().unwrap();
            ports.add(Destination { egress, ..to(443) }, port, 0);
        }
        assert!(ports.refused(FULL_GRACE_MS).is_empty());
    }

    #[test]
    fn more_ports_and_no_ports_make_it_free() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]), 0);
        (1024..1088).for_each(|port| ports.add(to(443), port, 0));
        assert_eq!(ports.refused(FULL_GRACE_MS).len(), 1);
        ports.set_ranges(ranges(&[(1024, 1151)]), 0);
        assert!(ports.refused(FULL_GRACE_MS).is_empty());
        ports.set_ranges(ranges(&[(1024, 1087)]), 0);
        assert_eq!(ports.refused(FULL_GRACE_MS).len(), 1);
        ports.set_ranges(BTreeMap::new(), 0);
        assert!(ports.refused(FULL_GRACE_MS).is_empty());
    }

    #[test]
    fn flows_told_anew_replace_what_was_known() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]), 0);
        (1024..1088).for_each(|port| ports.add(to(443), port, 0));
        ports.forget_flows();
        (1024..1050).for_each(|port| ports.add(to(443), port, 0));
        ports.told_all(0);
        assert!(ports.refused(FULL_GRACE_MS).is_empty());
    }

    #[test]
    fn a_full_destination_is_refused_after_the_grace_which_more_ports_and_no_dump_begin_anew() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]), 0);
        (1024..1088).for_each(|port| ports.add(to(443), port, 100));
        assert!(ports.refused(100 + FULL_GRACE_MS - 1).is_empty());
        assert_eq!(ports.refused(100 + FULL_GRACE_MS).len(), 1);
        ports.forget_flows();
        (1024..1088).for_each(|port| ports.add(to(443), port, 5_000));
        ports.told_all(5_000);
        assert_eq!(ports.refused(5_000).len(), 1);
        (2048..2112).for_each(|port| ports.add(to(443), port, 5_000));
        ports.set_ranges(ranges(&[(1024, 1087), (2048, 2111)]), 6_000);
        assert!(ports.refused(5_999 + FULL_GRACE_MS).is_empty());
        assert_eq!(ports.refused(6_000 + FULL_GRACE_MS).len(), 1);
        ports.set_ranges(ranges(&[(1024, 1087)]), 9_000);
        assert_eq!(
            ports.refused(9_000).len(),
            1,
            "fewer ports are no reason to wait"
        );
    }

    #[test]
    fn the_busiest_destination_counts_ports_outside_of_the_ranges_too() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]), 0);
        let busiest = |ports: &PortUse| ports.busiest()[&EGRESS.parse::<IpAddr>().unwrap()];
        assert_eq!(busiest(&ports), 0);
        (2048..2058).for_each(|port| ports.add(to(443), port, 0));
        (1024..1027).for_each(|port| ports.add(to(80), port, 0));
        assert_eq!(busiest(&ports), 10);
        (2048..2058).for_each(|port| ports.remove(to(443), port, 0));
        assert_eq!(busiest(&ports), 3);
        ports.forget_flows();
        ports.told_all(0);
        assert_eq!(busiest(&ports), 0);
        ports.set_ranges(BTreeMap::new(), 0);
        assert!(ports.busiest().is_empty());
    }

    #[test]
    fn the_list_has_a_limit() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1024)]), 0);
        for port in 0..=FULL_DESTINATIONS_MAX as u16 {
            ports.add(to(port), 1024, 0);
        }
        assert_eq!(ports.refused(FULL_GRACE_MS).len(), FULL_DESTINATIONS_MAX);
        assert_eq!(ports.left_out(), 1);
    }

    proptest! {
        /// Property: for any order of events, a destination with every port in use is listed, and one with a 64th free
        /// is not.
        #[test]
        fn full_means_no_port_left(events in prop::collection::vec((any::<bool>(), 0u16..3, 0u16..70), 0..600)) {
            let mut ports = PortUse::default();
            ports.set_ranges(ranges(&[(1024, 1087)]), 0);
            let mut truth: BTreeSet<(u16, u16)> = BTreeSet::new();
            // Most ports are in use from the start, so that the limit is reached.
            for port in 0..60 {
                truth.insert((1, port));
                ports.add(to(1), 1024 + port, 0);
            }
            for (add, destination, port) in events {
                match add {
                    true => { truth.insert((destination, port)); ports.add(to(destination), 1024 + port, 0); }
                    false => { truth.remove(&(destination, port)); ports.remove(to(destination), 1024 + port, 0); }
                }
                for destination in 0..3 {
                    let used = (0..64).filter(|port| truth.contains(&(destination, *port))).count();
                    let all = |n| truth.iter().filter(|(to, _)| *to == n).count();
                    let most = (0..3).map(all).max().unwrap_or(0);
                    prop_assert_eq!(ports.busiest().into_values().next(), Some(most as u32));
                    prop_assert_eq!(ports.refused(FULL_GRACE_MS).contains(&to(destination)), used == 64);
                }
            }
        }
    }
}
