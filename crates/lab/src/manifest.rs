//! The source directory: the manifests of the cluster itself, and applying and deleting those of users.

use crate::LabError;
use crate::error::io;
use crate::layout::{HostLayout, Layout, PodLayout};
use crate::slowness::slowness;
use crate::state::replace;
use crate::topology::Role;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Label of gateways, which the `EgressGateway` of the lab selects.
pub const GATEWAY_LABEL: &str = "egret.dev/gateway";

/// The default of `EgressGateway.spec.probe.intervalMs`.
const PROBE_INTERVAL_MS: u32 = 50;

/// Cluster-scoped kinds that a lab may contain; every other object without a namespace is in `default`.
const CLUSTER_KINDS: &[&str] = &[
    "Namespace",
    "Node",
    "ClusterEgress",
    "EgressGateway",
    "EgressPool",
    "EgressAddress",
    "EgressNode",
];

/// Writes Namespace, Node, Pod and EgressGateway objects of the lab, one file each.
pub(crate) fn write_cluster(objects: &Path, layout: &Layout) -> Result<(), LabError> {
    let pods = || {
        layout
            .hosts
            .iter()
            .flat_map(|host| host.pods.iter().map(move |pod| (host, pod)))
    };
    let mut namespaces: BTreeSet<&str> = pods().map(|(_, pod)| pod.namespace.as_str()).collect();
    namespaces.insert("default");
    let mut manifests: Vec<Value> = namespaces.into_iter().map(namespace).collect();
    manifests.extend(layout.hosts.iter().filter(|host| host.is_node()).map(node));
    manifests.extend(pods().map(|(host, pod)| pod_object(host, pod)));
    manifests.push(egress_gateway(layout));
    manifests
        .iter()
        .try_for_each(|manifest| write(objects, manifest))
}

/// Writes the Pod object, with or without its addresses.
pub(crate) fn write_pod(
    objects: &Path,
    host: &HostLayout,
    pod: &PodLayout,
    has_addresses: bool,
) -> Result<(), LabError> {
    let mut object = pod_object(host, pod);
    if !has_addresses {
        object["status"] = json!({"phase": "Pending"});
    }
    write(objects, &object)
}

fn write(objects: &Path, manifest: &Value) -> Result<(), LabError> {
    let identity = Identity::of(manifest).expect("the lab's own objects have kind and name");
    let text = serde_saphyr::to_string(manifest).map_err(|error| LabError::Manifest {
        place: identity.file_name(),
        problem: error.to_string(),
    })?;
    replace(&objects.join(identity.file_name()), &text)
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    })
}

fn node(host: &HostLayout) -> Value {
    let mut labels = host.labels.clone();
    labels.insert("kubernetes.io/hostname".to_owned(), host.name.clone());
    for (role, label) in [
        (Role::Gateway, GATEWAY_LABEL),
        (Role::Worker, "egret.dev/worker"),
    ] {
        if host.roles.contains(&role) {
            labels.insert(label.to_owned(), "true".to_owned());
        }
    }
    let mut addresses: Vec<Value> = host
        .node_addresses()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": host.name}));
    let mut spec = json!({});
    if let Some(first) = host.pod_cidrs.first() {
        spec = json!({"podCIDR": first, "podCIDRs": host.pod_cidrs});
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": host.name, "labels": labels},
        "spec": spec,
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Lab"}],
        },
    })
}

fn pod_object(host: &HostLayout, pod: &PodLayout) -> Value {
    let addresses: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
        "spec": {"nodeName": host.name},
        "status": {"phase": "Running", "podIP": pod.addresses.first(), "podIPs": addresses},
    })
}

