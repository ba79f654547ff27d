//! Conditions in `egret status`: only those that hold and differ from the normal state.

use egret_core::condition::{ConditionType, Reason};
use egret_core::model::NodeName;
use egret_objects::convert::lease::time_text;
use egret_objects::{Condition, ConditionStatus, View};
use serde::Serialize;
use std::collections::BTreeMap;

/// One condition of a policy or a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConditionView {
    /// Type of the condition; `Ready` where it is False.
    pub condition: String,
    /// Reason, in one word.
    pub reason: String,
    /// Message for people.
    pub message: String,
}

/// A node with conditions to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeView {
    /// Name of the node.
    pub node: String,
    /// Conditions of the node.
    pub conditions: Vec<ConditionView>,
}

/// Conditions that are shown when they are False.
const GOOD: [&str; 3] = ["Accepted", "Allocated", "Ready"];

fn holding(conditions: &[Condition], skip: &[&str]) -> Vec<ConditionView> {
    let matters = |one: &&Condition| {
        let wanted = match GOOD.contains(&one.kind.as_str()) {
            true => ConditionStatus::False,
            false => ConditionStatus::True,
        };
        one.status == wanted && !skip.contains(&one.kind.as_str())
    };
    let all = conditions.iter().filter(matters);
    all.map(|one| ConditionView {
        condition: one.kind.clone(),
        reason: one.reason.clone(),
        message: one.message.clone(),
    })
    .collect()
}

/// Conditions of a policy, without `Ready`, which the status shows itself, and without repetitions of it.
pub(crate) fn of_policy(conditions: &[Condition]) -> Vec<ConditionView> {
    holding(conditions, &GOOD)
}

/// Conditions that nodes report, and fences: the agent of a fenced node is usually dead, so the objects tell them.
pub(crate) fn of_nodes(view: &View) -> Vec<NodeView> {
    let (kind, reason) = (ConditionType::Fenced, Reason::FencedByOperator);
    let skip = kind.to_string();
    let reported = view.nodes.iter().map(|(node, report)| {
        let conditions = holding(&report.conditions, &[&skip]);
        (node.clone(), conditions)
    });
    let mut all: BTreeMap<NodeName, Vec<ConditionView>> = reported.collect();
    let nodes = view.snapshot.nodes.values();
    for (node, why) in nodes.filter_map(|node| Some((node, node.maintenance.fence.as_ref()?))) {
        let record = view.snapshot.node_records.get(&node.name);
        let fenced = record.and_then(|record| record.fenced.as_ref());
        let since = fenced.map(|fenced| format!(", since {}", time_text(fenced.since_secs)));
        let fence = ConditionView {
            condition: kind.to_string(),
            reason: reason.to_string(),
            message: format!("{why}{}", since.unwrap_or_default()),
        };
        all.entry(node.name.clone()).or_default().insert(0, fence);
    }
    let nodes = all.into_iter().map(|(node, conditions)| NodeView {
        node: node.0,
        conditions,
    });
    nodes.filter(|node| !node.conditions.is_empty()).collect()
}
