//! Findings and reasons by who said them, so that those of one can be taken back.

use super::super::{ClusterPlan, PlanReason};
use super::keys::PolicyRef;
use crate::model::Finding;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Who says something. No two of them ever say the same: they speak of different objects, or in different words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speaker {
    /// Allocation and resolving.
    Resolve,
    /// The leases of one address.
    Leases(IpAddr),
    /// Numbers of nodes.
    Numbers,
    /// The conditions of one policy.
    Policy(PolicyRef),
}

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Said {
    reasons: BTreeMap<Speaker, Vec<PlanReason>>,
    findings: BTreeMap<Speaker, BTreeSet<Finding>>,
}

impl Said {
    /// Puts this in the place of what the speaker said before.
    pub(super) fn put(
        &mut self,
        plan: &mut ClusterPlan,
        speaker: Speaker,
        reasons: Vec<PlanReason>,
        findings: BTreeSet<Finding>,
    ) {
        let before = self.reasons.get(&speaker).map_or(&[][..], Vec::as_slice);
        if before != reasons {
            for one in before {
                plan.reasons.remove(one);
            }
            plan.reasons.extend(reasons.iter().cloned());
            match reasons.is_empty() {
                true => drop(self.reasons.remove(&speaker)),
                false => drop(self.reasons.insert(speaker.clone(), reasons)),
            }
        }
        for one in self.findings.get(&speaker).into_iter().flatten() {
            plan.findings.remove(one);
        }
        plan.findings.extend(findings.iter().cloned());
        match findings.is_empty() {
            true => drop(self.findings.remove(&speaker)),
            false => drop(self.findings.insert(speaker, findings)),
        }
    }
}
