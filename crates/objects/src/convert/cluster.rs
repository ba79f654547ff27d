//! Namespaces, nodes, pods, Services and EndpointSlices.

use super::Check;
use super::field::{address, prefix};
use crate::plugin;
use egret_core::model::{
    DrainCause, Finding, Kind, Labels, Maintenance, Namespace, Node, NodeName, Owner, Pod, Service,
    Snapshot,
};
use egret_core::numbers::FENCE_REASON_MAX;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The Service whose endpoints are the API servers.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Annotation of a Node by which `egret drain` asks a gateway to hand over its traffic.
pub const DRAIN_ANNOTATION: &str = "egret.dev/drain";
/// Annotation of a Node by which `egret fence` states that its machine sends nothing any more; its value is the reason.
pub const FENCE_ANNOTATION: &str = "egret.dev/fence";
/// Label that Kubernetes puts on every namespace.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Annotation of the object that a kubelet makes for a static pod: the pod's own uid.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Label that names the Service of an EndpointSlice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Endpoints that one EndpointSlice adds to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace of the slice.
    pub namespace: String,
    /// Name of the Service, if any.
    pub service: Option<String>,
    /// Endpoint addresses, ready or not: an endpoint that is not ready sends packets too.
    pub addresses: BTreeSet<IpAddr>,
}

/// A Namespace.
pub fn namespace(object: &core::Namespace) -> Result<Namespace, Vec<Finding>> {
    let check = Check::new(Kind::Namespace, &object.metadata);
    let name = check.object.name.clone();
    let mut labels: Labels = object.metadata.labels.clone().unwrap_or_default();
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
    check.finish(Some(Namespace { name, labels }))
}

/// A Node.
pub fn node(object: &core::Node) -> Result<Node, Vec<Finding>> {
    let mut check = Check::new(Kind::Node, &object.metadata);
    let reported = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let mut internal = Vec::new();
    let mut others = Vec::new();
    for (index, entry) in reported.iter().enumerate() {
        let list = match entry.type_.as_str() {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut others,
            _ => continue, // names, not addresses
        };
        let field = format!("status.addresses[{index}].address");
        list.extend(check.take(field, &entry.address, address(&entry.address)));
    }
    internal.extend(others);
    let spec = object.spec.clone().unwrap_or_default();
    let cidrs = spec
        .pod_cidrs
        .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let mut pod_cidrs = Vec::new();
    for (index, text) in cidrs.iter().enumerate() {
        pod_cidrs.extend(check.take(format!("spec.podCIDRs[{index}]"), text, prefix(text)));
    }
    let annotations = object.metadata.annotations.as_ref();
    for prefix in annotations.map(plugin::of_node).unwrap_or_default() {
        if !pod_cidrs.contains(&prefix) {
            pod_cidrs.push(prefix);
        }
    }
    let node = Node {
        name: NodeName(check.object.name.clone()),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        addresses: internal,
        pod_cidrs,
        maintenance: maintenance(object),
    };
    check.finish(Some(node))
}

fn maintenance(object: &core::Node) -> Maintenance {
    let annotations = object.metadata.annotations.as_ref();
    let annotation = |name| annotations.and_then(|all| all.get(name));
    let cordoned = object.spec.as_ref().and_then(|spec| spec.unschedulable);
    let drain = if annotation(DRAIN_ANNOTATION).is_some() {
        Some(DrainCause::Requested)
    } else if object.metadata.deletion_timestamp.is_some() {
        Some(DrainCause::Deleted)
    } else {
        (cordoned == Some(true)).then_some(DrainCause::Cordoned)
    };
    Maintenance {
        drain,
        fence: annotation(FENCE_ANNOTATION)
            .map(|reason| reason.chars().take(FENCE_REASON_MAX).collect()),
    }
}

