//! Single write requests: field manager, deadline, and classification of refusals.

use super::entry::{Entry, Observed, Status, Value};
use super::reflect::resource;
use super::watch::{GATEWAY_LABEL, Records, Watch};
use super::watch_set::Role;
use super::{Shared, api};
use crate::convert::{self, lease};
use crate::source::SourceError;
use egret_api as egret;
use egret_core::error::with_causes;
use egret_core::model::{Kind, NodeName, NodeRecord, ObjectRef};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Field manager of the controller.
pub(super) const CONTROLLER: &str = "egret-controller";
/// Field manager of agents.
pub(super) const AGENT: &str = "egret-agent";
/// Longest wait for the answer to one request.
const ANSWER: Duration = Duration::from_secs(10);
/// Attempts to write a node's spec while its agent changes the status concurrently.
const TRIES: usize = 4;

/// Failure of one request.
pub(super) enum Failure {
    /// 409: the version differs, or the object exists already.
    Conflict(ObjectRef),
    /// 404.
    Missing(ObjectRef),
    /// Anything else.
    Other(SourceError),
}

impl From<Failure> for SourceError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Conflict(object) => SourceError::Conflict {
                object: object.to_string(),
                expected: 0,
                found: 0,
            },
            Failure::Missing(object) => SourceError::NotFound {
                object: object.to_string(),
            },
            Failure::Other(error) => error,
        }
    }
}

/// Whether an error concerns one object only, so that others may be written: it is refused, or the answer is
/// unreadable. Other errors concern the API server or the connection.
fn is_about_the_object(error: &kube::Error) -> bool {
    match error {
        // Unauthorized, too many requests, unavailable.
        kube::Error::Api(status) => ![401, 429, 503].contains(&status.code),
        kube::Error::SerdeError(_) => true,
        _ => false,
    }
}

impl Shared {
    /// Deadline of a write that starts now.
    fn may_write_until(&self) -> Result<Instant, SourceError> {
        let until = Instant::now() + ANSWER;
        match (&self.settings.role, &self.leadership) {
            (Role::Reader, _) => Err(SourceError::ReadOnly),
            (_, None) => Ok(until),
            (_, Some(leadership)) => match leadership.held_until() {
                Some(held) => Ok(until.min(held)),
                None => Err(SourceError::NotLeader),
            },
        }
    }

