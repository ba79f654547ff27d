//! Pods of this node whose addresses other nodes do not know to be pods', and since when. Other nodes learn of a pod
//! that has just started before this is reported.

use egret_core::numbers::POD_UNCOVERED_SECS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(POD_UNCOVERED_SECS);

#[derive(Default)]
pub(crate) struct Uncovered {
    since: BTreeMap<IpAddr, Instant>,
    told: BTreeSet<IpAddr>,
}

impl Uncovered {
    /// Records the current set.
    pub(crate) fn follow(&mut self, found: &BTreeSet<IpAddr>, now: Instant) {
        self.since.retain(|address, _| found.contains(address));
        for address in found {
            self.since.entry(*address).or_insert(now);
        }
    }

    /// Addresses that have been uncovered for long enough to report.
    pub(crate) fn lasting(&mut self, now: Instant) -> BTreeSet<IpAddr> {
        self.told = self.by(now);
        self.told.clone()
    }

    /// Whether the set to report differs from the last one.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.told != self.by(now)
    }

    fn by(&self, now: Instant) -> BTreeSet<IpAddr> {
        let all = self.since.iter();
        let lasting = all.filter(|(_, since)| now.duration_since(**since) >= PATIENCE);
        lasting.map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lasts_is_told_and_what_is_covered_is_told_no_more() {
        let (mut uncovered, start) = (Uncovered::default(), Instant::now());
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        uncovered.follow(&[a].into(), start);
        assert!(!uncovered.is_due(start));
        assert!(uncovered.lasting(start).is_empty());
        let later = start + PATIENCE;
        uncovered.follow(&[a, b].into(), later);
        assert!(uncovered.is_due(later));
        assert_eq!(uncovered.lasting(later), [a].into());
        assert!(!uncovered.is_due(later));
        uncovered.follow(&[b].into(), later);
        assert!(uncovered.is_due(later));
        assert!(uncovered.lasting(later).is_empty());
    }
}
