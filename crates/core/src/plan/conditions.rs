//! Conditions of policies.

use super::demand::Overlaps;
use super::pod_prefixes;
use super::status::{foreign, joined, without_ebpf};
use super::uplinks;
use super::{AddressSummary, GatewayNode, GatewayPlan, PlanReason, PolicyPlan};
use crate::condition::{Condition, ConditionType, Reason};
use crate::model::*;
use crate::numbers::POD_PREFIXES_MAX;
use crate::resolve::{Resolved, Selected};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Inputs that the conditions of all policies share.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'i> {
    pub addresses: &'i BTreeMap<IpAddr, AddressSummary>,
    pub gateways: &'i BTreeMap<GatewayName, GatewayPlan>,
    pub records: &'i SharedMap<NodeName, NodeRecord>,
    /// Addresses without a free port towards some destination on some node.
    pub full: &'i BTreeSet<IpAddr>,
    /// Every namespace.
    pub namespaces: &'i SharedMap<String, Namespace>,
    /// A pod address that is not reported to all nodes, because the record's limit is reached.
    pub left_out: Option<IpAddr>,
}

/// Pods of one policy, beside `PolicyPlan::pods`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pods {
    /// Pods that have an address.
    pub addressed: u32,
    /// Pods that match and are not selected, because they use their node's network.
    pub host_network: u32,
}

