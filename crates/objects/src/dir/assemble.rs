//! Builds the view from the objects in force.

use super::effective::{Effective, Merged};
use super::object::Converted;
use crate::convert::cluster::{self, Slice};
use crate::convert::{self, reading};
use crate::front_end::{self, Foreign};
use crate::source::View;
use egret_core::model::{Kind, NodeName, ObjectRef};
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) fn assemble(merged: &Merged, settings: &super::Settings) -> View {
    let mut view = View::empty(&settings.installation);
    let mut slices = Vec::new();
    for (key, effective) in &merged.objects {
        add(&mut view, key, effective, &mut slices);
    }
    cluster::add_endpoints(&mut view.snapshot, slices);
    view.findings = merged.findings.clone();
    let foreign = merged
        .objects
        .iter()
        .filter(|(_, effective)| *effective.converted == Converted::Foreign)
        .map(|(key, effective)| Foreign::of(key.clone(), &effective.whole));
    if !settings.front_ends.enabled.is_empty() {
        view.front_ends.node_uids = node_uids(merged);
    }
    front_end::apply(&mut view, foreign.collect(), &settings.front_ends);
    view
}

fn node_uids(merged: &Merged) -> BTreeMap<NodeName, String> {
    let nodes = merged.objects.iter();
    let nodes = nodes.filter(|(key, _)| key.kind == Kind::Node);
    nodes
        .map(|(key, node)| (NodeName(key.name.clone()), uid(&node.whole["metadata"])))
        .collect()
}

/// The object's status, if it has a readable one.
fn status<T: DeserializeOwned>(effective: &Effective) -> Option<T> {
    let status = effective.whole.get("status")?;
    T::deserialize(status).ok()
}

fn uid(metadata: &Value) -> String {
    metadata["uid"].as_str().unwrap_or_default().to_owned()
}

fn created_secs(metadata: &Value) -> i64 {
    let parsed = metadata["creationTimestamp"]
        .as_str()
        .map(str::parse::<Timestamp>);
    parsed.and_then(Result::ok).map_or(0, Timestamp::as_second)
}

fn add(view: &mut View, key: &ObjectRef, effective: &Effective, slices: &mut Vec<Slice>) {
    let metadata = &effective.whole["metadata"];
    let snapshot = &mut view.snapshot;
    match effective.converted.as_ref() {
        Converted::Policy(policy) => {
            let mut policy = policy.clone();
            policy.uid = uid(metadata);
            policy.generation = metadata["generation"].as_i64().unwrap_or(0);
            policy.created_secs = created_secs(metadata);
            let status = status(effective).map(|status| convert::policy_status(&status));
            policy.assigned = status
                .as_ref()
                .map(|s| s.addresses.clone())
                .unwrap_or_default();
            let crowded = status.iter().flat_map(|status| &status.crowded);
            policy.crowded = crowded.copied().collect();
            snapshot.policies.push(policy);
            view.policies
                .extend(status.map(|status| (key.clone(), status)));
        }
        Converted::Gateway(gateway) => {
            snapshot
                .gateways
                .insert(gateway.name.clone(), gateway.clone());
            let status = status(effective).map(|status| convert::gateway_status(&status));
            view.gateways
                .extend(status.map(|status| (gateway.name.clone(), status)));
        }
        Converted::Pool(pool) => {
            snapshot.pools.insert(pool.name.clone(), pool.clone());
            let status = status(effective).map(|status| convert::pool_status(&status));
            view.pools
                .extend(status.map(|status| (pool.name.clone(), status)));
        }
        Converted::Namespace(namespace) => {
            snapshot
                .namespaces
                .insert(namespace.name.clone(), namespace.clone());
        }
        Converted::Node(node) => {
            snapshot.nodes.insert(node.name.clone(), node.clone());
        }
        Converted::Pod(None) => {}
        Converted::Pod(Some(pod)) => {
            let mut pod = pod.clone();
            pod.uid = uid(metadata);
            snapshot
                .pods
                .insert((pod.namespace.clone(), pod.name.clone()), pod);
        }
        Converted::Service(service) => {
            let key = (service.namespace.clone(), service.name.clone());
            snapshot.services.insert(key, service.clone());
        }
        // Translated after everything else.
        Converted::Foreign => {}
        Converted::PodPrefixes(prefixes) => snapshot.pod_prefixes.extend(prefixes),
        Converted::Slice(slice) => slices.push(slice.clone()),
        Converted::Address(reading) => {
            let Some(record) = &reading.record else {
                return;
            };
            reading::note_address(&mut snapshot.unreadable, record.address, reading.gaps);
            snapshot.addresses.insert(record.address, record.clone());
            let status = status(effective).map(|status| convert::address_status(&status));
            view.addresses
                .extend(status.map(|status| (record.address, status)));
        }
        Converted::NodeRecord(reading) => {
            let name = NodeName(key.name.clone());
            reading::note_node(&mut snapshot.unreadable, &name, reading.gaps);
            let Some(record) = &reading.record else {
                return;
            };
            snapshot
                .node_records
                .insert(record.node.clone(), record.clone());
            let report = status(effective).map(|status| convert::node_report(&status));
            view.nodes
                .extend(report.map(|report| (record.node.clone(), report)));
        }
    }
}
