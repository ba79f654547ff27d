//! Findings and reasons by their source, so that those of one source can be replaced.

use super::super::{ClusterPlan, PlanReason};
use super::keys::PolicyRef;
use crate::model::Finding;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A planning step that makes messages. Two steps never make the same message: they are about different objects, or in
/// different words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MessageSource {
    /// Allocation and resolving.
    Resolve,
    /// The leases of one address.
    Leases(IpAddr),
    /// Epochs that nodes report.
    Epochs,
    /// Tunnel indexes of nodes.
    Numbers,
    /// The conditions of one policy.
    Policy(PolicyRef),
}

/// The messages of each step.
#[derive(Debug, Default)]
pub(super) struct MessagesBySource {
    reasons: BTreeMap<MessageSource, Vec<PlanReason>>,
    findings: BTreeMap<MessageSource, BTreeSet<Finding>>,
}

impl MessagesBySource {
    /// Replaces the messages of a source.
    pub(super) fn put(
        &mut self,
        plan: &mut ClusterPlan,
        source: MessageSource,
        reasons: Vec<PlanReason>,
        findings: BTreeSet<Finding>,
    ) {
        let before = self.reasons.get(&source).map_or(&[][..], Vec::as_slice);
        if before != reasons {
            for one in before {
                plan.reasons.remove(one);
            }
            plan.reasons.extend(reasons.iter().cloned());
            match reasons.is_empty() {
                true => drop(self.reasons.remove(&source)),
                false => drop(self.reasons.insert(source.clone(), reasons)),
            }
        }
        for one in self.findings.get(&source).into_iter().flatten() {
            plan.findings.remove(one);
        }
        plan.findings.extend(findings.iter().cloned());
        match findings.is_empty() {
            true => drop(self.findings.remove(&source)),
            false => drop(self.findings.insert(source, findings)),
        }
    }
}
