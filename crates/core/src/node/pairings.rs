//! Which address each pod of this node is paired to. A pod stays with its address for as long as the address is among
//! its policy's, whatever becomes full or is added meanwhile: its connections would end otherwise.
//!
//! ```text
//!   agent starts: as reported before, else by hash --+
//!   new pod:      by hash among addresses with room -+--> stays until the pod or the address goes
//! ```

use crate::model::*;
use crate::resolve::{Paired, Resolved, by_hash, candidates, for_new_pod};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pairings of a node's pods, from round to round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPairings {
    /// By policy and pod's uid.
    #[serde(with = "crate::pairs")]
    known: BTreeMap<(ObjectRef, String), Paired>,
    /// Pairings other than the hash's, as reported before the agent started; used in its first round.
    adopted: BTreeSet<PairedPod>,
    /// A round has decided: pods that are not known are new.
    decided: bool,
}

impl PodPairings {
    /// Pairings of an agent that starts: `reported` was reported before. Pods that it does not name are paired by hash.
    pub fn adopt(reported: BTreeSet<PairedPod>) -> Self {
        Self {
            adopted: reported,
            ..Self::default()
        }
    }

    /// Pairs a pod, and keeps that in `next`. `full`: addresses without free ports on this node.
    pub(super) fn pair(
        &self,
        next: &mut NextPairings,
        snapshot: &Snapshot,
        resolved: &Resolved<'_>,
        pod: &Pod,
        full: &BTreeSet<IpAddr>,
    ) -> Paired {
        let policy = resolved.policy;
        let candidates = candidates(snapshot, policy, &resolved.addresses, pod);
        let key = (policy.object.clone(), pod.uid.clone());
        let known = self.known.get(&key).copied().unwrap_or([None; 2]);
        let paired: Paired = std::array::from_fn(|family| {
            let candidates = &candidates[family];
            if candidates.len() < 2 {
                return candidates.first().copied();
            }
            if let Some(address) = known[family].filter(|known| candidates.contains(known)) {
                return Some(address);
            }
            if self.decided {
                let full = policy.crowded.union(full).copied().collect();
                return for_new_pod(pod, candidates, &full);
            }
            let mine = |one: &&PairedPod| one.pod == pod.uid && one.policy == policy.object;
            let mut adopted = self.adopted.iter().filter(mine);
            let adopted = adopted.find(|one| candidates.contains(&one.address));
            adopted
                .map(|one| one.address)
                .or_else(|| by_hash(pod, candidates))
        });
        for (family, address) in paired.iter().enumerate() {
            if let Some(address) = *address
                && by_hash(pod, &candidates[family]) != Some(address)
            {
                next.reported.insert(PairedPod {
                    policy: key.0.clone(),
                    pod: key.1.clone(),
                    address,
                });
            }
        }
        next.known.insert(key, paired);
        paired
    }
}

/// Pairings of a round under way.
#[derive(Default)]
pub(super) struct NextPairings {
    known: BTreeMap<(ObjectRef, String), Paired>,
    /// For [`NodeRecord::paired`].
    pub(super) reported: BTreeSet<PairedPod>,
}

impl NextPairings {
    /// The pairings for the next round.
    pub(super) fn decided(self) -> (PodPairings, BTreeSet<PairedPod>) {
        let pairings = PodPairings {
            known: self.known,
            adopted: BTreeSet::new(),
            decided: true,
        };
        (pairings, self.reported)
    }
}
