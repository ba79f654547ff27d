//! The meaning of policies, and their overlaps.

use super::keys::{PodRef, PolicyRef};
use super::messages::MessageSource;
use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::allocate::allocate;
use crate::plan::conditions::{self, Pods as Counts};
use crate::plan::demand::overlaps_of;
use crate::resolve::{Matching, Refusal, Resolved, asked, distinct, resolve, selects};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Every policy.
#[derive(Debug, Default)]
pub(super) struct Policies {
    work: BTreeMap<PolicyRef, Work>,
    pub matching: Matching<PolicyRef>,
    /// Distinct sets of policies that pods share, with the overlaps in each.
    sets: BTreeMap<Vec<PolicyRef>, Shared>,
    /// Number of sets in which the first policy loses to the second.
    losses: BTreeMap<(PolicyRef, PolicyRef), u32>,
    /// See [`asked`].
    pub asked: BTreeSet<IpAddr>,
    /// See `Allocation::searched`.
    pub searched: bool,
}

/// One policy.
#[derive(Debug)]
pub(super) struct Work {
    /// Position in the snapshot.
    position: usize,
    pub meaning: Meaning,
    /// Pods that it selects, and pods that match but use their node's network.
    pub pods: BTreeSet<PodRef>,
    pub counts: Counts,
}

/// Owned form of [`Resolved`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub gateway: Option<GatewayName>,
    pub addresses: Vec<IpAddr>,
    given: Vec<IpAddr>,
    covers: [bool; 2],
    node_address: bool,
    refusal: Option<Refusal>,
    occupied: Vec<String>,
}

/// A set of policies that pods share.
#[derive(Debug)]
struct Shared {
    pods: u32,
    /// (loser, winner).
    losses: Vec<(PolicyRef, PolicyRef)>,
    /// Policies that lose for every destination.
    shadowed: Vec<PolicyRef>,
}

impl Policies {
    /// A known policy.
    pub(super) fn get(&self, policy: &ObjectRef) -> &Work {
        let work = self.work.get(policy);
        work.expect("pods are bound to policies that are known only")
    }

    /// Mutable access to a known policy.
    pub(super) fn get_mut(&mut self, policy: &ObjectRef) -> &mut Work {
        let work = self.work.get_mut(policy);
        work.expect("pods are bound to policies that are known only")
    }

    /// The name of a policy, if it is known.
    pub(super) fn reference(&self, policy: &ObjectRef) -> Option<PolicyRef> {
        let found = self.work.get_key_value(policy);
        found.map(|(reference, _)| reference.clone())
    }

    /// The policy in the snapshot.
    pub(super) fn policy<'s>(&self, snapshot: &'s Snapshot, policy: &ObjectRef) -> &'s Policy {
        &snapshot.policies[self.get(policy).position]
    }

    /// Policies that select by this Service.
    pub(super) fn of_service(&self, service: &(String, String)) -> Vec<ObjectRef> {
        let named = self.matching.of_service(service);
        named.iter().map(|policy| (**policy).clone()).collect()
    }

    /// Every policy.
    pub(super) fn all(&self) -> Vec<PolicyRef> {
        self.work.keys().cloned().collect()
    }

    /// Policies that use this gateway.
    pub(super) fn of_gateway(&self, gateway: &GatewayName) -> Vec<PolicyRef> {
        let all = self.work.iter();
        all.filter(|(_, work)| work.meaning.gateway.as_ref() == Some(gateway))
            .map(|(policy, _)| policy.clone())
            .collect()
    }
}

impl Meaning {
    fn of(resolved: Resolved<'_>) -> Self {
        Meaning {
            gateway: resolved.gateway.map(|gateway| gateway.name.clone()),
            addresses: resolved.addresses,
            given: resolved.given,
            covers: resolved.covers,
            node_address: resolved.node_address,
            refusal: resolved.refusal,
            occupied: resolved.occupied,
        }
    }

    fn resolved<'s>(&self, snapshot: &'s Snapshot, policy: &'s Policy) -> Resolved<'s> {
        let gateway = self.gateway.as_ref();
        Resolved {
            policy,
            gateway: gateway.and_then(|name| snapshot.gateways.get(name)),
            addresses: self.addresses.clone(),
            given: self.given.clone(),
            covers: self.covers,
            node_address: self.node_address,
            refusal: self.refusal.clone(),
            occupied: self.occupied.clone(),
        }
    }
}

