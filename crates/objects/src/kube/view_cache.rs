//! Cache of the readers' view: only objects that changed since the last read are computed again. Copies share unchanged
//! parts, so that the cost of copies and comparisons does not depend on the cluster's size (P10).

use super::entry::{Entry, Status, Value};
use super::watch::Watch;
use super::watched::{Watches, newest};
use crate::convert::{self, Gaps, cluster, reading};
use crate::front_end::{self, Foreign};
use crate::plugin;
use crate::source::View;
use egret_core::model::{
    Finding, GatewayName, Kind, NodeName, ObjectRef, Policy, PoolName, Settings, SharedMap,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The latest view without the translation of front-ends, and the changes that it lacks.
#[derive(Debug, Default)]
pub(super) struct ViewCache {
    /// `None`: compute everything.
    view: Option<View>,
    /// Objects changed since.
    touched: BTreeSet<ObjectRef>,
    /// Policies, in the order of the view.
    policies: BTreeMap<ObjectRef, Arc<Policy>>,
    /// Findings, by object.
    findings: BTreeMap<ObjectRef, Vec<Finding>>,
    /// Addresses, by object.
    addresses: BTreeMap<ObjectRef, IpAddr>,
    /// Versions of the last changes.
    pub touches: Touches,
}

/// Versions of the store at which objects of a kind last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touches {
    /// Pods.
    pub pods: u64,
    /// `EgressNode`s.
    pub records: u64,
    /// All other kinds, except `EgressAddress`.
    pub others: u64,
}

/// Parts of a view that are recomputed as a whole.
#[derive(Default)]
struct Due {
    policies: bool,
    services: bool,
    pod_prefixes: bool,
}

impl ViewCache {
    /// Records a change of an object; `version` is the store's version since.
    pub fn touch(&mut self, object: ObjectRef, version: u64) {
        match object.kind {
            Kind::Pod => self.touches.pods = version,
            Kind::EgressNode => self.touches.records = version,
            Kind::EgressAddress => {}
            _ => self.touches.others = version,
        }
        if self.view.is_some() {
            self.touched.insert(object);
        }
    }

    /// Records that anything may have changed.
    pub fn touch_all(&mut self, version: u64) {
        self.touches = Touches {
            pods: version,
            records: version,
            others: version,
        };
        *self = Self {
            touches: self.touches,
            ..Self::default()
        };
    }

    /// The view of the current state.
    pub fn view(
        &mut self,
        watches: &Watches,
        settings: &Settings,
        front_ends: &front_end::Settings,
    ) -> View {
        let mut due = Due::default();
        let mut view = match self.view.take() {
            Some(mut view) => {
                for object in std::mem::take(&mut self.touched) {
                    self.fold(&mut view, watches, &object, &mut due);
                }
                view
            }
            None => {
                let mut view = View::empty(settings);
                for object in watches.values().flat_map(|watched| watched.objects.keys()) {
                    self.fold(&mut view, watches, object, &mut due);
                }
                view
            }
        };
        if due.policies {
            let policies = self.policies.values();
            let policies: Vec<Policy> = policies.map(|policy| policy.as_ref().clone()).collect();
            view.snapshot.policies = policies.into();
        }
        if due.services {
            services(&mut view, watches, settings);
        }
        if due.pod_prefixes {
            view.snapshot.pod_prefixes = pod_prefixes(watches);
        }
        self.view = Some(view.clone());
        view.findings = self.findings.values().flatten().cloned().collect();
        if !front_ends.enabled.is_empty() {
            view.front_ends.node_uids = node_uids(watches);
        }
        front_end::apply(&mut view, foreign(watches), front_ends);
        view.findings.sort();
        view.findings.dedup();
        view
    }

    /// Updates one object.
    fn fold(&mut self, view: &mut View, watches: &Watches, object: &ObjectRef, due: &mut Due) {
        let entry = newest(watches, object);
        match entry.map(|entry| entry.findings.as_slice()) {
            None | Some([]) => drop(self.findings.remove(object)),
            Some(findings) => drop(self.findings.insert(object.clone(), findings.to_vec())),
        }
        let (value, status) = match entry {
            Some(entry) => (&entry.value, &entry.status),
            None => (&Value::Nothing, &Status::None),
        };
        let snapshot = &mut view.snapshot;
        let name = || object.name.clone();
        match object.kind {
            Kind::Egress | Kind::ClusterEgress => {
                let (known, new) = (self.policies.get(object), value.policy());
                if known.map(Arc::as_ptr) != new.map(Arc::as_ptr) {
                    due.policies = true;
                    match new {
                        Some(new) => self.policies.insert(object.clone(), new.clone()),
                        None => self.policies.remove(object),
                    };
                }
                let said = match (value, status) {
                    (Value::Policy(_), Status::Policy(status)) => {
                        Some(Arc::new(convert::policy_status(status)))
                    }
                    _ => None,
                };
                put(&mut view.policies, object.clone(), said.as_ref());
            }
            Kind::EgressAddress => self.fold_address(view, object, entry),
            Kind::EgressNode => {
                let gaps = entry.map(|entry| entry.gaps).unwrap_or_default();
                reading::note_node(&mut snapshot.unreadable, &NodeName(name()), gaps);
                put(&mut snapshot.node_records, NodeName(name()), value.record());
                let said = match (value, status) {
                    (Value::Record(_), Status::Node(status)) => {
                        Some(Arc::new(convert::node_report(status)))
                    }
                    _ => None,
                };
                put(&mut view.nodes, NodeName(name()), said.as_ref());
            }
            Kind::Namespace => put(&mut snapshot.namespaces, name(), value.namespace()),
            Kind::Node => put(&mut snapshot.nodes, NodeName(name()), value.node()),
            Kind::Pod => {
                let key = (object.namespace.clone(), name());
                put(&mut snapshot.pods, key, value.pod());
            }
            Kind::EgressGateway => fold_gateway(view, GatewayName(name()), value, status),
            Kind::EgressPool => fold_pool(view, PoolName(name()), value, status),
            Kind::Service | Kind::EndpointSlice => due.services = true,
            kind if plugin::plugin_kind(kind).is_some() => due.pod_prefixes = true,
            // Objects of front-ends are translated after everything else.
            _ => {}
        }
    }

