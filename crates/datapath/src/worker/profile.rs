//! Profiles (pod -> destinations) and targets (what happens to selected traffic), once for each of the three stages.

use super::counters as c;
use super::mss::clamp_mss;
use super::names::{BOUND, BOUND_DEVICES, FULL_SETS, GOTO, JUMP, STAGES, Stage, TRANSPORT};
use super::names::{opened, sent};
use super::quotas;
use crate::elements::{ByAddress, named_by_content};
use egret_core::model::{PortRange, Protocol};
use egret_core::node::{
    DestinationRange, Group, NodeState, PodMap, Profile, ProfileId, Target, Verdict,
};
use egret_core::numbers::{MARK_MASK, MARK_SHIFT, REINJECT_DEVICE, TUNNEL_DEVICE};
use egret_kernel::nft::rule::{self, FAMILIES, Family};
use egret_kernel::nft::rule::{
    Builder, End, Interface, STATE_ESTABLISHED, STATE_INVALID, STATE_NEW, STATE_UNTRACKED, rule,
};
use egret_kernel::nft::{Chain, ElementKey, Rule, Set, SetType, SharedElements, Table, Value};
use std::net::IpAddr;

const DROP: i32 = 0;

pub(super) fn targets(state: &NodeState, table: &mut Table) {
    let mut plain = |name: String, rules: Vec<Rule>| {
        table.chains.insert(name, Chain { hook: None, rules });
    };
    for (id, target) in &state.worker.targets {
        let group = state
            .worker
            .groups
            .get(&target.group)
            .unwrap_or(&Group::Nowhere);
        plain(Stage::Classify.target(*id), classify(target, group));
        plain(Stage::Nat.target(*id), nat(target));
        plain(Stage::Guard.target(*id), guard(target, group, state));
    }
}

fn classify(target: &Target, group: &Group) -> Vec<Rule> {
    let family = Family::of(target.address);
    let old = || {
        rule()
            .state(STATE_ESTABLISHED)
            .translated_source_is(target.address, false)
    };
    let mut rules = refused(family, old);
    rules.extend([rule()
        .state(STATE_NEW)
        .destination_in(
            target.address,
            FULL_SETS[usize::from(target.address.is_ipv6())],
        )
        .goto("refuse_full")]);
    // Last: only connections that nothing else refuses are counted.
    rules.extend(quotas::rules(target));
    rules.push(match group {
        // The node's own routes decide.
        Group::Local { .. } => rule().accept(),
        Group::Tunnel(_) | Group::Nowhere => {
            let mark = u32::from(target.group) << MARK_SHIFT;
            rule().set_mark(MARK_MASK, mark).accept()
        }
    });
    rules
}

/// Refuses selected packets that have no route to leave by. `old`: matches a flow from before this policy, which has
/// another source and ends here.
pub(super) fn refused(family: Family, old: impl Fn() -> Builder) -> Vec<Rule> {
    vec![
        by_other_device(family),
        rule().state(STATE_INVALID).count(c::INVALID).drop(),
        old().protocol(rule::TCP).count(c::ENDED).reset(),
        old().count(c::ENDED).prohibit(),
        rule()
            .state(STATE_NEW | STATE_UNTRACKED)
            .tcp_not_first()
            .count(c::MIDSTREAM)
            .reset(),
        // Egress addresses answer to flows of pods only: packets to them have no receiver.
        rule()
            .state(STATE_NEW)
            .address_in(family, End::Destination, &family.named("egress"))
            .goto("refuse_hairpin"),
    ]
}

/// Matches a packet whose pod is gone with its device, or whose source another pod forged. A reinjected packet comes by
/// our own device.
fn by_other_device(family: Family) -> Rule {
    rule()
        .device(Interface::In, REINJECT_DEVICE, false)
        .address_in(family, End::Source, &family.named(BOUND))
        .comes_by_other_than(family, &family.named(BOUND_DEVICES))
        .count(c::OTHER_DEVICE)
        .drop()
}