pub(super) fn policies(
    inputs: Inputs<'_>,
    resolved: &[Resolved<'_>],
    selected: &Selected<'_>,
    overlaps: &Overlaps,
) -> BTreeMap<ObjectRef, PolicyPlan> {
    let mut by_node: Vec<BTreeMap<NodeName, u32>> = vec![BTreeMap::new(); resolved.len()];
    let mut addressed = vec![0; resolved.len()];
    for (pod, policies) in selected.pods.iter().zip(&selected.policies) {
        for number in policies {
            *by_node[*number].entry(pod.node.clone()).or_default() += 1;
            addressed[*number] += u32::from(!pod.addresses.is_empty());
        }
    }
    let mut programmed: BTreeMap<(&ObjectRef, i64), u32> = BTreeMap::new();
    for one in inputs.records.values().flat_map(|r| &r.programmed) {
        *programmed.entry((&one.policy, one.generation)).or_default() += one.pods;
    }
    let mut plans = BTreeMap::new();
    for (number, (one, by_node)) in resolved.iter().zip(by_node).enumerate() {
        let policy = one.policy;
        let pods = Pods {
            addressed: addressed[number],
            host_network: selected.host_network[number],
        };
        let mut plan = empty();
        plan.selected = by_node.values().sum();
        plan.pods = by_node;
        let done = programmed.get(&(&policy.object, policy.generation));
        plan.programmed = done.copied().unwrap_or(0);
        plan.shadowed = overlaps.shadowed.get(&number).copied().unwrap_or(0);
        plan.overlapped_by = overlaps
            .winners
            .get(&number)
            .into_iter()
            .flatten()
            .map(|winner| resolved[*winner].policy.object.clone())
            .collect();
        tell(inputs, one, pods, &mut plan);
        plans.insert(policy.object.clone(), plan);
    }
    plans
}

/// A plan without any fact.
pub(super) fn empty() -> PolicyPlan {
    PolicyPlan {
        generation: 0,
        refusal: None,
        addresses: Vec::new(),
        reserved_addresses: Vec::new(),
        crowded: Vec::new(),
        given_anew: false,
        gateway: None,
        pods: BTreeMap::new(),
        selected: 0,
        programmed: 0,
        overlapped_by: BTreeSet::new(),
        shadowed: 0,
        families: (false, false),
        ready: false,
        conditions: Vec::new(),
    }
}

/// Completes a plan whose pods, programmed pods and overlaps are set: conditions, families and readiness.
pub(super) fn tell(inputs: Inputs<'_>, one: &Resolved<'_>, pods: Pods, plan: &mut PolicyPlan) {
    plan.generation = one.policy.generation;
    plan.refusal = one.refusal.clone();
    plan.addresses.clone_from(&one.addresses);
    plan.reserved_addresses = match one.refusal {
        Some(_) => one.given.clone(),
        None => Vec::new(),
    };
    plan.crowded = super::crowding::avoided(inputs.addresses, one);
    plan.given_anew = matches!(one.policy.addresses, AddressRequest::Pool(_))
        && one.addresses.iter().any(|a| !one.given.contains(a));
    plan.gateway = one.gateway.map(|g| g.name.clone());
    let next_hop = one.policy.next_hop().filter(|_| one.refusal.is_none());
    let used = || one.addresses.iter().chain(&next_hop);
    plan.families = (used().any(IpAddr::is_ipv4), used().any(IpAddr::is_ipv6));
    plan.conditions = conditions(&inputs, one, plan, pods);
    plan.ready = plan
        .conditions
        .iter()
        .any(|c| c.kind == ConditionType::Ready && c.status);
}

/// Reasons for the conditions of a policy.
pub(super) fn reasons(object: &ObjectRef, plan: &PolicyPlan) -> impl Iterator<Item = PlanReason> {
    plan.conditions.iter().map(|c| PlanReason {
        subject: object.to_string(),
        text: format!("{:?} is {}: {} ({})", c.kind, c.status, c.reason, c.message),
    })
}

fn conditions(
    inputs: &Inputs<'_>,
    one: &Resolved<'_>,
    plan: &PolicyPlan,
    pods: Pods,
) -> Vec<Condition> {
    let exhausted = exhausted(inputs, plan);
    let mut all = vec![
        accepted(plan, pods.host_network),
        allocated(one, plan),
        ready(inputs, one, plan, &exhausted, pods.addressed),
    ];
    all.extend(ports_exhausted(inputs, plan, &exhausted));
    all.extend(ports_low(inputs, plan));
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
    all.extend(degraded(inputs, one, plan));
    all.extend(address_conflict(inputs, one, plan));
    all
}

/// Other users of its addresses, as one condition.
fn address_conflict(
    inputs: &Inputs<'_>,
    one: &Resolved<'_>,
    plan: &PolicyPlan,
) -> Option<Condition> {
    let machines = foreign_machines(inputs, plan);
    let reason = match machines.is_empty() {
        true => Reason::AddressInCluster,
        false => Reason::ForeignMachine,
    };
    let all: Vec<String> = machines.into_iter().chain(one.occupied.clone()).collect();
    let kind = ConditionType::AddressConflict;
    (!all.is_empty()).then(|| Condition::new(kind, true, reason, all.join("; ")))
}

/// Other machines that gateways observe answering for its addresses.
fn foreign_machines(inputs: &Inputs<'_>, plan: &PolicyPlan) -> Vec<String> {
    let addresses = plan.addresses.iter();
    let conflicts = addresses.filter_map(|address| {
        let (gateway, claim) = inputs.addresses.get(address)?.conflict.as_ref()?;
        Some(foreign(*address, gateway, claim))
    });
    conflicts.collect()
}

/// Whether a node of the cluster has an address of an earlier system's object. While both systems serve it, the node
/// that the earlier system chose has it by design (decision 95) and answers for it.
fn is_with_a_node(one: &Resolved<'_>) -> bool {
    let own = matches!(one.policy.object.kind, Kind::Egress | Kind::ClusterEgress);
    !own && !one.occupied.is_empty()
}

/// Everything that the policy lacks, as one condition.
fn degraded(inputs: &Inputs<'_>, one: &Resolved<'_>, plan: &PolicyPlan) -> Option<Condition> {
    let nodes = gateway_nodes(inputs, one);
    joined([
        unreadable_record(inputs, plan),
        not_on_link(one, plan, nodes),
        next_hop_missing(one, plan, nodes),
        uplinks::some_lost(nodes),
        without_ebpf(nodes),
    ])
}

/// The first of its addresses whose record cannot be read.
fn unreadable_record(inputs: &Inputs<'_>, plan: &PolicyPlan) -> Option<Condition> {
    let addresses = plan.addresses.iter();
    let mut conditions = addresses
        .filter_map(|address| inputs.addresses.get(address))
        .flat_map(|status| &status.conditions);
    conditions
        .find(|condition| condition.reason == Reason::RecordUnreadable)
        .cloned()
}

/// Condition `NotOnLink`: nobody sends ARP or ND requests for an address that is in no subnet of the segment, so
/// without a route to the gateways answers do not come back.
fn not_on_link(one: &Resolved<'_>, plan: &PolicyPlan, nodes: &[GatewayNode]) -> Option<Condition> {
    let announces = one
        .gateway
        .is_some_and(|gateway| gateway.announce == AnnounceMode::L2);
    let subnets = || nodes.iter().flat_map(|node| &node.external);
    // A family without any gateway address is not judged.
    let is_off = |address: &&IpAddr| {
        let mut same = subnets().filter(|net| net.addr().is_ipv4() == address.is_ipv4());
        same.clone().next().is_some() && !same.any(|net| net.contains(*address))
    };
    if plan.refusal.is_some() || !announces {
        return None;
    }
    let off: Vec<String> = plan
        .addresses
        .iter()
        .filter(is_off)
        .map(IpAddr::to_string)
        .collect();
    (!off.is_empty()).then(|| {
        let text = format!(
            "in no subnet of the gateways' external devices, so that nobody asks for it there: {}; route it to the \
             gateways, or use an address of their segment",
            off.join(", ")
        );
        Condition::new(ConditionType::Degraded, true, Reason::NotOnLink, text)
    })
}

/// Gateways that are not attached to the policy's next hop, as a condition; packets use the attached ones alone.
fn next_hop_missing(
    one: &Resolved<'_>,
    plan: &PolicyPlan,
    nodes: &[GatewayNode],
) -> Option<Condition> {
    let next_hop = one.policy.next_hop().filter(|_| plan.refusal.is_none())?;
    let lacks = |node: &&GatewayNode| node.running && !node.next_hops.contains(&next_hop);
    let lacking: Vec<&str> = nodes
        .iter()
        .filter(lacks)
        .map(|node| node.node.0.as_str())
        .collect();
    (!lacking.is_empty()).then(|| {
        let text = format!(
            "{next_hop} is on no network of these gateway nodes, so that nothing goes by them: {}; {ATTACH}",
            lacking.join(", ")
        );
        Condition::new(
            ConditionType::Degraded,
            true,
            Reason::NextHopNotAttached,
            text,
        )
    })
}

/// Remedy for a next hop that gateways are not attached to.
const ATTACH: &str = "give them an address of its network (on a VLAN device, for example), or name a router that they have";

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
    if let Some(next_hop) = one.policy.next_hop() {
        let text = format!("it needs no address: its traffic goes to the next hop {next_hop}");
        return Condition::new(kind, true, Reason::Allocated, text);
    }
    let names: Vec<String> = plan.addresses.iter().map(ToString::to_string).collect();
    Condition::new(kind, true, Reason::Allocated, names.join(", "))
}

