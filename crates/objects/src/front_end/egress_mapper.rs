//! `Egress`, `Vip` and `EgressMapper` of `egress.mapper.com`.
//!
//! A `Vip` is a policy that selects no pod: its address is served from its creation, as in egress-mapper. An `Egress`
//! whose address no `Vip` has is refused, and its pods' traffic dropped: any other source would be wrong. Only the
//! family of the address is affected, as in egress-mapper; the other one leaves as without Egret. The `EgressMapper`
//! started programs of that system; only its networks and its device have an effect here.

use super::gateway::Choice;
use super::{Foreign, Object, Problem, Settings, Translation, field};
use egret_core::condition::Reason;
use egret_core::model::{
    AddressRequest, Destination, Kind, ObjectRef, Policy, Selection, WorkloadKind,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Numbers that kube-egress could use as mark and table.
const ROUTE_IDS: std::ops::RangeInclusive<i64> = 1..=252;
/// Fields of an `EgressMapper` that configured programs of that system and have no effect here.
const WITHOUT_EFFECT: [&str; 4] = [
    "KeepalivedVIPImage",
    "KubeEgressImage",
    "NeedMountDev",
    "UpdateInterval",
];
/// Aliases of kinds, as in kubectl and egress-mapper.
const SHORT_KINDS: [(&str, WorkloadKind); 7] = [
    ("po", WorkloadKind::Pod),
    ("deploy", WorkloadKind::Deployment),
    ("rs", WorkloadKind::ReplicaSet),
    ("sts", WorkloadKind::StatefulSet),
    ("ds", WorkloadKind::DaemonSet),
    ("rc", WorkloadKind::ReplicationController),
    ("job", WorkloadKind::Job),
];

/// Result of translating this system's objects.
pub(super) struct Mapped {
    pub objects: Vec<(ObjectRef, Translation)>,
    /// Pod networks, which are never egress destinations.
    pub pods: Vec<IpNet>,
    /// Service networks.
    pub services: Vec<IpNet>,
    /// Device of the egress addresses.
    pub interface: Option<String>,
}

/// Translates. `taken` is sorted, older first.
pub(super) fn translate(taken: &[Foreign], settings: &Settings, choice: &Choice) -> Mapped {
    let mut mapped = Mapped {
        objects: Vec::new(),
        pods: Vec::new(),
        services: Vec::new(),
        interface: None,
    };
    let of = |kind: Kind| taken.iter().filter(move |one| one.object.kind == kind);
    let mut vips = Vips::default();
    for foreign in of(Kind::MapperVip) {
        let translation = vips.add(foreign, choice);
        mapped.objects.push((foreign.object.clone(), translation));
    }
    for foreign in of(Kind::MapperEgress) {
        let translation = egress(foreign, &vips, settings, choice);
        mapped.objects.push((foreign.object.clone(), translation));
    }
    let mut in_force = None;
    for foreign in of(Kind::MapperSettings) {
        let translation = mapper(foreign, settings, &mut in_force, &mut mapped);
        mapped.objects.push((foreign.object.clone(), translation));
    }
    mapped
}

/// The effective `Vip`s, by address and by number.
#[derive(Default)]
struct Vips<'a> {
    by_address: BTreeMap<IpAddr, &'a ObjectRef>,
    by_number: BTreeMap<i64, &'a ObjectRef>,
}

impl<'a> Vips<'a> {
    fn add(&mut self, foreign: &'a Foreign, choice: &Choice) -> Translation {
        let mut problems = Vec::new();
        let address = take(foreign, &mut problems, "ip", field::egress_address);
        let number = take(foreign, &mut problems, "routeid", route_id).flatten();
        let again = address.and_then(|address| Some((address, *self.by_address.get(&address)?)));
        if let Some((address, first)) = again {
            problems.push(duplicate("spec.ip", &address.to_string(), first));
        }
        let again = number.and_then(|number| Some((number, *self.by_number.get(&number)?)));
        if let Some((number, first)) = again {
            problems.push(duplicate("spec.routeid", &number.to_string(), first));
        }
        let Some(address) = address.filter(|_| problems.is_empty()) else {
            return translation(foreign, problems, Vec::new());
        };
        self.by_address.insert(address, &foreign.object);
        if let Some(number) = number {
            self.by_number.insert(number, &foreign.object);
        }
        let policy = Policy {
            addresses: AddressRequest::Fixed(vec![address]),
            gateway: choice.gateway(None),
            destinations: Some(Vec::new()),
            ..policy(foreign, Selection::Addresses(Vec::new()))
        };
        translation(foreign, problems, vec![policy])
    }

    /// Whether a `Vip` with this address serves an `Egress` of this namespace.
    fn serve(&self, address: IpAddr, namespace: &str, settings: &Settings) -> bool {
        self.by_address.get(&address).is_some_and(|vip| {
            vip.namespace == namespace || settings.admin_namespaces.contains(&vip.namespace)
        })
    }
}

fn duplicate(field: &str, value: &str, first: &ObjectRef) -> Problem {
    Problem {
        reason: Reason::Duplicate,
        field: field.to_owned(),
        value: value.to_owned(),
        remedy: format!("{first} is older and has it; remove one of the two"),
    }
}

fn route_id(value: &Value) -> Result<Option<i64>, String> {
    match field::number(value)? {
        Some(number) if !ROUTE_IDS.contains(&number) => {
            Err("write a number from 1 to 252, or leave the field out".to_owned())
        }
        number => Ok(number),
    }
}

