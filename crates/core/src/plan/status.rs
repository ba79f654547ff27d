//! Statuses of addresses, gateways and pools.

use super::demand::DemandByAddress;
use super::lease::{self, PlannedLeases};
use super::uplinks;
use super::{AddressSummary, Crowding, GatewayNode, GatewayPlan, PoolPlan, crowding};
use crate::condition::{Condition, ConditionType, Reason};
use crate::model::*;
use crate::numbers::LEASE_PORT_FIRST;
pub(super) use crate::rendezvous::announcer;
use crate::resolve::{gateway_nodes, gateway_problem, in_pool};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const LEASABLE_PORTS: u32 = 65_536 - LEASE_PORT_FIRST as u32;

pub(super) fn addresses(
    snapshot: &Snapshot,
    demand: &DemandByAddress<'_>,
    leases: &PlannedLeases,
) -> BTreeMap<IpAddr, AddressSummary> {
    let mut saying: BTreeMap<IpAddr, BTreeSet<&NodeName>> = BTreeMap::new();
    for record in snapshot.node_records.values() {
        for address in &record.announcing {
            saying.entry(*address).or_default().insert(&record.node);
        }
    }
    let none = BTreeSet::new();
    let mut hearing: BTreeMap<IpAddr, BTreeMap<NodeName, AddressClaim>> = BTreeMap::new();
    for record in snapshot.node_records.values() {
        for (address, claim) in &record.conflicts {
            let heard = hearing.entry(*address).or_default();
            heard.insert(record.node.clone(), *claim);
        }
    }
    let nobody = BTreeMap::new();
    let one = |record: &AddressRecord| {
        let users = demand.get(&record.address);
        let saying = saying.get(&record.address);
        let gateway = snapshot.gateways.get(&record.gateway);
        let announcer =
            saying.and_then(|nodes| announcer(gateway, record.address, nodes.iter().copied()));
        let hearing = hearing.get(&record.address).unwrap_or(&nobody);
        address(
            record,
            users.map(|w| w.users.iter().copied().cloned().collect()),
            Outside {
                announcer,
                is_routed: is_routed(snapshot, record),
                conflict: conflict(hearing, announcer),
            },
            leases.exhausted.get(&record.address).unwrap_or(&none),
            crowding::of_address(
                snapshot,
                record,
                leases.exhausted.get(&record.address).unwrap_or(&none),
            ),
            &snapshot.reserved(record.address),
            snapshot.unreadable.addresses.contains(&record.address),
        )
    };
    leases
        .records
        .values()
        .map(|record| (record.address, one(record)))
        .collect()
}

/// Observations of gateways' agents about an address on their external segment.
#[derive(Clone, Copy)]
pub(super) struct Outside<'a> {
    pub announcer: Option<&'a NodeName>,
    /// See [`is_routed`].
    pub is_routed: bool,
    /// See [`conflict`].
    pub conflict: Option<(&'a NodeName, AddressClaim)>,
}

/// The other machine that has an address, and the gateway that observes it: the announcer, since a gateway that is dead
/// or has handed the address over does not listen any more; without an announcer, the first gateway by name.
pub(super) fn conflict<'a>(
    hearing: &'a BTreeMap<NodeName, AddressClaim>,
    announcer: Option<&NodeName>,
) -> Option<(&'a NodeName, AddressClaim)> {
    let found = match announcer {
        Some(node) => hearing.get_key_value(node),
        None => hearing.first_key_value(),
    };
    found.map(|(node, claim)| (node, *claim))
}

/// Whether routers lead to the gateways of this address, so that no gateway answers ARP or ND for it.
pub(super) fn is_routed(snapshot: &Snapshot, record: &AddressRecord) -> bool {
    let gateway = snapshot.gateways.get(&record.gateway);
    gateway.is_some_and(|gateway| gateway.announce == AnnounceMode::Static)
}

