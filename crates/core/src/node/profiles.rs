//! Profiles: the sets of policies that pods of this node share, with their destinations compiled once per set.

mod shared;

use super::cluster::Me;
use super::groups::{Groups, Reach};
use super::pairings::NextPairings;
use super::{
    DestinationRange, IssueKind, NodeFacts, NodeIssue, PodMap, Profile, ProfileId, Verdict,
};
use crate::compile::{Claim, Compiled, compile};
use crate::hash::StableHash;
use crate::model::*;
use crate::numbers::PROFILE_BOXES_MAX;
use crate::resolve::{AgeRank, Paired, Precedence, Resolved, Selected, age_ranks, family_index};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) struct Built {
    pub profiles: BTreeMap<ProfileId, Profile>,
    pub pods: PodMap,
    pub devices: BTreeMap<IpAddr, u32>,
    pub programmed: Vec<Programmed>,
    pub issues: Vec<NodeIssue>,
    pub pairings: NextPairings,
}

/// A policy of a profile: its position, and the address that the pods are paired to.
type Member = (usize, Paired);

/// Verdicts of one policy for the pods of one profile.
#[derive(Clone, Copy)]
struct Outlook {
    /// Per family; `None`: the policy shadows policies that rank after it and leaves the traffic to the node.
    verdicts: [Option<Verdict>; 2],
    /// Per family: new connections get through, or the policy does not cover the family.
    usable: [bool; 2],
}

struct Builder<'a, 'b> {
    resolved: &'b [Resolved<'a>],
    ages: BTreeMap<&'a ObjectRef, AgeRank>,
    built: Built,
    /// Left out because of the limit: (profile, policy).
    left_out: BTreeSet<(ProfileId, usize)>,
    outlooks: BTreeMap<Member, Outlook>,
    facts: &'b NodeFacts,
    /// Addresses that pods of this node have, selected or not, without those whose device is gone.
    held: BTreeSet<IpAddr>,
}

