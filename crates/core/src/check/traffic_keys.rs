//! Rules for traffic keys: traffic is counted under its own policy and address.

use super::{Found, Rule};
use crate::model::Snapshot;
use crate::node::{NodeOutcome, TrafficKeyId};
use crate::numbers::TRAFFIC_ACCOUNTS_MAX;
use std::collections::BTreeSet;

/// Every target has a key of its own address and of an existing policy; keys are distinct.
pub(super) fn traffic_keys(snapshot: &Snapshot, outcome: &NodeOutcome, found: &mut Found) {
    let keys = &outcome.traffic_keys;
    for (id, target) in &outcome.state.worker.targets {
        if target.traffic_key == TrafficKeyId::CANARY {
            continue;
        }
        let key = keys.get(&target.traffic_key);
        let right = key.is_some_and(|key| match key {
            Some(key) => key.address == target.address,
            None => target.traffic_key == TrafficKeyId::OTHER,
        });
        let subject = format!("target {:x}", id.0);
        found.expect(right, Rule::AccountWrong, subject, "counted for another");
    }
    let named: Vec<_> = keys.values().flatten().collect();
    let distinct = named.iter().collect::<BTreeSet<_>>().len() == named.len();
    found.expect(
        distinct && named.len() <= TRAFFIC_ACCOUNTS_MAX,
        Rule::AccountWrong,
        "keys",
        "two are the same, or they are too many",
    );
    for key in named {
        let known = (snapshot.policies.iter()).any(|policy| policy.object == key.policy);
        found.expect(known, Rule::AccountWrong, &key.policy, "no such policy");
    }
}
