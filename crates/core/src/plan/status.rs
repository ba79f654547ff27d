//! What is told about addresses, gateways and pools.

use super::lease::PlannedLeases;
use super::wanted::WantedByAddress;
use super::{AddressStatus, GatewayNode, GatewayPlan, PoolPlan};
use crate::model::*;
use crate::numbers::LEASE_PORT_FIRST;
use crate::resolve::{gateway_nodes, in_pool};
use std::collections::BTreeMap;
use std::net::IpAddr;

const LEASABLE_PORTS: u32 = 65_536 - LEASE_PORT_FIRST as u32;

pub(super) fn addresses(
    snapshot: &Snapshot,
    wanted: &WantedByAddress<'_>,
    leases: &PlannedLeases,
) -> BTreeMap<IpAddr, AddressStatus> {
    let mut announcers: BTreeMap<IpAddr, &NodeName> = BTreeMap::new();
    for record in snapshot.node_records.values() {
        for address in &record.announcing {
            announcers.entry(*address).or_insert(&record.node);
        }
    }
    let one = |record: &AddressRecord| {
        let ports = |held: bool| -> u32 {
            record
                .leases
                .iter()
                .filter(|lease| (lease.state == LeaseState::HoldDown) == held)
                .flat_map(|lease| &lease.ranges)
                .map(|r| u32::from(r.last - r.first) + 1)
                .sum()
        };
        let users = wanted
            .get(&record.address)
            .map(|w| w.users.iter().copied().cloned().collect());
        AddressStatus {
            announcer: announcers.get(&record.address).map(|name| (*name).clone()),
            users: users.unwrap_or_default(),
            ports_leased: ports(false),
            ports_free: LEASABLE_PORTS - ports(false) - ports(true),
            exhausted: leases
                .exhausted
                .get(&record.address)
                .cloned()
                .unwrap_or_default(),
        }
    };
    leases
        .records
        .values()
        .map(|record| (record.address, one(record)))
        .collect()
}

pub(super) fn gateways(snapshot: &Snapshot) -> BTreeMap<GatewayName, GatewayPlan> {
    let node = |name: &NodeName| {
        let record = snapshot.node_records.get(name);
        GatewayNode {
            node: name.clone(),
            running: record.is_some_and(|r| !r.underlay_addresses.is_empty()),
            version: record.map_or(0, |r| r.steering_version),
            datapath: record.and_then(|r| r.datapath.clone()),
        }
    };
    let plan = |gateway: &Gateway| GatewayPlan {
        nodes: gateway_nodes(gateway, &snapshot.nodes)
            .into_iter()
            .map(node)
            .collect(),
    };
    snapshot
        .gateways
        .values()
        .map(|g| (g.name.clone(), plan(g)))
        .collect()
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
    let plan = |pool: &Pool| PoolPlan {
        total: pool.ranges.iter().map(size).fold(0, u128::saturating_add),
        used: records.keys().filter(|a| in_pool(pool, **a)).count() as u64,
    };
    snapshot
        .pools
        .values()
        .map(|pool| (pool.name.clone(), plan(pool)))
        .collect()
}