fn ports_exhausted(
    inputs: &Inputs<'_>,
    plan: &PolicyPlan,
    exhausted: &[String],
) -> Option<Condition> {
    let kind = ConditionType::PortsExhausted;
    if !exhausted.is_empty() {
        let message = format!("no free port block is left for: {}", exhausted.join("; "));
        return Some(Condition::new(kind, true, Reason::NoFreeBlock, message));
    }
    if !plan.addresses.iter().any(|a| inputs.full.contains(a)) {
        return None;
    }
    let nodes = plan.pods.keys();
    let records = nodes.filter_map(|node| inputs.records.get(node));
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

fn ports_low(inputs: &Inputs<'_>, plan: &PolicyPlan) -> Option<Condition> {
    let is_low = |address: &&IpAddr| {
        let status = inputs.addresses.get(*address);
        let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.kind == ConditionType::PortsLow)
    };
    let ports = |address: &IpAddr| {
        let leased = inputs
            .addresses
            .get(address)
            .map_or(0, |status| status.ports_leased);
        format!("{address} ({leased} ports)")
    };
    let low = plan.addresses.iter().filter(is_low);
    let low: Vec<String> = low.map(ports).collect();
    (!low.is_empty()).then(|| {
        let message = format!(
            "at least 80 % of the ports of {} are leased: add an address",
            low.join(", ")
        );
        Condition::new(ConditionType::PortsLow, true, Reason::FewFreePorts, message)
    })
}

