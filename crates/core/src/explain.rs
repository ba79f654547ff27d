//! Explains how a pod's traffic leaves and why: pod -> policy -> address -> lease -> gateway -> verdict, one line per
//! step.

mod answers;
mod doubt;

use crate::compile::{Claim, compile};
use crate::model::*;
use crate::node::{
    BrokenPath, Group, GroupNumber, NextHopRoute, NodeOutcome, OPEN_TUNNEL, Profile, TargetId,
    Verdict,
};
use crate::resolve::{
    Paired, Precedence, Resolved, age_ranks, assigned, family_index, pair, resolve, select,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Subject of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs)]
pub enum Stage {
    Pod,
    Policy,
    Address,
    Lease,
    Gateway,
    Verdict,
}

/// One line of an explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Step {
    /// Subject of the line.
    pub stage: Stage,
    /// The step has no problem.
    pub ok: bool,
    /// The line as a sentence.
    pub text: String,
}

/// Result of an explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Leaves {
    /// Egret does not touch the traffic: it leaves as without Egret.
    Untouched,
    /// It leaves with these egress addresses (several: it depends on family, protocol or port).
    From(BTreeSet<IpAddr>),
    /// It goes to these next hops, with the source that the gateway's kernel selects for them.
    Through(BTreeSet<IpAddr>),
    /// It is dropped or rejected.
    Stopped,
    /// Unknown here: the state of the pod's node is not available.
    Unknown,
}

/// An explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// Destination, if one was asked for.
    pub to: Option<IpAddr>,
    /// Steps in the order of the packet's path.
    pub steps: Vec<Step>,
    /// The result.
    pub leaves: Leaves,
}

impl Explanation {
    fn say(&mut self, stage: Stage, ok: bool, text: impl Into<String>) {
        self.steps.push(Step {
            stage,
            ok,
            text: text.into(),
        });
    }

    fn end(mut self, leaves: Leaves, ok: bool, text: impl Into<String>) -> Self {
        self.say(Stage::Verdict, ok, text);
        self.leaves = leaves;
        self
    }
}

/// Explains how traffic of `pod` (namespace, name) leaves, to anywhere or to `to`. `outcome`: the state of the pod's
/// node, if available.
pub fn explain(
    snapshot: &Snapshot,
    outcome: Option<&NodeOutcome>,
    pod: (&str, &str),
    to: Option<IpAddr>,
) -> Explanation {
    let mut result = Explanation {
        pod: format!("{}/{}", pod.0, pod.1),
        to,
        steps: Vec::new(),
        leaves: Leaves::Unknown,
    };
    let Some(pod) = snapshot.pods.get(&(pod.0.to_owned(), pod.1.to_owned())) else {
        // An agent only reads the pods of its own node.
        let text = match outcome {
            Some(_) => "no such pod is known here: an agent knows those of its own node",
            None => "there is no such pod",
        };
        return result.end(Leaves::Unknown, false, text);
    };
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() {
        "no address yet".to_owned()
    } else {
        addresses.join(", ")
    };
    let text = format!("{} on {}, {addresses}", result.pod, pod.node);
    result.say(Stage::Pod, !pod.addresses.is_empty(), text);
    if pod.host_network {
        let text = "untouched: it uses its node's network, and such pods are never selected";
        return result.end(Leaves::Untouched, true, text);
    }
    if pod.finished {
        return result.end(
            Leaves::Untouched,
            true,
            "untouched: the pod has run to its end",
        );
    }
    if let Some(text) = doubt::without_node(snapshot, pod) {
        return result.end(Leaves::Unknown, false, text);
    }
    let outcome = outcome.filter(|outcome| doubt::is_of(snapshot, outcome, &pod.node));
    match doubt::shared(snapshot, pod) {
        Some(text) => {
            result.say(Stage::Pod, false, text);
            match outcome {
                Some(outcome) => by_outcome(result, snapshot, outcome, pod),
                None => not_at_hand(result, pod),
            }
        }
        None => by_policies(result, snapshot, outcome, pod),
    }
}

fn not_at_hand(result: Explanation, pod: &Pod) -> Explanation {
    let text = format!("the state of {} is not at hand: ask its agent", pod.node);
    result.end(Leaves::Unknown, true, text)
}