/// Spreads flows over the port ranges in proportion to their sizes: each rule takes its range's share of the ports that
/// the rules before it have left.
fn nat(target: &Target) -> Vec<Rule> {
    let mut rules = Vec::new();
    if !target.ranges.is_empty() {
        // Only the first packet of a connection passes here.
        let opened = opened(target.traffic_key);
        rules.push(rule().protocol_in(TRANSPORT, true).count(&opened).done());
    }
    let size = |range: &PortRange| u32::from(range.last - range.first) + 1;
    let mut left: u32 = target.ranges.iter().map(size).sum();
    for range in &target.ranges {
        let rule = rule().protocol_in(TRANSPORT, true);
        let rule = rule.share(size(range), left);
        rules.push(rule.snat(target.address, range.first, range.last));
        left -= size(range);
    }
    rules.push(rule().count(c::NO_LEASE).drop());
    rules
}

fn guard(target: &Target, group: &Group, state: &NodeState) -> Vec<Rule> {
    let device = match group {
        Group::Local { device } => Some(device.as_str()),
        Group::Tunnel(_) => Some(TUNNEL_DEVICE),
        Group::Nowhere => None,
    };
    let mut rules = Vec::new();
    if matches!(group, Group::Local { .. }) {
        // The packet leaves by the own device, but answers may come through another gateway and its tunnel.
        let family = Family::of(target.address);
        rules.push(clamp_mss(rule(), family, state));
    }
    if let Some(device) = device {
        let rule = rule().device(Interface::Out, device, true);
        rules.push(
            rule.address_is(End::Source, target.address, true)
                .count(&sent(target.traffic_key))
                .give_back(),
        );
    }
    rules.push(sent_by_ipvs(Family::of(target.address)));
    rules.push(rule().count(c::GUARD_SELECTED).drop());
    rules
}

/// Drops a selected packet that IPVS has sent to an endpoint outside the cluster: from the input hook it goes out without
/// passing prerouting or the forward hook with its new destination, so it is not classified.
pub(super) fn sent_by_ipvs(family: Family) -> Rule {
    rule()
        .began_towards(family, &family.named("never"))
        .count(c::GUARD_IPVS)
        .drop()
}

pub(super) fn profiles(state: &NodeState, table: &mut Table) {
    for family in FAMILIES {
        let addresses = state.worker.pods.of_family(family == Family::V4);
        for stage in STAGES {
            pods(state, table, stage, family, &addresses);
            for (id, profile) in &state.worker.profiles {
                one(table, stage, family, *id, profile);
            }
        }
    }
}

fn pods(state: &NodeState, table: &mut Table, stage: Stage, family: Family, addresses: &PodMap) {
    let mut map = Set::new(&[family.address_type()]);
    map.verdicts = true;
    let jump = |id: &ProfileId| Value::Verdict(JUMP, Some(stage.profile(family, *id)));
    let profiles = state.worker.profiles.keys();
    map.shared = Some(SharedElements::new(ByAddress {
        addresses: addresses.clone(),
        verdicts: profiles.map(|id| (*id, jump(id))).collect(),
    }));
    table.sets.insert(stage.pods(family), map);
}

fn one(table: &mut Table, stage: Stage, family: Family, id: ProfileId, profile: &Profile) {
    let (boxes, portless) = (
        boxes(stage, family, profile),
        portless(stage, family, profile),
    );
    let boxes_name = named_by_content(&boxes, &stage.boxes(family, id));
    let portless_name = named_by_content(&portless, &stage.portless(family, id));
    let mut rules = vec![
        rule()
            .address_in(family, End::Destination, &family.named("never"))
            .give_back(),
    ];
    if stage == Stage::Classify {
        rules.push(rule().destination_is_local().give_back());
    }
    rules.push(
        rule()
            .protocol_in(TRANSPORT, true)
            .by_box(family, boxes_name.clone()),
    );
    rules.push(
        rule()
            .protocol_in(TRANSPORT, false)
            .by_destination(family, portless_name.clone()),
    );
    table
        .chains
        .insert(stage.profile(family, id), Chain { hook: None, rules });
    table.sets.insert(boxes_name, boxes);
    table.sets.insert(portless_name, portless);
}

fn boxes(stage: Stage, family: Family, profile: &Profile) -> Set {
    let mut map = Set::new(&[family.address_type(), SetType::Protocol, SetType::Port]);
    (map.verdicts, map.interval) = (true, true);
    for b in profile
        .ranges
        .iter()
        .filter(|b| Family::of(b.first) == family)
    {
        map.elements
            .insert(box_key(b), box_verdict(stage, b.verdict));
    }
    map
}

