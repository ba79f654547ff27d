//! What the controller tells a node of its leases.

use crate::model::*;

/// What a worker is told of its leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PlannedGrants {
    /// Ranges in which it may open flows.
    pub usable: Vec<Grant>,
    /// Ranges in which its flows may go on.
    pub draining: Vec<Grant>,
    /// Ranges that it must not use any more, and nobody else yet.
    pub resting: Vec<Grant>,
    /// Highest epoch of these, withdrawals included.
    pub epoch: u64,
}

impl PlannedGrants {
    /// What the node's record contains.
    pub(super) fn of_record(record: &NodeRecord) -> Self {
        PlannedGrants {
            usable: record.grants.clone(),
            draining: record.draining.clone(),
            resting: record.resting.clone(),
            epoch: record.grants_epoch,
        }
    }

    /// Adds a lease of the node. The flows of a node that is gone go on for a while, in case that it comes back; what it
    /// finds fenced then is no longer its own.
    pub(super) fn add(&mut self, record: &AddressRecord, lease: &Lease) {
        let list = match lease.state {
            LeaseState::Granted | LeaseState::Active => &mut self.usable,
            LeaseState::Draining | LeaseState::Vanished => &mut self.draining,
            LeaseState::Fenced | LeaseState::HoldDown => &mut self.resting,
        };
        list.push(Grant {
            address: record.address,
            gateway: record.gateway.clone(),
            ranges: lease.ranges.clone(),
            epoch: lease.epoch,
        });
        if lease.state.is_steered() {
            let withdrawn = lease.withdrawn.unwrap_or(0);
            self.epoch = self.epoch.max(lease.epoch).max(withdrawn);
        }
    }

    /// With an epoch that is at least this one.
    pub(super) fn since(mut self, epoch: u64) -> Self {
        self.epoch = self.epoch.max(epoch);
        self
    }

    /// In the order of records.
    pub(super) fn sorted(mut self) -> Self {
        sort(&mut self.usable);
        sort(&mut self.draining);
        sort(&mut self.resting);
        self
    }
}

/// Sorts by address and ranges.
pub(super) fn sort(grants: &mut [Grant]) {
    grants.sort_by(|a, b| (a.address, &a.ranges).cmp(&(b.address, &b.ranges)));
}

/// The epoch of a node's grants: at least `planned`, never lower than in its record, and higher than what its agent
/// acknowledged if its record has gone back.
pub(super) fn grants_epoch(record: Option<&NodeRecord>, planned: u64, believed_max: u64) -> u64 {
    let Some(record) = record else { return planned };
    let epoch = planned.max(record.grants_epoch);
    let is_ahead = record.acknowledged > record.grants_epoch && record.acknowledged <= believed_max;
    match is_ahead {
        true => epoch.max(record.acknowledged + 1),
        false => epoch,
    }
}