/// Steps from the policies, for a pod that may be selected.
fn by_policies(
    mut result: Explanation,
    snapshot: &Snapshot,
    outcome: Option<&NodeOutcome>,
    pod: &Pod,
) -> Explanation {
    let to = result.to;
    let (resolved, _) = resolve(snapshot, &assigned(snapshot), &snapshot.pods);
    let selected = select(snapshot, &resolved, std::iter::once(pod));
    let policies = &selected.policies[0];
    if policies.is_empty() {
        result.say(Stage::Policy, true, "no policy selects it");
        return result.end(
            Leaves::Untouched,
            true,
            "untouched: it leaves as without Egret",
        );
    }
    if let Some(to) = to
        && outcome.is_some_and(|o| o.state.worker.never.iter().any(|net| net.contains(&to)))
    {
        let text = format!("untouched: {to} is inside the cluster or never egress traffic");
        return result.end(Leaves::Untouched, true, text);
    }
    let involved = involved(&resolved, policies, to);
    if involved.is_empty() {
        let to = to.map_or("anywhere".to_owned(), |to| to.to_string());
        result.say(
            Stage::Policy,
            true,
            format!("none of its policies has {to} as destination"),
        );
        return result.end(
            Leaves::Untouched,
            true,
            "untouched: it leaves as without Egret",
        );
    }
    for number in &involved {
        let silent = outcome.map(|outcome| &outcome.silent);
        policy_steps(&mut result, (snapshot, silent), &resolved[*number], pod);
    }
    match outcome {
        Some(outcome) => by_outcome(result, snapshot, outcome, pod),
        None => not_at_hand(result, pod),
    }
}

