//! Records that only Egret writes, as far as they can be read: one that is there is never as good as none.

use egret_core::model::{Finding, NodeName, NodeRecord, Unreadable};
use std::net::IpAddr;

/// A record, and what of it cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<T> {
    /// What can be read; none if that is not even what the record is there for.
    pub record: Option<T>,
    /// What cannot.
    pub gaps: Gaps,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// Parts of a record that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Some of what the controller wrote: it must not be overwritten, nor counted as free.
    pub spec: bool,
    /// Which addresses an agent has ports in use of.
    pub demand: bool,
}

/// Notes what of an address's record cannot be read now.
pub(crate) fn note_address(unreadable: &mut Unreadable, address: IpAddr, gaps: Gaps) {
    match gaps.spec {
        true => unreadable.addresses.insert(address),
        false => unreadable.addresses.remove(&address),
    };
}

/// The same of a node's record.
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

/// A node's record with the controller's part as it was before, where that cannot be read any more.
pub(crate) fn with_spec_of(now: &NodeRecord, before: &NodeRecord) -> NodeRecord {
    NodeRecord {
        tunnel_index: before.tunnel_index,
        grants: before.grants.clone(),
        ..now.clone()
    }
}
