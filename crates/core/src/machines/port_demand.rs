//! Source ports that this node wants of each address, and the number in use that it reports.
//!
//! What runs out is the busiest destination: each port serves every destination once. A node wants four times what its
//! busiest destination uses, so that a burst finds free ports while the controller grants more; less of a reserve where
//! that would be most of an address. It asks for more at once, and for less only after [`LEASE_IDLE_SECS`] in which
//! less would have sufficed.

use crate::model::NodeRecord;
use crate::numbers::{BLOCK_PORTS, LEASE_IDLE_SECS, LEASE_PORTS_ALL, PORTS_REPORT_SECS};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Wanted ports up to which the reserve is three quarters of them.
const GENEROUS_MAX: u32 = 16_384;
/// Wanted ports above which a node wants the whole address.
const HALF_MAX: u32 = 32_768;

/// Ports that a node wants whose busiest destination uses this many: a power of two, at least one block, or all ports
/// of an address.
pub fn wanted_ports(busiest: u32) -> u32 {
    let power = |ports: u32| ports.max(u32::from(BLOCK_PORTS)).next_power_of_two();
    let generous = power(busiest.min(LEASE_PORTS_ALL) * 4);
    if generous <= GENEROUS_MAX {
        return generous;
    }
    match power(busiest.min(LEASE_PORTS_ALL) * 2).max(GENEROUS_MAX) {
        half if half <= HALF_MAX => half,
        _ => LEASE_PORTS_ALL,
    }
}

/// Demand for ports of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    /// Reported; 0: the first grant has always sufficed.
    ports: u32,
    /// Time since which fewer would suffice, and the most that was needed since.
    fewer: Option<(u64, u32)>,
}

/// Number of ports in use, as reported.
#[derive(Clone, Copy, Debug, Default)]
struct InUse {
    ports: u32,
    fewer_since_ms: Option<u64>,
}

/// Demand of one node for ports, by address.
#[derive(Clone, Debug, Default)]
pub struct PortDemand {
    wanted: BTreeMap<IpAddr, Wanted>,
    in_use: BTreeMap<IpAddr, InUse>,
    adopted: bool,
}

impl PortDemand {
    /// Takes over, once, what this node's record says at the start of the agent, as if measured now: a restart never
    /// makes a lease smaller.
    pub fn adopt(&mut self, record: &NodeRecord) {
        if std::mem::replace(&mut self.adopted, true) {
            return;
        }
        for (address, ports) in &record.wanted_ports {
            let (ports, fewer) = (*ports, None);
            self.wanted.insert(*address, Wanted { ports, fewer });
        }
        for (address, ports) in &record.demand {
            let (ports, fewer_since_ms) = (blocks_up(*ports), None);
            self.in_use.insert(
                *address,
                InUse {
                    ports,
                    fewer_since_ms,
                },
            );
        }
    }

    /// Sets the ports in use towards the busiest destination of each address, and the ports granted. Addresses that are
    /// not granted are forgotten. Returns whether [`Self::wanted`] has changed.
    pub fn measured(
        &mut self,
        granted: &BTreeMap<IpAddr, u32>,
        busiest: &BTreeMap<IpAddr, u32>,
        now_ms: u64,
    ) -> bool {
        let before = self.wanted();
        self.wanted
            .retain(|address, _| granted.contains_key(address));
        for (address, granted) in granted {
            let needed = wanted_ports(busiest.get(address).copied().unwrap_or(0));
            let wanted = self.wanted.entry(*address).or_default();
            if wanted.ports == 0 && needed <= *granted {
                continue;
            }
            wanted.needs(needed, now_ms);
        }
        self.wanted() != before
    }

    /// Ports wanted, by address, where the first grant did not suffice.
    pub fn wanted(&self) -> BTreeMap<IpAddr, u32> {
        let all = self.wanted.iter().filter(|(_, wanted)| wanted.ports > 0);
        all.map(|(address, wanted)| (*address, wanted.ports))
            .collect()
    }

