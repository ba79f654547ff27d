//! Records of addresses that nobody uses: when they are deleted.

use super::{Cluster, PlannedLeases, Reports};
use crate::model::*;
use crate::plan::demand::DemandByAddress;
use crate::plan::epoch_memory;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Whether nothing is known and nothing may be missing in this record.
pub(in crate::plan) fn is_empty(record: &AddressRecord) -> bool {
    record.leases.is_empty() && record.restored.is_none()
}

/// Deletes records without demand that are empty. The record with the highest epoch stays until another has a higher one,
/// or until every gateway has reported it and some node records have it: the counter must never decrease, or a gateway
/// that was down would seem to know leases that it has never seen.
pub(super) fn delete(
    cluster: &Cluster<'_>,
    demand: &DemandByAddress<'_>,
    result: &mut PlannedLeases,
) {
    let highest = result.records.values().map(|r| r.epoch).max().unwrap_or(0);
    let unused: Vec<IpAddr> = result
        .records
        .values()
        .filter(|r| is_empty(r) && !demand.contains_key(&r.address))
        .filter(|r| !cluster.snapshot.unreadable.addresses.contains(&r.address))
        .map(|r| r.address)
        .collect();
    let (mut gone, keepers) = (Vec::new(), &result.least_epochs.keepers);
    for address in unused {
        let record = &result.records[&address];
        match fate(cluster.snapshot, record, highest, cluster.reports, keepers) {
            Fate::Goes => gone.push(address),
            Fate::GoesOnceKept => result.least_epochs.kept = record.epoch,
            Fate::Stays => {}
        }
    }
    for address in gone {
        result.records.remove(&address);
        if cluster.snapshot.addresses.contains_key(&address) {
            result.deletions.push(address);
        }
    }
}

/// What becomes of an unused record.
pub(in crate::plan) enum Fate {
    /// It is deleted.
    Goes,
    /// It is deleted once the node records of some nodes have its epoch.
    GoesOnceKept,
    /// Some gateway has not reported its epoch, which is the highest.
    Stays,
}

/// What becomes of an unused record. `highest`: the highest epoch of any planned record.
pub(in crate::plan) fn fate(
    snapshot: &Snapshot,
    record: &AddressRecord,
    highest: u64,
    reports: &Reports,
    keepers: &BTreeSet<NodeName>,
) -> Fate {
    if record.epoch < highest {
        return Fate::Goes;
    }
    match (
        reports.all_have(record.epoch),
        epoch_memory::is_kept(snapshot, keepers, record.epoch),
    ) {
        (true, true) => Fate::Goes,
        (true, false) => Fate::GoesOnceKept,
        (false, _) => Fate::Stays,
    }
}