/// The policies that decide: those that win for some destination, or for `to`, in the order of precedence.
fn involved(resolved: &[Resolved<'_>], policies: &[usize], to: Option<IpAddr>) -> Vec<usize> {
    let ages = age_ranks(resolved.iter().map(|r| r.policy));
    let precedence = |number: usize, prefix: u8| {
        let policy = resolved[number].policy;
        Precedence::new(policy, prefix, ages[&policy.object])
    };
    let claims: Vec<Claim<'_, usize>> = policies
        .iter()
        .map(|number| Claim {
            precedence: Box::new(move |prefix| precedence(*number, prefix)),
            destinations: resolved[*number].policy.destinations.as_deref(),
            verdicts: [Some(*number); 2],
        })
        .collect();
    let here = |first: IpAddr, last: IpAddr| {
        to.is_none_or(|to| to.is_ipv4() == first.is_ipv4() && first <= to && to <= last)
    };
    let boxes = compile(&claims).boxes;
    let winners = boxes
        .into_iter()
        .filter(|b| here(b.first, b.last))
        .map(|b| b.verdict);
    let mut winners: Vec<usize> = winners.collect::<BTreeSet<_>>().into_iter().collect();
    winners.sort_by_key(|number| precedence(*number, 0));
    winners
}

/// Steps of the policies. `silent`: gateways that do not answer the probes of the node that is asked.
fn policy_steps(
    result: &mut Explanation,
    (snapshot, silent): (&Snapshot, Option<&BTreeSet<NodeName>>),
    one: &Resolved<'_>,
    pod: &Pod,
) {
    let object = &one.policy.object;
    match &one.refusal {
        None => result.say(Stage::Policy, true, format!("{object} selects it")),
        Some(refusal) => {
            let text = format!("{object} selects it and is refused: {}", refusal.message);
            result.say(Stage::Policy, false, text);
        }
    }
    if let (Some(next_hop), None) = (one.policy.next_hop(), &one.refusal) {
        next_hop_step(result, snapshot, one, next_hop);
    }
    let paired: Paired = pair(snapshot, one, pod);
    for address in paired.into_iter().flatten().filter(|a| has_family(pod, *a)) {
        let of = one.addresses.len();
        let why = if of > 1 {
            format!(", paired to it among {of}")
        } else {
            String::new()
        };
        result.say(Stage::Address, true, format!("{address}{why}"));
        lease_step(result, snapshot, &pod.node, address);
        let Some(gateway) = one.gateway else { continue };
        let (announced, good) = answers::announced(snapshot, gateway, silent, address);
        let text = format!("EgressGateway {}; {announced}", gateway.name.0);
        result.say(Stage::Gateway, good, text);
    }
}

fn has_family(pod: &Pod, address: IpAddr) -> bool {
    pod.addresses.is_empty()
        || pod
            .addresses
            .iter()
            .any(|a| a.is_ipv4() == address.is_ipv4())
}

fn lease_step(result: &mut Explanation, snapshot: &Snapshot, node: &NodeName, address: IpAddr) {
    let grants = snapshot
        .node_records
        .get(node)
        .map_or(&[][..], |record| &record.grants);
    let Some(grant) = grants.iter().find(|grant| grant.address == address) else {
        result.say(
            Stage::Lease,
            false,
            format!("{node} has no ports of {address}"),
        );
        return;
    };
    let ranges: Vec<String> = grant.ranges.iter().map(ToString::to_string).collect();
    let lease = snapshot.addresses.get(&address).and_then(|record| {
        record
            .leases
            .iter()
            .find(|l| l.node == *node && l.ranges == grant.ranges)
    });
    let state = lease.map_or(String::new(), |lease| format!(", {:?}", lease.state));
    let text = format!(
        "{node} has {} (epoch {}{state})",
        ranges.join(" "),
        grant.epoch
    );
    result.say(Stage::Lease, true, text);
}

/// Steps from the desired state of the node's kernel.
fn by_outcome(
    result: Explanation,
    snapshot: &Snapshot,
    outcome: &NodeOutcome,
    pod: &Pod,
) -> Explanation {
    let worker = &outcome.state.worker;
    // Profiles have verdicts for both families; an address is of one.
    let bound = |address: &IpAddr| {
        let profile = worker.profiles.get(worker.pods.get(address)?)?;
        Some((family_index(*address), profile))
    };
    let bound: Vec<(usize, &Profile)> = pod.addresses.iter().filter_map(bound).collect();
    if bound.is_empty() {
        return result.end(
            Leaves::Unknown,
            false,
            format!("{} has not programmed it", pod.node),
        );
    }
    let to = result.to;
    let here = |first: IpAddr, last: IpAddr| match to {
        Some(to) => to.is_ipv4() == first.is_ipv4() && first <= to && to <= last,
        None => pod
            .addresses
            .iter()
            .any(|a| family_index(*a) == family_index(first)),
    };
    let boxes = bound.iter().flat_map(|(family, profile)| {
        let boxes = profile.ranges.iter();
        boxes.filter(move |one| family_index(one.first) == *family)
    });
    let mut verdicts: BTreeSet<Verdict> = BTreeSet::new();
    let mut whole = false;
    for one in boxes.filter(|b| here(b.first, b.last)) {
        verdicts.insert(one.verdict);
        whole |= one.protocol.is_none();
    }
    let Statement {
        mut lines,
        ok,
        from,
        through,
    } = statement(snapshot, outcome, &verdicts);
    if lines.is_empty() {
        let text = "untouched: nothing of it is programmed for this destination";
        return result.end(Leaves::Untouched, true, text);
    }
    if to.is_some() && !whole {
        lines.push("other protocols and ports untouched".to_owned());
    }
    let leaves = match (from.is_empty(), through.is_empty()) {
        (false, _) => Leaves::From(from),
        (true, false) => Leaves::Through(through),
        (true, true) => Leaves::Stopped,
    };
    result.end(leaves, ok, lines.join("; "))
}

/// Verdicts of a profile, collected for the text.
struct Statement {
    lines: Vec<String>,
    ok: bool,
    /// Egress addresses that packets leave with.
    from: BTreeSet<IpAddr>,
    /// Next hops that packets go to.
    through: BTreeSet<IpAddr>,
}

fn statement(
    snapshot: &Snapshot,
    outcome: &NodeOutcome,
    verdicts: &BTreeSet<Verdict>,
) -> Statement {
    let mut statement = Statement {
        lines: Vec::new(),
        ok: true,
        from: BTreeSet::new(),
        through: BTreeSet::new(),
    };
    for verdict in verdicts {
        let (line, good) = match verdict {
            Verdict::Target(id) => {
                let (address, line, good) = target_line(snapshot, outcome, *id);
                statement.from.extend(address.filter(|_| good));
                (line, good)
            }
            Verdict::NextHop(number) => {
                let (next_hop, line) = next_hop_line(snapshot, outcome, *number);
                statement.through.extend(next_hop);
                (line, next_hop.is_some())
            }
            Verdict::FamilyNotCovered => (
                "rejected: the policy has no address of this family".to_owned(),
                true,
            ),
            Verdict::Unavailable => (
                "dropped: the policy's address cannot be used now".to_owned(),
                false,
            ),
        };
        statement.lines.push(line);
        statement.ok &= good;
    }
    statement
}

fn target_line(
    snapshot: &Snapshot,
    outcome: &NodeOutcome,
    id: TargetId,
) -> (Option<IpAddr>, String, bool) {
    let worker = &outcome.state.worker;
    let Some(target) = worker.targets.get(&id) else {
        return (None, "its target is missing".to_owned(), false);
    };
    let address = target.address;
    if target.ranges.is_empty() {
        let text = format!("new connections are dropped: no port of {address} can be used yet");
        return (Some(address), text, false);
    }
    let names = |members: &BTreeSet<u16>| names(snapshot, members);
    let me = BTreeSet::from([outcome.state.tunnel.index]);
    // Probe results are nearer to the cause than canary results.
    match worker.groups.get(&target.group) {
        Some(Group::Tunnel(members)) if answers::is_kept(outcome, id) => {
            let text = answers::nothing_comes_back(address, &names(members));
            return (Some(address), text, false);
        }
        Some(Group::Tunnel(members)) if answers::are_lost(snapshot, members) => {
            let text = answers::no_way_out(address, &names(members));
            return (Some(address), text, false);
        }
        Some(Group::Local { .. }) if answers::are_lost(snapshot, &me) => {
            let text = answers::no_way_out(address, &names(&me));
            return (Some(address), text, false);
        }
        _ => {}
    }
    if let Some(broken) = broken_path(outcome, id, address) {
        let text = format!("selected, and packets do not come back: {broken}");
        return (Some(address), text, false);
    }
    match worker.groups.get(&target.group) {
        Some(Group::Tunnel(members)) => (
            Some(address),
            format!("leaves from {address} by {}", names(members)),
            true,
        ),
        Some(Group::Local { device }) => (
            Some(address),
            format!("leaves from {address} by this node's {device}"),
            true,
        ),
        Some(Group::Nowhere) | None => {
            let text = format!("dropped: no gateway of {address} has ever answered; {OPEN_TUNNEL}");
            (Some(address), text, false)
        }
    }
}

/// Broken path of this target, as canaries report it.
fn broken_path(outcome: &NodeOutcome, id: TargetId, address: IpAddr) -> Option<&BrokenPath> {
    let group = outcome.target_groups.get(&id)?;
    let mut broken = outcome.broken_paths.iter();
    broken.find(|path| path.group == *group && path.v6 == address.is_ipv6())
}

fn names(snapshot: &Snapshot, members: &BTreeSet<u16>) -> String {
    let name = |index: &u16| {
        let mut records = snapshot.node_records.values();
        let record = records.find(|r| r.tunnel_index == *index);
        record.map_or(format!("node {index}"), |record| record.node.to_string())
    };
    let names: Vec<String> = members.iter().map(name).collect();
    names.join(" or ")
}

fn next_hop_step(
    result: &mut Explanation,
    snapshot: &Snapshot,
    one: &Resolved<'_>,
    next_hop: IpAddr,
) {
    let text = format!("none: its traffic goes to the next hop {next_hop}");
    result.say(Stage::Address, true, text);
    let Some(gateway) = one.gateway else { return };
    let has = |record: &&NodeRecord| {
        let node = snapshot.nodes.get(&record.node);
        record.next_hops.contains(&next_hop) && node.is_some_and(|node| gateway.selects(node))
    };
    let all: Vec<&str> = snapshot
        .node_records
        .values()
        .filter(has)
        .map(|record| record.node.0.as_str())
        .collect();
    let who = match all.as_slice() {
        [] => "nobody reports that it has it on a network of its own".to_owned(),
        some => format!("{} have it on a network of their own", some.join(", ")),
    };
    let text = format!("EgressGateway {}; {who}", gateway.name.0);
    result.say(Stage::Gateway, !all.is_empty(), text);
}

/// The line for a next hop, if it can be reached.
fn next_hop_line(
    snapshot: &Snapshot,
    outcome: &NodeOutcome,
    number: GroupNumber,
) -> (Option<IpAddr>, String) {
    let Some(next_hop) = outcome.state.worker.next_hops.get(&number) else {
        return (None, "its next hop is missing".to_owned());
    };
    let address = next_hop.address;
    match &next_hop.route {
        NextHopRoute::Tunnel(members) => {
            let names = names(snapshot, members);
            let text = format!(
                "goes to the next hop {address} by {names}, with the source that it has there"
            );
            (Some(address), text)
        }
        NextHopRoute::Attached(here) => {
            let text = format!(
                "goes to the next hop {address} by this node's {}, from {}",
                here.device, here.source
            );
            (Some(address), text)
        }
        NextHopRoute::Nowhere => {
            let text = format!("dropped: no gateway that has the next hop {address} answers");
            (None, text)
        }
    }
}
