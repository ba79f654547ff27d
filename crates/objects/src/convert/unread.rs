//! Records that do not deserialize into the API's type: reads their usable parts.

use super::lease;
use super::reading::{Gaps, Reading};
use egret_api as api;
use egret_core::model::{AddressRecord, Finding, GatewayName, NodeName, NodeRecord, ObjectRef};
use egret_core::numbers::TUNNEL_INDEX_MAX;
use serde::Deserialize;
use serde_json::Value;

/// An `EgressAddress` of which only the name can be read.
///
/// # Errors
/// The name is not an address; the findings.
pub(crate) fn unread_address(
    object: &ObjectRef,
    findings: Vec<Finding>,
) -> Result<Reading<AddressRecord>, Vec<Finding>> {
    let Some(address) = api::address_of_object_name(&object.name) else {
        return Err(findings);
    };
    let record = AddressRecord::new(address, GatewayName(String::new()));
    Ok(Reading {
        record: Some(record),
        gaps: Gaps {
            spec: true,
            demand: false,
        },
        findings,
    })
}

/// An `EgressNode` that does not match the API's type, with the error. Spec and status have different writers: each is
/// read without the other.
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
