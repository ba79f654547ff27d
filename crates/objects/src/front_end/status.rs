//! Status of foreign objects: their own fields, and Egret's conditions in addition.
//!
//! `StaticEgressIP`: `gateway-node` (the **uid** of a Node) and `gateway-ip` name the gateway that announces the first
//! address, `gateways[]` every gateway. All kinds: `policies[]` has the result of each rule.

use super::{FrontEnds, Object, Said};
use crate::convert;
use crate::source::carry_transition_times;
use crate::status::{Condition, ConditionStatus, PolicyStatus};
use egret_core::condition::{Condition as Core, ConditionType, Reason};
use egret_core::model::{Kind, Node, NodeName, ObjectRef, SharedMap};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Inputs from the plan.
pub struct Told<'a> {
    /// Status of a policy.
    pub policy: &'a dyn Fn(&ObjectRef) -> Option<PolicyStatus>,
    /// The gateway that announces an address.
    pub announcer: &'a dyn Fn(IpAddr) -> Option<NodeName>,
    /// Whether a worker has ports of an address. Gateways announce an address from then on.
    pub in_use: &'a dyn Fn(IpAddr) -> bool,
    /// Gateways of a policy whose agents run, by name.
    pub gateways: &'a dyn Fn(&ObjectRef) -> Vec<NodeName>,
    /// The cluster's nodes.
    pub nodes: &'a SharedMap<NodeName, Node>,
}

/// The required status of an object; `None`: it is not one of a front-end, or not adopted.
pub fn status(
    front_ends: &FrontEnds,
    name: &ObjectRef,
    told: &Told<'_>,
    now_secs: i64,
) -> Option<Value> {
    let object = front_ends.objects.get(name)?;
    let policies: Vec<(&ObjectRef, PolicyStatus)> = object
        .policies
        .iter()
        .filter_map(|policy| Some((policy, (told.policy)(policy)?)))
        .collect();
    let mut fields = match name.kind {
        Kind::NirmataStaticEgressIP | Kind::StaticEgressIP => {
            gateway_fields(front_ends, object, told)
        }
        _ => Map::new(),
    };
    let announcer = object.addresses.first().and_then(|a| (told.announcer)(*a));
    if let (Kind::MapperVip, Some(node)) = (name.kind, &announcer) {
        fields.insert("node".to_owned(), node.0.clone().into());
    }
    let mut conditions = conditions(object, &policies);
    if name.kind == Kind::MapperVip && object.problems.is_empty() {
        let in_use = object.addresses.iter().any(|a| (told.in_use)(*a));
        answered(&mut conditions, announcer.as_ref(), in_use);
    }
    let said: Vec<Condition> = conditions.iter().map(Condition::from).collect();
    let old = Vec::deserialize(&object.status["conditions"]).unwrap_or_default();
    let carried = carry_transition_times(&convert::conditions(&old), &said, now_secs);
    let written = convert::api_conditions(&carried, object.generation);
    fields.insert("observedGeneration".to_owned(), object.generation.into());
    if !policies.is_empty() {
        let lines = policies.iter().map(|(policy, said)| line(policy, said));
        fields.insert("policies".to_owned(), lines.collect());
    }
    fields.insert("conditions".to_owned(), json!(written));
    Some(Value::Object(fields))
}

fn gateway_fields(front_ends: &FrontEnds, object: &Object, told: &Told<'_>) -> Map<String, Value> {
    let first = object.addresses.first();
    let entry = |node: &NodeName| {
        let uid = front_ends.node_uids.get(node).unwrap_or(&node.0);
        let addresses = told.nodes.get(node).map(|node| node.addresses.as_slice());
        let addresses = addresses.unwrap_or_default();
        let mut same = addresses
            .iter()
            .filter(|a| first.is_none_or(|first| first.is_ipv4() == a.is_ipv4()));
        let address = same.next().or(addresses.first());
        json!({
            "gateway-node": uid,
            "gateway-ip": address.map(ToString::to_string).unwrap_or_default(),
        })
    };
    let mut fields = Map::new();
    if let Some(node) = first.and_then(|address| (told.announcer)(*address))
        && let Value::Object(of_announcer) = entry(&node)
    {
        fields = of_announcer;
    }
    let gateways = object
        .policies
        .first()
        .map(|policy| (told.gateways)(policy))
        .unwrap_or_default();
    fields.insert("gateways".to_owned(), gateways.iter().map(entry).collect());
    fields
}

