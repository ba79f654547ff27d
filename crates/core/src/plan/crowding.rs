//! Addresses that are nearly full, so that new pods of policies with several addresses are paired to others.

use super::lease::needed_blocks;
use super::{AddressSummary, Crowding};
use crate::model::*;
use crate::numbers::{BLOCK_PORTS, CROWDED_ENTER_PERCENT, CROWDED_LEAVE_PERCENT, LEASE_PORTS_ALL};
use crate::resolve::{Resolved, family_index};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How much of an address workers have and need. `exhausted`: workers that got no port.
pub(super) fn of_address(
    snapshot: &Snapshot,
    record: &AddressRecord,
    exhausted: &BTreeSet<NodeName>,
) -> Crowding {
    let reserved = snapshot.reserved(record.address).ports();
    let all = LEASE_PORTS_ALL.saturating_sub(reserved).max(1);
    let percent = needed_blocks(snapshot, record) * usize::from(BLOCK_PORTS) * 100 / all as usize;
    if !exhausted.is_empty() || percent >= CROWDED_ENTER_PERCENT {
        Crowding::Crowded
    } else if percent >= CROWDED_LEAVE_PERCENT {
        Crowding::Filling
    } else {
        Crowding::Roomy
    }
}

/// Addresses that new pods of the policy avoid, sorted.
pub(super) fn avoided(
    addresses: &BTreeMap<IpAddr, AddressSummary>,
    one: &Resolved<'_>,
) -> Vec<IpAddr> {
    let mut numbers = [0usize; 2];
    for address in &one.addresses {
        numbers[family_index(*address)] += 1;
    }
    let is_avoided = |address: &&IpAddr| {
        let crowding = addresses.get(*address).map(|status| status.crowding);
        numbers[family_index(**address)] > 1
            && match crowding.unwrap_or_default() {
                Crowding::Roomy => false,
                Crowding::Filling => one.policy.crowded.contains(*address),
                Crowding::Crowded => true,
            }
    };
    one.addresses.iter().filter(is_avoided).copied().collect()
}
