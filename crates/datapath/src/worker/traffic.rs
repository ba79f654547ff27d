//! Traffic by traffic key: two named counters each, which live as long as the key, whatever its targets are.

use super::names::{OPENED, SENT, opened, sent};
use egret_core::node::{NodeState, TrafficKeyId};
use egret_kernel::nft::{Count, Table};
use std::collections::BTreeMap;

/// Traffic of one traffic key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets and bytes that left with the egress address.
    pub sent: Count,
    /// Connections that were given a source port.
    pub connections: u64,
}

pub(super) fn counters(state: &NodeState, table: &mut Table) {
    for target in state.worker.targets.values() {
        table.traffic.insert(sent(target.traffic_key));
        table.traffic.insert(opened(target.traffic_key));
    }
}

/// Name prefix of the counters along the path of canaries (`egret_core::canary`), which are no drop reasons.
const CANARY: &str = "canary_";

/// Splits the counters of the table: packets by reason, and traffic by traffic key.
pub(crate) fn parted(
    counts: BTreeMap<String, Count>,
) -> (BTreeMap<String, u64>, BTreeMap<TrafficKeyId, Traffic>) {
    let mut reasons = BTreeMap::new();
    let mut traffic: BTreeMap<TrafficKeyId, Traffic> = BTreeMap::new();
    for (name, count) in counts {
        if name.starts_with(CANARY) {
            continue;
        }
        if let Some(id) = account(&name, SENT) {
            traffic.entry(id).or_default().sent = count;
        } else if let Some(id) = account(&name, OPENED) {
            traffic.entry(id).or_default().connections = count.packets;
        } else {
            reasons.insert(name, count.packets);
        }
    }
    traffic.remove(&TrafficKeyId::CANARY);
    (reasons, traffic)
}

fn account(name: &str, kind: &str) -> Option<TrafficKeyId> {
    let id = name.strip_prefix(kind)?;
    u64::from_str_radix(id, 16).ok().map(TrafficKeyId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_told_from_reasons() {
        let count = |packets, bytes| Count { packets, bytes };
        let account = TrafficKeyId(0xa);
        let counts = BTreeMap::from([
            (sent(account), count(3, 300)),
            (opened(account), count(2, 120)),
            ("no_lease".to_owned(), count(1, 60)),
        ]);
        let (reasons, traffic) = parted(counts);
        assert_eq!(reasons, BTreeMap::from([("no_lease".to_owned(), 1)]));
        let expected = Traffic {
            sent: count(3, 300),
            connections: 2,
        };
        assert_eq!(traffic, BTreeMap::from([(account, expected)]));
    }
}
