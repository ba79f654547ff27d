//! Accounts: whose traffic a target's is. A policy and an egress address have one, whatever groups they leave by, so that
//! the counters of a kernel go on where a gateway dies or comes.

use super::{AccountId, Target, TargetId};
use crate::hash::StableHash;
use crate::model::ObjectRef;
use crate::numbers::TRAFFIC_ACCOUNTS_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Whose traffic is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Account {
    /// The policy.
    pub policy: ObjectRef,
    /// The egress address.
    pub address: IpAddr,
}

/// Gives every target its account. The first `TRAFFIC_ACCOUNTS_MAX` in their order have one of their own, the rest share
/// [`AccountId::OTHER`], which stands for nobody.
pub(super) fn assign(
    targets: &mut BTreeMap<TargetId, Target>,
    policies: &BTreeMap<TargetId, ObjectRef>,
) -> BTreeMap<AccountId, Option<Account>> {
    let of = |id: &TargetId, target: &Target| {
        policies.get(id).map(|policy| Account {
            policy: policy.clone(),
            address: target.address,
        })
    };
    let all: BTreeSet<Account> = targets.iter().filter_map(|(id, t)| of(id, t)).collect();
    let own: BTreeSet<&Account> = all.iter().take(TRAFFIC_ACCOUNTS_MAX).collect();
    let mut accounts = BTreeMap::new();
    for (id, target) in targets {
        let account = of(id, target).filter(|account| own.contains(account));
        target.account = account.as_ref().map_or(AccountId::OTHER, account_id);
        accounts.insert(target.account, account);
    }
    accounts
}

fn account_id(account: &Account) -> AccountId {
    let policy = account.policy.to_string();
    let hash = StableHash::new("account").text(&policy);
    AccountId(hash.address(account.address).finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    fn target(address: &str, group: u8) -> Target {
        Target {
            address: address.parse().unwrap(),
            group,
            ranges: Vec::new(),
            account: AccountId::OTHER,
        }
    }

    fn policy(name: &str) -> ObjectRef {
        ObjectRef {
            kind: Kind::Egress,
            namespace: "default".into(),
            name: name.into(),
        }
    }

    #[test]
    fn an_account_is_a_policys_at_an_address_whatever_the_group() {
        let mut targets = BTreeMap::from([
            (TargetId(1), target("192.0.2.1", 1)),
            (TargetId(2), target("192.0.2.1", 2)),
            (TargetId(3), target("192.0.2.1", 1)),
            (TargetId(4), target("192.0.2.2", 1)),
        ]);
        let policies = [(1, "a"), (2, "a"), (3, "b"), (4, "a")];
        let policies = policies.map(|(id, name)| (TargetId(id), policy(name)));
        let accounts = assign(&mut targets, &policies.into());
        let of = |id| targets[&TargetId(id)].account;
        assert_eq!(of(1), of(2));
        assert_ne!(of(1), of(3));
        assert_ne!(of(1), of(4));
        assert_eq!(accounts.len(), 3);
        let one = accounts[&of(3)].as_ref().unwrap();
        assert_eq!(one.policy, policy("b"));
        assert_eq!(one.address.to_string(), "192.0.2.1");
    }

    #[test]
    fn what_is_beyond_the_limit_shares_an_account() {
        let many = TRAFFIC_ACCOUNTS_MAX as u64 + 2;
        let mut targets: BTreeMap<_, _> = (0..many)
            .map(|n| (TargetId(n), target("192.0.2.1", 1)))
            .collect();
        let policies = (0..many).map(|n| (TargetId(n), policy(&format!("p{n:05}"))));
        let accounts = assign(&mut targets, &policies.collect());
        assert_eq!(accounts.len(), TRAFFIC_ACCOUNTS_MAX + 1);
        assert_eq!(accounts[&AccountId::OTHER], None);
        let last = targets.values().rev().take(3).map(|t| t.account);
        let shared: Vec<bool> = last.map(|id| id == AccountId::OTHER).collect();
        assert_eq!(shared, [true, true, false]);
    }
}
