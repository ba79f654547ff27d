//! Quotas of connections: the kernel counts the connections of a pod, or of a namespace's pods, to each destination, and
//! refuses a new one over the quota (`connlimit` of nftables, exact for connections that the kernel has confirmed).
//!
//! ```text
//!   classify target --> pod's connections to the destination > quota: refuse_pod_quota
//!                   --> source -> namespace's chain --> its connections > quota: refuse_namespace_quota
//!                   --> mark, accept
//! ```
//!
//! The quota is in the names of its sets: elements that exist would keep the quota that they were made with.

use super::counters as c;
use super::names::{JUMP, NAMESPACE_QUOTA_SETS, POD_QUOTA_SETS};
use super::refusal::refuse;
use egret_core::node::{NamespaceId, NodeState, Target};
use egret_core::numbers::{QUOTA_DESTINATIONS_MAX, QUOTA_REPORT_SECS, QUOTA_REPORTED_MAX};
use egret_kernel::nft::rule::{FAMILIES, Family, STATE_NEW, rule};
use egret_kernel::nft::{Chain, ElementKey, Rule, Set, SetType, Table, Value};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// Set of protocols with ports.
const WITH_PORTS: &str = "with_ports";
const TCP_UDP_SCTP: [u8; 3] = [6, 17, 132];

/// Chains that refuse connections over a quota of a pod and of a namespace.
const REFUSALS: [(&str, &str, [&str; 2]); 2] = [
    ("refuse_pod_quota", c::POD_QUOTA, POD_QUOTA_SETS),
    (
        "refuse_namespace_quota",
        c::NAMESPACE_QUOTA,
        NAMESPACE_QUOTA_SETS,
    ),
];

/// Rules of a target's classification, before the packet gets its mark.
pub(super) fn rules(target: &Target) -> Vec<Rule> {
    let family = Family::of(target.address);
    let new = || rule().state(STATE_NEW).protocol_in(WITH_PORTS, true);
    let mut rules = Vec::new();
    if let Some(quota) = target.quotas.pod {
        let set = pod_set(quota, family);
        let over = new().connections_of_source_over(family, &set, quota.get());
        rules.push(over.goto(REFUSALS[0].0));
    }
    if let Some(quota) = target.quotas.namespace {
        rules.push(new().by_source(family, namespace_map(quota, family)));
    }
    rules
}

/// Sets, maps and chains of the quotas in use; none where there is no quota.
pub(super) fn add(state: &NodeState, table: &mut Table) {
    let worker = &state.worker;
    let quotas = || worker.targets.values().map(|target| target.quotas);
    if quotas().all(|quotas| quotas.is_empty()) {
        return;
    }
    let mut ports = Set::new(&[SetType::Protocol]);
    for protocol in TCP_UDP_SCTP {
        let key = ElementKey::single(&[&[protocol]]);
        ports.elements.insert(key, Value::Member);
    }
    table.sets.insert(WITH_PORTS.into(), ports);
    refusals(table);
    for quota in quotas().filter_map(|quotas| quotas.pod) {
        for family in FAMILIES {
            let address = family.address_type();
            let set = counting(&[address, address, SetType::Protocol, SetType::Port]);
            table.sets.insert(pod_set(quota, family), set);
        }
    }
    let of_namespaces: BTreeSet<NonZeroU32> =
        quotas().filter_map(|quotas| quotas.namespace).collect();
    for quota in of_namespaces {
        for family in FAMILIES {
            namespaces(state, quota, family, table);
        }
    }
}

fn refusals(table: &mut Table) {
    for (chain, counter, sets) in REFUSALS {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let name = sets[family as usize];
            let address = family.address_type();
            let mut set = Set::new(&[address, address, SetType::Protocol]);
            (set.runtime_max, set.by_packets) = (Some(QUOTA_REPORTED_MAX), true);
            table.sets.insert(name.into(), set);
            rules.push(rule().remember(family, name.into(), QUOTA_REPORT_SECS));
        }
        rules.extend(refuse(counter));
        table
            .chains
            .insert(chain.into(), Chain { hook: None, rules });
    }
}

/// The map that leads a pod to the chain of its namespace, and these chains.
fn namespaces(state: &NodeState, quota: NonZeroU32, family: Family, table: &mut Table) {
    let mut map = Set::new(&[family.address_type()]);
    map.verdicts = true;
    let is_of_family = |address: &IpAddr| Family::of(*address) == family;
    let pods = state.worker.namespaces.iter();
    for (address, id) in pods.filter(|(address, _)| is_of_family(address)) {
        let name = namespace_name(quota, family, *id);
        let jump = Value::Verdict(JUMP, Some(name.clone()));
        map.elements.insert(ElementKey::address(*address), jump);
        let set = counting(&[family.address_type(), SetType::Protocol, SetType::Port]);
        table.sets.insert(name.clone(), set);
        let over = rule().connections_over(family, &name, quota.get());
        let rules = vec![over.goto(REFUSALS[1].0)];
        table.chains.insert(name, Chain { hook: None, rules });
    }
    table.sets.insert(namespace_map(quota, family), map);
}

/// A set in which packets count connections by key.
fn counting(key: &[SetType]) -> Set {
    let mut set = Set::new(key);
    (set.runtime_max, set.by_packets) = (Some(QUOTA_DESTINATIONS_MAX), true);
    set.counts_connections = true;
    set
}

fn pod_set(quota: NonZeroU32, family: Family) -> String {
    format!("pod_quota{}_{quota}", family.digit())
}

fn namespace_map(quota: NonZeroU32, family: Family) -> String {
    format!("namespaces{}_{quota}", family.digit())
}

/// Name of a namespace's chain, and of its set.
fn namespace_name(quota: NonZeroU32, family: Family, id: NamespaceId) -> String {
    format!("namespace_quota{}_{quota}_{:016x}", family.digit(), id.0)
}
