//! Required watches of a component, from the known objects. Pure, so that their scope can be tested.

use super::entry::Value;
use super::store::State;
use super::view_cache;
use super::watch::{Pods, Records, Watch, Which, api_server};
use crate::{View, front_end, plugin};
use egret_core::model::{
    Gateway, Labels, NodeName, Selection, Settings, Snapshot, UnpooledAddresses,
};
use std::collections::{BTreeMap, BTreeSet};

/// Services that are watched one by one; beyond that, all are watched at once.
const SERVICES_MAX: usize = 50;

/// Role of the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The controller: everything, and writes while it leads.
    Controller,
    /// The agent of this node: objects that concern the node, and its own status.
    Agent(NodeName),
    /// The command line: everything, no writes.
    Reader,
}

/// Required watches, from the known objects. More may follow: a gateway is identified by its node's labels.
pub(super) fn needed(role: &Role, state: &State) -> BTreeSet<Watch> {
    let mut all = BTreeSet::from([
        Watch::Egresses,
        Watch::ClusterEgresses,
        Watch::Gateways,
        Watch::Pools,
        Watch::Namespaces,
        Watch::Nodes,
        Watch::ServiceCidrs,
        Watch::Slices(api_server()),
    ]);
    let foreign = front_end::KINDS.iter().map(|known| known.kind);
    all.extend(
        foreign
            .filter(|kind| state.front_ends.reads(*kind))
            .map(Watch::Foreign),
    );
    let translated = translated(state);
    match role {
        Role::Controller | Role::Reader => {
            all.extend([
                Watch::Pods(Pods::All),
                Watch::Records(Records::All),
                Watch::Addresses,
                Watch::Balancers,
            ]);
            // Agents get the result from the controller: following a plugin's object of every node would cost each
            // agent too much.
            if *role == Role::Controller {
                all.extend(plugin::KINDS.iter().map(|known| Watch::Plugin(known.kind)));
            }
        }
        Role::Agent(node) => {
            all.insert(Watch::Pods(Pods::OfNode(node.0.clone())));
            if is_gateway(state, &translated, node) {
                all.extend([Watch::Records(Records::All), Watch::Addresses]);
            } else {
                all.insert(Watch::Records(Records::One(node.0.clone())));
                all.insert(Watch::Records(Records::OfGateways));
            }
        }
    }
    let services = services(role, state, &translated);
    if services.len() > SERVICES_MAX {
        all.remove(&Watch::Slices(api_server()));
        all.extend([Watch::Services(Which::All), Watch::Slices(Which::All)]);
    } else {
        for (namespace, name) in services {
            let which = || Which::One(namespace.to_owned(), name.to_owned());
            all.extend([Watch::Services(which()), Watch::Slices(which())]);
        }
    }
    all
}

fn values<'a>(state: &'a State, watch: &Watch) -> impl Iterator<Item = &'a Value> {
    let objects = state.watches.get(watch).map(|watched| &watched.objects);
    objects
        .into_iter()
        .flat_map(|objects| objects.values().map(|entry| &entry.value))
}

/// Translation of the front-ends' objects: policies, and generated gateways. Empty while no front-end is enabled.
fn translated(state: &State) -> Snapshot {
    let installation = Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: Vec::new(),
        hold_down_secs: 0,
    };
    let mut view = View::empty(&installation);
    if state.front_ends.enabled.is_empty() {
        return view.snapshot;
    }
    for value in values(state, &Watch::Gateways) {
        if let Value::Gateway(gateway) = value {
            let gateway = gateway.as_ref().clone();
            view.snapshot.gateways.insert(gateway.name.clone(), gateway);
        }
    }
    for value in values(state, &Watch::Nodes) {
        if let Value::Node(node) = value {
            let node = node.as_ref().clone();
            view.snapshot.nodes.insert(node.name.clone(), node);
        }
    }
    front_end::apply(
        &mut view,
        view_cache::foreign(&state.watches),
        &state.front_ends,
    );
    view.snapshot
}

fn gateways<'a>(state: &'a State, translated: &'a Snapshot) -> impl Iterator<Item = &'a Gateway> {
    let own = values(state, &Watch::Gateways).filter_map(|value| match value {
        Value::Gateway(gateway) => Some(gateway.as_ref()),
        _ => None,
    });
    own.chain(translated.gateways.values())
}

/// Labels of all nodes.
fn labels(state: &State) -> BTreeMap<&NodeName, &Labels> {
    values(state, &Watch::Nodes)
        .filter_map(|value| match value {
            Value::Node(node) => Some((&node.name, &node.labels)),
            _ => None,
        })
        .collect()
}

fn is_gateway(state: &State, translated: &Snapshot, node: &NodeName) -> bool {
    let labels = labels(state);
    let mine = labels.get(node);
    mine.is_some_and(|labels| {
        gateways(state, translated).any(|gateway| gateway.nodes.matches(labels))
    })
}

/// All nodes that a gateway selects.
pub(super) fn gateway_nodes(state: &State) -> BTreeSet<NodeName> {
    let translated = translated(state);
    let gateways: Vec<&Gateway> = gateways(state, &translated).collect();
    let selected = |labels: &Labels| gateways.iter().any(|g| g.nodes.matches(labels));
    labels(state)
        .into_iter()
        .filter(|(_, labels)| selected(labels))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Services that a policy names; for an agent those in namespaces of its own pods, since a Service's pods are in its
/// namespace.
fn services<'a>(
    role: &Role,
    state: &'a State,
    translated: &'a Snapshot,
) -> BTreeSet<(&'a str, &'a str)> {
    let own: Option<BTreeSet<&str>> = match role {
        Role::Controller | Role::Reader => None,
        Role::Agent(node) => Some(
            values(state, &Watch::Pods(Pods::OfNode(node.0.clone())))
                .filter_map(|value| match value {
                    Value::Pod(pod) => Some(pod.namespace.as_str()),
                    _ => None,
                })
                .collect(),
        ),
    };
    let policies = values(state, &Watch::Egresses).filter_map(|value| match value {
        Value::Policy(policy) => Some(policy.as_ref()),
        _ => None,
    });
    policies
        .chain(&translated.policies)
        .filter_map(|policy| match &policy.selection {
            Selection::Service { namespace, name } => Some((namespace.as_str(), name.as_str())),
            _ => None,
        })
        .filter(|(namespace, _)| own.as_ref().is_none_or(|own| own.contains(namespace)))
        .collect()
}