/// Status of one address.
pub(super) fn address(
    record: &AddressRecord,
    users: Option<Vec<ObjectRef>>,
    outside: Outside<'_>,
    exhausted: &BTreeSet<NodeName>,
    crowding: Crowding,
    reserved: &PortBlocks,
    unreadable: bool,
) -> AddressSummary {
    let leased = record
        .leases
        .iter()
        .filter(|lease| lease.state != LeaseState::HoldDown);
    let leased = PortBlocks::of(leased.flat_map(|lease| &lease.ranges));
    let taken = PortBlocks::of(record.leases.iter().flat_map(|lease| &lease.ranges));
    let all = PortBlocks::of(&[PortRange {
        first: LEASE_PORT_FIRST,
        last: u16::MAX,
    }]);
    AddressSummary {
        announcer: outside.announcer.cloned(),
        users: users.unwrap_or_default(),
        ports_leased: leased.ports(),
        ports_free: match unreadable {
            true => 0,
            false => all.difference(&taken.union(reserved)).ports(),
        },
        conflict: outside.conflict.map(|(node, claim)| (node.clone(), claim)),
        exhausted: exhausted.clone(),
        crowding,
        conditions: address_conditions(record, outside, exhausted)
            .into_iter()
            .chain(unreadable.then(|| unreadable_record(record.address)))
            .collect(),
    }
}

fn unreadable_record(address: IpAddr) -> Condition {
    let text = format!(
        "the record of {address} cannot be read: its leases stay as they are, and no node gets ports of it"
    );
    Condition::new(
        ConditionType::Degraded,
        true,
        Reason::RecordUnreadable,
        text,
    )
}

/// Sentence that another machine has an address.
pub(super) fn foreign(address: IpAddr, gateway: &NodeName, claim: &AddressClaim) -> String {
    format!("{claim} answers for {address} on the external segment of {gateway}")
}

fn address_conditions(
    record: &AddressRecord,
    outside: Outside<'_>,
    exhausted: &BTreeSet<NodeName>,
) -> Vec<Condition> {
    let ready =
        |holds, reason, text: String| Condition::new(ConditionType::Ready, holds, reason, text);
    let mut all = vec![match outside.announcer {
        None if outside.is_routed => ready(
            true,
            Reason::Routed,
            format!("routers lead to the gateways of {}", record.gateway.0),
        ),
        Some(node) => ready(
            true,
            Reason::Announced,
            format!("{} answers for it", node.0),
        ),
        None => {
            let text = format!("no gateway of {} answers for it yet", record.gateway.0);
            ready(false, Reason::NotAnnounced, text)
        }
    }];
    if let Some((gateway, claim)) = outside.conflict {
        let text = foreign(record.address, gateway, &claim);
        let (kind, reason) = (ConditionType::AddressConflict, Reason::ForeignMachine);
        all.push(Condition::new(kind, true, reason, text));
    }
    if !exhausted.is_empty() {
        let nodes: Vec<&str> = exhausted.iter().map(|node| node.0.as_str()).collect();
        all.push(Condition::new(
            ConditionType::PortsExhausted,
            true,
            Reason::NoFreeBlock,
            format!(
                "no free port block for {}: use more addresses, or lower leases.initialPorts of {}",
                nodes.join(", "),
                record.gateway.0
            ),
        ));
    } else if lease::is_low(record) {
        let leases = record.leases.iter();
        let ranges = leases.flat_map(|lease| &lease.ranges);
        let taken: u32 = ranges.map(|r| u32::from(r.last - r.first) + 1).sum();
        let text = format!(
            "{taken} of {LEASABLE_PORTS} ports of {}, at least 80 %, are leased or rest: add an address to the policies \
             that use it",
            record.address
        );
        let (kind, reason) = (ConditionType::PortsLow, Reason::FewFreePorts);
        all.push(Condition::new(kind, true, reason, text));
    }
    all
}

/// Conditions of a gateway group.
fn gateway_conditions(gateway: &Gateway, nodes: &[GatewayNode]) -> Vec<Condition> {
    let accepted = match gateway_problem(gateway) {
        None => (true, Reason::Accepted, "it can be carried out".into()),
        Some(problem) => (false, Reason::UnsupportedGateway, problem),
    };
    let running = nodes.iter().filter(|node| node.running).count();
    let text = format!("agents run on {running} of {} nodes", nodes.len());
    let ready = match (running, uplinks::none_left(nodes)) {
        (0, _) => (false, Reason::NoGateway, text),
        (_, Some(text)) => (false, Reason::NoUplink, text),
        (_, None) => (true, Reason::Serving, text),
    };
    let mut all: Vec<Condition> = [
        (ConditionType::Accepted, accepted),
        (ConditionType::Ready, ready),
    ]
    .into_iter()
    .map(|(kind, (holds, reason, text))| Condition::new(kind, holds, reason, text))
    .collect();
    all.extend(joined([uplinks::some_lost(nodes), without_ebpf(nodes)]));
    all
}