fn egress_gateway(layout: &Layout) -> Value {
    let mut gateways = layout
        .hosts
        .iter()
        .filter(|host| host.roles.contains(&Role::Gateway));
    // One object names one interface, so only one that all gateways share is named.
    let first = gateways.next().and_then(HostLayout::external_device);
    let external = first.filter(|first| gateways.all(|host| host.external_device() == Some(first)));
    let workers = layout
        .hosts
        .iter()
        .filter(|host| !host.pods.is_empty())
        .count()
        .max(1);
    let mut object = json!({
        "apiVersion": "egret.dev/v1alpha1", "kind": "EgressGateway",
        "metadata": {"name": "default"},
        "spec": {
            "default": true,
            "nodeSelector": {"matchLabels": {GATEWAY_LABEL: "true"}},
            "externalInterface": external.unwrap_or("auto"),
            "announce": {"mode": "L2"},
            "leases": {"expectedWorkers": workers},
        },
    });
    // On a slow machine answers take as much longer as everything else.
    if let factor @ 2.. = slowness().unwrap_or(1) {
        object["spec"]["probe"] = json!({"intervalMs": PROBE_INTERVAL_MS * factor});
    }
    object
}

/// Identity of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    kind: String,
    namespace: Option<String>,
    name: String,
}

impl Identity {
    fn of(object: &Value) -> Result<Self, String> {
        let text = |value: &Value, what: &str| match value.as_str() {
            Some(text) if is_safe(text) => Ok(text.to_owned()),
            Some(text) => Err(format!("{what}: {text:?} is no Kubernetes name")),
            None => Err(format!("{what}: missing")),
        };
        let kind = kind_with_group(&object["apiVersion"], &text(&object["kind"], "kind")?);
        let name = text(&object["metadata"]["name"], "metadata.name")?;
        let namespace = match &object["metadata"]["namespace"] {
            _ if CLUSTER_KINDS.contains(&kind.as_str()) => None,
            Value::Null => Some("default".to_owned()),
            value => Some(text(value, "metadata.namespace")?),
        };
        Ok(Self {
            kind,
            namespace,
            name,
        })
    }

    fn file_name(&self) -> String {
        let kind = self.kind.to_lowercase();
        match &self.namespace {
            Some(namespace) => format!("{kind}.{namespace}.{}.yaml", self.name),
            None => format!("{kind}.{}.yaml", self.name),
        }
    }
}

/// Kinds of foreign groups are identified with their group.
fn kind_with_group(api_version: &Value, kind: &str) -> String {
    let group = api_version.as_str().and_then(|text| text.split_once('/'));
    match group {
        Some((group, _))
            if is_safe(group) && group != "egret.dev" && !group.ends_with("k8s.io") =>
        {
            format!("{kind}.{group}")
        }
        _ => kind.to_owned(),
    }
}

/// Whether a name may be part of a file name.
fn is_safe(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (1..=253).contains(&text.len()) && text.chars().all(is_good) && !text.starts_with('.')
}

/// Writes every object of a manifest file into the source directory, replacing the object of the same name. No object
/// is written if one document is invalid. Returns the names of the objects.
pub(crate) fn apply(objects: &Path, file: &Path) -> Result<Vec<String>, LabError> {
    let documents = read(file)?;
    for (identity, text) in &documents {
        replace(&objects.join(identity.file_name()), text)?;
    }
    Ok(documents
        .iter()
        .map(|(identity, _)| display(identity))
        .collect())
}

/// Removes every object of a manifest file from the source directory. Returns the names of those that existed.
pub(crate) fn delete(objects: &Path, file: &Path) -> Result<Vec<String>, LabError> {
    let mut deleted = Vec::new();
    for (identity, _) in read(file)? {
        let path = objects.join(identity.file_name());
        match std::fs::remove_file(&path) {
            Ok(()) => deleted.push(display(&identity)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(format!("removing {}", path.display()))(error)),
        }
    }
    Ok(deleted)
}

