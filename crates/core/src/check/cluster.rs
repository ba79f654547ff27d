//! Rules for plans.

use super::leases::{check_change, check_claims, check_record, check_reserved, steering};
use super::unreadable::check_unreadable;
use super::{Found, Rule, Violation, pod_addresses};
use crate::model::*;
use crate::plan::{ClusterPlan, PlanTime, PolicyPlan};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Checks a plan against the snapshot that it was made from and the time.
pub fn check_plan(snapshot: &Snapshot, plan: &ClusterPlan, time: PlanTime) -> Vec<Violation> {
    let mut found = Found::default();
    let kept = &snapshot.unreadable.addresses;
    let planned = plan.addresses.values();
    for record in planned.filter(|record| !kept.contains(&record.address)) {
        check_record(record, &mut found);
        check_reserved(snapshot, record, &mut found);
        let before = snapshot.addresses.get(&record.address);
        check_claims(snapshot, before, record, &mut found);
    }
    for (address, before) in &snapshot.addresses {
        if kept.contains(address) {
            continue;
        }
        // Leases that were invalid before are removed, not continued: rules about changes apply to valid ones.
        let mut broken = Found::default();
        check_record(before, &mut broken);
        if broken.0.is_empty() {
            check_change(
                snapshot,
                before,
                plan.addresses.get(address),
                time,
                &mut found,
            );
        }
    }
    epochs(snapshot, plan, &mut found);
    writes(snapshot, plan, &mut found);
    deletions(snapshot, plan, &mut found);
    check_unreadable(snapshot, plan, &mut found);
    nodes(snapshot, plan, &mut found);
    policies(snapshot, plan, &mut found);
    pod_addresses::plan(snapshot, plan, &mut found);
    for finding in &plan.findings {
        let clear = !finding.object.name.is_empty()
            && !finding.field.is_empty()
            && !finding.remedy.is_empty();
        found.expect(
            clear,
            Rule::FindingUnclear,
            &finding.object,
            "object, field and remedy are needed",
        );
    }
    found.sorted()
}

/// New epochs are higher than all earlier ones, and each belongs to one record.
fn epochs(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    let highest = snapshot
        .addresses
        .values()
        .map(|r| r.epoch)
        .max()
        .unwrap_or(0);
    let mut used: BTreeMap<u64, IpAddr> = BTreeMap::new();
    for (address, after) in &plan.addresses {
        let before = snapshot.addresses.get(address);
        let changed = before.is_none_or(|b| {
            b.epoch != after.epoch || steering(b) != steering(after) || b.gateway != after.gateway
        });
        if !changed {
            continue;
        }
        let rises = after.epoch > highest;
        found.expect(
            rises,
            Rule::EpochOrder,
            address,
            "a change has an epoch that was there before",
        );
        if let Some(other) = used.insert(after.epoch, *address) {
            let text = format!("shares epoch {} with {other}", after.epoch);
            found.add(Rule::EpochOrder, address, text);
        }
    }
}

fn writes(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    let changed: BTreeSet<IpAddr> = plan
        .addresses
        .iter()
        .filter(|(address, record)| snapshot.addresses.get(*address) != Some(*record))
        .map(|(address, _)| *address)
        .collect();
    let written: BTreeSet<IpAddr> = plan.address_writes.iter().copied().collect();
    let all = written == changed && written.len() == plan.address_writes.len();
    found.expect(
        all,
        Rule::WriteOrder,
        "address records",
        "those that change, each once",
    );
    let epochs: Vec<u64> = plan
        .address_writes
        .iter()
        .filter_map(|a| Some(plan.addresses.get(a)?.epoch))
        .collect();
    let ordered = epochs.windows(2).all(|pair| pair[0] <= pair[1]);
    found.expect(
        ordered,
        Rule::WriteOrder,
        "address records",
        "in the order of their epochs",
    );
    let differs = |(name, spec): &(&NodeName, &crate::plan::NodeRecordSpec)| {
        snapshot.node_records.get(*name).is_none_or(|known| {
            let grants = (&known.grants, &known.draining, &known.resting);
            known.tunnel_index != spec.tunnel_index
                || known.pod_prefixes != spec.pod_prefixes
                || known.device_addresses != spec.device_addresses
                || known.grants_epoch != spec.grants_epoch
                || known.fenced != spec.fenced
                || grants != (&spec.grants, &spec.draining, &spec.resting)
        })
    };
    let nodes: Vec<&NodeName> = plan
        .node_records
        .iter()
        .filter(differs)
        .map(|(name, _)| name)
        .collect();
    let all = plan.node_writes.iter().eq(nodes);
    found.expect(
        all,
        Rule::WriteOrder,
        "node records",
        "those that change, each once",
    );
}

