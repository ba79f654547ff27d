//! One object of the API server, reduced to what Egret reads: the model's value and, for our own kinds, the status. The
//! rest is dropped here, so that ten thousand pods stay small and a heartbeat is no change.

use crate::convert::{self, Gaps, Reading, cluster, reading, unread};
use crate::front_end::Foreign;
use crate::plugin;
use egret_api as api;
use egret_core::model::{
    AddressRecord, Finding, Gateway, Kind, Namespace, Node, NodeRecord, ObjectRef, Pod, Policy,
    Pool, Service,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DynamicObject, PartialObjectMeta};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Value of an object, with its status where Egret writes that.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Policy(Arc<Policy>),
    Gateway(Box<Gateway>),
    Pool(Box<Pool>),
    Address(Arc<AddressRecord>),
    Record(Arc<NodeRecord>),
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Box<Service>),
    Slice(cluster::Slice),
    ServiceCidrs(Vec<IpNet>),
    /// An object of a front-end, translated after everything else.
    Foreign(Box<Foreign>),
    /// Prefixes that an object of a network plugin publishes.
    PodPrefixes(BTreeSet<IpNet>),
    /// No value: a pod without a node, or an invalid object with its findings.
    Nothing,
}

/// Wraps a value of this kind in an `Arc`.
macro_rules! of_kind {
    ($($name:ident: $value:ident, $of:ty;)+) => {
        impl Value {$(
            pub fn $name(&self) -> Option<&Arc<$of>> {
                match self {
                    Value::$value(value) => Some(value),
                    _ => None,
                }
            }
        )+}
    };
}

of_kind! {
    policy: Policy, Policy;
    address: Address, AddressRecord;
    record: Record, NodeRecord;
    namespace: Namespace, Namespace;
    node: Node, Node;
    pod: Pod, Pod;
}

/// Status of one of our objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Status {
    #[default]
    None,
    Policy(Box<api::PolicyStatus>),
    Gateway(Box<api::GatewayStatus>),
    Pool(Box<api::PoolStatus>),
    Address(Box<api::AddressStatus>),
    Node(Box<api::NodeStatus>),
}

/// An object.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Labels and annotations of records: a record is replaced as a whole and must retain those of others.
    pub kept: Option<Box<ObjectMeta>>,
    /// The model's value.
    pub value: Value,
    /// The status that Egret wrote.
    pub status: Status,
    /// Findings about the object.
    pub findings: Vec<Finding>,
    /// Unreadable parts of a record.
    pub gaps: Gaps,
}

impl Entry {
    /// Whether both entries are equal in everything that is read.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let labels = |entry: &Self| entry.kept.as_ref().and_then(|kept| kept.labels.clone());
        (&self.value, &self.status, &self.findings, &self.uid)
            == (&other.value, &other.status, &other.findings, &other.uid)
            && self.gaps == other.gaps
            && labels(self) == labels(other)
    }

    /// Takes over the value of the replaced entry if both are equal, so that views keep sharing it.
    pub fn share(&mut self, before: &mut Self) {
        if self.value == before.value {
            std::mem::swap(&mut self.value, &mut before.value);
        }
    }

    /// Retains the last good value if the new one is invalid. An object that was recreated under the same name has no
    /// last good value.
    pub fn keep_last_good(&mut self, before: &Self) {
        let lost = matches!(self.value, Value::Nothing) || self.gaps.spec;
        if !lost || self.findings.is_empty() || before.uid != self.uid {
            return;
        }
        self.value = match (&self.value, &before.value) {
            // The agent's part has another writer, so the new one is used.
            (Value::Record(now), Value::Record(before)) => {
                Value::Record(Arc::new(reading::with_spec_of(now, before)))
            }
            (_, before) => before.clone(),
        };
        self.set_version();
    }

    fn new(metadata: &ObjectMeta, value: Result<Value, Vec<Finding>>, status: Status) -> Self {
        let version = metadata.resource_version.as_deref().unwrap_or_default();
        let (value, findings) = match value {
            Ok(value) => (value, Vec::new()),
            Err(findings) => (Value::Nothing, findings),
        };
        Self {
            version: version.parse().unwrap_or(0),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or(0),
            kept: None,
            value,
            status,
            findings,
            gaps: Gaps::default(),
        }
    }

    /// Entry of a record that only Egret writes, as far as it is readable.
    fn record<T>(
        metadata: ObjectMeta,
        reading: Reading<T>,
        wrap: fn(Arc<T>) -> Value,
        status: Status,
    ) -> Self {
        let value = reading.record.map_or(Value::Nothing, |r| wrap(Arc::new(r)));
        let mut entry = Self {
            findings: reading.findings,
            gaps: reading.gaps,
            ..Self::new(&metadata, Ok(value), status)
        };
        entry.set_version();
        entry.keeping(metadata)
    }

    /// Sets the version that writes are compared with, however little of the record is readable.
    fn set_version(&mut self) {
        match &mut self.value {
            Value::Address(record) => Arc::make_mut(record).resource_version = self.version,
            Value::Record(record) => Arc::make_mut(record).resource_version = self.version,
            _ => {}
        }
    }

    fn keeping(self, metadata: ObjectMeta) -> Self {
        let kept = ObjectMeta {
            managed_fields: None,
            ..metadata
        };
        Self {
            kept: Some(Box::new(kept)),
            ..self
        }
    }
}