impl Planner {
    /// Resolves all policies again, and removes the bindings of those whose meaning changed.
    pub(super) fn resolve(&mut self, dirty: &mut Dirty) {
        let mut reasons = Vec::new();
        let pods = self.pods.addresses(&self.snapshot);
        let allocation = allocate(&self.snapshot, &pods, &mut reasons);
        let (resolved, mut findings) = resolve(&self.snapshot, &allocation.assigned, &pods);
        findings.extend(allocation.findings);
        self.policies.searched = allocation.searched;
        self.policies.asked = asked(&self.snapshot.policies);
        // Both are sorted by object, without duplicates.
        let positions = distinct(&self.snapshot.policies);
        let meanings = positions.zip(resolved).map(|((position, policy), one)| {
            debug_assert_eq!(policy.object, one.policy.object);
            (
                Arc::new(policy.object.clone()),
                (position, Meaning::of(one)),
            )
        });
        let meanings: BTreeMap<PolicyRef, (usize, Meaning)> = meanings.collect();
        reasons.sort();
        self.messages
            .put(&mut self.plan, MessageSource::Resolve, reasons, findings);
        self.forget_policies(&meanings, dirty);
        for (policy, (position, meaning)) in meanings {
            self.learn_policy(policy, position, meaning, dirty);
        }
        self.index_policies();
        self.use_addresses(dirty);
        if !dirty.all {
            self.select_again(dirty);
        }
    }

    /// Removes policies that no longer exist or whose addresses changed, and the bindings of their pods.
    fn forget_policies(
        &mut self,
        meanings: &BTreeMap<PolicyRef, (usize, Meaning)>,
        dirty: &mut Dirty,
    ) {
        let mut gone = Vec::new();
        let mut loose: Vec<PodRef> = Vec::new();
        for (policy, work) in &self.policies.work {
            let new = meanings.get(policy);
            if new.is_none() {
                gone.push(policy.clone());
            }
            let moved = new.is_none_or(|(_, meaning)| meaning.addresses != work.meaning.addresses);
            if moved || dirty.selections.contains(&**policy) {
                loose.extend(work.pods.iter().cloned());
            }
        }
        for pod in loose {
            self.unbind(&pod, dirty);
            dirty.pods.insert(pod);
        }
        for policy in gone {
            self.policies.work.remove(&policy);
            self.plan.policies.remove(&policy);
            dirty.policies.insert(policy.clone());
            let source = MessageSource::Policy(policy);
            self.messages
                .put(&mut self.plan, source, Vec::new(), BTreeSet::new());
        }
    }

    fn learn_policy(
        &mut self,
        policy: PolicyRef,
        position: usize,
        meaning: Meaning,
        dirty: &mut Dirty,
    ) {
        if let Some(work) = self.policies.work.get_mut(&policy) {
            work.position = position;
            if work.meaning != meaning {
                work.meaning = meaning;
                dirty.policies.insert(policy);
            }
            return;
        }
        let object = (*policy).clone();
        self.plan
            .policies
            .insert(object.clone(), conditions::empty());
        let work = Work {
            position,
            meaning,
            pods: BTreeSet::new(),
            counts: Counts::default(),
        };
        self.policies.work.insert(policy.clone(), work);
        dirty.selections.insert(object);
        dirty.policies.insert(policy);
    }

    fn index_policies(&mut self) {
        let all = self.policies.work.iter();
        let all = all.map(|(name, work)| (name.clone(), &self.snapshot.policies[work.position]));
        self.policies.matching = Matching::of(&self.snapshot, all);
    }

    /// Updates the users of each address.
    fn use_addresses(&mut self, dirty: &mut Dirty) {
        let mut users: BTreeMap<IpAddr, (GatewayName, BTreeSet<ObjectRef>)> = BTreeMap::new();
        for (policy, work) in &self.policies.work {
            let Some(gateway) = &work.meaning.gateway else {
                continue;
            };
            for address in &work.meaning.addresses {
                let fresh = || (gateway.clone(), BTreeSet::new());
                let entry = users.entry(*address).or_insert_with(fresh);
                entry.1.insert((**policy).clone());
            }
        }
        for address in self.leases.use_by(users) {
            dirty.addresses.insert(address);
            dirty.statuses.insert(address);
        }
    }

