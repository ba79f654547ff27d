//! Identification of a manifest: its kind, its name, and its model value.

use crate::convert::field::is_object_name;
use crate::convert::{self, Reading, cluster, unread};
use crate::front_end;
use crate::plugin;
use egret_core::model::{
    AddressRecord, Finding, Gateway, Kind, Namespace, Node, NodeRecord, ObjectRef, Pod, Policy,
    Pool, Service,
};
use egret_core::numbers::FINDINGS_PER_OBJECT_MAX;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Longest name of a namespace (RFC 1123 label).
const NAMESPACE_MAX: usize = 63;
/// Longest value that a finding shows, in characters.
const SHOWN_MAX: usize = 100;

/// Kinds that are read in addition to those of front-ends, and whether they are namespaced.
const OWN_KINDS: [(Kind, &str, bool); 11] = [
    (Kind::ClusterEgress, egret_api::API_VERSION, false),
    (Kind::Egress, egret_api::API_VERSION, true),
    (Kind::EgressGateway, egret_api::API_VERSION, false),
    (Kind::EgressPool, egret_api::API_VERSION, false),
    (Kind::EgressAddress, egret_api::API_VERSION, false),
    (Kind::EgressNode, egret_api::API_VERSION, false),
    (Kind::Namespace, "v1", false),
    (Kind::Node, "v1", false),
    (Kind::Pod, "v1", true),
    (Kind::Service, "v1", true),
    (Kind::EndpointSlice, "discovery.k8s.io/v1", true),
];

/// All kinds that can be stored, and whether they are namespaced.
pub(super) fn kinds() -> impl Iterator<Item = (Kind, bool)> {
    let own = OWN_KINDS
        .iter()
        .map(|(kind, _, namespaced)| (*kind, *namespaced));
    own.chain(front_end::KINDS.iter().map(|known| (known.kind, true)))
        .chain(
            plugin::KINDS
                .iter()
                .map(|known| (known.kind, known.namespaced)),
        )
}

/// Whether objects of this kind are namespaced.
pub(super) fn is_namespaced(kind: Kind) -> bool {
    kinds().any(|(known, namespaced)| known == kind && namespaced)
}

/// Value of `kind` in manifests of this kind.
pub(super) fn manifest_kind(kind: Kind) -> String {
    let front_end = front_end::foreign_kind(kind).map(|known| known.name);
    let plugin = || plugin::plugin_kind(kind).map(|known| known.name);
    front_end
        .or_else(plugin)
        .map_or_else(|| format!("{kind:?}"), str::to_owned)
}

/// Whether Egret writes the status of this kind: our own kinds, and those of front-ends.
pub(super) fn has_our_status(kind: Kind) -> bool {
    is_ours(kind) || front_end::foreign_kind(kind).is_some()
}

/// Whether people write the spec and Egret writes the status.
pub(super) fn is_ours(kind: Kind) -> bool {
    OWN_KINDS
        .iter()
        .any(|(known, version, _)| *known == kind && *version == egret_api::API_VERSION)
}

/// Classification of a manifest by `apiVersion` and `kind`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A kind that is read.
    Known(Kind),
    /// A kind that Egret does not read.
    Foreign,
    /// A kind in our group that does not exist; with a remedy.
    Mistaken(String),
}

pub(super) fn classify(api_version: &str, kind: &str) -> Class {
    let foreign = front_end::KINDS.iter();
    let mut foreign =
        foreign.filter(|known| known.api_version == api_version && known.name == kind);
    if let Some(known) = foreign.next() {
        return Class::Known(known.kind);
    }
    let mut plugins = plugin::KINDS.iter();
    let of_plugin = plugins.find(|known| known.api_version == api_version && known.name == kind);
    if let Some(known) = of_plugin {
        return Class::Known(known.kind);
    }
    let named = OWN_KINDS
        .iter()
        .find(|(known, _, _)| format!("{known:?}") == kind);
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match named {
        Some((known, version, _)) if *version == api_version => Class::Known(*known),
        Some((_, version, _)) if group == egret_api::GROUP => {
            Class::Mistaken(format!("write apiVersion: {version}"))
        }
        // The KEP's own manifest says `apiVersion: v1`.
        Some((known, version, _)) if is_ours(*known) && api_version == "v1" => {
            Class::Mistaken(format!("write apiVersion: {version}"))
        }
        None if group == egret_api::GROUP => Class::Mistaken(
            "write kind Egress, ClusterEgress, EgressGateway or EgressPool".to_owned(),
        ),
        _ => Class::Foreign,
    }
}

