//! Rules for records that cannot be read: they are not changed.

use super::{Found, Rule};
use crate::model::*;
use crate::plan::ClusterPlan;

pub(super) fn check_unreadable(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    let unreadable = &snapshot.unreadable;
    let rule = Rule::UnreadableTouched;
    for address in &unreadable.addresses {
        let planned = plan.addresses.get(address);
        let same = planned == snapshot.addresses.get(address);
        found.expect(same, rule, address, "its leases change");
        let written =
            plan.address_writes.contains(address) || plan.address_deletions.contains(address);
        found.expect(!written, rule, address, "it is written or deleted");
    }
    for node in &unreadable.nodes {
        let written = plan.node_writes.contains(node);
        found.expect(!written, rule, node, "it is written");
    }
    let kept = |grants: &[Grant]| -> Vec<Grant> {
        let grants = grants.iter();
        let kept = grants.filter(|grant| unreadable.addresses.contains(&grant.address));
        kept.cloned().collect()
    };
    for (node, spec) in &plan.node_records {
        let record = snapshot.node_records.get(node);
        let before = record.map_or_else(Vec::new, |record| kept(&record.grants));
        let same = kept(&spec.grants) == before;
        found.expect(
            same,
            rule,
            node,
            "grants of an address that cannot be read change",
        );
        let index = record.map(|record| record.tunnel_index);
        if unreadable.nodes.contains(node) {
            let same = Some(spec.tunnel_index) == index;
            found.expect(same, rule, node, "its tunnel index changes");
        }
    }
    for (node, spec) in &plan.node_records {
        let taken = |other: &&NodeName| {
            let record = snapshot.node_records.get(*other);
            *other != node && record.is_some_and(|r| r.tunnel_index == spec.tunnel_index)
        };
        let others = unreadable.nodes.iter().find(taken);
        if let Some(other) = others.filter(|_| !unreadable.nodes.contains(node)) {
            found.add(rule, node, format!("it has the tunnel index of {other}"));
        }
    }
}
