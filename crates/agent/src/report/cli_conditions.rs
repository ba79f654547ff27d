//! Conditions in `egret status`: only those that hold and differ from the normal state.

use egret_objects::{Condition, ConditionStatus, View};
use serde::Serialize;

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

/// Conditions that nodes report.
pub(crate) fn of_nodes(view: &View) -> Vec<NodeView> {
    let nodes = view.nodes.iter().map(|(node, report)| NodeView {
        node: node.0.clone(),
        conditions: holding(&report.conditions, &[]),
    });
    nodes.filter(|node| !node.conditions.is_empty()).collect()
}