/// Entry of a front-end's object. Its status is included: others may write it, too.
pub(super) fn foreign(kind: Kind, object: DynamicObject) -> (ObjectRef, Entry) {
    let name = convert::object_ref(kind, &object.metadata);
    let metadata = object.metadata.clone();
    let whole = serde_json::to_value(object);
    let whole = whole.expect("what was read as JSON can be written as JSON");
    let value = Value::Foreign(Box::new(Foreign::of(name.clone(), &whole)));
    (name, Entry::new(&metadata, Ok(value), Status::None))
}

/// Entry of a network plugin's object.
pub(super) fn of_plugin(kind: Kind, object: DynamicObject) -> (ObjectRef, Entry) {
    let name = convert::object_ref(kind, &object.metadata);
    let metadata = object.metadata.clone();
    let whole = serde_json::to_value(object);
    let whole = whole.expect("what was read as JSON can be written as JSON");
    let value = Value::PodPrefixes(plugin::prefixes(kind, &whole));
    (name, Entry::new(&metadata, Ok(value), Status::None))
}

/// A kind that is watched.
pub(super) trait Observed {
    /// Its kind, as findings name it.
    const KIND: Kind;

    /// Its name and its entry.
    fn observe(self) -> (ObjectRef, Entry);
}

fn policy(
    metadata: &ObjectMeta,
    parsed: Result<Policy, Vec<Finding>>,
    status: Option<api::PolicyStatus>,
) -> Entry {
    let said = status.as_ref().map(convert::policy_status);
    let value = parsed.map(|policy| {
        Value::Policy(Arc::new(Policy {
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or(0),
            created_secs: metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            crowded: said
                .iter()
                .flat_map(|said| said.crowded.iter().copied())
                .collect(),
            assigned: said.map(|said| said.addresses).unwrap_or_default(),
            ..policy
        }))
    });
    let status = status.map_or(Status::None, |status| Status::Policy(Box::new(status)));
    Entry::new(metadata, value, status)
}

impl Observed for api::Egress {
    const KIND: Kind = Kind::Egress;

    fn observe(self) -> (ObjectRef, Entry) {
        let object = convert::object_ref(Self::KIND, &self.metadata);
        let parsed = convert::policy::egress(&self);
        (object, policy(&self.metadata, parsed, self.status))
    }
}

impl Observed for api::ClusterEgress {
    const KIND: Kind = Kind::ClusterEgress;

    fn observe(self) -> (ObjectRef, Entry) {
        let object = convert::object_ref(Self::KIND, &self.metadata);
        let parsed = convert::policy::cluster_egress(&self);
        (object, policy(&self.metadata, parsed, self.status))
    }
}

/// Implements [`Observed`] for kinds with one conversion and a status of ours.
macro_rules! ours {
    ($($kind:ident, $convert:path, $value:ident, $status:ident;)+) => {$(
        impl Observed for api::$kind {
            const KIND: Kind = Kind::$kind;

            fn observe(self) -> (ObjectRef, Entry) {
                let object = convert::object_ref(Self::KIND, &self.metadata);
                let value = $convert(&self).map(|value| Value::$value(value.into()));
                let status = self.status.map_or(Status::None, |s| Status::$status(Box::new(s)));
                (object, Entry::new(&self.metadata, value, status).keeping(self.metadata))
            }
        }
    )+};
}

