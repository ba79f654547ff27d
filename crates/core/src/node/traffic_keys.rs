//! Traffic keys: a policy and an egress address share one key, whatever groups their packets leave by, so that kernel
//! counters continue when a gateway dies or joins.

use super::{Target, TargetId, TrafficKeyId};
use crate::hash::StableHash;
use crate::model::ObjectRef;
use crate::numbers::TRAFFIC_ACCOUNTS_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Policy and address whose traffic is counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrafficKey {
    /// The policy.
    pub policy: ObjectRef,
    /// The egress address.
    pub address: IpAddr,
}

/// Assigns a key to every target. The first `TRAFFIC_ACCOUNTS_MAX` in their order get one of their own; the rest share
/// [`TrafficKeyId::OTHER`].
pub(super) fn assign(
    targets: &mut BTreeMap<TargetId, Target>,
    policies: &BTreeMap<TargetId, ObjectRef>,
) -> BTreeMap<TrafficKeyId, Option<TrafficKey>> {
    let of = |id: &TargetId, target: &Target| {
        policies.get(id).map(|policy| TrafficKey {
            policy: policy.clone(),
            address: target.address,
        })
    };
    let all: BTreeSet<TrafficKey> = targets.iter().filter_map(|(id, t)| of(id, t)).collect();
    let own: BTreeSet<&TrafficKey> = all.iter().take(TRAFFIC_ACCOUNTS_MAX).collect();
    let mut keys = BTreeMap::new();
    for (id, target) in targets {
        let key = of(id, target).filter(|key| own.contains(key));
        target.traffic_key = key.as_ref().map_or(TrafficKeyId::OTHER, traffic_key_id);
        keys.insert(target.traffic_key, key);
    }
    keys
}

fn traffic_key_id(key: &TrafficKey) -> TrafficKeyId {
    let policy = key.policy.to_string();
    let hash = StableHash::new("account").text(&policy);
    TrafficKeyId(hash.address(key.address).finish())
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
            traffic_key: TrafficKeyId::OTHER,
            quotas: Default::default(),
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
    fn a_traffic_key_is_a_policys_at_an_address_whatever_the_group() {
        let mut targets = BTreeMap::from([
            (TargetId(1), target("192.0.2.1", 1)),
            (TargetId(2), target("192.0.2.1", 2)),
            (TargetId(3), target("192.0.2.1", 1)),
            (TargetId(4), target("192.0.2.2", 1)),
        ]);
        let policies = [(1, "a"), (2, "a"), (3, "b"), (4, "a")];
        let policies = policies.map(|(id, name)| (TargetId(id), policy(name)));
        let keys = assign(&mut targets, &policies.into());
        let of = |id| targets[&TargetId(id)].traffic_key;
        assert_eq!(of(1), of(2));
        assert_ne!(of(1), of(3));
        assert_ne!(of(1), of(4));
        assert_eq!(keys.len(), 3);
        let one = keys[&of(3)].as_ref().unwrap();
        assert_eq!(one.policy, policy("b"));
        assert_eq!(one.address.to_string(), "192.0.2.1");
    }

    #[test]
    fn what_is_beyond_the_limit_shares_a_traffic_key() {
        let many = TRAFFIC_ACCOUNTS_MAX as u64 + 2;
        let mut targets: BTreeMap<_, _> = (0..many)
            .map(|n| (TargetId(n), target("192.0.2.1", 1)))
            .collect();
        let policies = (0..many).map(|n| (TargetId(n), policy(&format!("p{n:05}"))));
        let keys = assign(&mut targets, &policies.collect());
        assert_eq!(keys.len(), TRAFFIC_ACCOUNTS_MAX + 1);
        assert_eq!(keys[&TrafficKeyId::OTHER], None);
        let last = targets.values().rev().take(3).map(|t| t.traffic_key);
        let shared: Vec<bool> = last.map(|id| id == TrafficKeyId::OTHER).collect();
        assert_eq!(shared, [true, true, false]);
    }
}
