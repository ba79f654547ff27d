//! Writes: an unchanged object is not written; answers of the API server are in the store at once.
//!
//! `EgressAddress` is created and replaced with its version, so that no writer overwrites a version that it has not
//! read. The spec of `EgressNode` is applied by the controller, its status by the agent, statuses of the users' objects
//! by the controller, each with its own field manager.

use super::entry::{Entry, Observed, Status, Value};
use super::event::{Note, notes};
use super::request::{AGENT, CONTROLLER, Failure, is_labelled, manager, node_object};
use super::watch::{Records, Watch};
use super::watch_set::gateway_nodes;
use super::{KubeSource, QUIET, QUIET_CONTROLLER, Role};
use crate::convert::{self, lease};
use crate::front_end::conditions_of;
use crate::source::{Notice, Source, SourceError, View, carry_transition_times};
use crate::status::{
    AddressStatus, Condition, GatewayStatus, NodeReport, PolicyStatus, PoolStatus,
};
use egret_api as egret;
use egret_core::condition::{Condition as Said, ConditionType, Reason};
use egret_core::model::{
    AddressRecord, Finding, GatewayName, Kind, NodeName, NodeRecord, ObjectRef, PoolName,
};
use egret_core::numbers::FINDINGS_TOLD_MAX;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::api::{DeleteParams, ObjectMeta, Preconditions};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

/// Labels of `EgressNode`s that are corrected per view; the next view does the rest.
const LABELS_PER_VIEW: usize = 64;

impl Source for KubeSource {
    fn snapshot(&mut self) -> Result<View, SourceError> {
        self.view()
    }

    fn notices(&mut self) -> Vec<Notice> {
        let mut all = self.wrong_labels();
        all.extend(self.invalid_objects().map(Notice::Invalid));
        all
    }