/// Nodes of this policy that got no ports, each with the address.
fn exhausted(inputs: &Inputs<'_>, plan: &PolicyPlan) -> Vec<String> {
    let mut lines = Vec::new();
    for address in &plan.addresses {
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
    inputs: &Inputs<'_>,
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
    let nodes = gateway_nodes(inputs, one);
    let mut running = nodes.iter().filter(|node| node.running).peekable();
    if running.peek().is_none() {
        return no(
            Reason::NoGateway,
            "no gateway node of its gateway runs an agent".into(),
        );
    }
    if let Some(next_hop) = one.policy.next_hop()
        && !running.any(|node| node.next_hops.contains(&next_hop))
    {
        let text = format!(
            "{next_hop} is on no network of any gateway node of its gateway that runs, or cannot be served there; {ATTACH}"
        );
        return no(Reason::NextHopNotAttached, text);
    }
    if let Some(text) = uplinks::none_left_for(one.policy, nodes) {
        return no(Reason::NoUplink, text);
    }
    if !exhausted.is_empty() {
        return no(Reason::PortsExhausted, exhausted.join("; "));
    }
    if let Some(address) = inputs.left_out
        && pod_prefixes::reaches(one.policy, address)
    {
        let text = format!(
            "it could take traffic to pods out of the cluster: more than {POD_PREFIXES_MAX} of their addresses are in no \
             known prefix, and {address} is one that not every node knows; name their prefixes by --never-destination"
        );
        return no(Reason::NoPodCidr, text);
    }
    if plan.programmed < addressed {
        return no(
            Reason::Programming,
            format!("{} of {addressed} pods are programmed", plan.programmed),
        );
    }
    let machines = foreign_machines(inputs, plan);
    if !machines.is_empty() && !is_with_a_node(one) {
        return no(Reason::ForeignMachine, machines.join("; "));
    }
    let yes = |reason: Reason, message: String| {
        Condition::new(ConditionType::Ready, true, reason, message)
    };
    if let Some(text) = without_namespace(inputs, one.policy).filter(|_| plan.selected == 0) {
        return no(Reason::NamespaceNotFound, text);
    }
    if plan.selected > 0 && plan.shadowed == plan.selected {
        let names: Vec<String> = plan.overlapped_by.iter().map(ToString::to_string).collect();
        let text = format!(
            "nothing leaves by it: for every destination of all its {} pods these win: {}",
            plan.selected,
            names.join(", ")
        );
        return yes(Reason::OtherPolicyWins, text);
    }
    if plan.selected == 0 {
        return yes(Reason::NoPods, "no running pod is selected".into());
    }
    yes(
        Reason::Programmed,
        format!("all {addressed} pods are programmed"),
    )
}

/// Why no namespace can have pods that the policy selects. `None` if no namespace is known at all: a directory need not
/// contain them.
fn without_namespace(inputs: &Inputs<'_>, policy: &Policy) -> Option<String> {
    let known = inputs.namespaces;
    if known.is_empty() {
        return None;
    }
    let missing = |name: &String| {
        let text = || format!("there is no namespace {name}");
        (!known.contains_key(name)).then(text)
    };
    match &policy.selection {
        Selection::Labels { namespaces, .. } => match namespaces {
            Namespaces::All => None,
            Namespaces::Names(names) => {
                let gone: Option<Vec<String>> = names.iter().map(missing).collect();
                gone.map(|gone| gone.join(", "))
            }
            Namespaces::Labels(selector) => {
                let mut all = known.values();
                let found = all.any(|namespace| selector.matches(&namespace.labels));
                (!found).then(|| "spec.namespaceSelector matches no namespace".to_owned())
            }
        },
        Selection::Service { namespace, .. } | Selection::Workload { namespace, .. } => {
            missing(namespace)
        }
        Selection::Addresses(_) => None,
    }
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

fn gateway_nodes<'i>(inputs: &'i Inputs<'_>, one: &Resolved<'_>) -> &'i [GatewayNode] {
    let plan = one
        .gateway
        .and_then(|gateway| inputs.gateways.get(&gateway.name));
    plan.map_or(&[], |plan| &plan.nodes)
}