fn portless(stage: Stage, family: Family, profile: &Profile) -> Set {
    let mut map = Set::new(&[family.address_type()]);
    (map.verdicts, map.interval) = (true, true);
    let refusal = match stage {
        Stage::Classify => Value::Verdict(GOTO, Some(stage.refusal("portless"))),
        Stage::Guard => Value::Verdict(GOTO, Some(stage.refusal("selected"))),
        Stage::Nat => Value::Verdict(DROP, None),
    };
    for (first, last) in profile
        .portless
        .iter()
        .filter(|(first, _)| Family::of(*first) == family)
    {
        map.elements
            .insert(ElementKey::addresses(*first, *last), refusal.clone());
    }
    map
}

fn box_key(b: &DestinationRange) -> ElementKey {
    let (protocol_first, protocol_last) = match (b.protocol, b.first) {
        (None, _) => (0, 255),
        (Some(Protocol::Tcp), _) => (6, 6),
        (Some(Protocol::Udp), _) => (17, 17),
        (Some(Protocol::Sctp), _) => (132, 132),
        (Some(Protocol::Icmp), IpAddr::V4(_)) => (1, 1),
        (Some(Protocol::Icmp), IpAddr::V6(_)) => (58, 58),
    };
    let key = |address: IpAddr, protocol: u8, port: u16| {
        let address = ElementKey::address(address).first;
        ElementKey::single(&[&address, &[protocol], &port.to_be_bytes()]).first
    };
    ElementKey {
        first: key(b.first, protocol_first, b.port_first),
        last: key(b.last, protocol_last, b.port_last),
    }
}

fn box_verdict(stage: Stage, verdict: Verdict) -> Value {
    match (stage, verdict) {
        (_, Verdict::Target(id)) => Value::Verdict(GOTO, Some(stage.target(id))),
        (_, Verdict::NextHop(number)) => Value::Verdict(GOTO, Some(stage.next_hop(number))),
        (Stage::Classify, Verdict::FamilyNotCovered) => {
            Value::Verdict(GOTO, Some(stage.refusal("family")))
        }
        (Stage::Classify, Verdict::Unavailable) => {
            Value::Verdict(GOTO, Some(stage.refusal("unavailable")))
        }
        (Stage::Guard, _) => Value::Verdict(GOTO, Some(stage.refusal("selected"))),
        (Stage::Nat, _) => Value::Verdict(DROP, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::node::TrafficKeyId;
    use egret_kernel::nft::Expression;

    /// Probability that a new flow gets a port of each range, as the rules say.
    fn shares(ranges: &[(u16, u16)]) -> Vec<f64> {
        let ranges = ranges
            .iter()
            .map(|&(first, last)| PortRange { first, last });
        let rules = nat(&Target {
            address: "192.0.2.1".parse().unwrap(),
            group: 1,
            ranges: ranges.collect(),
            traffic_key: TrafficKeyId(1),
            quotas: Default::default(),
        });
        let mut left = 1.0;
        let translating = rules
            .iter()
            .filter(|rule| rule.iter().any(|e| matches!(e, Expression::Snat { .. })));
        let share = translating.map(|rule| {
            let (mut modulus, mut below) = (1, 1);
            for expression in rule {
                match expression {
                    Expression::Random(whole, _) => modulus = *whole,
                    Expression::Less { bytes, .. } => {
                        below = u32::from_be_bytes(bytes.as_slice().try_into().unwrap());
                    }
                    _ => {}
                }
            }
            let share = left * f64::from(below) / f64::from(modulus);
            left -= share;
            share
        });
        share.collect()
    }

    #[test]
    fn flows_are_spread_in_proportion_to_the_sizes_of_ranges() {
        let close = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close(shares(&[(1024, 1279)]), &[1.0]));
        assert!(close(shares(&[(1024, 1279), (4096, 4351)]), &[0.5, 0.5]));
        let sizes = [(1024, 1087), (2048, 2239), (8192, 8703), (65280, 65535)];
        let ports = [64.0, 192.0, 512.0, 256.0].map(|ports| ports / 1024.0);
        assert!(close(shares(&sizes), &ports), "{:?}", shares(&sizes));
        let whole = [(1024, 65535)];
        assert!(close(shares(&whole), &[1.0]));
    }
}
