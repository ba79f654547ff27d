//! The status of this node in its `EgressNode`.

use super::conditions::{LeftOut, conditions};
use super::full_destinations;
use super::gateway_report::GatewayReport;
use super::status_inputs::StatusInputs;
use super::status_writer::NodeStatus;
use crate::observe::surroundings::Surroundings;
use egret_core::model::NodeRecord;
use egret_core::node::{CANARY_CAPABILITY, NodeOutcome, PodForwarding, bounded_programmed};
use egret_core::numbers::STATUS_PROGRAMMED_MAX;
use egret_objects::NodeReport;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// This node's status.
pub(crate) fn node_status(inputs: &StatusInputs<'_>) -> NodeStatus {
    let StatusInputs {
        record,
        snapshot,
        outcome,
        gateway,
        links,
        routers,
        leases,
        full,
        ..
    } = *inputs;
    let node = snapshot.nodes.get(&record.node);
    let is_gateway = outcome.is_some_and(|outcome| outcome.state.gateway.is_some());
    let can = capabilities(outcome, gateway);
    let addresses = links.map(|links| &links.device_addresses);
    let around = Surroundings::of(record, snapshot, outcome, addresses, routers);
    let all = outcome.map_or(&[][..], |outcome| &outcome.programmed);
    let (programmed, policies) = bounded_programmed(all, STATUS_PROGRAMMED_MAX);
    let record = NodeRecord {
        capabilities: can.iter().cloned().collect(),
        underlay_addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
        external_addresses: links
            .filter(|_| is_gateway)
            .map(|links| links.external_addresses.clone())
            .unwrap_or_default(),
        next_hops: outcome
            .filter(|_| gateway.loaded)
            .map(carried)
            .unwrap_or_default(),
        uplink_lost: is_gateway && gateway.uplink_lost,
        steering_version: gateway.version,
        newer_tables: gateway.newer_tables.clone(),
        announcing: gateway.announcing.clone(),
        acknowledged: leases.acknowledged,
        held: leases.held.ranges(),
        demand: leases.in_use.clone(),
        wanted_ports: leases.wanted.clone(),
        full_destinations: full_destinations(full),
        paired: outcome.map_or_else(|| record.paired.clone(), |outcome| outcome.paired.clone()),
        programmed,
        datapath: gateway.datapath.clone().filter(|_| is_gateway),
        node_addresses: around.node_addresses,
        routers: around.routers,
        // Other nodes need it for as long as they may receive packets from it.
        external_mac: gateway
            .external_mac
            .or(record.external_mac.filter(|_| is_gateway)),
        conflicts: gateway.claims.clone(),
        ..record.clone()
    };
    let report = NodeReport {
        tunnel_mac: Some(mac_text(egret_wire::tunnel_mac(record.tunnel_index))),
        external_interface: links
            .and_then(|links| links.external.as_ref())
            .map(|(device, ..)| device.name.clone()),
        capabilities: can,
        conditions: conditions(
            inputs,
            LeftOut {
                addresses: around.left_out,
                policies,
            },
        ),
    };
    NodeStatus { record, report }
}

/// Next hops to which this node forwards packets of other nodes.
fn carried(outcome: &NodeOutcome) -> BTreeSet<IpAddr> {
    let served = outcome
        .state
        .gateway
        .iter()
        .flat_map(|g| g.next_hops.values());
    let worker = &outcome.state.worker;
    served
        .filter_map(|number| Some(worker.next_hops.get(number)?.address))
        .collect()
}

/// Data path of the gateway role, and path of pods' packets: through netfilter, or reinjected at the uplinks.
fn capabilities(outcome: Option<&NodeOutcome>, gateway: &GatewayReport) -> Vec<String> {
    let ebpf = gateway.limitations.is_none().then_some("ebpf");
    let path = outcome.and_then(|outcome| match outcome.pod_forwarding {
        PodForwarding::Netfilter => Some("cni-path-netfilter"),
        PodForwarding::Bpf => Some("cni-path-bpf"),
        PodForwarding::Unsupported(_) => None,
    });
    // The nftables fallback does not return canaries.
    let canary = ebpf.filter(|_| gateway.loaded).map(|_| CANARY_CAPABILITY);
    let all = ["nftables"]
        .into_iter()
        .chain(ebpf)
        .chain(path)
        .chain(canary);
    all.map(str::to_owned).collect()
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests;
