//! Arms of the model that exist and are not built yet: refused with a finding, never guessed at.

use super::{Problem, next_hop};
use crate::condition::Reason;
use crate::model::*;

pub(super) fn problems(policy: &Policy) -> Vec<Problem> {
    let mut problems = Vec::new();
    match policy.translation {
        Translation::Leased => {}
        Translation::None { next_hop } => problems.extend(next_hop::unusable(next_hop)),
        Translation::AtHolder => problems.push(Problem::new(
            Reason::UnsupportedTranslation,
            "spec.translation",
            format!("{:?}", policy.translation),
            "only translation at the pod's node (Leased) is supported yet",
        )),
    }
    if let Presence::HeldBy(holder) = &policy.presence {
        problems.push(Problem::new(
            Reason::UnsupportedPresence,
            "spec.presence",
            holder,
            "only addresses that Egret itself answers for are supported yet",
        ));
    }
    problems
}

/// A Service that is not there selects nobody. That is no refusal: it may still come.
pub(super) fn missing_service(snapshot: &Snapshot, policy: &Policy) -> Option<Finding> {
    let Selection::Service { namespace, name } = &policy.selection else {
        return None;
    };
    let known = snapshot
        .services
        .contains_key(&(namespace.clone(), name.clone()));
    (!known).then(|| Finding {
        object: policy.object.clone(),
        field: "spec.serviceName".into(),
        value: name.clone(),
        remedy: format!("there is no Service {namespace}/{name}, so no pod is selected; create it or name another"),
    })
}
