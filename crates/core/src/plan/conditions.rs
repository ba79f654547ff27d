//! What is told about policies.

use super::status::without_ebpf;
use super::wanted::WantedByAddress;
use super::{AddressStatus, GatewayNode, GatewayPlan, PolicyPlan};
use crate::condition::{Condition, ConditionType, Reason};
use crate::model::*;
use crate::resolve::{Resolved, Selected};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) struct Inputs<'a, 'b> {
    pub snapshot: &'a Snapshot,
    pub resolved: &'b [Resolved<'a>],
    pub selected: &'b Selected<'a>,
    pub overlaps: &'b BTreeMap<usize, BTreeSet<usize>>,
    pub addresses: &'b BTreeMap<IpAddr, AddressStatus>,
    pub wanted: &'b WantedByAddress<'a>,
    pub gateways: &'b BTreeMap<GatewayName, GatewayPlan>,
}

/// Pods of one policy.
#[derive(Clone, Default)]
struct Pods {
    by_node: BTreeMap<NodeName, u32>,
    /// Those that have an address already.
    addressed: u32,
}

pub(super) fn policies(inputs: Inputs<'_, '_>) -> BTreeMap<ObjectRef, PolicyPlan> {
    let mut pods = vec![Pods::default(); inputs.resolved.len()];
    for (pod, policies) in inputs.selected.pods.iter().zip(&inputs.selected.policies) {
        for number in policies {
            let entry = &mut pods[*number];
            *entry.by_node.entry(pod.node.clone()).or_default() += 1;
            entry.addressed += u32::from(!pod.addresses.is_empty());
        }
    }
    let mut programmed: BTreeMap<(&ObjectRef, i64), u32> = BTreeMap::new();
    for record in inputs.snapshot.node_records.values() {
        for one in &record.programmed {
            *programmed.entry((&one.policy, one.generation)).or_default() += one.pods;
        }
    }
    let mut plans = BTreeMap::new();
    for (number, (one, pods)) in inputs.resolved.iter().zip(pods).enumerate() {
        let policy = one.policy;
        let done = programmed
            .get(&(&policy.object, policy.generation))
            .copied()
            .unwrap_or(0);
        let overlapped_by = inputs
            .overlaps
            .get(&number)
            .into_iter()
            .flatten()
            .map(|winner| inputs.resolved[*winner].policy.object.clone())
            .collect();
        let mut plan = PolicyPlan {
            generation: policy.generation,
            refusal: one.refusal.clone(),
            addresses: one.addresses.clone(),
            gateway: one.gateway.map(|g| g.name.clone()),
            selected: pods.by_node.values().sum(),
            pods: pods.by_node.clone(),
            programmed: done,
            overlapped_by,
            families: (
                one.addresses.iter().any(IpAddr::is_ipv4),
                one.addresses.iter().any(IpAddr::is_ipv6),
            ),
            ready: false,
            conditions: Vec::new(),
        };
        plan.conditions = conditions(&inputs, number, &plan, pods.addressed);
        plan.ready = plan
            .conditions
            .iter()
            .any(|c| c.kind == ConditionType::Ready && c.status);
        plans.insert(policy.object.clone(), plan);
    }
    plans
}

fn conditions(
    inputs: &Inputs<'_, '_>,
    number: usize,
    plan: &PolicyPlan,
    addressed: u32,
) -> Vec<Condition> {
    let one = &inputs.resolved[number];
    let exhausted = exhausted(inputs, plan);
    let mut all = vec![
        accepted(plan, inputs.selected.host_network[number]),
        allocated(one, plan),
        ready(inputs, one, plan, &exhausted, addressed),
    ];
    all.extend(ports_exhausted(inputs, plan, &exhausted));
    let lacking = [("IPv4", plan.families.0), ("IPv6", plan.families.1)]
        .into_iter()
        .zip(one.covers)
        .filter(|((_, has), covers)| !has && !covers)
        .map(|((name, _), _)| name)
        .collect::<Vec<_>>();
    if plan.refusal.is_none() && !lacking.is_empty() && reaches(one.policy, &lacking) {
        let message = format!(
            "it has no {} address: such traffic of its pods is rejected, not sent by another address",
            lacking.join(" and no ")
        );
        all.push(Condition::new(
            ConditionType::FamilyNotCovered,
            true,
            Reason::NoAddressOfFamily,
            message,
        ));
    }
    if !plan.overlapped_by.is_empty() {
        let names: Vec<String> = plan.overlapped_by.iter().map(ToString::to_string).collect();
        let message = format!(
            "these win for some destinations of some pods: {}",
            names.join(", ")
        );
        all.push(Condition::new(
            ConditionType::Overlapped,
            true,
            Reason::OtherPolicyWins,
            message,
        ));
    }
    all.extend(without_ebpf(gateway_nodes(inputs, one)));
    all
}

