//! The status of this node, as `EgressNode` has it.

use super::conditions::conditions;
use super::full_destinations;
use super::gateway_report::GatewayReport;
use super::status_writer::NodeStatus;
use crate::observe::facts::Links;
use crate::observe::surroundings::{Routers, Surroundings};
use egret_core::machines::Destination;
use egret_core::model::{NodeRecord, Snapshot};
use egret_core::node::{CANARY_CAPABILITY, ForeignMark, NodeOutcome, PodsPath};
use egret_core::obstacle::Obstacle;
use egret_datapath::worker::driver::RefusedProtocol;
use egret_objects::NodeReport;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the agent finds at its node and only reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalFindings {
    /// What pods tried lately by protocols without ports.
    pub(crate) refused: BTreeSet<RefusedProtocol>,
    /// Policy routing rules of others that look at bits of our mark.
    pub(crate) foreign_marks: BTreeSet<ForeignMark>,
}

/// What this node's status is made from.
pub(crate) struct StatusInputs<'a> {
    /// This node's record, as read last.
    pub(crate) record: &'a NodeRecord,
    /// The objects.
    pub(crate) snapshot: &'a Snapshot,
    /// What the kernel contains; `None`: nothing is reported as programmed.
    pub(crate) outcome: Option<&'a NodeOutcome>,
    /// The gateway role.
    pub(crate) gateway: &'a GatewayReport,
    /// Devices and addresses of this node.
    pub(crate) links: Option<&'a Links>,
    /// Routers around it.
    pub(crate) routers: &'a Routers,
    /// Source ports in use, by egress address.
    pub(crate) ports: &'a BTreeMap<IpAddr, u32>,
    /// Destinations towards which a lease is used up.
    pub(crate) full: &'a BTreeSet<Destination>,
    /// What was found at this node and only reported.
    pub(crate) findings: &'a LocalFindings,
    /// Why the last round was not carried out.
    pub(crate) last_error: Option<&'a str>,
    /// What of others' firewalls refuses our packets.
    pub(crate) obstacles: &'a [Obstacle],
}

/// This node's status.
pub(crate) fn node_status(inputs: &StatusInputs<'_>) -> NodeStatus {
    let StatusInputs {
        record,
        snapshot,
        outcome,
        gateway,
        links,
        routers,
        ports,
        full,
        ..
    } = *inputs;
    let node = snapshot.nodes.get(&record.node);
    let mut demand = ports.clone();
    for address in outcome.into_iter().flat_map(|outcome| &outcome.granted) {
        demand.entry(*address).or_default();
    }
    let is_gateway = outcome.is_some_and(|outcome| outcome.state.gateway.is_some());
    let can = capabilities(outcome, gateway);
    let addresses = links.map(|links| &links.device_addresses);
    let around = Surroundings::of(record, snapshot, outcome, addresses, routers);
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
        announcing: gateway.announcing.clone(),
        // Without an outcome the controller must not conclude that anything is drained.
        demand: if outcome.is_some() {
            demand
        } else {
            record.demand.clone()
        },
        full_destinations: full_destinations(full),
        programmed: outcome
            .map(|outcome| outcome.programmed.clone())
            .unwrap_or_default(),
        datapath: gateway.datapath.clone().filter(|_| is_gateway),
        node_addresses: around.node_addresses,
        routers: around.routers,
        // Others must know it for as long as they may hear it.
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
        conditions: conditions(inputs, around.left_out),
    };
    NodeStatus { record, report }
}

/// Next hops that other nodes may send packets for.
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

/// What carries packets here, and how those of pods leave: through netfilter, or lifted at the uplinks.
fn capabilities(outcome: Option<&NodeOutcome>, gateway: &GatewayReport) -> Vec<String> {
    let ebpf = gateway.limitations.is_none().then_some("ebpf");
    let path = outcome.and_then(|outcome| match outcome.pods_path {
        PodsPath::Netfilter => Some("cni-path-netfilter"),
        PodsPath::Bpf => Some("cni-path-bpf"),
        PodsPath::Unsupported(_) => None,
    });
    // The nftables fallback does not turn canaries round.
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
