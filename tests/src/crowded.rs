//! A stand-in for a node that uses the rest of an egress address: only its objects exist, and this module reports for it
//! what an agent would. The real thing, an agent whose pod needs many ports, is tested in `lab growth::`.

use crate::chaos::{Scene, wait};
use anyhow::{Context, Result};
use egret_core::model::{AddressPorts, NodeName, NodeRecord, Snapshot};
use egret_core::numbers::LEASE_PORTS_ALL;
use egret_objects::dir::{DirSource, Settings};
use egret_objects::{NodeReport, Source};
use std::net::IpAddr;

const NODE: &str = "other";
const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: other, labels: {kubernetes.io/hostname: other}}
spec: {podCIDR: 10.244.99.0/24, podCIDRs: [10.244.99.0/24, "fd00:244:99::/64"]}
status: {addresses: [{type: InternalIP, address: 192.168.122.99}, {type: InternalIP, address: "fd00:122::99"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: default, labels: {app: MyApp}}
spec: {nodeName: other}
status: {phase: Running, podIP: 10.244.99.5, podIPs: [{ip: 10.244.99.5}, {ip: "fd00:244:99::5"}]}
"#;

/// Leases every port of these addresses that is free to another node, which never gives one back: the leases of the
/// nodes that have one stay as they are.
///
/// # Errors
/// The controller does not grant them.
pub fn take_the_rest(scene: &Scene, addresses: &[IpAddr]) -> Result<()> {
    let objects = scene.lab().dir().objects();
    let mut source = DirSource::open(objects, Settings::default())?;
    wait("leases of the nodes that are there", || {
        let snapshot = source.snapshot().map(|view| view.snapshot);
        snapshot.is_ok_and(|snapshot| {
            addresses
                .iter()
                .all(|address| leased(&snapshot, *address) > 0)
        })
    })?;
    scene.put(OBJECTS)?;
    let name = NodeName(NODE.into());
    let mut written = Ok(0);
    wait("a lease of the other node", || {
        let Ok(view) = source.snapshot() else {
            return false;
        };
        let Some(record) = view.snapshot.node_records.get(&name) else {
            return false;
        };
        let granted = |address| record.grants.iter().any(|grant| grant.address == address);
        if !addresses.iter().all(|address| granted(*address)) {
            return false;
        }
        written =
            source.write_node_status(&wanting_all(record, addresses), &NodeReport::default(), 0);
        true
    })?;
    written.context("the other node's report")?;
    wait("every port to be leased", || {
        let snapshot = source.snapshot().map(|view| view.snapshot);
        let all = |snapshot: Snapshot| {
            let mut leased = addresses.iter().map(|address| leased(&snapshot, *address));
            leased.all(|ports| ports == LEASE_PORTS_ALL)
        };
        snapshot.is_ok_and(all)
    })
}

fn wanting_all(record: &NodeRecord, addresses: &[IpAddr]) -> NodeRecord {
    let all = addresses.iter().map(|address| (*address, LEASE_PORTS_ALL));
    let grants = record.grants.iter();
    let held: AddressPorts = grants
        .map(|grant| (grant.address, grant.ranges.as_slice()))
        .collect();
    NodeRecord {
        acknowledged: record.grants_epoch,
        held: held.ranges(),
        demand: all.clone().collect(),
        wanted_ports: all.collect(),
        ..record.clone()
    }
}

/// Ports of an address in leases of any state.
fn leased(snapshot: &Snapshot, address: IpAddr) -> u32 {
    let record = snapshot.addresses.get(&address);
    let leases = record.into_iter().flat_map(|record| &record.leases);
    let all: AddressPorts = leases
        .map(|lease| (address, lease.ranges.as_slice()))
        .collect();
    all.of(address).ports()
}