fn deletions(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    for (address, before) in &snapshot.addresses {
        let listed = plan.address_deletions.contains(address);
        let gone = !plan.addresses.contains_key(address);
        found.expect(
            listed == gone,
            Rule::Deletion,
            address,
            "planned or deleted, not both",
        );
        let used = plan
            .policies
            .values()
            .any(|p| p.addresses.contains(address));
        found.expect(!(gone && used), Rule::Deletion, address, "a policy uses it");
        let above = plan.addresses.values().any(|r| r.epoch > before.epoch);
        if gone && !above && !acknowledged(snapshot, before.epoch) {
            found.add(
                Rule::Deletion,
                address,
                "it carries the highest epoch, and not every gateway has seen it",
            );
        }
    }
    let leases = plan.addresses.values().flat_map(|record| &record.leases);
    let holders: BTreeSet<&NodeName> = leases.map(|lease| &lease.node).collect();
    let readable = |name: &NodeName| !snapshot.unreadable.nodes.contains(name);
    let records = snapshot.node_records.iter();
    for (name, record) in records.filter(|(name, _)| readable(name)) {
        let listed = plan.node_deletions.contains(name);
        let planned = plan.node_records.contains_key(name);
        found.expect(
            listed != planned,
            Rule::Deletion,
            name,
            "planned or deleted",
        );
        let holds = holders.contains(name);
        let gone = !snapshot.nodes.contains_key(name);
        let right = if listed {
            gone && !holds
        } else {
            !gone || holds
        };
        found.expect(
            right,
            Rule::Deletion,
            &record.node,
            "goes with its Node and its last lease",
        );
    }
}

fn acknowledged(snapshot: &Snapshot, epoch: u64) -> bool {
    snapshot.nodes.values().all(|node| {
        let is_gateway = snapshot.gateways.values().any(|g| g.selects(node));
        let record = snapshot.node_records.get(&node.name);
        !is_gateway
            || record.is_none_or(|r| r.underlay_addresses.is_empty() || r.steering_version >= epoch)
    })
}

/// Flows for which a node may use a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    New,
    Old,
    None,
}

