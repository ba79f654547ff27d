//! The condition that tells what of others' firewalls stands in the way.

use egret_core::condition::{Condition as Said, ConditionType, Reason};
use egret_core::obstacle::{Obstacle, ObstacleKind};
use egret_objects::Condition;

/// What of others' firewalls refuses our packets. A policy is told also where rules before it may let them pass: a person
/// has to look.
pub(super) fn condition(obstacles: &[Obstacle]) -> Option<Condition> {
    let counts = |one: &&Obstacle| one.certain || one.kind == ObstacleKind::ForwardPolicy;
    let reason = |one: &Obstacle| match one.kind {
        ObstacleKind::ForwardPolicy => Some(Reason::PolicyDrop),
        ObstacleKind::ForwardRule | ObstacleKind::PreroutingRule => Some(Reason::RuleRefuses),
        ObstacleKind::ReversePathRule => Some(Reason::ReversePathFiltered),
        _ => None,
    };
    let told: Vec<(Reason, String)> = obstacles
        .iter()
        .filter(counts)
        .filter_map(|one| Some((reason(one)?, one.told())))
        .collect();
    let (reason, _) = told.first()?;
    let text: Vec<&str> = told.iter().map(|(_, text)| text.as_str()).collect();
    let said = Said::new(
        ConditionType::ForwardBlocked,
        true,
        *reason,
        text.join("; "),
    );
    Some(Condition::from(&said))
}