fn display(
    Identity {
        kind,
        namespace,
        name,
    }: &Identity,
) -> String {
    match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// Objects of a file with the text of their documents; a `List` is expanded.
fn read(file: &Path) -> Result<Vec<(Identity, String)>, LabError> {
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    let text = text.map_err(io(format!("reading {}", file.display())))?;
    let mut objects = Vec::new();
    for (index, document) in split(&text).into_iter().enumerate() {
        let wrong = |problem: String| LabError::Manifest {
            place: format!("{}, document {}", file.display(), index + 1),
            problem,
        };
        let value: Value =
            serde_saphyr::from_str(&document).map_err(|error| wrong(error.to_string()))?;
        if value.is_null() {
            continue;
        }
        match value["items"].as_array() {
            Some(items)
                if value["kind"]
                    .as_str()
                    .is_some_and(|kind| kind.ends_with("List")) =>
            {
                for item in items {
                    let text = serde_saphyr::to_string(item);
                    let text = text.map_err(|error| wrong(error.to_string()))?;
                    objects.push((Identity::of(item).map_err(wrong)?, text));
                }
            }
            _ => objects.push((Identity::of(&value).map_err(wrong)?, document)),
        }
    }
    Ok(objects)
}

/// YAML documents of a text. Block scalars cannot contain a line `---` at column 0, so lines are enough.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(
                line.strip_prefix("--- ")
                    .map(|rest| format!("{rest}\n"))
                    .unwrap_or_default(),
            );
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let is_empty = |document: &String| {
        document
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    };
    documents.retain(|document| !is_empty(document));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn folder(test: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("egret-lab-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_cluster_is_described_completely() {
        let folder = folder("cluster");
        write_cluster(&folder, &Layout::of(&Topology::built_in())).unwrap();
        let read = |name: &str| -> Value {
            serde_saphyr::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        };
        let node = read("node.worker2.yaml");
        assert_eq!(
            node["spec"]["podCIDRs"],
            json!(["10.244.2.0/24", "fd00:244:2::/64"])
        );
        assert_eq!(node["status"]["addresses"][1]["address"], "fd00:122::12");
        let pod = read("pod.default.a2.yaml");
        assert_eq!(
            pod["status"]["podIPs"],
            json!([{"ip": "10.244.2.10"}, {"ip": "fd00:244:2::10"}])
        );
        assert_eq!(pod["metadata"]["labels"]["app"], "MyApp");
        assert_eq!(
            read("node.gateway1.yaml")["metadata"]["labels"][GATEWAY_LABEL],
            "true"
        );
        assert_eq!(
            read("egressgateway.default.yaml")["spec"]["externalInterface"],
            "auto"
        );
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1 + 6 + 9 + 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn applying_replaces_the_same_object_and_deleting_finds_it_from_another_file() {
        let folder = folder("apply");
        let file = folder.join("input");
        let objects = folder.join("objects");
        std::fs::create_dir(&objects).unwrap();
        let first = "# two\n---\nkind: Egress\nmetadata: {name: a}\nspec: {ip: 1.2.3.4}\n---\nkind: ClusterEgress\nmetadata: {name: a}\n";
        std::fs::write(&file, first).unwrap();
        assert_eq!(
            apply(&objects, &file).unwrap(),
            ["Egress default/a", "ClusterEgress a"]
        );
        std::fs::write(
            &file,
            "kind: Egress\nmetadata: {name: a, namespace: default}\n",
        )
        .unwrap();
        apply(&objects, &file).unwrap();
        assert_eq!(std::fs::read_dir(&objects).unwrap().count(), 2);
        assert_eq!(delete(&objects, &file).unwrap(), ["Egress default/a"]);
        assert!(delete(&objects, &file).unwrap().is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn one_bad_document_keeps_all_others_out() {
        let folder = folder("bad");
        let file = folder.join("input");
        let objects = folder.join("objects");
        std::fs::create_dir(&objects).unwrap();
        let text =
            "kind: Egress\nmetadata: {name: a}\n---\nkind: Egress\nmetadata: {name: ../../x}\n";
        std::fs::write(&file, text).unwrap();
        let message = apply(&objects, &file).unwrap_err().to_string();
        assert!(
            message.contains("document 2") && message.contains("../../x"),
            "{message}"
        );
        assert_eq!(std::fs::read_dir(&objects).unwrap().count(), 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
