//! Content of sets: verdicts of many addresses, and names by content.

use egret_core::hash::StableHash;
use egret_core::node::{PodMap, ProfileId};
use egret_kernel::nft::{ElementKey, Elements, Set, Value};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Name of a map of ranges, derived from its content: other content has another name. A packet meets the whole old
/// map or the whole new one. A changed map would show its changes only some time after the kernel has switched the
/// rules.
pub(crate) fn named_by_content(set: &Set, name: &str) -> String {
    let mut hash = StableHash::new("map").number(set.elements.len() as u64);
    for (key, value) in &set.elements {
        hash = hash.raw(&key.first).raw(&key.last);
        hash = match value {
            Value::Member => hash.number(0),
            Value::Verdict(code, chain) => hash
                .number(i64::from(*code) as u64)
                .text(chain.as_deref().unwrap_or_default()),
            Value::Counter(name) => hash.number(1).text(name),
        };
    }
    format!("{name}_{:016x}", hash.finish())
}

/// A jump for each address whose profile has a verdict. Maps of several stages and of consecutive states share the
/// addresses: a node has as many elements as pods, and one pod comes or goes at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByAddress {
    /// Profile of each address.
    pub addresses: PodMap,
    /// Verdict of each profile.
    pub verdicts: BTreeMap<ProfileId, Value>,
}

impl ByAddress {
    fn element(&self, address: IpAddr, profile: Option<ProfileId>) -> Option<(ElementKey, Value)> {
        let value = self.verdicts.get(&profile?)?;
        Some((ElementKey::address(address), value.clone()))
    }

    fn differences(old: Option<&Self>, new: &Self) -> [Vec<(ElementKey, Value)>; 2] {
        let nothing = ByAddress {
            addresses: PodMap::default(),
            verdicts: BTreeMap::new(),
        };
        let old = old.unwrap_or(&nothing);
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        for change in new.addresses.changes_since(&old.addresses) {
            gone.extend(old.element(change.address, change.before));
            added.extend(new.element(change.address, change.after));
        }
        // Chains are named after their profile, so in practice there are none.
        let other = |(id, value): &(&ProfileId, &Value)| {
            let now = new.verdicts.get(*id);
            now.is_some_and(|now| now != *value)
        };
        let others = old.verdicts.iter().filter(other).map(|(id, _)| *id);
        let others: BTreeSet<ProfileId> = others.collect();
        if !others.is_empty() {
            let stays = |(address, id): &(&IpAddr, &ProfileId)| {
                others.contains(*id) && old.addresses.get(address) == Some(*id)
            };
            for (address, id) in new.addresses.iter().filter(stays) {
                gone.extend(old.element(*address, Some(*id)));
                added.extend(new.element(*address, Some(*id)));
            }
        }
        [gone, added]
    }
}

impl Elements for ByAddress {
    fn changed(&self, old: Option<&dyn Elements>) -> [Vec<(ElementKey, Value)>; 2] {
        let old = old.and_then(|old| (old as &dyn Any).downcast_ref::<Self>());
        ByAddress::differences(old, self)
    }

    fn is_same(&self, other: &dyn Elements) -> bool {
        (other as &dyn Any).downcast_ref::<Self>() == Some(self)
    }
}
