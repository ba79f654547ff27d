//! Source ports in use per destination, and destinations towards which a lease is exhausted.
//!
//! The same port can serve another destination at the same time (RFC 4787 section 4.1 calls it port overlapping at the
//! outside of one address). So a lease is full towards one destination while others still work, and only flows to that
//! one are refused (design section 7).

use crate::model::PortRange;
use crate::numbers::FULL_DESTINATIONS_MAX;
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
    full: BTreeSet<Destination>,
    left_out: u64,
}

/// Divisor of the number of ports that must be unused before a full destination is free.
const FREE_PART: usize = 64;

impl PortUse {
    /// Sets the ranges that new flows may use, by egress address. Flows of other addresses are ignored.
    pub fn set_ranges(&mut self, ranges: BTreeMap<IpAddr, Vec<PortRange>>) {
        if self.ranges == ranges {
            return;
        }
        self.ranges = ranges;
        let kept = |destination: &Destination| self.ranges.contains_key(&destination.egress);
        self.used.retain(|destination, _| kept(destination));
        let all: BTreeSet<Destination> = self.used.keys().chain(&self.full).copied().collect();
        for destination in all {
            self.judge(&destination);
        }
    }

    /// Removes all flows, before a complete dump is added.
    pub fn forget_flows(&mut self) {
        self.used.clear();
    }

    /// Ends a complete dump: destinations without any flow become free.
    pub fn told_all(&mut self) {
        for destination in self.full.clone() {
            self.judge(&destination);
        }
    }

    /// Adds a flow that uses a port; idempotent.
    pub fn add(&mut self, destination: Destination, port: u16) {
        if self.ranges.contains_key(&destination.egress) {
            self.used.entry(destination).or_default().insert(port);
            self.judge(&destination);
        }
    }

    /// Removes a flow that has ended or whose port a new flow may reuse.
    pub fn remove(&mut self, destination: Destination, port: u16) {
        if let Some(ports) = self.used.get_mut(&destination) {
            ports.remove(&port);
            if ports.is_empty() {
                self.used.remove(&destination);
            }
            self.judge(&destination);
        }
    }

    /// Destinations without a free port; at most [`FULL_DESTINATIONS_MAX`].
    pub fn full(&self) -> &BTreeSet<Destination> {
        &self.full
    }

    /// Number of times that a destination was full and not listed because the list was full: its new flows are dropped
    /// silently.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn judge(&mut self, destination: &Destination) {
        let ranges = self.ranges.get(&destination.egress).map(Vec::as_slice);
        let capacity: usize = ranges
            .unwrap_or_default()
            .iter()
            .map(|range| usize::from(range.last - range.first) + 1)
            .sum();
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
        let was_full = self.full.contains(destination);
        let limit = match was_full {
            true => capacity + 1 - (capacity / FREE_PART).max(1),
            false => capacity,
        };
        if capacity == 0 || !enough(limit) {
            self.full.remove(destination);
        } else if !was_full {
            if self.full.len() < FULL_DESTINATIONS_MAX {
                self.full.insert(*destination);
            } else {
                self.left_out += 1;
            }
        }
    }
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
        ports.set_ranges(ranges(&[(1024, 1087), (4096, 4159)]));
        for port in (1024..1088).chain(4096..4159) {
            ports.add(to(443), port);
        }
        assert!(ports.full().is_empty(), "one port is left");
        ports.add(to(443), 4159);
        ports.add(to(443), 4159);
        ports.add(to(80), 4159);
        assert_eq!(ports.full(), &BTreeSet::from([to(443)]));
        ports.remove(to(443), 1030);
        assert!(!ports.full().is_empty(), "two of 128 must be free");
        ports.remove(to(443), 1031);
        assert!(ports.full().is_empty());
    }

    #[test]
    fn ports_of_other_ranges_and_addresses_do_not_count() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]));
        for port in 2048..2200 {
            ports.add(to(443), port);
        }
        assert!(ports.full().is_empty());
        for port in 1024..1088 {
            let egress = "192.0.2.2".parse().unwrap();
            ports.add(Destination { egress, ..to(443) }, port);
        }
        assert!(ports.full().is_empty());
    }

    #[test]
    fn more_ports_and_no_ports_make_it_free() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]));
        (1024..1088).for_each(|port| ports.add(to(443), port));
        assert_eq!(ports.full().len(), 1);
        ports.set_ranges(ranges(&[(1024, 1151)]));
        assert!(ports.full().is_empty());
        ports.set_ranges(ranges(&[(1024, 1087)]));
        assert_eq!(ports.full().len(), 1);
        ports.set_ranges(BTreeMap::new());
        assert!(ports.full().is_empty());
    }

    #[test]
    fn flows_told_anew_replace_what_was_known() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1087)]));
        (1024..1088).for_each(|port| ports.add(to(443), port));
        ports.forget_flows();
        (1024..1050).for_each(|port| ports.add(to(443), port));
        ports.told_all();
        assert!(ports.full().is_empty());
    }

    #[test]
    fn the_list_has_a_limit() {
        let mut ports = PortUse::default();
        ports.set_ranges(ranges(&[(1024, 1024)]));
        for port in 0..=FULL_DESTINATIONS_MAX as u16 {
            ports.add(to(port), 1024);
        }
        assert_eq!(ports.full().len(), FULL_DESTINATIONS_MAX);
        assert_eq!(ports.left_out(), 1);
    }

    proptest! {
        /// Property: for any order of events, a destination with every port in use is listed, and one with a 64th free
        /// is not.
        #[test]
        fn full_means_no_port_left(events in prop::collection::vec((any::<bool>(), 0u16..3, 0u16..70), 0..600)) {
            let mut ports = PortUse::default();
            ports.set_ranges(ranges(&[(1024, 1087)]));
            let mut truth: BTreeSet<(u16, u16)> = BTreeSet::new();
            // Most ports are in use from the start, so that the limit is reached.
            for port in 0..60 {
                truth.insert((1, port));
                ports.add(to(1), 1024 + port);
            }
            for (add, destination, port) in events {
                match add {
                    true => { truth.insert((destination, port)); ports.add(to(destination), 1024 + port); }
                    false => { truth.remove(&(destination, port)); ports.remove(to(destination), 1024 + port); }
                }
                for destination in 0..3 {
                    let used = (0..64).filter(|port| truth.contains(&(destination, *port))).count();
                    prop_assert_eq!(ports.full().contains(&to(destination)), used == 64);
                }
            }
        }
    }
}
