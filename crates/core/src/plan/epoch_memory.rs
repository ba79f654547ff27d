//! The cluster's epoch outlives every single object.
//!
//! An epoch that is used twice would let a gateway with an old table claim leases that it has never seen. The record of an
//! address that nobody uses is deleted. Before that, a few node records get its epoch, whether their nodes are gateways or
//! not. A node record that is made anew begins with the highest epoch.

use crate::model::*;
use crate::numbers::EPOCH_RECORDS;
use std::collections::BTreeSet;

/// The first nodes by name that have a record which can be written.
pub(super) fn keepers(snapshot: &Snapshot) -> BTreeSet<NodeName> {
    let writable = |name: &&NodeName| {
        let is_unreadable = snapshot.unreadable.nodes.contains(*name);
        snapshot.node_records.contains_key(*name) && !is_unreadable
    };
    let nodes = snapshot.nodes.keys().filter(writable);
    nodes.take(EPOCH_RECORDS).cloned().collect()
}

/// Whether every one of these nodes' records has the epoch, or a later one.
pub(super) fn is_kept(snapshot: &Snapshot, keepers: &BTreeSet<NodeName>, epoch: u64) -> bool {
    let mut records = keepers
        .iter()
        .filter_map(|name| snapshot.node_records.get(name));
    records.all(|record| record.grants_epoch >= epoch)
}

/// Epochs that node records have at least, whatever leases their nodes have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeastEpochs {
    /// Every record: the last time at which leases may have been forgotten ([`AddressRecord::restored`]).
    pub restored: u64,
    /// A record that is made anew: the highest epoch of the cluster.
    pub joined: u64,
    /// Records of [`keepers`]: that of a record which is about to be deleted; 0: none is.
    pub kept: u64,
    /// See [`keepers`].
    pub keepers: BTreeSet<NodeName>,
}

impl LeastEpochs {
    /// Least epoch of one node's record.
    pub(super) fn of(&self, snapshot: &Snapshot, node: &NodeName) -> u64 {
        let known = snapshot.node_records.get(node);
        let joined = if known.is_none() { self.joined } else { 0 };
        // Somebody deleted the record of an address: these ranges are about to go, and the epoch must stay.
        let resting = known.into_iter().flat_map(|record| &record.resting);
        let lost = resting.filter(|grant| !snapshot.addresses.contains_key(&grant.address));
        let lost = lost.map(|grant| grant.epoch).max().unwrap_or(0);
        let is_keeper = self.kept > 0 && self.keepers.contains(node);
        let kept = if is_keeper { self.kept } else { 0 };
        self.restored.max(joined).max(kept).max(lost)
    }
}