fn workload_kind(value: &Value) -> Result<WorkloadKind, String> {
    let text = field::required(value, "pod")?.to_lowercase();
    let all = WorkloadKind::ALL.into_iter();
    let mut long = all.filter(|kind| kind.to_string().to_lowercase() == text);
    let mut short = SHORT_KINDS.iter().filter(|(name, _)| *name == text);
    let found = long.next().or_else(|| short.next().map(|(_, kind)| *kind));
    found.ok_or_else(|| {
        "write pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController or Job"
            .to_owned()
    })
}

fn egress(foreign: &Foreign, vips: &Vips<'_>, settings: &Settings, choice: &Choice) -> Translation {
    let mut problems = Vec::new();
    let own = &foreign.object.namespace;
    let address = take(foreign, &mut problems, "ip", field::egress_address);
    let kind = take(foreign, &mut problems, "kind", workload_kind);
    let namespace = take(
        foreign,
        &mut problems,
        "namespace",
        |value| match field::text(value)? {
            None => Ok(own.clone()),
            Some(_) => field::object_name(value, "default"),
        },
    );
    let name = take(foreign, &mut problems, "name", |v| {
        field::object_name(v, "pod1")
    });
    let (Some(address), Some(kind), Some(namespace), Some(name)) = (address, kind, namespace, name)
    else {
        return translation(foreign, problems, Vec::new());
    };
    if namespace != *own && !settings.admin_namespaces.contains(own) {
        problems.push(Problem {
            reason: Reason::NotAllowed,
            field: "spec.namespace".to_owned(),
            value: namespace,
            remedy: format!("from namespace {own} only its own pods can be named"),
        });
        return translation(foreign, problems, Vec::new());
    }
    let served = vips.serve(address, own, settings);
    if !served {
        problems.push(Problem {
            reason: Reason::VipNotFound,
            field: "spec.ip".to_owned(),
            value: address.to_string(),
            remedy: "no Vip with this address is in force, so the traffic of these pods is dropped; create it"
                .to_owned(),
        });
    }
    let selection = Selection::Workload {
        namespace,
        kind,
        name,
    };
    let policy = Policy {
        addresses: AddressRequest::Fixed(served.then_some(address).into_iter().collect()),
        gateway: choice.gateway(None),
        destinations: Some(vec![Destination {
            cidr: everywhere(address),
            except: Vec::new(),
            ports: Vec::new(),
        }]),
        ..policy(foreign, selection)
    };
    translation(foreign, problems, vec![policy])
}

/// The prefix of all addresses of a family.
fn everywhere(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

/// Reads the oldest `EgressMapper` of an administrating namespace into `mapped`.
fn mapper<'a>(
    foreign: &'a Foreign,
    settings: &Settings,
    in_force: &mut Option<&'a ObjectRef>,
    mapped: &mut Mapped,
) -> Translation {
    let mut problems = Vec::new();
    if !settings
        .admin_namespaces
        .contains(&foreign.object.namespace)
    {
        problems.push(Problem {
            reason: Reason::NotAllowed,
            field: "metadata.namespace".to_owned(),
            value: foreign.object.namespace.clone(),
            remedy: "it speaks for the cluster, and so has to stand in an administrating namespace"
                .to_owned(),
        });
        return translation(foreign, problems, Vec::new());
    }
    if let Some(first) = *in_force {
        problems.push(Problem {
            reason: Reason::NotInUse,
            field: "metadata.name".to_owned(),
            value: foreign.object.name.clone(),
            remedy: format!("{first} is older and counts; remove one of the two"),
        });
        return translation(foreign, problems, Vec::new());
    }
    *in_force = Some(&foreign.object);
    let networks = |value: &Value| match field::text(value)? {
        None => Ok(Vec::new()),
        Some(_) => field::prefixes(value),
    };
    mapped.pods = take(foreign, &mut problems, "PodSubnet", networks).unwrap_or_default();
    mapped.services = take(foreign, &mut problems, "ServiceSubnet", networks).unwrap_or_default();
    mapped.interface = take(foreign, &mut problems, "InterfaceName", |value| {
        field::text(value).map(|text| text.map(str::to_owned))
    })
    .flatten();
    let mut result = translation(foreign, problems, Vec::new());
    let given = WITHOUT_EFFECT.iter().copied();
    let given: Vec<&str> = given
        .filter(|name| !foreign.spec[*name].is_null())
        .collect();
    if !given.is_empty() {
        result.object.note = format!("without effect here: {}", given.join(", "));
    }
    result
}

/// Reads a field of the spec, or records a problem.
fn take<'a, T>(
    foreign: &'a Foreign,
    problems: &mut Vec<Problem>,
    name: &str,
    parse: impl FnOnce(&'a Value) -> Result<T, String>,
) -> Option<T> {
    let value = &foreign.spec[name];
    parse(value)
        .map_err(|remedy| {
            let field = format!("spec.{name}");
            problems.push(Problem::invalid(field, field::shown(value), remedy));
        })
        .ok()
}

/// A policy with the object's own name; the caller adds address and gateway.
fn policy(foreign: &Foreign, selection: Selection) -> Policy {
    let addresses = AddressRequest::Fixed(Vec::new());
    Policy {
        uid: foreign.uid.clone(),
        generation: foreign.generation,
        created_secs: foreign.created_secs,
        ..Policy::new(foreign.object.clone(), selection, addresses)
    }
}

fn translation(foreign: &Foreign, problems: Vec<Problem>, policies: Vec<Policy>) -> Translation {
    let addresses = policies.iter().flat_map(|policy| match &policy.addresses {
        AddressRequest::Fixed(addresses) => addresses.clone(),
        AddressRequest::Pool(_) => Vec::new(),
    });
    Translation {
        object: Object {
            generation: foreign.generation,
            policies: policies.iter().map(|p| p.object.clone()).collect(),
            problems,
            addresses: addresses.collect(),
            status: foreign.status.clone(),
            ..Object::default()
        },
        policies,
    }
}
