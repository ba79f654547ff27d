//! Conditions as `egret status` tells them: those that hold and say more than that everything is as it should be.

use egret_objects::{Condition, ConditionStatus, View};
use serde::Serialize;

/// One condition of a policy or a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConditionView {
    /// Its type; `Ready` where it is False.
    pub condition: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// One node whose agent has something to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeView {
    /// The node.
    pub node: String,
    /// What it says.
    pub conditions: Vec<ConditionView>,
}

/// Conditions whose False is what matters.
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

/// What the conditions of a policy say beside `Ready`, which the status tells by itself, and what that repeats.
pub(crate) fn of_policy(conditions: &[Condition]) -> Vec<ConditionView> {
    holding(conditions, &GOOD)
}

/// What nodes say of themselves.
pub(crate) fn of_nodes(view: &View) -> Vec<NodeView> {
    let nodes = view.nodes.iter().map(|(node, report)| NodeView {
        node: node.0.clone(),
        conditions: holding(&report.conditions, &[]),
    });
    nodes.filter(|node| !node.conditions.is_empty()).collect()
}
