//! The condition about pods and namespaces that have reached a quota.

use super::naming::{NAMED_MAX, and_more};
use super::status_inputs::StatusInputs;
use egret_core::condition::{Condition as Said, ConditionType, Reason};
use egret_core::model::{Quotas, Snapshot};
use egret_datapath::worker::driver::{OverQuota, RefusedProtocol};
use egret_objects::Condition;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The condition; `None` where no connection was refused lately. Names the first [`NAMED_MAX`].
pub(super) fn condition(inputs: &StatusInputs<'_>) -> Option<Condition> {
    let OverQuota { pod, namespace } = &inputs.findings.over_quota;
    let quotas = |one: &RefusedProtocol| {
        let worker = inputs.outcome.map(|outcome| &outcome.state.worker);
        worker.map_or(Quotas::default(), |w| w.quotas(one.pod, one.destination))
    };
    let snapshot = inputs.snapshot;
    // A pod that waits for an answer of the same destination repeats itself.
    let mut lines: BTreeSet<String> = BTreeSet::new();
    for one in pod {
        let quota = quotas(one).pod.map_or(0, u32::from);
        let who = match holder(snapshot, inputs.record.node.0.as_str(), one.pod) {
            Some((namespace, name)) => format!("Pod {namespace}/{name}"),
            None => format!("pod {}", one.pod),
        };
        lines.insert(line(&who, quota, one));
    }
    for one in namespace {
        let quota = quotas(one).namespace.map_or(0, u32::from);
        let who = match holder(snapshot, inputs.record.node.0.as_str(), one.pod) {
            Some((namespace, _)) => format!("namespace {namespace}"),
            None => format!("namespace of pod {}", one.pod),
        };
        lines.insert(line(&who, quota, one));
    }
    if lines.is_empty() {
        return None;
    }
    let more = and_more(lines.len());
    let named: Vec<String> = lines.into_iter().take(NAMED_MAX).collect();
    let text = format!("further ones are refused: {}{more}", named.join("; "));
    let (kind, reason) = (ConditionType::QuotaReached, Reason::PodQuota);
    Some(Condition::from(&Said::new(kind, true, reason, text)))
}

fn line(who: &str, quota: u32, one: &RefusedProtocol) -> String {
    let protocol = match one.protocol {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    };
    let to = one.destination;
    match quota {
        // The quota has changed since.
        0 => format!("{who} had too many {protocol} connections to one port of {to}"),
        quota => {
            format!("{who} has {quota} {protocol} connections, its quota, to one port of {to}")
        }
    }
}

/// Namespace and name of the pod of this node that has the address.
fn holder<'s>(snapshot: &'s Snapshot, node: &str, address: IpAddr) -> Option<(&'s str, &'s str)> {
    let mut pods = snapshot.pods.values();
    let pod =
        pods.find(|pod| pod.node.0 == node && !pod.finished && pod.addresses.contains(&address))?;
    Some((&pod.namespace, &pod.name))
}