    fn write_notice(&mut self, notice: &Notice, now_secs: i64) -> Result<bool, SourceError> {
        match notice {
            Notice::Invalid(object) => self.tell_findings(object, now_secs),
            Notice::GatewayLabel(node, gateway) => {
                let Some(record) = self.records.get(node) else {
                    return Ok(false);
                };
                let seen = lease::node_spec(record);
                self.shared.apply_node(record, Some(&seen), *gateway)?;
                Ok(true)
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> Result<bool, SourceError> {
        let quiet = match self.shared.settings.role {
            Role::Controller => QUIET_CONTROLLER,
            Role::Agent(_) | Role::Reader => QUIET,
        };
        Ok(self.shared.store.wait(self.seen, timeout, quiet))
    }

    fn leads(&self) -> bool {
        let leadership = self.shared.leadership.as_ref();
        leadership.is_none_or(|leadership| leadership.held_until().is_some())
    }

    fn write_address(&mut self, record: &AddressRecord) -> Result<u64, SourceError> {
        let object = address_object(record.address);
        let shared = &self.shared;
        let addresses: Api<egret::EgressAddress> = Api::all(shared.client.clone());
        let name = object.name.clone();
        let spec = lease::address_spec(record);
        let mut whole = egret::EgressAddress::new(&name, spec);
        let parameters = manager(CONTROLLER);
        let written = if record.resource_version == 0 {
            shared.request("creating", &object, addresses.create(&parameters, &whole))
        } else {
            let known = shared.store.get(&[Watch::Addresses], &object);
            whole.metadata = ObjectMeta {
                name: Some(name.clone()),
                resource_version: Some(record.resource_version.to_string()),
                ..known.and_then(|k| k.kept).map(|k| *k).unwrap_or_default()
            };
            let replacing = addresses.replace(&name, &parameters, &whole);
            shared.request("replacing", &object, replacing)
        };
        let written = written.map_err(|failure| {
            shared.conflict(
                &addresses,
                &[Watch::Addresses],
                record.resource_version,
                failure,
            )
        })?;
        Ok(shared.wrote(&[Watch::Addresses], written))
    }

    fn delete_address(&mut self, address: IpAddr, version: u64) -> Result<(), SourceError> {
        let object = address_object(address);
        let shared = &self.shared;
        let addresses: Api<egret::EgressAddress> = Api::all(shared.client.clone());
        let parameters = DeleteParams::default().preconditions(Preconditions {
            resource_version: Some(version.to_string()),
            uid: None,
        });
        let deleting = addresses.delete(&object.name, &parameters);
        let deleted = shared.request("deleting", &object, deleting);
        deleted.map_err(|failure| {
            shared.conflict(&addresses, &[Watch::Addresses], version, failure)
        })?;
        shared.store.wrote(&[Watch::Addresses], &object, None);
        Ok(())
    }

    fn write_node_spec(&mut self, record: &NodeRecord) -> Result<u64, SourceError> {
        let gateway = self.gateway_nodes().contains(&record.node);
        let seen = self.records.get(&record.node).map(lease::node_spec);
        self.shared.apply_node(record, seen.as_ref(), gateway)
    }

    fn write_node_status(
        &mut self,
        record: &NodeRecord,
        report: &NodeReport,
        now_secs: i64,
    ) -> Result<u64, SourceError> {
        let object = node_object(&record.node);
        let watches = node_watches(&record.node);
        let not_found = || SourceError::NotFound {
            object: object.to_string(),
        };
        let known = self.shared.store.get(&watches, &object);
        let known = known.ok_or_else(not_found)?;
        let before = match &known.status {
            Status::Node(status) => convert::conditions(&status.conditions),
            _ => Vec::new(),
        };
        let conditions = carry_transition_times(&before, &report.conditions, now_secs);
        let status = egret::NodeStatus {
            tunnel_mac: report.tunnel_mac.clone(),
            external_interface: report.external_interface.clone(),
            capabilities: report.capabilities.clone(),
            conditions: convert::api_conditions(&conditions, observed(&known, record)),
            ..lease::node_status(record)
        };
        if known.status == Status::Node(Box::new(status.clone())) {
            return Ok(known.version);
        }
        let nodes: Api<egret::EgressNode> = Api::all(self.shared.client.clone());
        let written = self
            .shared
            .apply_status(&nodes, &object, (AGENT, None), &status)?;
        let written = written.ok_or_else(not_found)?;
        Ok(self.shared.wrote(&watches[..2], written))
    }

    fn delete_node(&mut self, node: &NodeName) -> Result<(), SourceError> {
        let object = node_object(node);
        let nodes: Api<egret::EgressNode> = Api::all(self.shared.client.clone());
        let parameters = DeleteParams::default();
        let deleting = nodes.delete(&object.name, &parameters);
        match self.shared.request("deleting", &object, deleting) {
            Ok(_) | Err(Failure::Missing(_)) => {}
            Err(failure) => return Err(failure.into()),
        }
        let watches = node_watches(node);
        self.shared.store.wrote(&watches, &object, None);
        Ok(())
    }

    fn write_policy_status(
        &mut self,
        object: &ObjectRef,
        status: &PolicyStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        let client = self.shared.client.clone();
        let make = |known: &Entry| {
            let before = match &known.status {
                Status::Policy(before) => before.conditions.as_slice(),
                _ => &[],
            };
            let (generation, conditions) =
                understood(known, status.observed_generation, &status.conditions);
            let conditions = carry(before, &conditions, now_secs);
            let made = convert::api_policy_status(&PolicyStatus {
                observed_generation: generation,
                conditions: conditions.clone(),
                ..status.clone()
            });
            let told = notes(&convert::conditions(before), &conditions);
            (Status::Policy(Box::new(made.clone())), made, told)
        };
        let seen = self.policies.get(object);
        let seen = seen.map_or(&[][..], |seen| &seen.addresses);
        let over = |watch| self.shared.may_give(watch, object, seen, &status.addresses);
        match object.kind {
            Kind::ClusterEgress => {
                let watch = Watch::ClusterEgresses;
                let all: Api<egret::ClusterEgress> = Api::all(client);
                self.write_status(&all, (&watch, over(&watch)?), object, make)
            }
            _ => {
                let watch = Watch::Egresses;
                let some: Api<egret::Egress> = Api::namespaced(client, &object.namespace);
                self.write_status(&some, (&watch, over(&watch)?), object, make)
            }
        }
    }

    fn write_gateway_status(
        &mut self,
        gateway: &GatewayName,
        status: &GatewayStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        let object = ObjectRef::of_cluster(Kind::EgressGateway, &gateway.0);
        let all: Api<egret::EgressGateway> = Api::all(self.shared.client.clone());
        self.write_status(&all, (&Watch::Gateways, None), &object, |known| {
            let before = match &known.status {
                Status::Gateway(before) => before.conditions.as_slice(),
                _ => &[],
            };
            let (generation, conditions) =
                understood(known, status.observed_generation, &status.conditions);
            let conditions = carry(before, &conditions, now_secs);
            let made = convert::api_gateway_status(&GatewayStatus {
                observed_generation: generation,
                conditions: conditions.clone(),
                ..status.clone()
            });
            let told = notes(&convert::conditions(before), &conditions);
            (Status::Gateway(Box::new(made.clone())), made, told)
        })
    }

    fn write_pool_status(
        &mut self,
        pool: &PoolName,
        status: &PoolStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        let object = ObjectRef::of_cluster(Kind::EgressPool, &pool.0);
        let all: Api<egret::EgressPool> = Api::all(self.shared.client.clone());
        self.write_status(&all, (&Watch::Pools, None), &object, |known| {
            let before = match &known.status {
                Status::Pool(before) => before.conditions.as_slice(),
                _ => &[],
            };
            let (generation, conditions) =
                understood(known, status.observed_generation, &status.conditions);
            let conditions = carry(before, &conditions, now_secs);
            let made = convert::api_pool_status(&PoolStatus {
                observed_generation: generation,
                conditions: conditions.clone(),
                ..status.clone()
            });
            let told = notes(&convert::conditions(before), &conditions);
            (Status::Pool(Box::new(made.clone())), made, told)
        })
    }

    fn write_address_status(
        &mut self,
        address: IpAddr,
        status: &AddressStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        let object = address_object(address);
        let all: Api<egret::EgressAddress> = Api::all(self.shared.client.clone());
        self.write_status(&all, (&Watch::Addresses, None), &object, |known| {
            let before = match &known.status {
                Status::Address(before) => before.conditions.as_slice(),
                _ => &[],
            };
            let conditions = carry(before, &status.conditions, now_secs);
            let mut made = convert::api_address_status(&AddressStatus {
                conditions,
                ..status.clone()
            });
            for condition in &mut made.conditions {
                condition.observed_generation = Some(known.generation);
            }
            // No events: no user wrote this object, and its faults are reported on its policies.
            (Status::Address(Box::new(made.clone())), made, Vec::new())
        })
    }

    fn write_front_end_status(
        &mut self,
        object: &ObjectRef,
        before: &serde_json::Value,
        status: &serde_json::Value,
    ) -> Result<bool, SourceError> {
        let shared = &self.shared;
        let known = shared.store.get(&[Watch::Foreign(object.kind)], object);
        let changed = shared.apply_foreign_status(object, status)?;
        if let (true, Some(known)) = (changed, known) {
            let told = notes(&conditions_of(before), &conditions_of(status));
            let events = &shared.events;
            events.tell(&shared.runtime, object, &known.uid, told);
        }
        Ok(changed)
    }
}

impl KubeSource {
    /// Nodes that are gateways, computed again when they may have changed.
    fn gateway_nodes(&mut self) -> &BTreeSet<NodeName> {
        let state = self.shared.store.lock();
        let others = state.cache.touches.others;
        if self.gateways.0 != Some(others) {
            self.gateways = (Some(others), gateway_nodes(&state));
        }
        &self.gateways.1
    }

    /// Writes the status of an object if it exists and its status differs, with a version only over that one; returns
    /// whether that changed anything.
    fn write_status<K, S>(
        &mut self,
        kind: &Api<K>,
        (watch, version): (&Watch, Option<u64>),
        object: &ObjectRef,
        make: impl FnOnce(&Entry) -> (Status, S, Vec<Note>),
    ) -> Result<bool, SourceError>
    where
        K: Observed + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
        S: Serialize + Debug,
    {
        let shared = &self.shared;
        let watches = std::slice::from_ref(watch);
        let Some(known) = shared.store.get(watches, object) else {
            return Ok(false);
        };
        let (wanted, status, told) = make(&known);
        if known.status == wanted {
            return Ok(false);
        }
        let written = shared.apply_status(kind, object, (CONTROLLER, version), &status)?;
        let Some(written) = written else {
            return Ok(false);
        };
        shared.wrote(watches, written);
        let events = &shared.events;
        events.tell(&shared.runtime, object, &known.uid, told);
        Ok(true)
    }

    /// Users' objects that are invalid.
    fn invalid_objects(&self) -> impl Iterator<Item = ObjectRef> + use<> {
        let watches = [
            Watch::Egresses,
            Watch::ClusterEgresses,
            Watch::Gateways,
            Watch::Pools,
        ];
        let state = self.shared.store.lock();
        let watched = watches.iter().filter_map(|watch| state.watches.get(watch));
        let bad: Vec<ObjectRef> = watched
            .flat_map(|watched| &watched.objects)
            .filter(|(_, entry)| !entry.findings.is_empty())
            .map(|(object, _)| object.clone())
            .collect();
        bad.into_iter()
    }

    /// Writes an object's findings into its status. Where the last good version stays in force, the rest of the status
    /// stays; otherwise only the addresses stay, to be requested again.
    fn tell_findings(&mut self, object: &ObjectRef, now_secs: i64) -> Result<bool, SourceError> {
        let watch = match object.kind {
            Kind::EgressGateway => Watch::Gateways,
            Kind::EgressPool => Watch::Pools,
            Kind::ClusterEgress => Watch::ClusterEgresses,
            _ => Watch::Egresses,
        };
        let known = self.shared.store.get(&[watch], object);
        let Some(entry) = known.filter(|entry| !entry.findings.is_empty()) else {
            return Ok(false);
        };
        let lost = entry.value == Value::Nothing;
        match (object.kind, &entry.status) {
            (Kind::EgressGateway, status) => {
                let status = match status {
                    Status::Gateway(status) if !lost => convert::gateway_status(status),
                    _ => GatewayStatus::default(),
                };
                let name = GatewayName(object.name.clone());
                self.write_gateway_status(&name, &status, now_secs)
            }
            (Kind::EgressPool, status) => {
                let status = match status {
                    Status::Pool(status) if !lost => convert::pool_status(status),
                    _ => PoolStatus::default(),
                };
                self.write_pool_status(&PoolName(object.name.clone()), &status, now_secs)
            }
            (_, status) => {
                let mut status = match status {
                    Status::Policy(status) => convert::policy_status(status),
                    _ => PolicyStatus::default(),
                };
                if lost {
                    status = PolicyStatus {
                        addresses: status.addresses,
                        ..PolicyStatus::default()
                    };
                }
                self.write_policy_status(object, &status, now_secs)
            }
        }
    }

    /// `EgressNode`s that lack the gateway label, and those that have it and should not. An unreadable record is not
    /// written, so it retains its label.
    fn wrong_labels(&mut self) -> Vec<Notice> {
        let touches = self.shared.store.lock().cache.touches;
        // Changes of pods do not affect labels.
        let labelled = self.labelled.replace(touches);
        if labelled.is_some_and(|l| (l.records, l.others) == (touches.records, touches.others)) {
            return Vec::new();
        }
        self.gateway_nodes();
        let gateways = &self.gateways.1;
        let state = self.shared.store.lock();
        let records = state.watches.get(&Watch::Records(Records::All));
        let objects = records.into_iter().flat_map(|watched| &watched.objects);
        let wrong: Vec<Notice> = objects
            .filter(|(_, entry)| !entry.gaps.spec)
            .map(|(object, entry)| (NodeName(object.name.clone()), is_labelled(entry)))
            .map(|(node, labelled)| (gateways.contains(&node), node, labelled))
            .filter(|(gateway, _, labelled)| gateway != labelled)
            .map(|(gateway, node, _)| Notice::GatewayLabel(node, gateway))
            .take(LABELS_PER_VIEW)
            .collect();
        if !wrong.is_empty() {
            // Checked again after the write, whatever its result.
            self.labelled = None;
        }
        wrong
    }
}

/// Condition of an invalid object.
fn invalid(findings: &[Finding]) -> Condition {
    let line =
        |finding: &Finding| format!("{} {}: {}", finding.field, finding.value, finding.remedy);
    let told = findings.iter().take(FINDINGS_TOLD_MAX);
    let mut message: Vec<String> = told.map(line).collect();
    if findings.len() > message.len() {
        message.push(format!(
            "and at least {} more",
            findings.len() - message.len()
        ));
    }
    let (kind, reason) = (ConditionType::Accepted, Reason::Invalid);
    Condition::from(&Said::new(kind, false, reason, message.join("; ")))
}

/// Generation and conditions of an object: as planned, and if its newest version is invalid, that the last good one is
/// in force.
fn understood(known: &Entry, generation: i64, planned: &[Condition]) -> (i64, Vec<Condition>) {
    if known.findings.is_empty() {
        return (generation, planned.to_vec());
    }
    let mut why = invalid(&known.findings);
    if !matches!(known.value, Value::Nothing) {
        why.message += "; the last version that could be understood stays in force";
    }
    let others = planned.iter().filter(|c| c.kind != why.kind).cloned();
    (known.generation, others.chain([why.clone()]).collect())
}

/// Generation of a node's record that an agent reports about: the newest, unless the agent has not read it yet.
fn observed(known: &Entry, reported: &NodeRecord) -> i64 {
    let spec = |record: &NodeRecord| lease::node_spec(record);
    match &known.value {
        Value::Record(newest) if spec(newest) != spec(reported) => known.generation - 1,
        _ => known.generation,
    }
}

fn carry(before: &[meta::Condition], now: &[Condition], now_secs: i64) -> Vec<Condition> {
    carry_transition_times(&convert::conditions(before), now, now_secs)
}

fn address_object(address: IpAddr) -> ObjectRef {
    ObjectRef::of_cluster(Kind::EgressAddress, egret::address_object_name(address))
}

/// Watches that may contain a node's record; the last only if it is a gateway's.
fn node_watches(node: &NodeName) -> [Watch; 3] {
    [
        Watch::Records(Records::All),
        Watch::Records(Records::One(node.0.clone())),
        Watch::Records(Records::OfGateways),
    ]
}
