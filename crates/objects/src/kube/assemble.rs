//! The view that readers get, out of what the watches have told.

use super::entry::{Entry, Status, Value};
use super::store::State;
use super::wanted::Watch;
use crate::convert;
use crate::convert::cluster::Slice;
use crate::front_end::{self, Foreign};
use crate::source::View;
use egret_core::model::{NodeName, ObjectRef, Settings};
use std::collections::BTreeMap;

pub(super) fn assemble(state: &State, settings: &Settings) -> View {
    let mut view = View::empty(settings);
    let mut slices = Vec::new();
    // Two watches may have one object while one takes over from the other: the newer counts.
    let mut newest: BTreeMap<(&ObjectRef, bool), &Entry> = BTreeMap::new();
    for (object, entry) in state.watches.values().flat_map(|watched| &watched.objects) {
        let is_cidr = matches!(entry.value, Value::ServiceCidrs(_));
        let known = newest.entry((object, is_cidr)).or_insert(entry);
        if known.version < entry.version {
            *known = entry;
        }
    }
    for ((object, _), entry) in newest {
        add(&mut view, object, entry, &mut slices);
    }
    view.add_endpoints(slices);
    if !state.front_ends.enabled.is_empty() {
        view.front_ends.node_uids = node_uids(state);
    }
    front_end::apply(&mut view, foreign(state), &state.front_ends);
    view.findings.sort();
    view.findings.dedup();
    let ranges = &mut view.snapshot.settings.service_cidrs;
    ranges.sort();
    ranges.dedup();
    view
}

/// Objects of front-ends.
pub(super) fn foreign(state: &State) -> Vec<Foreign> {
    let entries = state
        .watches
        .values()
        .flat_map(|watched| watched.objects.values());
    let foreign = entries.filter_map(|entry| match &entry.value {
        Value::Foreign(foreign) => Some(foreign.as_ref().clone()),
        _ => None,
    });
    foreign.collect()
}

fn node_uids(state: &State) -> BTreeMap<NodeName, String> {
    let nodes = state.watches.get(&Watch::Nodes);
    let nodes = nodes.into_iter().flat_map(|watched| &watched.objects);
    nodes
        .map(|(object, entry)| (NodeName(object.name.clone()), entry.uid.clone()))
        .collect()
}

fn add(view: &mut View, object: &ObjectRef, entry: &Entry, slices: &mut Vec<Slice>) {
    view.findings.extend(entry.findings.iter().cloned());
    let snapshot = &mut view.snapshot;
    match &entry.value {
        Value::Nothing | Value::Foreign(_) => return,
        Value::Policy(policy) => snapshot.policies.push(policy.as_ref().clone()),
        Value::Gateway(gateway) => {
            let gateway = gateway.as_ref().clone();
            snapshot.gateways.insert(gateway.name.clone(), gateway);
        }
        Value::Pool(pool) => {
            let pool = pool.as_ref().clone();
            snapshot.pools.insert(pool.name.clone(), pool);
        }
        Value::Address(record) => {
            let record = record.as_ref().clone();
            snapshot.addresses.insert(record.address, record);
        }
        Value::Record(record) => {
            let record = record.as_ref().clone();
            snapshot.node_records.insert(record.node.clone(), record);
        }
        Value::Namespace(namespace) => {
            let name = namespace.name.clone();
            snapshot.namespaces.insert(name, namespace.clone());
        }
        Value::Node(node) => {
            let node = node.as_ref().clone();
            snapshot.nodes.insert(node.name.clone(), node);
        }
        Value::Pod(pod) => {
            let pod = pod.as_ref().clone();
            let key = (pod.namespace.clone(), pod.name.clone());
            snapshot.pods.insert(key, pod);
        }
        Value::Service(service) => {
            let service = service.as_ref().clone();
            let key = (service.namespace.clone(), service.name.clone());
            snapshot.services.insert(key, service);
        }
        Value::Slice(slice) => slices.push(slice.clone()),
        Value::ServiceCidrs(ranges) => snapshot.settings.service_cidrs.extend(ranges),
    }
    add_status(view, object, entry);
}

fn add_status(view: &mut View, object: &ObjectRef, entry: &Entry) {
    match (&entry.value, &entry.status) {
        (Value::Policy(_), Status::Policy(status)) => {
            let status = convert::policy_status(status);
            view.policies.insert(object.clone(), status);
        }
        (Value::Gateway(gateway), Status::Gateway(status)) => {
            let status = convert::gateway_status(status);
            view.gateways.insert(gateway.name.clone(), status);
        }
        (Value::Pool(pool), Status::Pool(status)) => {
            let status = convert::pool_status(status);
            view.pools.insert(pool.name.clone(), status);
        }
        (Value::Address(record), Status::Address(status)) => {
            let status = convert::address_status(status);
            view.addresses.insert(record.address, status);
        }
        (Value::Record(record), Status::Node(status)) => {
            let report = convert::node_report(status);
            view.nodes.insert(record.node.clone(), report);
        }
        _ => {}
    }
}
