//! Rules for leases of one address, before and after.

use super::{Found, Rule};
use crate::model::*;
use crate::plan::PlanTime;
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u16 = 64;

fn in_use(lease: &Lease) -> bool {
    lease.state != LeaseState::HoldDown
}

fn blocks(lease: &Lease) -> impl Iterator<Item = u16> {
    lease
        .ranges
        .iter()
        .filter(|r| r.first <= r.last)
        .flat_map(|r| r.first / BLOCK..=r.last / BLOCK)
}

/// Block to worker and lease of a record.
fn owners(record: &AddressRecord) -> BTreeMap<u16, (&NodeName, &Lease)> {
    let pairs = record
        .leases
        .iter()
        .flat_map(|l| blocks(l).map(move |b| (b, (&l.node, l))));
    pairs.collect()
}

/// Block to worker, as gateways steer.
pub(super) fn steering(record: &AddressRecord) -> BTreeMap<u16, &NodeName> {
    let used = record.leases.iter().filter(|lease| in_use(lease));
    used.flat_map(|lease| blocks(lease).map(move |block| (block, &lease.node)))
        .collect()
}

/// Rules for a single record.
pub(super) fn check_record(record: &AddressRecord, found: &mut Found) {
    let subject = record.address;
    let mut taken: BTreeMap<u16, &NodeName> = BTreeMap::new();
    let mut current: BTreeSet<&NodeName> = BTreeSet::new();
    for lease in &record.leases {
        let whole = lease.ranges.iter().all(|r| {
            r.first >= 1024
                && r.first <= r.last
                && r.first % BLOCK == 0
                && r.last % BLOCK == BLOCK - 1
        });
        let sorted = lease.ranges.windows(2).all(|w| w[0].last < w[1].first);
        let valid = whole && sorted && !lease.ranges.is_empty();
        found.expect(
            valid,
            Rule::RangeInvalid,
            subject,
            &format!("{}: {:?}", lease.node, lease.ranges),
        );
        for block in blocks(lease) {
            if let Some(other) = taken.insert(block, &lease.node) {
                let text = format!("block {block} is of {other} and of {}", lease.node);
                found.add(Rule::BlockOwnedTwice, subject, text);
            }
        }
        if in_use(lease) && !current.insert(&lease.node) {
            found.add(Rule::LeaseTwice, subject, lease.node.to_string());
        }
        if lease.epoch > record.epoch || lease.epoch == 0 {
            let text = format!(
                "lease of {} has {}, the record {}",
                lease.node, lease.epoch, record.epoch
            );
            found.add(Rule::EpochOrder, subject, text);
        }
    }
}

/// Rules for the change of an existing record: `before`, and as planned `after` (`None` if it is deleted).
pub(super) fn check_change(
    snapshot: &Snapshot,
    before: &AddressRecord,
    after: Option<&AddressRecord>,
    time: PlanTime,
    found: &mut Found,
) {
    let none = BTreeMap::new();
    let new_owners = after.map_or(none, owners);
    for (block, (node, old)) in owners(before) {
        let new = new_owners.get(&block).copied();
        check_block(snapshot, before, (block, node, old), new, time, found);
    }
    let Some(after) = after else { return };
    let subject = before.address;
    found.expect(
        after.epoch >= before.epoch,
        Rule::EpochOrder,
        subject,
        "the record's runs backwards",
    );
    let moved = steering(before) != steering(after) || before.gateway != after.gateway;
    if moved && after.epoch <= before.epoch {
        found.add(
            Rule::EpochMissing,
            subject,
            format!("epoch {} for another table", after.epoch),
        );
    }
    for old in before.leases.iter().filter(|lease| in_use(lease)) {
        let Some(new) = after
            .leases
            .iter()
            .find(|l| l.node == old.node && in_use(l))
        else {
            continue;
        };
        let same = new.ranges == old.ranges;
        found.expect(
            same,
            Rule::LeaseMoved,
            subject,
            &format!("ranges of {}", old.node),
        );
        let unmoved = before.gateway == after.gateway;
        if unmoved && same && new.epoch != old.epoch {
            found.add(
                Rule::EpochOrder,
                subject,
                format!("{} did not change", old.node),
            );
        }
    }
}

/// Rules for the change of one block's lease.
fn check_block(
    snapshot: &Snapshot,
    record: &AddressRecord,
    (block, node, old): (u16, &NodeName, &Lease),
    new: Option<(&NodeName, &Lease)>,
    time: PlanTime,
    found: &mut Found,
) {
    let rested = old
        .since_secs
        .saturating_add(snapshot.settings.hold_down_secs as i64)
        <= time.now_secs;
    let unreadable = &snapshot.unreadable;
    let drained = snapshot.nodes.contains_key(node)
        && !unreadable.demand.contains(node)
        && !unreadable.nodes.contains(node)
        && snapshot.node_records.get(node).is_some_and(|r| {
            !r.demand.contains_key(&record.address)
                && r.grants.iter().all(|g| g.address != record.address)
        });
    let fault = match (old.state, new) {
        (LeaseState::HoldDown, None) if rested => None,
        (LeaseState::HoldDown, None) => Some("is free before it has rested"),
        // Free and granted again in one plan, after its hold-down.
        (LeaseState::HoldDown, Some((_, new))) if new.state == LeaseState::Granted && rested => {
            None
        }
        (LeaseState::HoldDown, Some((owner, new))) => {
            let same = owner == node && new.state == LeaseState::HoldDown;
            (!same || new.since_secs != old.since_secs).then_some("left hold-down early")
        }
        (_, None) => Some("is free without having drained and rested"),
        (_, Some((owner, _))) if owner != node => Some("went to another worker while in use"),
        (LeaseState::Draining, Some((_, new))) if new.state == LeaseState::HoldDown => {
            (!drained).then_some("rests although its worker may still use it")
        }
        (_, Some((_, new))) if new.state == LeaseState::HoldDown => {
            Some("rests without having drained")
        }
        _ => None,
    };
    if let Some(fault) = fault {
        let text = format!("block {block} of {node} ({:?}) {fault}", old.state);
        found.add(Rule::ReleasedEarly, record.address, text);
    }
}