/// A Pod; `None` until it is bound to a node.
pub fn pod(object: &core::Pod) -> Result<Option<Pod>, Vec<Finding>> {
    let mut check = Check::new(Kind::Pod, &object.metadata);
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let single = || {
        status
            .and_then(|status| status.pod_ip.clone())
            .into_iter()
            .collect()
    };
    let texts: Vec<String> = match status.and_then(|status| status.pod_ips.as_ref()) {
        Some(ips) if !ips.is_empty() => ips.iter().map(|ip| ip.ip.clone()).collect(),
        _ => single(),
    };
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        addresses.extend(check.take(format!("status.podIPs[{index}].ip"), text, address(text)));
    }
    let phase = status.and_then(|status| status.phase.as_deref());
    let node = spec
        .and_then(|spec| spec.node_name.clone())
        .filter(|name| !name.is_empty());
    let pod = node.map(|node| Pod {
        namespace: check.object.namespace.clone(),
        name: check.object.name.clone(),
        uid: pod_uid(&object.metadata),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        owner: owner(object),
        node: NodeName(node),
        addresses,
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
    });
    check.finish(Some(pod))
}

/// The uid by which the pod's node knows it: a static pod has one before its mirror object exists, whose uid differs.
fn pod_uid(metadata: &ObjectMeta) -> String {
    let annotations = metadata.annotations.as_ref();
    let mirrored = annotations.and_then(|all| all.get(MIRROR_ANNOTATION));
    mirrored
        .or(metadata.uid.as_ref())
        .cloned()
        .unwrap_or_default()
}

/// The controlling owner of the pod.
fn owner(object: &core::Pod) -> Option<Owner> {
    let owners = object.metadata.owner_references.iter().flatten();
    let mut deciding = owners.filter(|owner| owner.controller == Some(true));
    deciding.next().map(|owner| Owner {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
    })
}

/// A Service, without its endpoints.
pub fn service(object: &core::Service) -> Result<Service, Vec<Finding>> {
    let mut check = Check::new(Kind::Service, &object.metadata);
    let spec = object.spec.clone().unwrap_or_default();
    let texts = spec
        .cluster_ips
        .unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let mut cluster_addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        if text.is_empty() || text == "None" {
            continue; // headless
        }
        let field = format!("spec.clusterIPs[{index}]");
        cluster_addresses.extend(check.take(field, text, address(text)));
    }
    let ingress = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_ref());
    let mut balancer_addresses = Vec::new();
    for (index, one) in ingress.into_iter().flatten().enumerate() {
        if let Some(text) = &one.ip {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            balancer_addresses.extend(check.take(field, text, address(text)));
        }
    }
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        balancer_addresses.extend(check.take(field, text, address(text)));
    }
    let service = Service {
        namespace: check.object.namespace.clone(),
        name: check.object.name.clone(),
        cluster_addresses,
        balancer_addresses,
        selector: spec.selector.filter(|labels| !labels.is_empty()),
        endpoints: BTreeSet::new(),
    };
    check.finish(Some(service))
}

/// An EndpointSlice.
pub fn endpoint_slice(object: &EndpointSlice) -> Result<Slice, Vec<Finding>> {
    let mut check = Check::new(Kind::EndpointSlice, &object.metadata);
    let mut addresses = BTreeSet::new();
    if object.address_type != "FQDN" {
        let endpoints = object.endpoints.as_deref().unwrap_or_default();
        for (index, endpoint) in endpoints.iter().enumerate() {
            for text in &endpoint.addresses {
                let field = format!("endpoints[{index}].addresses");
                addresses.extend(check.take(field, text, address(text)));
            }
        }
    }
    let labels = object.metadata.labels.as_ref();
    let slice = Slice {
        namespace: check.object.namespace.clone(),
        service: labels
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL))
            .cloned(),
        addresses,
    };
    check.finish(Some(slice))
}

/// Adds endpoints to their Services, which must be in the snapshot already, and to the list of API servers.
pub(crate) fn add_endpoints(snapshot: &mut Snapshot, slices: Vec<Slice>) {
    for slice in slices {
        let Some(service) = slice.service else {
            continue;
        };
        let key = (slice.namespace, service);
        if (key.0.as_str(), key.1.as_str()) == API_SERVER {
            snapshot.api_server.extend(&slice.addresses);
        }
        if let Some(service) = snapshot.services.get_mut(&key) {
            service.endpoints.extend(slice.addresses);
        }
    }
}

/// The ranges of a ServiceCIDR. The API server has validated them; an unreadable one is left out.
pub fn service_cidrs(object: &ServiceCIDR) -> Vec<IpNet> {
    let texts = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref());
    texts
        .unwrap_or_default()
        .iter()
        .filter_map(|text| prefix(text).ok())
        .collect()
}
