//! `StaticEgressIP`, of `staticegressips.nirmata.io` and of the fork's group `staticegressips.io`.
//!
//! Rules with the same Service and address form one policy. Its name is derived from both and not from the rules'
//! positions, so that rules may be reordered. An invalid rule is reported and the valid ones are applied.
//!
//! The fork's rules that name a routing table differ: `egressip` is then a next hop, a neighbour of the gateways, and
//! no egress address. The table's name has no effect here.

use super::gateway::Choice;
use super::{Foreign, Object, Problem, Translation, field};
use egret_core::condition::Reason;
use egret_core::model::{
    AddressRequest, Destination, Kind, ObjectRef, Policy, Selection, Snapshot, Translation as How,
};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Longest list of rules that is read: longer ones are a mistake, and each rule costs every agent.
const RULES_MAX: usize = 1000;

/// Rules with the same key form one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    service: String,
    address: IpAddr,
    next_hop: bool,
}

pub(super) fn translate(
    snapshot: &Snapshot,
    taken: &[Foreign],
    choice: &Choice,
) -> Vec<(ObjectRef, Translation)> {
    let ours = [Kind::NirmataStaticEgressIP, Kind::StaticEgressIP];
    let objects = taken.iter().filter(|one| ours.contains(&one.object.kind));
    objects
        .map(|one| (one.object.clone(), object(snapshot, one, choice)))
        .collect()
}

fn object(snapshot: &Snapshot, foreign: &Foreign, choice: &Choice) -> Translation {
    let mut problems = Vec::new();
    let rules = rules(foreign, &mut problems);
    let label = match foreign.object.kind {
        Kind::StaticEgressIP => field::text(&foreign.spec["gateway-label"]),
        _ => Ok(None),
    };
    let label = label.unwrap_or_else(|remedy| {
        let value = field::shown(&foreign.spec["gateway-label"]);
        problems.push(Problem::invalid("spec.gateway-label", value, remedy));
        None
    });
    let policies: Vec<Policy> = rules
        .iter()
        .map(|(key, cidrs)| Policy {
            gateway: choice.gateway(label),
            ..policy(foreign, key, cidrs)
        })
        .collect();
    let missing = rules.keys().filter(|key| {
        let service = (foreign.object.namespace.clone(), key.service.clone());
        !snapshot.services.contains_key(&service)
    });
    let missing_services: BTreeSet<String> = missing.map(|key| key.service.clone()).collect();
    let addresses: BTreeSet<IpAddr> = rules
        .keys()
        .filter(|key| !key.next_hop)
        .map(|key| key.address)
        .collect();
    Translation {
        object: Object {
            generation: foreign.generation,
            policies: policies.iter().map(|p| p.object.clone()).collect(),
            problems,
            missing_services,
            addresses: addresses.into_iter().collect(),
            note: String::new(),
            status: foreign.status.clone(),
        },
        policies,
    }
}

fn policy(foreign: &Foreign, key: &Key, cidrs: &[IpNet]) -> Policy {
    let object = &foreign.object;
    let hop = if key.next_hop { ":next-hop" } else { "" };
    let (addresses, translation) = match key.next_hop {
        true => {
            let next_hop = key.address;
            (Vec::new(), How::None { next_hop })
        }
        false => (vec![key.address], How::Leased),
    };
    let destination = |cidr: &IpNet| Destination {
        cidr: *cidr,
        except: Vec::new(),
        ports: Vec::new(),
    };
    let selection = Selection::Service {
        namespace: object.namespace.clone(),
        name: key.service.clone(),
    };
    let object = ObjectRef {
        name: format!("{}:{}:{}{hop}", object.name, key.service, key.address),
        ..object.clone()
    };
    Policy {
        uid: foreign.uid.clone(),
        generation: foreign.generation,
        created_secs: foreign.created_secs,
        destinations: Some(cidrs.iter().map(destination).collect()),
        translation,
        ..Policy::new(object, selection, AddressRequest::Fixed(addresses))
    }
}

/// The valid rules: each pair of Service and address once, with its destinations.
fn rules(foreign: &Foreign, problems: &mut Vec<Problem>) -> BTreeMap<Key, Vec<IpNet>> {
    let spec = &foreign.spec["rules"];
    let list = spec.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() || list.len() > RULES_MAX {
        let remedy = match list.len() {
            0 => "list a rule with service-name, egressip and cidr".to_owned(),
            _ => format!("write at most {RULES_MAX} rules in one object"),
        };
        problems.push(Problem::invalid("spec.rules", field::shown(spec), remedy));
        return BTreeMap::new();
    }
    let mut good: BTreeMap<Key, Vec<IpNet>> = BTreeMap::new();
    // The first rule with each destination of a Service: a second one with another address is a mistake.
    let mut first: BTreeMap<(String, IpNet), (usize, IpAddr)> = BTreeMap::new();
    for (index, value) in list.iter().enumerate() {
        let place = format!("spec.rules[{index}]");
        let Some((key, nets)) = rule(foreign.object.kind, &place, value, problems) else {
            continue;
        };
        for cidr in nets {
            let known = *first
                .entry((key.service.clone(), cidr))
                .or_insert((index, key.address));
            if known.1 != key.address {
                problems.push(Problem {
                reason: Reason::Duplicate,
                field: format!("{place}.egressip"),
                value: key.address.to_string(),
                remedy: format!(
                    "rules[{}] gives {cidr} of Service {} the address {}, which counts; remove one of the two",
                    known.0, key.service, known.1
                ),
            });
                continue;
            }
            let cidrs = good.entry(key.clone()).or_default();
            if !cidrs.contains(&cidr) {
                cidrs.push(cidr);
            }
        }
    }
    // The order of rules has no effect.
    good.values_mut().for_each(|cidrs| cidrs.sort());
    good
}

/// One rule, or all its faults.
fn rule(
    kind: Kind,
    place: &str,
    value: &Value,
    problems: &mut Vec<Problem>,
) -> Option<(Key, Vec<IpNet>)> {
    let mut read = Reader {
        place,
        value,
        problems,
    };
    let service = read.take("service-name", |v| field::object_name(v, "frontend"));
    let address = read.take("egressip", field::egress_address);
    let nets = read.take("cidr", field::prefixes);
    let next_hop = kind == Kind::StaticEgressIP && {
        let id = read.take("routing-table-id", field::number).flatten();
        let table = read.take("routing-table", |v| {
            field::text(v).map(|text| text.map(str::to_owned))
        });
        id.is_some_and(|id| id != 0) || table.flatten().is_some()
    };
    let (service, address, nets) = (service?, address?, nets?);
    let other = |cidr: &&IpNet| address.is_ipv4() != cidr.network().is_ipv4();
    if let Some(cidr) = nets.iter().find(other) {
        let remedy = format!("write a destination of the family of {address}");
        let field = format!("{place}.cidr");
        problems.push(Problem::invalid(field, cidr.to_string(), remedy));
        return None;
    }
    let key = Key {
        service,
        address,
        next_hop,
    };
    Some((key, nets))
}

/// Fields of one mapping.
struct Reader<'a> {
    place: &'a str,
    value: &'a Value,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn take<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&'a Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = &self.value[name];
        match parse(value) {
            Ok(good) => Some(good),
            Err(remedy) => {
                let field = format!("{}.{name}", self.place);
                let problem = Problem::invalid(field, field::shown(value), remedy);
                self.problems.push(problem);
                None
            }
        }
    }
}