    /// Selects the pods again for policies whose selection changed.
    fn select_again(&mut self, dirty: &mut Dirty) {
        for object in &dirty.selections {
            if self.policies.reference(object).is_none() {
                continue;
            }
            let policy = self.policies.policy(&self.snapshot, object);
            let mut found = self.pods.candidates(&self.snapshot, policy);
            found.retain(|pod| {
                let pod = self.snapshot.pods.get(&**pod);
                pod.is_some_and(|pod| !pod.finished && selects(&self.snapshot, policy, pod))
            });
            dirty.pods.extend(found);
        }
        for pod in dirty.pods.clone() {
            self.unbind(&pod, dirty);
        }
    }

    /// Counts one pod with this set of policies.
    pub(super) fn join_set(&mut self, set: &[PolicyRef], dirty: &mut Dirty) {
        if set.len() < 2 {
            return;
        }
        if let Some(shared) = self.policies.sets.get_mut(set) {
            shared.pods += 1;
            for policy in shared.shadowed.clone() {
                self.policy_plan(&policy).shadowed += 1;
            }
            return;
        }
        let policies = set
            .iter()
            .map(|policy| self.policies.policy(&self.snapshot, policy));
        let policies: Vec<&Policy> = policies.collect();
        let met = overlaps_of(&policies);
        let losses = met.losses.into_iter();
        let losses: Vec<(PolicyRef, PolicyRef)> = losses
            .map(|(winner, loser)| (set[loser].clone(), set[winner].clone()))
            .collect();
        let shadowed = met.shadowed.into_iter().map(|loser| set[loser].clone());
        let shadowed: Vec<PolicyRef> = shadowed.collect();
        for policy in &shadowed {
            self.policy_plan(policy).shadowed += 1;
        }
        for (loser, winner) in &losses {
            let pair = (loser.clone(), winner.clone());
            *self.policies.losses.entry(pair).or_default() += 1;
            let plan = self.policy_plan(loser);
            plan.overlapped_by.insert((**winner).clone());
            dirty.policies.insert(loser.clone());
        }
        let shared = Shared {
            pods: 1,
            losses,
            shadowed,
        };
        self.policies.sets.insert(set.to_vec(), shared);
    }

    /// Removes one pod with this set of policies.
    pub(super) fn leave_set(&mut self, set: &[PolicyRef], dirty: &mut Dirty) {
        if set.len() < 2 {
            return;
        }
        let shared = self.policies.sets.get_mut(set);
        let shared = shared.expect("a pod that leaves a set has joined it");
        shared.pods -= 1;
        let is_last = shared.pods == 0;
        for policy in shared.shadowed.clone() {
            self.policy_plan(&policy).shadowed -= 1;
        }
        if !is_last {
            return;
        }
        let shared = self.policies.sets.remove(set);
        for (loser, winner) in shared.into_iter().flat_map(|shared| shared.losses) {
            let pair = (loser.clone(), winner.clone());
            let count = self.policies.losses.get_mut(&pair);
            let count = count.expect("a loss was counted when its set was joined");
            *count -= 1;
            if *count == 0 {
                self.policies.losses.remove(&pair);
                self.policy_plan(&loser).overlapped_by.remove(&*winner);
            }
            dirty.policies.insert(loser);
        }
    }

    /// Updates the status of a policy.
    pub(super) fn tell_policy(&mut self, reference: &PolicyRef) {
        let Some(work) = self.policies.work.get(reference) else {
            return;
        };
        let policy = &self.snapshot.policies[work.position];
        let resolved = work.meaning.resolved(&self.snapshot, policy);
        let inputs = conditions::Inputs {
            addresses: &self.plan.address_status,
            gateways: &self.plan.gateways,
            records: &self.snapshot.node_records,
            full: self.names.full(),
            namespaces: &self.snapshot.namespaces,
            left_out: self.untold_pod(),
        };
        let plan = self.plan.policies.get_mut(&**reference);
        let plan = plan.expect("every policy that is resolved has a plan");
        plan.programmed = self.names.programmed(reference, policy.generation);
        conditions::tell(inputs, &resolved, work.counts, plan);
        let reasons = conditions::reasons(reference, plan).collect();
        let source = MessageSource::Policy(reference.clone());
        self.messages
            .put(&mut self.plan, source, reasons, BTreeSet::new());
    }
}
