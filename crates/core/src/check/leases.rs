//! Rules for leases of one address, before and after.

use super::{Found, Rule};
use crate::model::*;
use crate::plan::PlanTime;
use std::collections::BTreeMap;
use std::net::IpAddr;

const BLOCK: u16 = 64;

/// A worker may have flows in it, so that gateways must steer it.
pub(super) fn in_use(lease: &Lease) -> bool {
    !matches!(lease.state, LeaseState::HoldDown | LeaseState::Fenced)
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
        if lease.epoch > record.epoch || lease.epoch == 0 {
            let text = format!(
                "lease of {} has {}, the record {}",
                lease.node, lease.epoch, record.epoch
            );
            found.add(Rule::EpochOrder, subject, text);
        }
    }
}

/// No worker may open flows in a port of the address's holder.
pub(super) fn check_reserved(snapshot: &Snapshot, record: &AddressRecord, found: &mut Found) {
    let Some(holder) = snapshot.held_by.get(&record.address) else {
        return;
    };
    let usable = |lease: &&Lease| matches!(lease.state, LeaseState::Granted | LeaseState::Active);
    for lease in record.leases.iter().filter(usable) {
        for block in blocks(lease) {
            let mut ports = block * BLOCK..=block * BLOCK + (BLOCK - 1);
            let inside = |range: &Option<(u16, u16)>, port: u16| {
                range.is_some_and(|(first, last)| (first..=last).contains(&port))
            };
            let own = ports.find(|port| {
                inside(&holder.ephemeral, *port)
                    || inside(&holder.node_ports, *port)
                    || holder.service_ports.contains(port)
            });
            if let Some(port) = own {
                let text = format!(
                    "port {port} of {} is leased to {}",
                    holder.holder, lease.node
                );
                found.add(Rule::PortReserved, record.address, text);
            }
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
    if before.gateway == after.gateway && after.restored == before.restored {
        for old in &before.leases {
            let same = |new: &&Lease| (&new.ranges, new.state) == (&old.ranges, old.state);
            let unchanged = after.leases.iter().find(same);
            let renumbered = unchanged.is_some_and(|new| new.epoch != old.epoch);
            if renumbered {
                let text = format!("{} did not change", old.node);
                found.add(Rule::EpochOrder, subject, text);
            }
        }
    }
    withdrawals(before, after, found);
}

/// Blocks that nodes have by their own records, and that `before` has in no lease, count as taken.
pub(super) fn check_claims(
    snapshot: &Snapshot,
    before: Option<&AddressRecord>,
    after: &AddressRecord,
    found: &mut Found,
) {
    let (old, new) = (before.map(owners).unwrap_or_default(), owners(after));
    for (name, record) in &snapshot.node_records {
        let node = snapshot.nodes.get(name);
        if node.is_none_or(|node| node.maintenance.fence.is_some()) {
            continue;
        }
        let granted = record.grants.iter().chain(&record.draining);
        let granted = granted.filter(|grant| grant.address == after.address);
        let granted = granted.flat_map(|grant| &grant.ranges);
        let held = record.held.get(&after.address).into_iter().flatten();
        for range in granted.chain(held) {
            for block in range.first / BLOCK..=range.last / BLOCK {
                let owner = new.get(&block).map(|(node, _)| *node);
                if block >= 1024 / BLOCK && !old.contains_key(&block) && owner != Some(name) {
                    let text = format!("block {block} of {name} is of {owner:?}");
                    found.add(Rule::ClaimIgnored, after.address, text);
                }
            }
        }
    }
}

/// Withdrawn ranges have an epoch that their worker has not acknowledged yet: it must state that it uses them no more.
fn withdrawals(before: &AddressRecord, after: &AddressRecord, found: &mut Found) {
    let old = owners(before);
    for lease in after
        .leases
        .iter()
        .filter(|lease| lease.state == LeaseState::Draining)
    {
        let was_usable = blocks(lease).any(|block| {
            let old = old.get(&block);
            old.is_some_and(|(_, old)| old.state != LeaseState::Draining)
        });
        if was_usable && lease.withdrawn.is_none_or(|epoch| epoch <= before.epoch) {
            let text = format!("{:?} is withdrawn from {}", lease.withdrawn, lease.node);
            found.add(Rule::EpochMissing, before.address, text);
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
    // Times of another term say nothing.
    let lasted = |secs: i64| {
        record.term == time.term && old.since_secs.saturating_add(secs) <= time.now_secs
    };
    let object = snapshot.nodes.get(node);
    let is_fenced = object.is_some_and(|node| node.maintenance.fence.is_some());
    let is_here = object.is_some() && !is_fenced;
    let rested = lasted(snapshot.settings.hold_down_secs as i64)
        && !(is_here && has(snapshot, node, record.address, block));
    let fault = match (old.state, new) {
        // Its node says after all that it has the block, while the record may lack leases.
        (LeaseState::Fenced | LeaseState::HoldDown, Some((owner, new)))
            if owner == node
                && new.state.is_steered()
                && record.restored.is_some()
                && is_here
                && has(snapshot, node, record.address, block) =>
        {
            None
        }
        (LeaseState::HoldDown, None) if rested => None,
        (LeaseState::HoldDown, None) => Some("is free before it has rested"),
        // Free and granted again in one plan, after its hold-down.
        (LeaseState::HoldDown, Some((_, new))) if new.state == LeaseState::Granted && rested => {
            None
        }
        (LeaseState::HoldDown, Some((owner, new))) => {
            let same = owner == node && new.state == LeaseState::HoldDown;
            // Another term counts from its own start.
            let earlier = record.term == time.term && new.since_secs < old.since_secs;
            (!same || earlier).then_some("left hold-down early")
        }
        (_, None) => Some("is free without having drained and rested"),
        (_, Some((owner, _))) if owner != node => Some("went to another worker while in use"),
        (LeaseState::Draining, Some((_, new))) if new.state == LeaseState::HoldDown => {
            let drained = is_here && is_drained(snapshot, node, record.address, old, block);
            (!drained).then_some("rests although its worker may still use it")
        }
        (LeaseState::Fenced, Some((_, new))) if new.state == LeaseState::HoldDown => {
            let carried = still_carried(snapshot, record, old.epoch);
            carried.then_some("rests although a gateway may still steer it")
        }
        (LeaseState::Fenced, Some((_, new))) => {
            (new.state != LeaseState::Fenced).then_some("is in use again after it was fenced")
        }
        (LeaseState::Vanished, Some((_, new))) if new.state == LeaseState::Fenced => {
            let gone = is_fenced || !is_here && lasted(60);
            (!gone).then_some("is fenced although its node may come back soon")
        }
        (_, Some((_, new))) if new.state == LeaseState::Fenced && is_fenced => None,
        _ if is_fenced => Some("is in use by a fenced node"),
        (_, Some((_, new))) if matches!(new.state, LeaseState::Fenced | LeaseState::HoldDown) => {
            Some("rests without having drained")
        }
        _ => None,
    };
    if let Some(fault) = fault {
        let text = format!("block {block} of {node} ({:?}) {fault}", old.state);
        found.add(Rule::ReleasedEarly, record.address, text);
    }
}

/// Whether the node's record names the block as held or granted.
fn has(snapshot: &Snapshot, node: &NodeName, address: IpAddr, block: u16) -> bool {
    let Some(record) = snapshot.node_records.get(node) else {
        return false;
    };
    let granted = record
        .grants
        .iter()
        .filter(|grant| grant.address == address);
    let granted = granted.flat_map(|grant| &grant.ranges);
    let mut all = granted.chain(record.held.get(&address).into_iter().flatten());
    all.any(|range| (range.first / BLOCK..=range.last / BLOCK).contains(&block))
}

/// The worker has stated, after this withdrawal, that it uses the block no more.
fn is_drained(
    snapshot: &Snapshot,
    node: &NodeName,
    address: IpAddr,
    old: &Lease,
    block: u16,
) -> bool {
    let unreadable = &snapshot.unreadable;
    let known = !unreadable.demand.contains(node) && !unreadable.nodes.contains(node);
    let record = snapshot.node_records.get(node);
    let withdrawn = old.withdrawn.unwrap_or(u64::MAX);
    let acknowledged = record.is_some_and(|record| record.acknowledged >= withdrawn);
    known && acknowledged && !has(snapshot, node, address, block)
}

/// Whether some gateway of the record's group has not reported this epoch. One that was told of an epoch and has never
/// reported may have any table.
fn still_carried(snapshot: &Snapshot, record: &AddressRecord, epoch: u64) -> bool {
    let Some(gateway) = snapshot.gateways.get(&record.gateway) else {
        return false;
    };
    let mut nodes = snapshot.nodes.values();
    nodes.any(|node| {
        let report = snapshot.node_records.get(&node.name);
        gateway.selects(node)
            && report.is_none_or(|r| match r.underlay_addresses.is_empty() {
                true => r.grants_epoch > 0,
                false => r.steering_version < epoch,
            })
    })
}