    /// Time at which [`Self::measured`] may lower a demand.
    pub fn next_deadline(&self) -> Option<u64> {
        let since = self.wanted.values().filter_map(|wanted| wanted.fewer);
        since
            .map(|(since_ms, _)| since_ms.saturating_add(LEASE_IDLE_SECS * 1_000))
            .min()
    }

    /// Sets the exact numbers of ports in use; complete.
    pub fn counted(&mut self, ports: &BTreeMap<IpAddr, u32>, now_ms: u64) {
        self.in_use.retain(|address, _| ports.contains_key(address));
        for (address, ports) in ports {
            self.in_use
                .entry(*address)
                .or_default()
                .counts(blocks_up(*ports), now_ms);
        }
    }

    /// Ports in use to report, in whole blocks: never fewer than the last count, and more while the number falls.
    pub fn in_use(&self) -> BTreeMap<IpAddr, u32> {
        let all = self.in_use.iter();
        all.map(|(address, in_use)| (*address, in_use.ports))
            .collect()
    }
}

impl Wanted {
    fn needs(&mut self, needed: u32, now_ms: u64) {
        if needed >= self.ports {
            self.ports = needed;
            self.fewer = None;
            return;
        }
        let (since_ms, most) = self.fewer.unwrap_or((now_ms, 0));
        let most = most.max(needed);
        self.fewer = Some((since_ms, most));
        if now_ms >= since_ms.saturating_add(LEASE_IDLE_SECS * 1_000) {
            self.ports = most;
            self.fewer = (needed < most).then_some((now_ms, needed));
        }
    }
}

impl InUse {
    fn counts(&mut self, ports: u32, now_ms: u64) {
        let report = PORTS_REPORT_SECS * 1_000;
        if ports >= self.ports {
            (self.ports, self.fewer_since_ms) = (ports, None);
            return;
        }
        let since_ms = *self.fewer_since_ms.get_or_insert(now_ms);
        // One block up and down is a busy node's rest.
        let far = ports + 2 * u32::from(BLOCK_PORTS) <= self.ports && ports <= self.ports / 4 * 3;
        if far || now_ms >= since_ms.saturating_add(report) {
            (self.ports, self.fewer_since_ms) = (ports, None);
        }
    }
}

