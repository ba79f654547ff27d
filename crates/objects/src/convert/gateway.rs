//! `EgressGateway` to [`Gateway`].

use super::Check;
use super::field::{address, number, quotas, selector};
use egret_api as api;
use egret_core::model::{AnnounceMode, Finding, Gateway, GatewayName, Kind, NodeName, Outbound};
use egret_core::numbers::BLOCK_PORTS;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Longest name of a network device (IFNAMSIZ without the closing zero byte).
const DEVICE_NAME_MAX: usize = 15;

/// An `EgressGateway`.
pub fn gateway(object: &api::EgressGateway) -> Result<Gateway, Vec<Finding>> {
    let mut check = Check::new(Kind::EgressGateway, &object.metadata);
    let parsed = parse(&mut check, object.metadata.generation, &object.spec);
    check.finish(parsed)
}

fn parse(
    check: &mut Check,
    generation: Option<i64>,
    spec: &api::EgressGatewaySpec,
) -> Option<Gateway> {
    let nodes = selector(check, "spec.nodeSelector", &spec.node_selector);
    let device = &spec.external_interface;
    let device = check.take("spec.externalInterface", device, device_name(device));
    let probe = &spec.probe;
    let interval = number(
        check,
        "spec.probe.intervalMs",
        probe.interval_ms.into(),
        10,
        60_000,
    );
    let failures = number(check, "spec.probe.failures", probe.failures.into(), 1, 100);
    let mtu = spec
        .transport
        .mtu
        .map(|mtu| number(check, "spec.transport.mtu", mtu.into(), 1280, 65_535));
    let workers = spec
        .leases
        .expected_workers
        .map(|n| number(check, "spec.leases.expectedWorkers", n.into(), 1, 65_533));
    let initial = spec.leases.initial_ports;
    let ports: Option<u16> = number(
        check,
        "spec.leases.initialPorts",
        initial.into(),
        BLOCK_PORTS.into(),
        32_768,
    );
    if ports.is_some_and(|ports| !ports.is_multiple_of(BLOCK_PORTS)) {
        let remedy = format!("write a multiple of {BLOCK_PORTS}: ports are handed out in blocks");
        check.bad("spec.leases.initialPorts", initial, remedy);
    }
    let announcers = announcers(check, &spec.announcers);
    let quotas = quotas(check, "spec.leases.quota", spec.leases.quota.as_ref());
    let name = GatewayName(check.object.name.clone());
    Some(Gateway {
        announcers,
        generation: generation.unwrap_or(0),
        default: spec.default,
        external_interface: device?,
        announce: match spec.announce.mode {
            api::AnnounceModeName::L2 => AnnounceMode::L2,
            api::AnnounceModeName::Bgp => AnnounceMode::Bgp,
            api::AnnounceModeName::Static => AnnounceMode::Static,
            api::AnnounceModeName::Azure => AnnounceMode::Azure,
        },
        outbound: match spec.outbound {
            api::OutboundName::AnyGateway => Outbound::AnyGateway,
            api::OutboundName::Announcer => Outbound::Announcer,
        },
        mtu: transpose(mtu)?,
        wireguard: spec.transport.type_ == api::TransportName::WireGuard,
        probe_interval_ms: interval?,
        probe_failures: failures?,
        initial_ports: ports?,
        expected_workers: transpose(workers)?,
        quotas: quotas?,
        ..Gateway::new(name, nodes?)
    })
}

/// Named announcers. An entry that cannot be read is a finding, and makes the object invalid.
fn announcers(check: &mut Check, listed: &[api::AnnouncerSpec]) -> BTreeMap<IpAddr, NodeName> {
    let mut announcers = BTreeMap::new();
    for (number, one) in listed.iter().enumerate() {
        let field = |name: &str| format!("spec.announcers[{number}].{name}");
        let at = field("address");
        let Some(address) = check.take(&at, &one.address, address(&one.address)) else {
            continue;
        };
        if one.node.is_empty() {
            check.bad(field("node"), "", "write the name of a node".to_owned());
        }
        let node = NodeName(one.node.clone());
        if announcers.insert(address, node).is_some() {
            let remedy = "remove one of the two entries for this address".to_owned();
            check.bad(at, &one.address, remedy);
        }
    }
    announcers
}

/// `None` if the optional field was given and invalid: the object is then invalid.
fn transpose<T>(given: Option<Option<T>>) -> Option<Option<T>> {
    match given {
        None => Some(None),
        Some(None) => None,
        Some(good) => Some(good),
    }
}

/// `None` for `auto`.
fn device_name(text: &str) -> Result<Option<String>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let good = (1..=DEVICE_NAME_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        && text != "."
        && text != "..";
    if good {
        Ok(Some(text.to_owned()))
    } else {
        Err(format!(
            "write auto, or the name of a network device: at most {DEVICE_NAME_MAX} characters, no '/' and no space"
        ))
    }
}