/// A policy of the object in one line.
fn line(policy: &ObjectRef, said: &PolicyStatus) -> Value {
    let ready = said.conditions.iter().find(|c| c.kind == "Ready");
    json!({
        "name": policy.name,
        "addresses": said.addresses,
        "pods": {"selected": said.selected, "programmed": said.programmed},
        "ready": ready.is_some_and(|c| c.status == ConditionStatus::True),
        "reason": ready.map_or("", |c| c.reason.as_str()),
        "message": ready.map_or("", |c| c.message.as_str()),
    })
}

/// The conditions in a status, without their times.
pub(crate) fn conditions_of(status: &Value) -> Vec<Condition> {
    let conditions = status["conditions"].as_array();
    let conditions = conditions.into_iter().flatten().map(|condition| {
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Condition {
            kind: text("type"),
            status: match text("status").as_str() {
                "True" => ConditionStatus::True,
                "False" => ConditionStatus::False,
                _ => ConditionStatus::Unknown,
            },
            reason: text("reason"),
            message: text("message"),
            since_secs: 0,
        }
    });
    conditions.collect()
}

/// Inverse of [`line`]: a policy's status from that of its object.
pub(super) fn said_of(status: &Value, policy: &ObjectRef) -> Option<Said> {
    let lines = status["policies"].as_array()?;
    let line = lines.iter().find(|line| line["name"] == policy.name)?;
    let count = |field: &str| {
        let count = line["pods"][field].as_u64().unwrap_or(0);
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
    Some(PolicyStatus {
        observed_generation: status["observedGeneration"].as_i64().unwrap_or(0),
        addresses: Vec::deserialize(&line["addresses"]).unwrap_or_default(),
        crowded: Vec::new(),
        selected: count("selected"),
        programmed: count("programmed"),
        conditions: vec![Condition {
            kind: ConditionType::Ready.to_string(),
            status: match line["ready"] == true {
                true => ConditionStatus::True,
                false => ConditionStatus::False,
            },
            reason: text("reason"),
            message: text("message"),
            since_secs: 0,
        }],
    })
}

/// Conditions of the whole object: positive conditions hold if they hold for every policy, negative ones if they hold
/// for one.
fn conditions(object: &Object, policies: &[(&ObjectRef, PolicyStatus)]) -> Vec<Core> {
    let mut all = vec![accepted(object, policies), ready(object, policies)];
    for kind in ConditionType::ALL {
        use ConditionType::{Accepted, Allocated, Ready};
        if matches!(kind, Accepted | Allocated | Ready) {
            continue;
        }
        all.extend(worst(policies, *kind, true));
    }
    all
}

/// The first policy whose condition has this status; named if there are several policies.
fn worst(
    policies: &[(&ObjectRef, PolicyStatus)],
    kind: ConditionType,
    status: bool,
) -> Option<Core> {
    let wanted = match status {
        true => ConditionStatus::True,
        false => ConditionStatus::False,
    };
    policies.iter().find_map(|(policy, said)| {
        let mut conditions = said.conditions.iter();
        let found = conditions.find(|c| c.kind == kind.to_string() && c.status == wanted)?;
        let reason = Reason::ALL
            .iter()
            .find(|reason| reason.to_string() == found.reason)?;
        let message = match policies.len() {
            1 => found.message.clone(),
            _ => format!("{}: {}", policy.name, found.message),
        };
        Some(Core::new(kind, status, *reason, message))
    })
}

fn accepted(object: &Object, policies: &[(&ObjectRef, PolicyStatus)]) -> Core {
    let kind = ConditionType::Accepted;
    if let Some(first) = object.problems.first() {
        let lines = object.problems.iter();
        let lines: Vec<String> = lines
            .map(|p| format!("{} {}: {}", p.field, p.value, p.remedy))
            .collect();
        return Core::new(kind, false, first.reason, lines.join("; "));
    }
    if let Some(refused) = worst(policies, kind, false) {
        return refused;
    }
    match worst(policies, kind, true) {
        Some(condition) if condition.reason != Reason::Accepted => condition,
        _ if object.note.is_empty() => {
            Core::new(kind, true, Reason::Accepted, "it can be carried out")
        }
        _ => Core::new(kind, true, Reason::Accepted, object.note.clone()),
    }
}

fn ready(object: &Object, policies: &[(&ObjectRef, PolicyStatus)]) -> Core {
    let kind = ConditionType::Ready;
    if !object.problems.is_empty() {
        let text = "not all of it is accepted; Accepted says why";
        return Core::new(kind, false, Reason::NotAccepted, text);
    }
    // Takes precedence over faults of the cluster: it is the object's own.
    if !object.missing_services.is_empty() {
        let names = object.missing_services.iter().cloned().collect::<Vec<_>>();
        let text = format!("there is no Service {}", names.join(", "));
        return Core::new(kind, false, Reason::ServiceNotFound, text);
    }
    if let Some(not) = worst(policies, kind, false) {
        return not;
    }
    if policies.len() < object.policies.len() {
        return Core::new(kind, false, Reason::Programming, "it was not planned yet");
    }
    let ready = |(_, said): &(&ObjectRef, PolicyStatus)| {
        let pods = said.selected;
        (pods > 0).then(|| format!("{} of {pods} pods are programmed", said.programmed))
    };
    let lines: Vec<String> = policies.iter().filter_map(ready).collect();
    if lines.is_empty() {
        return Core::new(kind, true, Reason::NoPods, "no running pod is selected");
    }
    Core::new(kind, true, Reason::Programmed, lines.join("; "))
}

/// A `Vip` is ready when a gateway announces it, or would as soon as an `Egress` with pods names it.
fn answered(conditions: &mut [Core], announcer: Option<&NodeName>, in_use: bool) {
    let ready = conditions
        .iter_mut()
        .find(|c| c.kind == ConditionType::Ready);
    let Some(ready) = ready.filter(|ready| ready.status) else {
        return;
    };
    *ready = match announcer {
        Some(node) => {
            let text = format!("{node} answers for it");
            Core::new(ConditionType::Ready, true, Reason::Announced, text)
        }
        None if !in_use => {
            let text = "no pod uses it yet; a gateway answers for it as soon as one does";
            Core::new(ConditionType::Ready, true, Reason::NoPods, text)
        }
        None => {
            let text = "no gateway answers for it yet";
            Core::new(ConditionType::Ready, false, Reason::NotAnnounced, text)
        }
    };
}

/// Statuses that were written, and the objects' statuses afterwards. The earlier system's CRD may drop unknown fields:
/// that must not cause endless writes.
#[derive(Debug, Default)]
pub struct Written {
    /// Written status without times, and the status at the next read.
    by_object: BTreeMap<ObjectRef, (Value, Option<Value>)>,
}

impl Written {
    /// Forgets objects that no longer exist.
    pub fn keep(&mut self, there: &FrontEnds) {
        self.by_object
            .retain(|name, _| there.objects.contains_key(name));
    }

    /// Whether a status must be written over the current one.
    pub fn is_due(&mut self, name: &ObjectRef, there: &Value, wanted: &Value) -> bool {
        if there == wanted {
            let known = (timeless(wanted), Some(there.clone()));
            self.by_object.insert(name.clone(), known);
            return false;
        }
        match self.by_object.get_mut(name) {
            Some((written, seen)) if *written == timeless(wanted) => {
                *seen.get_or_insert_with(|| there.clone()) != *there
            }
            _ => true,
        }
    }

    /// The last written status, without times.
    pub fn last(&self, name: &ObjectRef) -> Option<&Value> {
        self.by_object.get(name).map(|(written, _)| written)
    }

    /// Records a written status.
    pub fn wrote(&mut self, name: &ObjectRef, status: &Value) {
        let known = (timeless(status), None);
        self.by_object.insert(name.clone(), known);
    }
}

/// A status without the times of its conditions.
fn timeless(status: &Value) -> Value {
    let mut bare = status.clone();
    let conditions = bare["conditions"].as_array_mut();
    for condition in conditions.into_iter().flatten() {
        condition["lastTransitionTime"] = Value::Null;
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_again_when_others_change_it_and_not_when_it_is_cut_down() {
        let name = ObjectRef {
            kind: Kind::StaticEgressIP,
            namespace: "default".into(),
            name: "eip".into(),
        };
        let status = |time: &str| json!({"gateway-ip": "192.0.2.1", "conditions": [{"lastTransitionTime": time}]});
        let cut = json!({"gateway-ip": "192.0.2.1"});
        let mut written = Written::default();
        assert!(written.is_due(&name, &Value::Null, &status("1")));
        written.wrote(&name, &status("1"));
        // The CRD drops conditions.
        assert!(!written.is_due(&name, &cut, &status("2")));
        assert!(!written.is_due(&name, &cut, &status("3")));
        assert!(
            written.is_due(&name, &Value::Null, &status("4")),
            "somebody removed it"
        );
        written.wrote(&name, &status("4"));
        assert!(!written.is_due(&name, &status("4"), &status("4")));
        assert!(
            written.is_due(&name, &cut, &status("4")),
            "somebody changed it"
        );
    }
}