/// The number in whole blocks, rounded up.
fn blocks_up(ports: u32) -> u32 {
    ports.div_ceil(u32::from(BLOCK_PORTS)) * u32::from(BLOCK_PORTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeName;
    use proptest::prelude::*;

    const IDLE_MS: u64 = LEASE_IDLE_SECS * 1_000;

    fn address() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn one(ports: u32) -> BTreeMap<IpAddr, u32> {
        [(address(), ports)].into()
    }

    /// Ports wanted after this measurement; 0: nothing is reported.
    fn measure(demand: &mut PortDemand, granted: u32, busiest: u32, now_ms: u64) -> u32 {
        demand.measured(&one(granted), &one(busiest), now_ms);
        demand.wanted().get(&address()).copied().unwrap_or(0)
    }

    #[test]
    fn a_node_wants_a_power_of_two_with_a_reserve() {
        let wanted = [
            0, 16, 17, 257, 1_025, 4_096, 4_097, 8_192, 8_193, 16_384, 16_385, 64_512,
        ];
        let wanted = wanted.map(wanted_ports);
        let right = [
            64, 64, 128, 2_048, 8_192, 16_384, 16_384, 16_384, 32_768, 32_768, 64_512, 64_512,
        ];
        assert_eq!(wanted, right);
    }

    #[test]
    fn nothing_is_wanted_while_the_first_grant_suffices_and_more_at_once() {
        let mut demand = PortDemand::default();
        assert_eq!(measure(&mut demand, 1_024, 256, 0), 0);
        assert!(demand.measured(&one(1_024), &one(257), 1));
        assert_eq!(demand.wanted(), one(2_048));
        assert_eq!(measure(&mut demand, 1_024, 1_100, 2), 8_192);
        assert!(!demand.measured(&one(8_192), &one(1_101), 3));
    }

    #[test]
    fn a_demand_falls_after_ten_minutes_in_which_less_would_have_sufficed_to_the_most_needed_in_them()
     {
        let mut demand = PortDemand::default();
        assert_eq!(measure(&mut demand, 1_024, 1_100, 0), 8_192);
        assert_eq!(measure(&mut demand, 8_192, 10, 1_000), 8_192);
        assert_eq!(measure(&mut demand, 8_192, 600, 2_000), 8_192);
        assert_eq!(demand.next_deadline(), Some(1_000 + IDLE_MS));
        assert_eq!(measure(&mut demand, 8_192, 10, 999 + IDLE_MS), 8_192);
        assert_eq!(measure(&mut demand, 8_192, 10, 1_000 + IDLE_MS), 4_096);
        assert_eq!(measure(&mut demand, 8_192, 10, 999 + 2 * IDLE_MS), 4_096);
        assert_eq!(measure(&mut demand, 8_192, 10, 1_000 + 2 * IDLE_MS), 64);
        assert_eq!(demand.next_deadline(), None);
    }

    #[test]
    fn one_burst_in_the_ten_minutes_keeps_the_ports() {
        let mut demand = PortDemand::default();
        measure(&mut demand, 1_024, 1_100, 0);
        measure(&mut demand, 8_192, 10, 1_000);
        measure(&mut demand, 8_192, 1_100, IDLE_MS);
        assert_eq!(measure(&mut demand, 8_192, 10, 1_000 + IDLE_MS), 8_192);
        assert_eq!(measure(&mut demand, 8_192, 10, 999 + 2 * IDLE_MS), 8_192);
    }

    #[test]
    fn a_restart_keeps_what_was_wanted_and_forgets_what_is_not_granted() {
        let record = NodeRecord {
            wanted_ports: one(8_192),
            demand: one(700),
            ..NodeRecord::new(NodeName("a".into()))
        };
        let mut demand = PortDemand::default();
        demand.adopt(&record);
        assert_eq!(demand.in_use(), one(704));
        assert_eq!(measure(&mut demand, 1_024, 3, 5), 8_192);
        demand.adopt(&NodeRecord {
            wanted_ports: one(64),
            ..record
        });
        assert_eq!(demand.wanted(), one(8_192));
        assert!(demand.measured(&BTreeMap::new(), &one(3), 6));
        assert!(demand.wanted().is_empty());
    }

    #[test]
    fn a_number_in_use_rises_at_once_and_falls_late() {
        let mut demand = PortDemand::default();
        let mut count = |ports, now_ms| {
            demand.counted(&one(ports), now_ms);
            demand.in_use()[&address()]
        };
        assert_eq!(count(1, 0), 64);
        assert_eq!(count(1_000, 5_000), 1_024);
        assert_eq!(count(900, 10_000), 1_024, "two blocks, and not a quarter");
        assert_eq!(count(1_001, 15_000), 1_024);
        assert_eq!(count(960, 20_000), 1_024);
        assert_eq!(count(950, 20_000 + PORTS_REPORT_SECS * 1_000), 960);
        assert_eq!(count(100, 90_000), 128, "far fewer");
        assert_eq!(count(0, 95_000), 0);
    }

    proptest! {
        /// Property: a demand is never below what the last ten minutes needed, and the reported use never below the
        /// count.
        #[test]
        fn never_too_few(loads in prop::collection::vec((0u32..20_000, 0u64..200_000), 1..60)) {
            let mut demand = PortDemand::default();
            let (mut now_ms, mut past) = (0, Vec::new());
            for (load, wait_ms) in loads {
                now_ms += wait_ms;
                past.push((now_ms, load));
                let wanted = measure(&mut demand, 1_024, load, now_ms);
                demand.counted(&one(load), now_ms);
                prop_assert!(demand.in_use()[&address()] >= load);
                let recent = past.iter().filter(|(at_ms, _)| at_ms + IDLE_MS > now_ms);
                let most = recent.map(|(_, load)| wanted_ports(*load)).max().unwrap();
                prop_assert!(wanted.max(1_024) >= most);
            }
        }
    }
}