fn is_namespace_name(text: &str) -> bool {
    is_object_name(text) && text.len() <= NAMESPACE_MAX && !text.contains('.')
}

/// Kind, namespace and name of a manifest of a known kind, or the invalid field and its remedy.
pub(super) fn identify(kind: Kind, value: &Value) -> Result<ObjectRef, (&'static str, String)> {
    let metadata = &value["metadata"];
    let name = metadata["name"]
        .as_str()
        .filter(|name| is_object_name(name))
        .ok_or((
            "metadata.name",
            "give it a name: lower case letters, digits, '-' and '.'".to_owned(),
        ))?;
    let namespace = match (&metadata["namespace"], is_namespaced(kind)) {
        (_, false) => "",
        (Value::Null, true) => "default",
        (given, true) => given
            .as_str()
            .filter(|name| is_namespace_name(name))
            .ok_or((
                "metadata.namespace",
                "write the name of a namespace: lower case letters, digits and '-'".to_owned(),
            ))?,
    };
    Ok(ObjectRef {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// Findings that reading a manifest of one of our kinds would give.
pub(crate) fn objections(manifest: &Value) -> Vec<Finding> {
    let text = |field: &str| manifest[field].as_str().unwrap_or_default();
    let nameless = |field: &str, remedy: String| {
        vec![Finding {
            object: ObjectRef::of_cluster(Kind::File, text("kind")),
            field: field.to_owned(),
            value: shown(manifest, field),
            remedy,
        }]
    };
    let kind = match classify(text("apiVersion"), text("kind")) {
        Class::Known(kind) => kind,
        Class::Mistaken(remedy) => return nameless("apiVersion", remedy),
        Class::Foreign => return Vec::new(),
    };
    let object = match identify(kind, manifest) {
        Ok(object) => object,
        Err((field, remedy)) => return nameless(field, remedy),
    };
    let Outcome { result, unknown } = convert(&object, manifest);
    let mut all = result.err().unwrap_or_default();
    all.extend(unknown);
    all
}

/// A manifest as a model value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Converted {
    Policy(Policy),
    Gateway(Gateway),
    Pool(Pool),
    Namespace(Namespace),
    Node(Node),
    /// `None`: not bound to a node.
    Pod(Option<Pod>),
    Service(Service),
    Slice(cluster::Slice),
    /// A record that only Egret writes, as far as it can be read.
    Address(Reading<AddressRecord>),
    NodeRecord(Box<Reading<NodeRecord>>),
    /// An object of a front-end: translated after everything else.
    Foreign,
    /// Prefixes that an object of a network plugin publishes.
    PodPrefixes(BTreeSet<IpNet>),
}

/// Whether only Egret writes objects of this kind.
pub(super) fn is_record(kind: Kind) -> bool {
    matches!(kind, Kind::EgressAddress | Kind::EgressNode)
}

/// Whether the controller's part of a record is readable.
pub(super) fn is_whole(converted: &Converted) -> bool {
    match converted {
        Converted::Address(reading) => !reading.gaps.spec,
        Converted::NodeRecord(reading) => !reading.gaps.spec,
        _ => true,
    }
}

/// Result of a conversion: the value or its findings, and warnings about unknown fields.
pub(super) struct Outcome {
    pub result: Result<Converted, Vec<Finding>>,
    pub unknown: Vec<Finding>,
}

/// Converts a manifest. Its `metadata` must already have name and namespace.
pub(super) fn convert(object: &ObjectRef, value: &Value) -> Outcome {
    match object.kind {
        Kind::Egress => run(object, value, convert::policy::egress, Converted::Policy),
        Kind::ClusterEgress => run(
            object,
            value,
            convert::policy::cluster_egress,
            Converted::Policy,
        ),
        Kind::EgressGateway => run(object, value, convert::gateway::gateway, Converted::Gateway),
        Kind::EgressPool => run(object, value, convert::pool::pool, Converted::Pool),
        Kind::EgressAddress => {
            let read = |object: &_| Ok(convert::lease::address_record(object));
            let mut outcome = run(object, value, read, Converted::Address);
            outcome.result = outcome.result.or_else(|findings| {
                let reading = unread::unread_address(object, findings);
                reading.map(Converted::Address)
            });
            outcome
        }
        Kind::EgressNode => {
            let read = |object: &_| Ok(Box::new(convert::lease::node_record(object)));
            let mut outcome = run(object, value, read, Converted::NodeRecord);
            outcome.result = outcome.result.or_else(|findings| {
                let reading = unread::unread_node(object, value, findings);
                Ok(Converted::NodeRecord(Box::new(reading)))
            });
            outcome
        }
        Kind::Namespace => run(object, value, cluster::namespace, Converted::Namespace),
        Kind::Node => run(object, value, cluster::node, Converted::Node),
        Kind::Pod => run(object, value, cluster::pod, Converted::Pod),
        Kind::Service => run(object, value, cluster::service, Converted::Service),
        Kind::EndpointSlice => run(object, value, cluster::endpoint_slice, Converted::Slice),
        Kind::NirmataStaticEgressIP
        | Kind::StaticEgressIP
        | Kind::MapperEgress
        | Kind::MapperVip
        | Kind::MapperSettings => Outcome {
            result: Ok(Converted::Foreign),
            unknown: Vec::new(),
        },
        Kind::CalicoIPPool
        | Kind::CiliumNode
        | Kind::CiliumPodIPPool
        | Kind::KubeOvnSubnet
        | Kind::OpenShiftNetwork
        | Kind::AzureNodeNetworkConfig => Outcome {
            result: Ok(Converted::PodPrefixes(plugin::prefixes(object.kind, value))),
            unknown: Vec::new(),
        },
        Kind::File => unreachable!("File is no kind of manifest: identify() never gives it"),
    }
}

fn run<T: DeserializeOwned, M>(
    object: &ObjectRef,
    value: &Value,
    parse: impl FnOnce(&T) -> Result<M, Vec<Finding>>,
    wrap: impl FnOnce(M) -> Converted,
) -> Outcome {
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let typed: Result<T, serde_json::Error> =
        serde_ignored::deserialize(deserializer, |path| ignored.push(path.to_string()));
    ignored.retain(|path| path != "apiVersion" && path != "kind"); // read before, by classify()
    let unknown = match is_ours(object.kind) {
        true => unknown_fields(object, value, &ignored),
        false => Vec::new(), // a newer Kubernetes has fields that we need not know
    };
    let result = match typed {
        Ok(typed) => parse(&typed).map(wrap),
        Err(error) => Err(vec![wrong_type(
            object,
            value,
            &track.path().to_string(),
            &error,
        )]),
    };
    Outcome { result, unknown }
}

/// serde's message as a finding. serde_json adds no position to errors about values.
fn wrong_type(object: &ObjectRef, value: &Value, path: &str, error: &serde_json::Error) -> Finding {
    let message = error.to_string();
    let field = if path == "." {
        String::new()
    } else {
        path.replace(".?", "")
    };
    let missing = message
        .strip_prefix("missing field `")
        .and_then(|m| m.split_once('`'));
    let (field, remedy) = match missing {
        Some((name, _)) => {
            let dot = if field.is_empty() { "" } else { "." };
            (
                format!("{field}{dot}{name}"),
                "add this field: it is required".to_owned(),
            )
        }
        None => (field, type_remedy(&message)),
    };
    Finding {
        object: object.clone(),
        value: shown(value, &field),
        field,
        remedy,
    }
}

/// Remedy for messages such as `invalid type: integer `1`, expected a string`.
fn type_remedy(message: &str) -> String {
    let Some((found, wanted)) = message.rsplit_once(", expected ") else {
        return format!("mend the value: {message}");
    };
    if message.starts_with("unknown variant") {
        return format!("write {}", wanted.replace("one of ", "").replace('`', ""));
    }
    if wanted.contains("string") && (found.contains("integer") || found.contains("boolean")) {
        return "put the value in quotes: it must be a string".to_owned();
    }
    let wanted = match wanted {
        "a sequence" => "a list",
        "a map" | "struct" => "a mapping",
        "a boolean" => "true or false",
        "i32" | "i64" | "u16" | "u32" | "u64" => "a whole number",
        other if other.starts_with("struct ") => "a mapping",
        other => other,
    };
    format!("write {wanted} here")
}

/// Findings about the first unknown fields, with the number of the others.
fn unknown_fields(object: &ObjectRef, value: &Value, ignored: &[String]) -> Vec<Finding> {
    let told = ignored.iter().take(FINDINGS_PER_OBJECT_MAX);
    let mut all: Vec<Finding> = told
        .map(|path| unknown_field(object, value, path))
        .collect();
    if ignored.len() > all.len() {
        all.push(Finding {
            object: object.clone(),
            field: "spec".to_owned(),
            value: String::new(),
            remedy: format!(
                "remove the others first: {} more unknown fields are not shown",
                ignored.len() - all.len()
            ),
        });
    }
    all
}

fn unknown_field(object: &ObjectRef, value: &Value, raw: &str) -> Finding {
    let field = bracket_indexes(raw);
    let name = field.rsplit('.').next().unwrap_or_default();
    let remedy = match near_field(object.kind, &field, name) {
        _ if object.kind == Kind::ClusterEgress && field == "spec.serviceName" => {
            "use an Egress: a ClusterEgress has no namespace to find a Service in".to_owned()
        }
        Some(near) => format!("write {near}: there is no field {name} here; it was ignored"),
        None => format!("remove it: there is no field {name} here; it was ignored"),
    };
    Finding {
        object: object.clone(),
        value: shown(value, &field),
        field,
        remedy,
    }
}

/// serde_ignored's `spec.destinations.?.0.port` as `spec.destinations[0].port`.
fn bracket_indexes(raw: &str) -> String {
    raw.split('.')
        .filter(|part| *part != "?")
        .fold(String::new(), |path, part| match part.parse::<usize>() {
            Ok(index) => format!("{path}[{index}]"),
            Err(_) if path.is_empty() => part.to_owned(),
            Err(_) => format!("{path}.{part}"),
        })
}

/// The field of the kind's schema whose name is closest to the unknown one.
fn near_field(kind: Kind, field: &str, name: &str) -> Option<String> {
    static SCHEMAS: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| {
        egret_api::crds()
            .iter()
            .filter_map(|crd| {
                let schema = crd.spec.versions.first()?.schema.as_ref()?;
                let schema = serde_json::to_value(schema.open_api_v3_schema.as_ref()?).ok()?;
                Some((crd.spec.names.kind.clone(), schema))
            })
            .collect()
    });
    let mut node = schemas.get(&format!("{kind:?}"))?;
    let parent = field.rsplit_once('.').map_or("", |(parent, _)| parent);
    for part in parent.split('.').filter(|part| !part.is_empty()) {
        let (key, indexes) = part
            .split_once('[')
            .map_or((part, 0), |(key, rest)| (key, rest.matches(']').count()));
        node = &node["properties"][key];
        for _ in 0..indexes {
            node = &node["items"];
        }
    }
    let known = node["properties"].as_object()?;
    known
        .keys()
        .map(|key| (distance(&key.to_lowercase(), &name.to_lowercase()), key))
        .filter(|(far, key)| *far <= 2 && *far < key.len())
        .min()
        .map(|(_, key)| key.clone())
}

/// Number of edits that turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Value of a field, shortened to fit on a line.
pub(super) fn shown(value: &Value, field: &str) -> String {
    let mut node = value;
    for part in segments(field) {
        let next = match part.parse::<usize>() {
            Ok(index) => node.get(index),
            Err(_) => node.get(&part),
        };
        let Some(next) = next else {
            return String::new();
        };
        node = next;
    }
    let text = match node {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Segments of a path such as `spec.destinations[0].cidr`.
pub(super) fn segments(field: &str) -> Vec<String> {
    field
        .split(['.', '[', ']'])
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}
