//! Demand for addresses by worker, and overlaps of policies that select the same pods.

use crate::compile::{Claim, compile};
use crate::model::*;
use crate::resolve::{Precedence, Resolved, Selected, age_ranks, family_index, needed};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The demand for one address.
pub(super) struct Demand<'a> {
    pub gateway: &'a Gateway,
    /// Nodes with a selected pod that is paired to the address, or would be if it were new.
    pub workers: BTreeSet<&'a NodeName>,
    /// Policies that use the address.
    pub users: BTreeSet<&'a ObjectRef>,
}

pub(super) type DemandByAddress<'a> = BTreeMap<IpAddr, Demand<'a>>;

/// The demand for every address. A grant is due when a selected pod is bound to a node, before the pod has an address:
/// its families are then guessed from the node's pod prefixes.
pub(super) fn demand<'a>(
    snapshot: &'a Snapshot,
    resolved: &[Resolved<'a>],
    selected: &Selected<'a>,
) -> DemandByAddress<'a> {
    let mut demand: DemandByAddress<'a> = BTreeMap::new();
    for one in resolved {
        let Some(gateway) = one.gateway else { continue };
        for address in &one.addresses {
            let entry = demand.entry(*address).or_insert_with(|| Demand {
                gateway,
                workers: BTreeSet::new(),
                users: BTreeSet::new(),
            });
            entry.users.insert(&one.policy.object);
        }
    }
    for (pod, policies) in selected.pods.iter().zip(&selected.policies) {
        let Some((name, node)) = snapshot.nodes.get_key_value(&pod.node) else {
            continue;
        };
        let families = families(pod, node);
        for number in policies {
            let Resolved {
                policy, addresses, ..
            } = &resolved[*number];
            for address in needed(snapshot, policy, addresses, pod) {
                if families[family_index(address)]
                    && let Some(entry) = demand.get_mut(&address)
                {
                    entry.workers.insert(name);
                }
            }
        }
    }
    demand
}

pub(super) fn families(pod: &Pod, node: &Node) -> [bool; 2] {
    let mut families = [false; 2];
    for address in &pod.addresses {
        families[family_index(*address)] = true;
    }
    if pod.addresses.is_empty() {
        for prefix in &node.pod_cidrs {
            families[family_index(prefix.network())] = true;
        }
    }
    if families == [false; 2] {
        [true; 2]
    } else {
        families
    }
}

/// Overlaps of policies that select the same pods.
#[derive(Debug, Default)]
pub(super) struct Overlaps {
    /// Per policy: policies that win over it for some destination.
    pub winners: BTreeMap<usize, BTreeSet<usize>>,
    /// Per policy: number of pods for which others win for every destination.
    pub shadowed: BTreeMap<usize, u32>,
}

/// Finds all overlaps. Each distinct set of policies is compiled once, however many pods have it.
pub(super) fn overlaps(resolved: &[Resolved<'_>], selected: &Selected<'_>) -> Overlaps {
    let mut sets: BTreeMap<&[usize], u32> = BTreeMap::new();
    for set in selected.policies.iter().filter(|set| set.len() > 1) {
        *sets.entry(set).or_default() += 1;
    }
    let mut overlaps = Overlaps::default();
    for (set, pods) in sets {
        let policies: Vec<&Policy> = set.iter().map(|n| resolved[*n].policy).collect();
        let met = overlaps_of(&policies);
        for (winner, loser) in met.losses {
            let winners = overlaps.winners.entry(set[loser]).or_default();
            winners.insert(set[winner]);
        }
        for loser in met.shadowed {
            *overlaps.shadowed.entry(set[loser]).or_default() += pods;
        }
    }
    overlaps
}

/// Overlaps among the policies of one pod, by position.
pub(super) struct Met {
    /// (winner, loser).
    pub losses: BTreeSet<(usize, usize)>,
    /// Policies that win for no destination.
    pub shadowed: BTreeSet<usize>,
}

/// See [`Met`].
pub(super) fn overlaps_of(policies: &[&Policy]) -> Met {
    // Ages are only compared with each other, so the ages of this set suffice.
    let ages = age_ranks(policies.iter().copied());
    let claims: Vec<Claim<'_, usize>> = policies
        .iter()
        .enumerate()
        .map(|(number, policy)| {
            let age = ages[&policy.object];
            Claim {
                precedence: Box::new(move |prefix| Precedence::new(policy, prefix, age)),
                destinations: policy.destinations.as_deref(),
                verdicts: [Some(number); 2],
            }
        })
        .collect();
    let compiled = compile(&claims);
    let winning: BTreeSet<usize> = compiled.boxes.iter().map(|one| one.verdict).collect();
    let all = 0..policies.len();
    Met {
        shadowed: all.filter(|number| !winning.contains(number)).collect(),
        losses: compiled.overlaps,
    }
}
