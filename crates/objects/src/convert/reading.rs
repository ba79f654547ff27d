//! Records that only Egret writes, as far as they can be read: one that is there is never as good as none.

use super::lease;
use egret_api as api;
use egret_core::model::{
    AddressRecord, Finding, GatewayName, NodeName, NodeRecord, ObjectRef, Unreadable,
};
use egret_core::numbers::TUNNEL_INDEX_MAX;
use serde::Deserialize;
use serde_json::Value;
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

/// An `EgressAddress` of which only the name can be read.
///
/// # Errors
/// That is not the name of an address; the findings.
pub(crate) fn unread_address(
    object: &ObjectRef,
    findings: Vec<Finding>,
) -> Result<Reading<AddressRecord>, Vec<Finding>> {
    let Some(address) = api::address_of_object_name(&object.name) else {
        return Err(findings);
    };
    let record = AddressRecord {
        address,
        gateway: GatewayName(String::new()),
        epoch: 0,
        leases: Vec::new(),
        resource_version: 0,
    };
    Ok(Reading {
        record: Some(record),
        gaps: Gaps {
            spec: true,
            demand: false,
        },
        findings,
    })
}

/// An `EgressNode` that is not what the API says, with why. Spec and status are by different writers: the one is read
/// without the other.
pub(crate) fn unread_node(
    object: &ObjectRef,
    value: &Value,
    mut findings: Vec<Finding>,
) -> Reading<NodeRecord> {
    let mut spec_only = value.clone();
    if let Value::Object(fields) = &mut spec_only {
        fields.remove("status");
    }
    if let Ok(node) = api::EgressNode::deserialize(&spec_only) {
        let mut reading = lease::node_record(&node);
        reading.gaps.demand = true;
        reading.findings.append(&mut findings);
        return reading;
    }
    let index = value["spec"]["tunnelIndex"].as_u64();
    let index = index.and_then(|index| u16::try_from(index).ok());
    let index = index.filter(|index| (1..=TUNNEL_INDEX_MAX).contains(index));
    Reading {
        record: index.map(|tunnel_index| NodeRecord {
            tunnel_index,
            ..NodeRecord::new(NodeName(object.name.clone()))
        }),
        gaps: Gaps {
            spec: true,
            demand: true,
        },
        findings,
    }
}

/// A node's record with the controller's part as it was before, where that cannot be read any more.
pub(crate) fn with_spec_of(now: &NodeRecord, before: &NodeRecord) -> NodeRecord {
    NodeRecord {
        tunnel_index: before.tunnel_index,
        grants: before.grants.clone(),
        ..now.clone()
    }
}
