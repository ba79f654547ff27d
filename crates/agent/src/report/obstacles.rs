//! Condition for obstacles in foreign firewalls.

use egret_core::condition::{Condition as Said, ConditionType, Reason};
use egret_core::obstacle::{Obstacle, ObstacleKind};
use egret_objects::Condition;

/// Rules of foreign firewalls that refuse our packets. A drop policy is reported even where earlier rules may accept
/// them: only a person can decide that.
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
