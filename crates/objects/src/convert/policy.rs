//! `Egress` and `ClusterEgress` to [`Policy`].

use super::field::{egress_address, labels_selector, object_name, prefix, selector};
use super::{Check, object_ref};
use egret_api as api;
use egret_core::model::{
    AddressRequest, Destination, Finding, GatewayName, Kind, LabelSelector, Labels, Namespaces,
    Policy, PoolName, PortMatch, Protocol, Selection, WhenUnavailable,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::collections::BTreeSet;

/// An `Egress`.
pub fn egress(object: &api::Egress) -> Result<Policy, Vec<Finding>> {
    let mut check = Check::new(Kind::Egress, &object.metadata);
    let spec = &object.spec;
    let namespace = check.object.namespace.clone();
    let selection = egress_selection(&mut check, spec, &namespace);
    let policy = policy(&mut check, &object.metadata, selection, &spec.shared());
    check.finish(policy)
}

/// A `ClusterEgress`.
pub fn cluster_egress(object: &api::ClusterEgress) -> Result<Policy, Vec<Finding>> {
    let mut check = Check::new(Kind::ClusterEgress, &object.metadata);
    let spec = &object.spec;
    let selection = cluster_selection(&mut check, spec);
    let policy = policy(&mut check, &object.metadata, selection, &spec.shared());
    check.finish(policy.map(|policy| Policy {
        overridable: spec.overridable,
        ..policy
    }))
}

fn egress_selection(
    check: &mut Check,
    spec: &api::EgressSpec,
    namespace: &str,
) -> Option<Selection> {
    let given = [
        spec.selector.as_ref().map(|_| "selector"),
        spec.pod_selector.as_ref().map(|_| "podSelector"),
        spec.service_name.as_ref().map(|_| "serviceName"),
    ];
    exactly_one(
        check,
        &given,
        "say which pods: exactly one of selector, podSelector and serviceName",
    )?;
    if let Some(name) = &spec.service_name {
        let name = check.take("spec.serviceName", name, object_name(name))?;
        return Some(Selection::Service {
            namespace: namespace.to_owned(),
            name,
        });
    }
    let pods = pods(check, &spec.selector, &spec.pod_selector)?;
    let namespaces = Namespaces::Names(BTreeSet::from([namespace.to_owned()]));
    Some(Selection::Labels {
        namespaces,
        pods,
        nodes: None,
    })
}

fn cluster_selection(check: &mut Check, spec: &api::ClusterEgressSpec) -> Option<Selection> {
    let given = [
        spec.selector.as_ref().map(|_| "selector"),
        spec.pod_selector.as_ref().map(|_| "podSelector"),
    ];
    exactly_one(
        check,
        &given,
        "say which pods: exactly one of selector and podSelector",
    )?;
    let pods = pods(check, &spec.selector, &spec.pod_selector)?;
    let namespaces = match &spec.namespace_selector {
        None => Namespaces::All,
        Some(labels) => {
            let labels = selector(check, "spec.namespaceSelector", labels)?;
            if labels.0.is_empty() {
                Namespaces::All
            } else {
                Namespaces::Labels(labels)
            }
        }
    };
    let nodes = match &spec.node_selector {
        None => None,
        Some(labels) => Some(selector(check, "spec.nodeSelector", labels)?),
    };
    Some(Selection::Labels {
        namespaces,
        pods,
        nodes,
    })
}

fn pods(
    check: &mut Check,
    labels: &Option<Labels>,
    full: &Option<meta::LabelSelector>,
) -> Option<LabelSelector> {
    match full {
        Some(full) => selector(check, "spec.podSelector", full),
        None => Some(labels_selector(labels.as_ref()?)),
    }
}

/// Records a finding unless exactly one of these fields is given.
fn exactly_one(check: &mut Check, given: &[Option<&str>], remedy: &str) -> Option<()> {
    let names: Vec<&str> = given.iter().flatten().copied().collect();
    if names.len() == 1 {
        return Some(());
    }
    let field = names
        .first()
        .map_or_else(|| "spec".to_owned(), |name| format!("spec.{name}"));
    let value = if names.is_empty() {
        "none of them".to_owned()
    } else {
        names.join(" and ")
    };
    check.bad(field, value, remedy);
    None
}

/// Fields common to both kinds. All fields are checked before an error is returned, so that a person sees all findings
/// at once.
fn policy(
    check: &mut Check,
    metadata: &meta::ObjectMeta,
    selection: Option<Selection>,
    spec: &api::SharedPolicySpec<'_>,
) -> Option<Policy> {
    let addresses = addresses(check, spec);
    let destinations = destinations(check, spec.destinations);
    let gateway = gateway_name(check, spec.gateway);
    let object = object_ref(check.object.kind, metadata);
    let created = metadata.creation_timestamp.as_ref();
    Some(Policy {
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or(0),
        created_secs: created.map_or(0, |time| time.0.as_second()),
        priority: spec.priority,
        destinations: destinations?,
        gateway: gateway?,
        when_unavailable: match spec.when_unavailable {
            api::WhenUnavailable::Drop => WhenUnavailable::Drop,
            api::WhenUnavailable::NodeAddress => WhenUnavailable::NodeAddress,
        },
        ..Policy::new(object, selection?, addresses?)
    })
}

fn addresses(check: &mut Check, spec: &api::SharedPolicySpec<'_>) -> Option<AddressRequest> {
    let given = [
        spec.ip.as_ref().map(|_| "ip"),
        spec.ips.as_ref().map(|_| "ips"),
        spec.pool.as_ref().map(|_| "pool"),
    ];
    exactly_one(
        check,
        &given,
        "say which address: exactly one of ip, ips and pool",
    )?;
    if let Some(pool) = spec.pool {
        let name = check.take("spec.pool", pool, object_name(pool))?;
        return Some(AddressRequest::Pool(PoolName(name)));
    }
    if let Some(ip) = spec.ip {
        let address = check.take("spec.ip", ip, egress_address(ip))?;
        return Some(AddressRequest::Fixed(vec![address]));
    }
    let texts = spec.ips.as_ref()?;
    if texts.is_empty() {
        check.bad("spec.ips", "[]", "list at least one address");
        return None;
    }
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("spec.ips[{index}]");
        let Some(address) = check.take(&field, text, egress_address(text)) else {
            continue;
        };
        if addresses.contains(&address) {
            check.bad(field, text, "list each address once");
        }
        addresses.push(address);
    }
    Some(AddressRequest::Fixed(addresses))
}