    fn fold_address(&mut self, view: &mut View, object: &ObjectRef, entry: Option<&Entry>) {
        let record = entry.and_then(|entry| entry.value.address());
        let gaps = entry.map(|entry| entry.gaps).unwrap_or_default();
        let known = match record {
            Some(record) => self.addresses.insert(object.clone(), record.address),
            None => self.addresses.remove(object),
        };
        let gone = known.filter(|known| record.is_none_or(|record| record.address != *known));
        if let Some(gone) = gone {
            view.snapshot.addresses.remove(&gone);
            view.addresses.remove(&gone);
            reading::note_address(&mut view.snapshot.unreadable, gone, Gaps::default());
        }
        let Some(record) = record else {
            return;
        };
        reading::note_address(&mut view.snapshot.unreadable, record.address, gaps);
        put(&mut view.snapshot.addresses, record.address, Some(record));
        let said = match entry.map(|entry| &entry.status) {
            Some(Status::Address(status)) => Some(Arc::new(convert::address_status(status))),
            _ => None,
        };
        put(&mut view.addresses, record.address, said.as_ref());
    }
}

fn fold_gateway(view: &mut View, name: GatewayName, value: &Value, status: &Status) {
    view.gateways.remove(&name);
    let Value::Gateway(gateway) = value else {
        view.snapshot.gateways.remove(&name);
        return;
    };
    let gateways = &mut view.snapshot.gateways;
    gateways.insert(name.clone(), gateway.as_ref().clone());
    if let Status::Gateway(status) = status {
        let status = convert::gateway_status(status);
        view.gateways.insert(name, status);
    }
}

fn fold_pool(view: &mut View, name: PoolName, value: &Value, status: &Status) {
    view.pools.remove(&name);
    let Value::Pool(pool) = value else {
        view.snapshot.pools.remove(&name);
        return;
    };
    let pools = &mut view.snapshot.pools;
    pools.insert(name.clone(), pool.as_ref().clone());
    if let Status::Pool(status) = status {
        view.pools.insert(name, convert::pool_status(status));
    }
}

/// Sets or removes the value of this key. An equal value stays shared.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut SharedMap<K, V>, key: K, value: Option<&Arc<V>>) {
    match (map.get_shared(&key), value) {
        (None, None) => {}
        (Some(known), Some(value)) if Arc::ptr_eq(known, value) || known == value => {}
        (_, Some(value)) => drop(map.insert(key, value.clone())),
        (Some(_), None) => drop(map.remove(&key)),
    }
}

/// Services with their endpoints, the API servers, and the Service ranges: few, and each depends on several objects.
fn services(view: &mut View, watches: &Watches, settings: &Settings) {
    let snapshot = &mut view.snapshot;
    snapshot.services.clear();
    snapshot.api_server.clear();
    let mut ranges = settings.service_cidrs.clone();
    let mut slices = Vec::new();
    let concerned = [Kind::Service, Kind::EndpointSlice];
    let concerned = watches
        .iter()
        .filter(|(watch, _)| concerned.contains(&watch.kind()));
    for (object, entry) in concerned.flat_map(|(_, watched)| &watched.objects) {
        if let Value::ServiceCidrs(found) = &entry.value {
            ranges.extend(found);
            continue;
        }
        if !newest(watches, object).is_some_and(|newest| std::ptr::eq(newest, entry)) {
            continue;
        }
        match &entry.value {
            Value::Service(service) => {
                let key = (service.namespace.clone(), service.name.clone());
                snapshot.services.insert(key, service.as_ref().clone());
            }
            Value::Slice(slice) => slices.push(slice.clone()),
            _ => {}
        }
    }
    ranges.sort();
    ranges.dedup();
    snapshot.settings.service_cidrs = ranges;
    cluster::add_endpoints(&mut view.snapshot, slices);
}

/// Prefixes that network plugins publish.
fn pod_prefixes(watches: &Watches) -> BTreeSet<IpNet> {
    let entries = watches
        .values()
        .flat_map(|watched| watched.objects.values());
    let published = entries.filter_map(|entry| match &entry.value {
        Value::PodPrefixes(prefixes) => Some(prefixes),
        _ => None,
    });
    published.flatten().copied().collect()
}

/// Objects of front-ends.
pub(super) fn foreign(watches: &Watches) -> Vec<Foreign> {
    let watches = watches.iter();
    let watches = watches.filter(|(watch, _)| matches!(watch, Watch::Foreign(_)));
    let entries = watches.flat_map(|(_, watched)| watched.objects.values());
    let foreign = entries.filter_map(|entry| match &entry.value {
        Value::Foreign(foreign) => Some(foreign.as_ref().clone()),
        _ => None,
    });
    foreign.collect()
}

fn node_uids(watches: &Watches) -> BTreeMap<NodeName, String> {
    let nodes = watches.get(&Watch::Nodes);
    let nodes = nodes.into_iter().flat_map(|watched| &watched.objects);
    nodes
        .map(|(object, entry)| (NodeName(object.name.clone()), entry.uid.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
