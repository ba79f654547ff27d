//! Traffic is counted for whom it is.

use super::{Found, Rule};
use crate::model::Snapshot;
use crate::node::{AccountId, NodeOutcome};
use crate::numbers::TRAFFIC_ACCOUNTS_MAX;
use std::collections::BTreeSet;

/// Every target has an account, of its own address and of a policy that there is; no two accounts are the same.
pub(super) fn accounts(snapshot: &Snapshot, outcome: &NodeOutcome, found: &mut Found) {
    let accounts = &outcome.accounts;
    for (id, target) in &outcome.state.worker.targets {
        if target.account == AccountId::CANARY {
            continue;
        }
        let account = accounts.get(&target.account);
        let right = account.is_some_and(|account| match account {
            Some(account) => account.address == target.address,
            None => target.account == AccountId::OTHER,
        });
        let subject = format!("target {:x}", id.0);
        found.expect(right, Rule::AccountWrong, subject, "counted for another");
    }
    let named: Vec<_> = accounts.values().flatten().collect();
    let distinct = named.iter().collect::<BTreeSet<_>>().len() == named.len();
    found.expect(
        distinct && named.len() <= TRAFFIC_ACCOUNTS_MAX,
        Rule::AccountWrong,
        "accounts",
        "two are the same, or they are too many",
    );
    for account in named {
        let known = (snapshot.policies.iter()).any(|policy| policy.object == account.policy);
        found.expect(known, Rule::AccountWrong, &account.policy, "no such policy");
    }
}