fn destinations(
    check: &mut Check,
    specs: &Option<Vec<api::DestinationSpec>>,
) -> Option<Option<Vec<Destination>>> {
    let Some(specs) = specs else {
        return Some(None);
    };
    if specs.is_empty() {
        let remedy =
            "list a destination, or leave the field out to mean everything outside the cluster";
        check.bad("spec.destinations", "[]", remedy);
        return None;
    }
    let parsed: Vec<Option<Destination>> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| destination(check, &format!("spec.destinations[{index}]"), spec))
        .collect();
    parsed.into_iter().collect::<Option<Vec<_>>>().map(Some)
}

/// `spec.gateway`, which gateways and pools have too.
pub(super) fn gateway_name(
    check: &mut Check,
    name: &Option<String>,
) -> Option<Option<GatewayName>> {
    match name {
        None => Some(None),
        Some(text) => {
            let name = check.take("spec.gateway", text, object_name(text))?;
            Some(Some(GatewayName(name)))
        }
    }
}

fn destination(check: &mut Check, field: &str, spec: &api::DestinationSpec) -> Option<Destination> {
    let cidr = check.take(format!("{field}.cidr"), &spec.cidr, prefix(&spec.cidr));
    let mut except = Vec::new();
    for (index, text) in spec.except.iter().enumerate() {
        let field = format!("{field}.except[{index}]");
        let Some(hole) = check.take(&field, text, prefix(text)) else {
            continue;
        };
        if let Some(cidr) = cidr {
            if cidr == hole {
                check.bad(field, text, "nothing would remain: except a smaller prefix");
            } else if !cidr.contains(&hole) {
                check.bad(field, text, format!("except only what is inside {cidr}"));
            }
        }
        except.push(hole);
    }
    let ports = match &spec.ports {
        None => Some(Vec::new()),
        Some(specs) if specs.is_empty() => {
            let remedy = "list a port, or leave the field out to mean every protocol and port";
            check.bad(format!("{field}.ports"), "[]", remedy);
            None
        }
        Some(specs) => specs
            .iter()
            .enumerate()
            .map(|(index, spec)| port_match(check, &format!("{field}.ports[{index}]"), spec))
            .collect(),
    };
    Some(Destination {
        cidr: cidr?,
        except,
        ports: ports?,
    })
}

fn port_match(check: &mut Check, field: &str, spec: &api::PortSpec) -> Option<PortMatch> {
    let protocol = match spec.protocol {
        api::ProtocolName::Tcp => Protocol::Tcp,
        api::ProtocolName::Udp => Protocol::Udp,
        api::ProtocolName::Sctp => Protocol::Sctp,
        api::ProtocolName::Icmp => Protocol::Icmp,
    };
    let all = PortMatch {
        protocol,
        first: 0,
        last: u16::MAX,
    };
    match (protocol, spec.port, spec.end_port) {
        (_, None, None) => Some(all),
        (Protocol::Icmp, port, end_port) => {
            let name = if port.is_some() { "port" } else { "endPort" };
            let value = port.or(end_port).expect("one of them is given in this arm");
            let remedy = "leave port and endPort out: ICMP has no ports";
            check.bad(format!("{field}.{name}"), value, remedy);
            None
        }
        (_, None, Some(end_port)) => {
            let remedy = "write port too, the first port of the range";
            check.bad(format!("{field}.endPort"), end_port, remedy);
            None
        }
        (_, Some(port), end_port) => {
            let first = port_number(check, &format!("{field}.port"), port)?;
            let Some(end_port) = end_port else {
                return Some(PortMatch {
                    protocol,
                    first,
                    last: first,
                });
            };
            let last = port_number(check, &format!("{field}.endPort"), end_port)?;
            if last < first {
                let remedy = format!("write a port from {first}, the first port, to 65535");
                check.bad(format!("{field}.endPort"), end_port, remedy);
                return None;
            }
            Some(PortMatch {
                protocol,
                first,
                last,
            })
        }
    }
}

fn port_number(check: &mut Check, field: &str, value: i32) -> Option<u16> {
    super::field::number(check, field, value.into(), 1, 65535)
}
