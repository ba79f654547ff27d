//! Grants of this node that count now.

use crate::model::{AddressPorts, Grant, NodeRecord};
use serde::{Deserialize, Serialize};

/// Grants of this node that count now, from [`crate::machines::GrantGate`] and [`crate::machines::HeldPorts`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeGrants {
    /// Ranges in which the node may open flows.
    pub usable: Vec<Grant>,
    /// Blocks, by egress address, in which the node may have flows; flows in others are ended. `None`: unknown, so no
    /// flow is ended.
    pub flows: Option<AddressPorts>,
}

impl NodeGrants {
    /// The grants exactly as the record has them. A record without an epoch is from a controller that does not list
    /// withdrawn ranges.
    pub fn of(record: &NodeRecord) -> Self {
        let all = || record.grants.iter().chain(&record.draining);
        let flows = (record.grants_epoch > 0).then(|| ports_of(all()));
        Self {
            usable: record.grants.clone(),
            flows,
        }
    }
}

/// Blocks of grants, by address.
pub(crate) fn ports_of<'a>(grants: impl Iterator<Item = &'a Grant>) -> AddressPorts {
    grants
        .map(|grant| (grant.address, grant.ranges.as_slice()))
        .collect()
}