fn accepted(plan: &PolicyPlan, host_network: u32) -> Condition {
    match &plan.refusal {
        Some(refusal) => Condition::new(
            ConditionType::Accepted,
            false,
            refusal.reason,
            refusal.message.clone(),
        ),
        None if host_network > 0 => Condition::new(
            ConditionType::Accepted,
            true,
            Reason::HostNetworkPods,
            format!("{host_network} matching pods use their node's network and are never selected"),
        ),
        None => Condition::new(
            ConditionType::Accepted,
            true,
            Reason::Accepted,
            "it can be carried out",
        ),
    }
}

fn allocated(one: &Resolved<'_>, plan: &PolicyPlan) -> Condition {
    let kind = ConditionType::Allocated;
    if plan.refusal.is_some() {
        return Condition::new(kind, false, Reason::NotAccepted, "it is refused");
    }
    let has = [plan.families.0, plan.families.1];
    if one
        .covers
        .iter()
        .zip(has)
        .any(|(covers, has)| *covers && !has)
    {
        return Condition::new(
            kind,
            false,
            Reason::PoolExhausted,
            "its pool has no free address of a family",
        );
    }
    let names: Vec<String> = plan.addresses.iter().map(ToString::to_string).collect();
    Condition::new(kind, true, Reason::Allocated, names.join(", "))
}

fn ports_exhausted(
    inputs: &Inputs<'_, '_>,
    plan: &PolicyPlan,
    exhausted: &[String],
) -> Option<Condition> {
    let kind = ConditionType::PortsExhausted;
    if !exhausted.is_empty() {
        let message = format!("no free port block is left for: {}", exhausted.join("; "));
        return Some(Condition::new(kind, true, Reason::NoFreeBlock, message));
    }
    let records = plan
        .pods
        .keys()
        .filter_map(|node| inputs.snapshot.node_records.get(node));
    let full: Vec<String> = records
        .flat_map(|record| {
            let addresses = plan.addresses.iter();
            addresses.filter_map(|address| {
                let full = record.full_destinations.get(address)?;
                Some(format!(
                    "{address} on {} towards {full} destinations",
                    record.node.0
                ))
            })
        })
        .collect();
    (!full.is_empty()).then(|| {
        let message = format!(
            "all leased ports are in use, and new flows refused: {}",
            full.join("; ")
        );
        Condition::new(kind, true, Reason::DestinationFull, message)
    })
}

/// Nodes of this policy that got no ports, with the address.
fn exhausted(inputs: &Inputs<'_, '_>, plan: &PolicyPlan) -> Vec<String> {
    let mut lines = Vec::new();
    for address in plan
        .addresses
        .iter()
        .filter(|a| inputs.wanted.contains_key(a))
    {
        let Some(status) = inputs.addresses.get(address) else {
            continue;
        };
        for node in status
            .exhausted
            .iter()
            .filter(|n| plan.pods.contains_key(n))
        {
            lines.push(format!("{address} on {node}"));
        }
    }
    lines
}

fn ready(
    inputs: &Inputs<'_, '_>,
    one: &Resolved<'_>,
    plan: &PolicyPlan,
    exhausted: &[String],
    addressed: u32,
) -> Condition {
    let no = |reason: Reason, message: String| {
        Condition::new(ConditionType::Ready, false, reason, message)
    };
    if let Some(refusal) = &plan.refusal {
        return no(Reason::NotAccepted, refusal.message.clone());
    }
    let allocated = allocated(one, plan);
    if !allocated.status {
        return no(Reason::NotAllocated, allocated.message);
    }
    let running = gateway_nodes(inputs, one).iter().any(|node| node.running);
    if !running {
        return no(
            Reason::NoGateway,
            "no gateway node of its gateway runs an agent".into(),
        );
    }
    if !exhausted.is_empty() {
        return no(Reason::PortsExhausted, exhausted.join("; "));
    }
    if plan.programmed < addressed {
        return no(
            Reason::Programming,
            format!("{} of {addressed} pods are programmed", plan.programmed),
        );
    }
    let yes = |reason: Reason, message: String| {
        Condition::new(ConditionType::Ready, true, reason, message)
    };
    if plan.selected == 0 {
        return yes(Reason::NoPods, "no running pod is selected".into());
    }
    yes(
        Reason::Programmed,
        format!("all {addressed} pods are programmed"),
    )
}

/// Whether the policy has destinations of one of these families.
fn reaches(policy: &Policy, families: &[&str]) -> bool {
    policy.destinations.as_ref().is_none_or(|all| {
        all.iter().any(|d| {
            families.contains(&if d.cidr.network().is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            })
        })
    })
}

fn gateway_nodes<'i>(inputs: &'i Inputs<'_, '_>, one: &Resolved<'_>) -> &'i [GatewayNode] {
    let plan = one
        .gateway
        .and_then(|gateway| inputs.gateways.get(&gateway.name));
    plan.map_or(&[], |plan| &plan.nodes)
}
