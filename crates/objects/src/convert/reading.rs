//! Tolerant reading of records that only Egret writes: an existing unreadable record must not count as absent.

use egret_core::model::{Finding, NodeName, NodeRecord, Unreadable};
use std::net::IpAddr;

/// A record, and its unreadable parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<T> {
    /// The readable part; `None` if its essential fields are unreadable.
    pub record: Option<T>,
    /// The unreadable parts.
    pub gaps: Gaps,
    /// Findings about the record.
    pub findings: Vec<Finding>,
}

/// Parts of a record that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Part of what the controller wrote: it must not be overwritten, and its ports must not count as free.
    pub spec: bool,
    /// The addresses whose ports an agent has in use.
    pub demand: bool,
}

/// Records unreadable parts of an address's record.
pub(crate) fn note_address(unreadable: &mut Unreadable, address: IpAddr, gaps: Gaps) {
    match gaps.spec {
        true => unreadable.addresses.insert(address),
        false => unreadable.addresses.remove(&address),
    };
}

/// Records unreadable parts of a node's record.
pub(crate) fn note_node(unreadable: &mut Unreadable, node: &NodeName, gaps: Gaps) {
    match gaps.spec {
        true => unreadable.nodes.insert(node.clone()),
        false => unreadable.nodes.remove(node),
    };
    match gaps.demand {
        true => unreadable.demand.insert(node.clone()),
        false => unreadable.demand.remove(node),
    };
}

/// A node's record with the controller's part of the previous one, if the new one is unreadable.
pub(crate) fn with_spec_of(now: &NodeRecord, before: &NodeRecord) -> NodeRecord {
    NodeRecord {
        tunnel_index: before.tunnel_index,
        grants: before.grants.clone(),
        draining: before.draining.clone(),
        resting: before.resting.clone(),
        fenced: before.fenced.clone(),
        grants_epoch: before.grants_epoch,
        ..now.clone()
    }
}