/// Builds every profile that a pod of this node has.
pub(super) fn build(
    snapshot: &Snapshot,
    resolved: &[Resolved<'_>],
    selected: &Selected<'_>,
    (me, facts): (&Me<'_>, &NodeFacts),
    groups: &mut Groups<'_>,
    findings: &mut BTreeSet<Finding>,
) -> Built {
    let mut builder = Builder {
        resolved,
        ages: age_ranks(resolved.iter().map(|r| r.policy)),
        built: Built {
            profiles: BTreeMap::new(),
            pods: PodMap::default(),
            devices: BTreeMap::new(),
            programmed: Vec::new(),
            issues: Vec::new(),
            pairings: NextPairings::default(),
        },
        left_out: BTreeSet::new(),
        outlooks: BTreeMap::new(),
        facts,
        held: held(selected, facts),
    };
    let mut ids: BTreeMap<Vec<Member>, ProfileId> = BTreeMap::new();
    let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
    let keys = members(
        snapshot,
        resolved,
        selected,
        facts,
        &mut builder.built.pairings,
    );
    let shared = shared::find(selected, &keys, (me, facts));
    for ((pod, policies), key) in selected.pods.iter().zip(&selected.policies).zip(&keys) {
        if policies.is_empty() || pod.addresses.is_empty() {
            continue;
        }
        let id = match ids.get(key) {
            Some(id) => *id,
            None => {
                let id = builder.profile(key, groups, findings);
                ids.insert(key.clone(), id);
                id
            }
        };
        let is_shared = pod.addresses.iter().any(|a| shared.contains_key(a));
        let own = |address: &&IpAddr| !shared.contains_key(*address);
        if builder.bind(pod, pod.addresses.iter().filter(own), id, me) && !is_shared {
            for number in builder.usable_for(pod, id, key) {
                *counts.entry(number).or_default() += 1;
            }
        }
        // A policy with pods here is reported even if none of them is programmed.
        for number in policies.iter().filter(|n| resolved[**n].refusal.is_none()) {
            counts.entry(*number).or_default();
        }
    }
    builder.shut(shared, &ids, groups, findings);
    builder.built.programmed = counts
        .into_iter()
        .map(|(number, pods)| Programmed {
            policy: resolved[number].policy.object.clone(),
            generation: resolved[number].policy.generation,
            pods,
        })
        .collect();
    builder.built
}

/// Policies of each selected pod, with the addresses that it is paired to.
fn members(
    snapshot: &Snapshot,
    resolved: &[Resolved<'_>],
    selected: &Selected<'_>,
    facts: &NodeFacts,
    next: &mut NextPairings,
) -> Vec<Vec<Member>> {
    let mut pair = |pod: &Pod, number: usize| {
        let full = &facts.full_addresses;
        let pairings = &facts.pairings;
        let paired = pairings.pair(next, snapshot, &resolved[number], pod, full);
        (number, paired)
    };
    let keys = selected.pods.iter().zip(&selected.policies);
    let keys = keys.map(|(pod, policies)| policies.iter().map(|n| pair(pod, *n)).collect());
    keys.collect()
}

impl Builder<'_, '_> {
    /// Maps the pod's addresses to the profile; returns false if one of them is not the pod's alone.
    fn bind<'p>(
        &mut self,
        pod: &Pod,
        addresses: impl Iterator<Item = &'p IpAddr>,
        id: ProfileId,
        me: &Me<'_>,
    ) -> bool {
        let mut own = true;
        for address in addresses {
            if is_detached(self.facts, pod, *address) {
                own = false;
                self.close(*address, id);
                continue;
            }
            let taken = match self.built.pods.get(address) {
                _ if me.node.addresses.contains(address) => Some("it is an address of the node"),
                // Another pod has the same policies.
                Some(_) => None,
                None => {
                    self.built.pods.insert(*address, id);
                    let device = self.facts.devices.get(&(*address, pod.uid.clone()));
                    let device = device.map(|index| (*address, *index));
                    self.built.devices.extend(device);
                    None
                }
            };
            if let Some(why) = taken {
                own = false;
                self.built.issues.push(NodeIssue {
                    kind: IssueKind::PodAddressConflict,
                    subject: format!("Pod {}/{}", pod.namespace, pod.name),
                    text: format!("{address} is not served for it: {why}"),
                });
            }
        }
        own
    }

    /// Refuses egress traffic of an address whose pod lost its device while the API still shows the pod: nobody gets
    /// its egress address, and the destinations of its policies stay blocked, until another pod is known to have the
    /// address.
    fn close(&mut self, address: IpAddr, id: ProfileId) {
        if self.held.contains(&address) || self.built.pods.get(&address).is_some() {
            return;
        }
        let closed = ProfileId(StableHash::new("closed").number(id.0).finish());
        let mut profile = self.built.profiles[&id].clone();
        profile.refuse();
        self.built.profiles.entry(closed).or_insert(profile);
        self.built.pods.insert(address, closed);
    }

    /// Policies of this pod whose new connections get through in every family that the pod has.
    fn usable_for(&self, pod: &Pod, id: ProfileId, key: &[Member]) -> Vec<usize> {
        key.iter()
            .filter(|member| {
                let outlook = &self.outlooks[*member];
                self.resolved[member.0].refusal.is_none()
                    && !self.left_out.contains(&(id, member.0))
                    && pod
                        .addresses
                        .iter()
                        .all(|a| outlook.usable[family_index(*a)])
            })
            .map(|(number, _)| *number)
            .collect()
    }

    fn profile(
        &mut self,
        key: &[Member],
        groups: &mut Groups<'_>,
        findings: &mut BTreeSet<Finding>,
    ) -> ProfileId {
        for member in key {
            if !self.outlooks.contains_key(member) {
                let outlook = self.outlook(member, groups);
                self.outlooks.insert(*member, outlook);
            }
        }
        let mut id = profile_id(self.resolved, key);
        while self.built.profiles.contains_key(&id) {
            // A hash collision; the order of pods is fixed, so the result is too.
            id = ProfileId(id.0.wrapping_add(1));
        }
        let mut members: Vec<Member> = key.to_vec();
        let compiled = loop {
            let compiled = self.compile(&members);
            if compiled.boxes.len() <= PROFILE_BOXES_MAX {
                break compiled;
            }
            self.leave_out_last(id, &mut members, findings);
        };
        let ranges = compiled.boxes.iter().map(|b| DestinationRange {
            first: b.first,
            last: b.last,
            protocol: b.class,
            port_first: b.port_first,
            port_last: b.port_last,
            verdict: b.verdict,
        });
        let mut ranges: Vec<DestinationRange> = ranges.collect();
        ranges.sort_unstable();
        self.built.profiles.insert(
            id,
            Profile {
                ranges,
                portless: compiled.portless,
            },
        );
        id
    }

    fn precedence(&self, member: &Member, prefix: u8) -> Precedence {
        let policy = self.resolved[member.0].policy;
        Precedence::new(policy, prefix, self.ages[&policy.object])
    }

    fn compile(&self, members: &[Member]) -> Compiled<Verdict> {
        let claims: Vec<Claim<'_, Verdict>> = members
            .iter()
            .map(|member| Claim {
                precedence: Box::new(|prefix| self.precedence(member, prefix)),
                destinations: self.resolved[member.0].policy.destinations.as_deref(),
                verdicts: self.outlooks[member].verdicts,
            })
            .collect();
        compile(&claims)
    }

    /// Leaves out the policy that ranks last, with a finding.
    fn leave_out_last(
        &mut self,
        id: ProfileId,
        members: &mut Vec<Member>,
        findings: &mut BTreeSet<Finding>,
    ) {
        let last = (0..members.len())
            .max_by_key(|i| self.precedence(&members[*i], 0))
            .expect("no policies make no boxes");
        let (number, _) = members.remove(last);
        self.left_out.insert((id, number));
        let policy = self.resolved[number].policy;
        findings.insert(Finding {
            object: policy.object.clone(),
            field: "spec.destinations".into(),
            value: format!("{} entries", policy.destinations.as_ref().map_or(0, Vec::len)),
            remedy: format!(
                "together with the other policies of its pods it makes more than {PROFILE_BOXES_MAX} intervals and \
                 is left out; use fewer or wider destinations"
            ),
        });
    }

    fn outlook(&mut self, member: &Member, groups: &mut Groups<'_>) -> Outlook {
        let (number, paired) = *member;
        let one = &self.resolved[number];
        let mut outlook = Outlook {
            verdicts: [None; 2],
            usable: [true; 2],
        };
        for family in 0..2 {
            if let Some(next_hop) = one.policy.next_hop() {
                let (verdict, usable) = to_next_hop(one, next_hop, family, groups);
                outlook.usable[family] = usable;
                outlook.verdicts[family] = Some(verdict);
                continue;
            }
            let reach = paired[family]
                .zip(one.gateway)
                .map(|(a, gateway)| groups.reach(gateway, a, &one.policy.object));
            let (verdict, usable, unavailable) = match reach {
                Some(Reach::Target { id, usable }) => (Verdict::Target(id), usable, false),
                Some(Reach::Dead(id)) => (Verdict::Target(id), false, true),
                Some(Reach::NoGroup) => (Verdict::Unavailable, false, true),
                // The address is not allocated yet, not permitted for this namespace, or not usable.
                None if one.covers[family] => (Verdict::Unavailable, false, true),
                None => (Verdict::FamilyNotCovered, true, false),
            };
            // Missing answers right after the start are no outage: nothing leaves by the node's address because of
            // them.
            let to_node = unavailable && one.node_address && self.facts.settled;
            outlook.usable[family] = usable;
            outlook.verdicts[family] = (!to_node).then_some(verdict);
            if to_node {
                self.built.issues.push(NodeIssue {
                    kind: IssueKind::NodeAddress,
                    subject: one.policy.object.to_string(),
                    text: format!(
                        "{} traffic of its pods leaves by the node's address",
                        ["IPv4", "IPv6"][family]
                    ),
                });
            }
        }
        outlook
    }
}

fn is_detached(facts: &NodeFacts, pod: &Pod, address: IpAddr) -> bool {
    !facts.detached.is_empty() && facts.detached.contains(&(address, pod.uid.clone()))
}

fn held(selected: &Selected<'_>, facts: &NodeFacts) -> BTreeSet<IpAddr> {
    if facts.detached.is_empty() {
        return BTreeSet::new();
    }
    let pods = selected.pods.iter().filter(|pod| !pod.host_network);
    let addresses = pods.flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)));
    addresses
        .filter(|(pod, address)| !is_detached(facts, pod, *address))
        .map(|(_, address)| address)
        .collect()
}