    /// Carries out one write.
    pub(super) fn request<T>(
        &self,
        doing: &str,
        object: &ObjectRef,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let until = self.may_write_until().map_err(Failure::Other)?;
        let doing = || format!("{doing} {object}");
        let limited = async { tokio::time::timeout_at(until.into(), request).await };
        match self.runtime.block_on(limited) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                Err(Failure::Conflict(object.clone()))
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                Err(Failure::Missing(object.clone()))
            }
            Ok(Err(error)) if is_about_the_object(&error) => {
                Err(Failure::Other(SourceError::Refused {
                    object: object.to_string(),
                    why: format!("{}: {}", doing(), with_causes(&error)),
                }))
            }
            Ok(Err(error)) => Err(Failure::Other(api(doing(), &error))),
            Err(_) => Err(Failure::Other(SourceError::Unanswered {
                object: object.to_string(),
            })),
        }
    }

    /// After a conflict: reads the object into the store, so that the next plan is based on it.
    pub(super) fn conflict<K>(
        &self,
        kind: &Api<K>,
        watches: &[Watch],
        expected: u64,
        failure: Failure,
    ) -> SourceError
    where
        K: Observed + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let (Failure::Conflict(object) | Failure::Missing(object)) = failure else {
            return failure.into();
        };
        let found = match self.request("reading", &object, kind.get_opt(&object.name)) {
            Ok(found) => found,
            Err(failure) => return failure.into(),
        };
        let found = match found {
            Some(found) => self.wrote(watches, found),
            None => {
                self.store.wrote(watches, &object, None);
                0
            }
        };
        SourceError::Conflict {
            object: object.to_string(),
            expected,
            found,
        }
    }

    /// Puts the answer to a write into the store; returns its version.
    pub(super) fn wrote<K: Observed>(&self, watches: &[Watch], written: K) -> u64 {
        let (object, entry) = written.observe();
        self.store.wrote(watches, &object, Some(&entry));
        entry.version
    }

    /// The version that a write of a policy's status must match if it changes the addresses. Refused if the caller has
    /// `seen` others: assigned addresses are stored nowhere else, and another controller may have led since.
    pub(super) fn may_give(
        &self,
        watch: &Watch,
        object: &ObjectRef,
        seen: &[IpAddr],
        given: &[IpAddr],
    ) -> Result<Option<u64>, SourceError> {
        let Some(known) = self.store.get(std::slice::from_ref(watch), object) else {
            return Ok(None);
        };
        let has = match &known.status {
            Status::Policy(status) => convert::policy_status(status).addresses,
            _ => Vec::new(),
        };
        if has == given {
            return Ok(None);
        }
        if has != seen {
            return Err(Failure::Conflict(object.clone()).into());
        }
        Ok(Some(known.version))
    }

    /// Applies a status. `None`: the object does not exist. With a version, only that one is overwritten.
    pub(super) fn apply_status<K, S>(
        &self,
        kind: &Api<K>,
        object: &ObjectRef,
        (manager, version): (&str, Option<u64>),
        status: &S,
    ) -> Result<Option<K>, SourceError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
        S: Serialize + Debug,
    {
        let mut metadata = json!({ "name": object.name });
        if let Some(version) = version {
            metadata["resourceVersion"] = json!(version.to_string());
        }
        let patch = Patch::Apply(json!({
            "apiVersion": egret::API_VERSION,
            "kind": K::kind(&()),
            "metadata": metadata,
            "status": status,
        }));
        let parameters = PatchParams::apply(manager).force();
        let applying = kind.patch_status(&object.name, &parameters, &patch);
        match self.request("writing the status of", object, applying) {
            Ok(written) => Ok(Some(written)),
            Err(Failure::Missing(_)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Writes the status of a front-end's object; as an ordinary field where its CRD has no status subresource. Returns
    /// whether the object exists.
    pub(super) fn apply_foreign_status(
        &self,
        object: &ObjectRef,
        status: &serde_json::Value,
    ) -> Result<bool, SourceError> {
        let resource = resource(object.kind);
        let objects: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &object.namespace, &resource);
        let patch = Patch::Apply(json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": object.name },
            "status": status,
        }));
        let parameters = PatchParams::apply(CONTROLLER).force();
        let doing = "writing the status of";
        let applying = objects.patch_status(&object.name, &parameters, &patch);
        let written = match self.request(doing, object, applying) {
            Err(Failure::Missing(_)) => {
                // Not an apply, which would create a deleted object.
                let patch = Patch::Merge(json!({ "status": status }));
                let parameters = PatchParams::default();
                let merging = objects.patch(&object.name, &parameters, &patch);
                self.request(doing, object, merging)
            }
            other => other,
        };
        match written {
            Ok(written) => {
                let (name, entry) = super::entry::foreign(object.kind, written);
                let watches = [Watch::Foreign(object.kind)];
                self.store.wrote(&watches, &name, Some(&entry));
                Ok(true)
            }
            Err(Failure::Missing(_)) => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Applies the spec and the label of an `EgressNode`, and creates it if necessary. It overwrites only the spec that
    /// the caller has `seen`; status that its agent wrote meanwhile does not matter.
    pub(super) fn apply_node(
        &self,
        record: &NodeRecord,
        seen: Option<&egret::EgressNodeSpec>,
        gateway: bool,
    ) -> Result<u64, SourceError> {
        let object = node_object(&record.node);
        let watches = [Watch::Records(Records::All)];
        let nodes: Api<egret::EgressNode> = Api::all(self.client.clone());
        let spec = lease::node_spec(record);
        let mut version = record.resource_version;
        let mut seen = seen.cloned();
        if version == 0 {
            // Fields of a creation are another manager's to the API server: no later apply could take them away again
            // (kubernetes.io, Server-Side Apply, "field management"). What may go away is applied.
            let first = egret::EgressNodeSpec {
                grants: Vec::new(),
                draining: Vec::new(),
                resting: Vec::new(),
                fenced: None,
                pod_prefixes: Vec::new(),
                device_addresses: Vec::new(),
                ..spec.clone()
            };
            let is_whole = first == spec;
            let whole = egret::EgressNode::new(&object.name, first.clone());
            let parameters = manager(CONTROLLER);
            let creating = nodes.create(&parameters, &whole);
            let created = self.request("creating", &object, creating);
            let created = created.map_err(|f| self.conflict(&nodes, &watches, version, f))?;
            version = self.wrote(&watches, created);
            if !gateway && is_whole {
                return Ok(version);
            }
            seen = Some(first);
        } else if let Some(known) = self.store.get(&watches, &object) {
            if node_spec(&known).as_ref() == Some(&spec) && is_labelled(&known) == gateway {
                return Ok(known.version);
            }
            if node_spec(&known) == seen {
                version = known.version;
            }
        }
        for _ in 0..TRIES {
            let labels = match gateway {
                true => json!({ GATEWAY_LABEL: "true" }),
                false => json!({}),
            };
            let patch = Patch::Apply(json!({
                "apiVersion": egret::API_VERSION,
                "kind": "EgressNode",
                "metadata": {
                    "name": object.name,
                    "resourceVersion": version.to_string(),
                    "labels": labels,
                },
                "spec": with_empty_lists(&spec),
            }));
            let parameters = PatchParams::apply(CONTROLLER).force();
            let applying = nodes.patch(&object.name, &parameters, &patch);
            let failure = match self.request("writing", &object, applying) {
                Ok(written) => return Ok(self.wrote(&watches, written)),
                Err(failure) => failure,
            };
            let error = self.conflict(&nodes, &watches, version, failure);
            let SourceError::Conflict { found, .. } = error else {
                return Err(error);
            };
            let there = self.store.get(&watches, &object);
            if found == 0 || there.as_ref().and_then(node_spec) != seen {
                return Err(error);
            }
            version = found;
        }
        Err(Failure::Conflict(object).into())
    }
}

/// The spec of a known `EgressNode`.
fn node_spec(entry: &Entry) -> Option<egret::EgressNodeSpec> {
    match &entry.value {
        Value::Record(record) => Some(lease::node_spec(record)),
        _ => None,
    }
}

pub(super) fn is_labelled(entry: &Entry) -> bool {
    let labels = entry.kept.as_ref().and_then(|kept| kept.labels.as_ref());
    labels.is_some_and(|labels| {
        labels
            .get(GATEWAY_LABEL)
            .is_some_and(|value| value == "true")
    })
}

/// Parameters of a write by this field manager.
pub(super) fn manager(name: &str) -> PostParams {
    PostParams {
        field_manager: Some(name.to_owned()),
        ..PostParams::default()
    }
}

/// Reference of a node's `EgressNode`.
pub(super) fn node_object(node: &NodeName) -> ObjectRef {
    ObjectRef::of_cluster(Kind::EgressNode, &node.0)
}

/// The spec with its empty lists of ports: one that is only absent would stay as a creation by an earlier version left it.
fn with_empty_lists(spec: &egret::EgressNodeSpec) -> serde_json::Value {
    let mut value = json!(spec);
    if let Some(fields) = value.as_object_mut() {
        for list in ["grants", "draining", "resting"] {
            fields.entry(list).or_insert_with(|| json!([]));
        }
    }
    value
}