ours! {
    EgressGateway, convert::gateway::gateway, Gateway, Gateway;
    EgressPool, convert::pool::pool, Pool, Pool;
}

impl Observed for api::EgressAddress {
    const KIND: Kind = Kind::EgressAddress;

    fn observe(self) -> (ObjectRef, Entry) {
        let object = convert::object_ref(Self::KIND, &self.metadata);
        let reading = convert::lease::address_record(&self);
        let status = self.status.map(Box::new).map(Status::Address);
        let status = status.unwrap_or_default();
        let entry = Entry::record(self.metadata, reading, Value::Address, status);
        (object, entry)
    }
}

impl Observed for api::EgressNode {
    const KIND: Kind = Kind::EgressNode;

    fn observe(self) -> (ObjectRef, Entry) {
        let object = convert::object_ref(Self::KIND, &self.metadata);
        let reading = convert::lease::node_record(&self);
        let status = self.status.map(Box::new).map(Status::Node);
        let status = status.unwrap_or_default();
        let entry = Entry::record(self.metadata, reading, Value::Record, status);
        (object, entry)
    }
}

/// Entry of an object of our kinds that does not match the API's type, with the error; it may be from another version
/// of Egret.
pub(super) fn unread(
    kind: Kind,
    metadata: ObjectMeta,
    whole: &serde_json::Value,
    why: &str,
) -> (ObjectRef, Entry) {
    let object = convert::object_ref(kind, &metadata);
    let finding = Finding {
        object: object.clone(),
        field: String::new(),
        value: String::new(),
        remedy: format!("run one version of Egret everywhere, or mend the object: {why}"),
    };
    let findings = vec![finding];
    let status = Status::None;
    let entry = match kind {
        Kind::EgressAddress => match unread::unread_address(&object, findings) {
            Ok(reading) => Entry::record(metadata, reading, Value::Address, status),
            Err(findings) => Entry::new(&metadata, Err(findings), status).keeping(metadata),
        },
        Kind::EgressNode => {
            let reading = unread::unread_node(&object, whole, findings);
            Entry::record(metadata, reading, Value::Record, status)
        }
        _ => Entry::new(&metadata, Err(findings), status).keeping(metadata),
    };
    (object, entry)
}

impl Observed for PartialObjectMeta<core::Namespace> {
    const KIND: Kind = Kind::Namespace;

    fn observe(self) -> (ObjectRef, Entry) {
        let object = convert::object_ref(Self::KIND, &self.metadata);
        let namespace = core::Namespace {
            metadata: self.metadata,
            ..core::Namespace::default()
        };
        let value =
            cluster::namespace(&namespace).map(|namespace| Value::Namespace(Arc::new(namespace)));
        (object, Entry::new(&namespace.metadata, value, Status::None))
    }
}

/// Implements [`Observed`] for kinds of the cluster with one conversion.
macro_rules! theirs {
    ($($kind:ty, $name:ident, $convert:expr;)+) => {$(
        impl Observed for $kind {
            const KIND: Kind = Kind::$name;

            fn observe(self) -> (ObjectRef, Entry) {
                let object = convert::object_ref(Self::KIND, &self.metadata);
                let value: Result<Value, Vec<Finding>> = $convert(&self);
                (object, Entry::new(&self.metadata, value, Status::None))
            }
        }
    )+};
}

theirs! {
    core::Node, Node, |o| cluster::node(o).map(|node| Value::Node(Arc::new(node)));
    core::Pod, Pod, |o| cluster::pod(o).map(|pod| pod.map_or(Value::Nothing, |pod| Value::Pod(Arc::new(pod))));
    core::Service, Service, |o| cluster::service(o).map(|service| Value::Service(Box::new(service)));
    EndpointSlice, EndpointSlice, |o| cluster::endpoint_slice(o).map(Value::Slice);
    // A ServiceCIDR never has findings, since nobody would repair it for us; its watch distinguishes its name from a
    // Service's.
    ServiceCIDR, Service, |o| Ok(Value::ServiceCidrs(cluster::service_cidrs(o)));
}