fn nodes(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    let mut leased: BTreeMap<(&NodeName, Use), Vec<Grant>> = BTreeMap::new();
    let unreadable = &snapshot.unreadable;
    let records = plan.addresses.values();
    let readable = records.filter(|record| !unreadable.addresses.contains(&record.address));
    for record in readable {
        for lease in &record.leases {
            let used = match lease.state {
                LeaseState::Granted | LeaseState::Active => Use::New,
                LeaseState::Draining | LeaseState::Vanished => Use::Old,
                LeaseState::Fenced | LeaseState::HoldDown => Use::None,
            };
            let of_node = leased.entry((&lease.node, used)).or_default();
            of_node.push(Grant {
                address: record.address,
                gateway: record.gateway.clone(),
                ranges: lease.ranges.clone(),
                epoch: lease.epoch,
            });
        }
    }
    let mut indexes: BTreeMap<u16, &NodeName> = BTreeMap::new();
    let specs = plan.node_records.iter();
    for (name, spec) in specs.filter(|(name, _)| !unreadable.nodes.contains(*name)) {
        let valid = (1..=0xfffd).contains(&spec.tunnel_index);
        found.expect(valid, Rule::TunnelIndex, name, "outside 1..=0xfffd");
        if let Some(other) = indexes.insert(spec.tunnel_index, name) {
            found.add(
                Rule::TunnelIndex,
                name,
                format!("{} is that of {other} too", spec.tunnel_index),
            );
        }
        let mut of_use = |used| leased.remove(&(name, used)).unwrap_or_default();
        let (usable, draining) = (of_use(Use::New), of_use(Use::Old));
        let resting = of_use(Use::None);
        let withdrawn = draining.iter().map(|grant| grant.epoch).max();
        let of_readable = |grant: &&Grant| !unreadable.addresses.contains(&grant.address);
        found.expect(
            spec.grants.iter().filter(of_readable).eq(&usable)
                && spec.draining.iter().filter(of_readable).eq(&draining)
                && spec.resting.iter().filter(of_readable).eq(&resting),
            Rule::GrantsDiffer,
            name,
            "grants are not its leases",
        );
        let before = snapshot.node_records.get(name);
        let before = before.map_or(0, |record| record.grants_epoch);
        found.expect(
            spec.grants_epoch >= before && Some(spec.grants_epoch) >= withdrawn,
            Rule::EpochOrder,
            name,
            "the epoch of its grants goes back, or misses a withdrawal",
        );
    }
    let nodes = snapshot.nodes.keys();
    for name in nodes.filter(|name| !unreadable.nodes.contains(*name)) {
        let there = plan.node_records.contains_key(name);
        found.expect(there, Rule::TunnelIndex, name, "the node has no record");
    }
    let mut seen: BTreeMap<u16, u32> = BTreeMap::new();
    for record in snapshot.node_records.values() {
        *seen.entry(record.tunnel_index).or_default() += 1;
    }
    for (name, record) in &snapshot.node_records {
        let Some(spec) = plan.node_records.get(name) else {
            continue;
        };
        let valid = (1..=0xfffd).contains(&record.tunnel_index) && seen[&record.tunnel_index] == 1;
        let kept = spec.tunnel_index == record.tunnel_index;
        found.expect(kept || !valid, Rule::TunnelIndex, name, "it changed");
    }
}

fn policies(snapshot: &Snapshot, plan: &ClusterPlan, found: &mut Found) {
    let mut gateways: BTreeMap<IpAddr, &GatewayName> = BTreeMap::new();
    let mut out_of_pools: BTreeSet<IpAddr> = BTreeSet::new();
    for policy in &snapshot.policies {
        let Some(planned) = plan.policies.get(&policy.object) else {
            found.add(
                Rule::AddressWrong,
                &policy.object,
                "nothing is said about it",
            );
            continue;
        };
        let subject = &policy.object;
        for address in &planned.addresses {
            let allowed = allowed(snapshot, policy, *address);
            found.expect(
                allowed,
                Rule::AddressNotAllowed,
                subject,
                &address.to_string(),
            );
            let asked = match &policy.addresses {
                AddressRequest::Fixed(addresses) => addresses.contains(address),
                AddressRequest::Pool(name) => {
                    let new = out_of_pools.insert(*address);
                    new && snapshot
                        .pools
                        .get(name)
                        .is_some_and(|pool| inside(pool, *address))
                }
            };
            found.expect(
                asked,
                Rule::AddressWrong,
                subject,
                &format!("{address} was not asked for"),
            );
            let record = plan.addresses.get(address);
            let gateway = planned.gateway.as_ref();
            // An unreadable record is not changed, whichever gateway it names: nodes use no grant of another gateway.
            let stays = snapshot.unreadable.addresses.contains(address);
            let served = gateway.is_some()
                && (record.map(|r| &r.gateway) == gateway || record.is_some() && stays);
            found.expect(
                served,
                Rule::AddressWrong,
                subject,
                &format!("{address} has no such record"),
            );
            if let Some(gateway) = gateway
                && *gateways.entry(*address).or_insert(gateway) != gateway
            {
                found.add(
                    Rule::AddressWrong,
                    subject,
                    format!("{address} has two gateways"),
                );
            }
        }
        let to_neighbour = match policy.translation {
            Translation::None { next_hop } => Some(next_hop),
            Translation::Leased => None,
        };
        if to_neighbour.is_some() {
            let none = planned.addresses.is_empty();
            let text = "it has a next hop, and addresses";
            found.expect(none, Rule::AddressWrong, subject, text);
        }
        ready(snapshot, subject, planned, to_neighbour, found);
    }
}