/// Verdict of one family of a policy with a next hop, and whether new connections get through.
fn to_next_hop(
    one: &Resolved<'_>,
    next_hop: IpAddr,
    family: usize,
    groups: &mut Groups<'_>,
) -> (Verdict, bool) {
    if family_index(next_hop) != family {
        return (Verdict::FamilyNotCovered, true);
    }
    let gateway = one.gateway.filter(|_| one.refusal.is_none());
    match gateway.and_then(|gateway| groups.next_hop(gateway, next_hop)) {
        Some((number, reachable)) => (Verdict::NextHop(number), reachable),
        None => (Verdict::Unavailable, false),
    }
}

fn profile_id(resolved: &[Resolved<'_>], key: &[Member]) -> ProfileId {
    let mut parts: Vec<(&str, &ObjectRef, Paired)> = key
        .iter()
        .map(|(number, paired)| {
            let policy = resolved[*number].policy;
            // A next hop distinguishes policies of one object as an address does.
            let paired = match policy.next_hop() {
                Some(next_hop) => [Some(next_hop), None],
                None => *paired,
            };
            (policy.uid.as_str(), &policy.object, paired)
        })
        .collect();
    parts.sort_unstable();
    let mut hash = StableHash::new("profile").number(parts.len() as u64);
    for (uid, _, paired) in parts {
        hash = hash.text(uid);
        for address in paired {
            hash = match address {
                Some(address) => hash.number(1).address(address),
                None => hash.number(0),
            };
        }
    }
    ProfileId(hash.finish())
}
