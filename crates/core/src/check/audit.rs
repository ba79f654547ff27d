//! Port blocks that nodes hold, against the records of their addresses: both numbers must be 0.
//!
//! The controller audits its snapshot continuously and reports the numbers as metrics.

use super::leases::in_use;
use crate::model::*;
use crate::numbers::BLOCK_PORTS;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Port blocks whose use contradicts the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseAudit {
    /// Blocks that two nodes hold (P4, R1).
    pub held_twice: u64,
    /// Blocks that a node holds and no lease of it contains that gateways steer.
    pub without_lease: u64,
}

/// Audits what agents report to hold. A node without a Node object is fenced, and its report is old.
pub fn audit_leases(snapshot: &Snapshot) -> LeaseAudit {
    let mut audit = LeaseAudit::default();
    let mut held_by_any: BTreeMap<IpAddr, PortBlocks> = BTreeMap::new();
    let mut leased: BTreeMap<(IpAddr, &NodeName), PortBlocks> = BTreeMap::new();
    for record in snapshot.addresses.values() {
        for lease in record.leases.iter().filter(|lease| in_use(lease)) {
            let blocks = leased.entry((record.address, &lease.node)).or_default();
            *blocks = blocks.union(&PortBlocks::of(&lease.ranges));
        }
    }
    let here = snapshot.node_records.iter();
    let here = here.filter(|(node, _)| snapshot.nodes.contains_key(node));
    for (node, record) in here {
        for (address, ranges) in &record.held {
            let held = PortBlocks::of(ranges);
            let of_others = held_by_any.entry(*address).or_default();
            audit.held_twice += blocks(&held.intersection(of_others));
            *of_others = of_others.union(&held);
            // It is unknown what a record that cannot be read grants.
            if !snapshot.unreadable.addresses.contains(address) {
                let leased = leased.get(&(*address, node));
                let leased = leased.cloned().unwrap_or_default();
                audit.without_lease += blocks(&held.difference(&leased));
            }
        }
    }
    audit
}

fn blocks(of: &PortBlocks) -> u64 {
    u64::from(of.ports() / u32::from(BLOCK_PORTS))
}