fn ready(
    snapshot: &Snapshot,
    subject: &ObjectRef,
    planned: &PolicyPlan,
    to_neighbour: Option<IpAddr>,
    found: &mut Found,
) {
    if planned.refusal.is_some() {
        let empty = planned.addresses.is_empty();
        found.expect(
            empty,
            Rule::AddressWrong,
            subject,
            "refused, and has addresses",
        );
    }
    let gateway = planned
        .gateway
        .as_ref()
        .and_then(|name| snapshot.gateways.get(name));
    let leads = |next_hop: IpAddr, record: &NodeRecord| {
        let node = snapshot.nodes.get(&record.node);
        let of_group = node.zip(gateway).is_some_and(|(n, g)| g.selects(n));
        of_group && record.next_hops.contains(&next_hop)
    };
    let way = match to_neighbour {
        Some(next_hop) => snapshot.node_records.values().any(|r| leads(next_hop, r)),
        None => !planned.addresses.is_empty(),
    };
    let can = planned.refusal.is_none() && way && planned.gateway.is_some();
    found.expect(
        can || !planned.ready,
        Rule::ReadyTooEarly,
        subject,
        "refused or without address or gateway that has its next hop",
    );
}

fn inside(pool: &Pool, address: IpAddr) -> bool {
    let same = |bound: &IpAddr| bound.is_ipv4() == address.is_ipv4();
    pool.ranges
        .iter()
        .any(|(a, b)| same(a) && same(b) && *a <= address && address <= *b)
}

/// P8, computed independently and in the simplest form.
fn allowed(snapshot: &Snapshot, policy: &Policy, address: IpAddr) -> bool {
    let node = |node: &Node| {
        node.addresses.contains(&address) || node.pod_cidrs.iter().any(|p| p.contains(&address))
    };
    let service = |service: &Service| {
        service.cluster_addresses.contains(&address)
            || service.balancer_addresses.contains(&address)
    };
    let published = snapshot.pod_prefixes.iter().any(|p| p.contains(&address));
    if published || snapshot.nodes.values().any(node) || snapshot.services.values().any(service) {
        return false;
    }
    if !policy.assigned.contains(&address) && is_occupied(snapshot, policy, address) {
        return false;
    }
    let mut pools = snapshot
        .pools
        .values()
        .filter(|pool| inside(pool, address))
        .peekable();
    if pools.peek().is_none() {
        return snapshot.settings.unpooled_addresses == UnpooledAddresses::Allow;
    }
    // The pods' namespace counts, which may differ from that of a front-end's object.
    let tenant = match &policy.selection {
        Selection::Workload { namespace, .. } | Selection::Service { namespace, .. } => namespace,
        _ => &policy.object.namespace,
    };
    // A ClusterEgress is checked pod by pod.
    policy.object.kind == Kind::ClusterEgress
        || pools.all(|pool| match &pool.namespaces {
            Namespaces::All => true,
            Namespaces::Names(names) => names.contains(tenant),
            Namespaces::Labels(selector) => snapshot
                .namespaces
                .get(tenant)
                .is_some_and(|ns| selector.matches(&ns.labels)),
        })
}

/// Whether agents found the address in use, or no host of a network may have it. An address that a gateway only holds
/// may be named by a policy, and is in no pool.
fn is_occupied(snapshot: &Snapshot, policy: &Policy, address: IpAddr) -> bool {
    let is_named = matches!(policy.addresses, AddressRequest::Fixed(_));
    let is_own = matches!(policy.object.kind, Kind::Egress | Kind::ClusterEgress);
    let by = |record: &NodeRecord| {
        let external = &record.external_addresses;
        let is_held = external.iter().any(|net| net.addr() == address);
        record.node_addresses.iter().any(|net| {
            let bits = net.max_prefix_len() - net.prefix_len();
            let none = address.is_ipv4() && address == net.broadcast() || address == net.network();
            net.addr() == address && is_own && !(is_held && is_named) || bits >= 2 && none
        }) || record.routers.contains(&address)
    };
    let records = snapshot.node_records.values();
    records
        .filter(|record| snapshot.nodes.contains_key(&record.node))
        .any(by)
}