/// Merges conditions of one type: the reason of the first, the messages of all.
pub(super) fn joined<const N: usize>(all: [Option<Condition>; N]) -> Option<Condition> {
    let mut all = all.into_iter().flatten();
    let mut first = all.next()?;
    for other in all {
        first.message = format!("{}; {}", first.message, other.message);
    }
    Some(first)
}

/// The condition about gateways that run without eBPF, if there are any.
pub(super) fn without_ebpf(nodes: &[GatewayNode]) -> Option<Condition> {
    let weak: Vec<&str> = nodes
        .iter()
        .filter(|node| node.datapath.as_deref() == Some("nftables"))
        .map(|node| node.node.0.as_str())
        .collect();
    (!weak.is_empty()).then(|| {
        let nodes = weak.join(", ");
        let text = format!("without the eBPF programs and so without ownership check: {nodes}");
        Condition::new(
            ConditionType::Degraded,
            true,
            Reason::NftablesDatapath,
            text,
        )
    })
}

pub(super) fn gateways(snapshot: &Snapshot) -> BTreeMap<GatewayName, GatewayPlan> {
    let plan = |one: &Gateway| {
        let nodes = gateway_nodes(one, &snapshot.nodes);
        gateway(one, nodes, &snapshot.node_records)
    };
    snapshot
        .gateways
        .values()
        .map(|g| (g.name.clone(), plan(g)))
        .collect()
}

/// Status of a gateway group's node with this record.
pub(super) fn gateway_node(name: &NodeName, record: Option<&NodeRecord>) -> GatewayNode {
    GatewayNode {
        node: name.clone(),
        running: record.is_some_and(|r| !r.underlay_addresses.is_empty()),
        version: record.map_or(0, |r| r.steering_version),
        datapath: record.and_then(|r| r.datapath.clone()),
        external: record.map_or_else(BTreeSet::new, |r| r.external_addresses.clone()),
        uplink_lost: record.is_some_and(|r| r.uplink_lost),
        next_hops: record.map_or_else(BTreeSet::new, |r| r.next_hops.clone()),
    }
}

/// Status of one gateway group with these nodes.
pub(super) fn gateway<'n>(
    gateway: &Gateway,
    nodes: impl IntoIterator<Item = &'n NodeName>,
    records: &SharedMap<NodeName, NodeRecord>,
) -> GatewayPlan {
    let node = |name: &NodeName| gateway_node(name, records.get(name));
    let nodes: Vec<GatewayNode> = nodes.into_iter().map(node).collect();
    GatewayPlan {
        generation: gateway.generation,
        conditions: gateway_conditions(gateway, &nodes),
        nodes,
    }
}

pub(super) fn pools(
    snapshot: &Snapshot,
    records: &BTreeMap<IpAddr, AddressRecord>,
) -> BTreeMap<PoolName, PoolPlan> {
    let size = |(first, last): &(IpAddr, IpAddr)| match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            u128::from(b.to_bits().saturating_sub(a.to_bits())).saturating_add(1)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => b.to_bits().saturating_sub(a.to_bits()).saturating_add(1),
        _ => 0,
    };
    let plan = |pool: &Pool| {
        let total = pool.ranges.iter().map(size).fold(0, u128::saturating_add);
        let used = records.keys().filter(|a| in_pool(pool, **a)).count() as u64;
        PoolPlan {
            generation: pool.generation,
            total,
            used,
            conditions: pool_conditions(snapshot, pool, (total, used)),
        }
    };
    snapshot
        .pools
        .values()
        .map(|pool| (pool.name.clone(), plan(pool)))
        .collect()
}

fn pool_conditions(snapshot: &Snapshot, pool: &Pool, (total, used): (u128, u64)) -> Vec<Condition> {
    let missing = pool
        .gateway
        .as_ref()
        .filter(|name| !snapshot.gateways.contains_key(name));
    let accepted = match missing {
        None => (true, Reason::Accepted, "it can be carried out".into()),
        Some(name) => {
            let text = format!("spec.gateway: there is no EgressGateway {}", name.0);
            (false, Reason::GatewayNotFound, text)
        }
    };
    let text = format!("{used} of {total} addresses are in use");
    let ready = match (missing, u128::from(used) < total) {
        (Some(_), _) => (false, Reason::GatewayNotFound, accepted.2.clone()),
        (None, false) => (false, Reason::PoolExhausted, text),
        (None, true) => (true, Reason::Available, text),
    };
    [
        (ConditionType::Accepted, accepted),
        (ConditionType::Ready, ready),
    ]
    .into_iter()
    .map(|(kind, (holds, reason, text))| Condition::new(kind, holds, reason, text))
    .collect()
}
