//! Arms of the model that exist and are not built yet: refused with a finding, never guessed at.

use super::{Problem, RefusalReason};
use crate::model::*;

pub(super) fn problems(policy: &Policy) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Selection::Workload { kind, name, .. } = &policy.selection {
        problems.push(Problem::new(
            RefusalReason::UnsupportedSelection,
            "spec.selection.workload",
            format!("{kind} {name}"),
            "selection by workload is not supported yet; select by pod labels",
        ));
    }
    match policy.translation {
        Translation::Leased => {}
        Translation::AtHolder | Translation::None => problems.push(Problem::new(
            RefusalReason::UnsupportedTranslation,
            "spec.translation",
            format!("{:?}", policy.translation),
            "only translation at the pod's node (Leased) is supported yet",
        )),
    }
    if let Presence::HeldBy(holder) = &policy.presence {
        problems.push(Problem::new(
            RefusalReason::UnsupportedPresence,
            "spec.presence",
            holder,
            "only addresses that Egret itself answers for are supported yet",
        ));
    }
    problems
}
