//! The gateway of each policy, and the nodes of each gateway.

use super::Problem;
use super::policy_addresses::PolicyAddresses;
use crate::condition::Reason;
use crate::model::*;
use std::collections::BTreeSet;

/// Nodes that the gateway selects.
pub(crate) fn gateway_nodes<'a>(
    gateway: &Gateway,
    nodes: &'a SharedMap<NodeName, Node>,
) -> BTreeSet<&'a NodeName> {
    nodes
        .values()
        .filter(|n| gateway.selects(n))
        .map(|n| &n.name)
        .collect()
}

/// A setting of this gateway that is not implemented: field, value and remedy.
fn unsupported(gateway: &Gateway) -> Option<(&'static str, String, &'static str)> {
    match gateway.announce {
        AnnounceMode::Bgp | AnnounceMode::Azure => {
            return Some((
                "spec.announce.mode",
                format!("{:?}", gateway.announce),
                "only L2 and Static are supported yet",
            ));
        }
        AnnounceMode::L2 | AnnounceMode::Static => {}
    }
    gateway.wireguard.then(|| {
        (
            "spec.transport.type",
            "WireGuard".to_owned(),
            "only VXLAN is supported yet; it is not used in its place, because it does not encrypt",
        )
    })
}

/// Whether this gateway is supported.
pub(crate) fn usable_gateway(gateway: &Gateway) -> bool {
    unsupported(gateway).is_none()
}

/// Why this gateway is not supported, as a sentence.
pub(crate) fn gateway_problem(gateway: &Gateway) -> Option<String> {
    unsupported(gateway).map(|(field, value, remedy)| format!("{field}: {value}: {remedy}"))
}

/// Findings about gateways themselves.
pub(super) fn findings(snapshot: &Snapshot) -> BTreeSet<Finding> {
    let mut findings = BTreeSet::new();
    let object = |gateway: &Gateway| ObjectRef::of_cluster(Kind::EgressGateway, &gateway.name.0);
    for gateway in snapshot.gateways.values() {
        if let Some((field, value, remedy)) = unsupported(gateway) {
            let remedy = remedy.to_owned();
            findings.insert(Finding {
                object: object(gateway),
                field: field.into(),
                value,
                remedy,
            });
        }
        let nodes = gateway_nodes(gateway, &snapshot.nodes);
        let strange = gateway.announcers.iter();
        for (address, node) in strange.filter(|(_, node)| !nodes.contains(node)) {
            findings.insert(Finding {
                object: object(gateway),
                field: "spec.announcers".into(),
                value: format!("{address}: {node}"),
                remedy: "no node of this name is selected by spec.nodeSelector; name one that is, or remove the entry"
                    .into(),
            });
        }
        if nodes.is_empty() {
            findings.insert(Finding {
                object: object(gateway),
                field: "spec.nodeSelector".into(),
                value: format!("{:?}", gateway.nodes.0),
                remedy: "no node has these labels; label the nodes that are to be gateways".into(),
            });
        }
    }
    let mut defaults = snapshot.gateways.values().filter(|g| g.default);
    if let Some(first) = defaults.next() {
        for other in defaults {
            findings.insert(Finding {
                object: object(other),
                field: "spec.default".into(),
                value: "true".into(),
                remedy: format!(
                    "only one gateway can be the default; {} is, by its name",
                    first.name.0
                ),
            });
        }
    }
    findings
}

/// The gateway of a policy: the named one, else that of its pools, else the default, else the only one.
pub(super) fn of_policy<'a>(
    snapshot: &'a Snapshot,
    policy: &Policy,
    addresses: &PolicyAddresses<'a>,
) -> Result<&'a Gateway, Problem> {
    let pooled = of_pools(addresses)?;
    let name = match (&policy.gateway, pooled) {
        (Some(named), Some((pool, of_pool))) if named != of_pool => {
            return Err(Problem::new(
                Reason::GatewayMismatch,
                "spec.gateway",
                &named.0,
                format!(
                    "its address is in pool {}, which belongs to gateway {}",
                    pool.0, of_pool.0
                ),
            ));
        }
        (Some(named), _) => Some(named),
        (None, pooled) => pooled.map(|(_, gateway)| gateway),
    };
    let gateway = match name {
        Some(name) => snapshot.gateways.get(name).ok_or_else(|| {
            Problem::new(
                Reason::GatewayNotFound,
                "spec.gateway",
                &name.0,
                "there is no such EgressGateway; create it or name another",
            )
        })?,
        None => unnamed(snapshot)?,
    };
    if usable_gateway(gateway) {
        Ok(gateway)
    } else {
        Err(Problem::new(
            Reason::UnsupportedGateway,
            "spec.gateway",
            &gateway.name.0,
            "this gateway asks for something that is not supported yet; see its own findings",
        ))
    }
}

fn unnamed(snapshot: &Snapshot) -> Result<&Gateway, Problem> {
    if let Some(default) = snapshot.gateways.values().find(|g| g.default) {
        return Ok(default);
    }
    let mut all = snapshot.gateways.values().filter(|g| !g.by_name_only);
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Problem::new(
            Reason::GatewayNotFound,
            "spec.gateway",
            "",
            "there is no EgressGateway; create one",
        )),
        (Some(_), Some(_)) => Err(Problem::new(
            Reason::GatewayAmbiguous,
            "spec.gateway",
            "",
            "there are several EgressGateways; name one, or mark one of them default",
        )),
    }
}

type PoolGateway<'a> = (&'a PoolName, &'a GatewayName);

/// The gateway of the pools that contain the policy's addresses, if they have one.
fn of_pools<'a>(addresses: &PolicyAddresses<'a>) -> Result<Option<PoolGateway<'a>>, Problem> {
    let mut found: Option<PoolGateway<'a>> = None;
    for pool in addresses.pools() {
        let Some(gateway) = &pool.gateway else {
            continue;
        };
        match found {
            Some((first, other)) if other != gateway => {
                return Err(Problem::new(
                    Reason::GatewayMismatch,
                    "spec.ips",
                    &pool.name.0,
                    format!(
                        "pools {} and {} belong to different gateways",
                        first.0, pool.name.0
                    ),
                ));
            }
            _ => found = Some((&pool.name, gateway)),
        }
    }
    Ok(found)
}
