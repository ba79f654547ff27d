//! Counters along the path of canaries, so that a foreign hook that drops them can be named. Each base chain of its own
//! is the first or the last one of its hook.

use egret_core::canary::CanaryHook;
use egret_core::node::NodeState;
use egret_core::numbers::{
    CANARY_DESTINATION_V4, CANARY_DESTINATION_V6, CANARY_DEVICE, TUNNEL_DEVICE, TUNNEL_PORT,
};
use egret_kernel::nft::rule::{Builder, End, FAMILIES, Family, Interface, UDP, rule};
use egret_kernel::nft::{Chain, Hook, Rule, Table};

/// Bytes of the canary destinations that all groups share.
const PREFIX_V4: usize = 3;
const PREFIX_V6: usize = 15;

fn prefix(family: Family) -> Vec<u8> {
    match family {
        Family::V4 => CANARY_DESTINATION_V4.octets()[..PREFIX_V4].to_vec(),
        Family::V6 => CANARY_DESTINATION_V6.octets()[..PREFIX_V6].to_vec(),
    }
}

/// Matches an outgoing canary.
fn outward(state: &NodeState) -> Option<Builder> {
    state.worker.canary.as_ref()?;
    Some(rule().device(Interface::In, CANARY_DEVICE, true))
}

/// Matches a canary's answer from the tunnel.
fn answer(family: Family) -> Builder {
    rule()
        .device(Interface::In, TUNNEL_DEVICE, true)
        .address_starts(family, End::Source, &prefix(family))
}

fn count(packet: Builder, hook: CanaryHook) -> Rule {
    packet.count(hook.counter()).done()
}

/// Counts outgoing canaries in an existing chain at `hook`, if canaries are sent.
pub(super) fn outward_at(state: &NodeState, hook: CanaryHook) -> Option<Rule> {
    outward(state).map(|packet| count(packet, hook))
}

/// Counts canaries' answers in an existing chain at `hook`.
pub(super) fn answers_at(state: &NodeState, hook: CanaryHook) -> Vec<Rule> {
    match state.worker.canary {
        None => Vec::new(),
        Some(_) => FAMILIES.map(|family| count(answer(family), hook)).into(),
    }
}

/// Counts packets that connection tracking knows as answers to a canary.
pub(super) fn answered(known: Builder, family: Family) -> Rule {
    let answer = known.address_starts(family, End::Source, &prefix(family));
    count(answer, CanaryHook::Answered)
}

/// Matches a peer's tunnel packet with an answer in it: VXLAN (RFC 7348) without options, Ethernet, IP.
fn arrived(outer: Family, inner: Family) -> Rule {
    const UDP_VXLAN_ETHERNET_BYTES: u32 = 8 + 8 + 14;
    const SOURCE_V4: u32 = 12;
    const SOURCE_V6: u32 = 8;
    let offset = UDP_VXLAN_ETHERNET_BYTES
        + match inner {
            Family::V4 => SOURCE_V4,
            Family::V6 => SOURCE_V6,
        };
    let packet = rule()
        .family(outer)
        .protocol(UDP)
        .port(End::Destination, TUNNEL_PORT)
        .payload_is(offset, &prefix(inner));
    count(packet, CanaryHook::Arrived)
}

/// Drops canaries that no gateway will return. A canary leaves by the tunnel only, whatever its destination.
pub(super) fn end_here(state: &NodeState) -> Vec<Rule> {
    let Some(canary) = &state.worker.canary else {
        return Vec::new();
    };
    let ended = canary.end_here.iter().filter_map(|destination| {
        let packet = outward(state)?.family(Family::of(*destination));
        Some(
            packet
                .address_is(End::Destination, *destination, true)
                .drop(),
        )
    });
    let elsewhere =
        outward(state).map(|packet| packet.device(Interface::Out, TUNNEL_DEVICE, false).drop());
    ended.chain(elsewhere).collect()
}

/// Adds the chains and counters of canaries.
pub(super) fn chains(state: &NodeState, table: &mut Table) {
    if state.worker.canary.is_none() {
        return;
    }
    // Among the traffic counters, because they are removed when nothing is measured any more.
    let counters = CanaryHook::ALL.iter();
    table
        .traffic
        .extend(counters.map(|hook| hook.counter().to_owned()));
    const PREROUTING: u32 = 0;
    const FORWARD: u32 = 2;
    const POSTROUTING: u32 = 4;
    let out = |hook| outward_at(state, hook).into_iter();
    let underlay = Family::of(state.tunnel.underlay);
    let mut entered: Vec<Rule> = out(CanaryHook::Entered).collect();
    entered.extend(FAMILIES.map(|inner| arrived(underlay, inner)));
    entered.extend(answers_at(state, CanaryHook::Unwrapped));
    let mut forwarded: Vec<Rule> = out(CanaryHook::Forwarded).collect();
    forwarded.extend(answers_at(state, CanaryHook::AnswerForwarded));
    let leaving: Vec<Rule> = out(CanaryHook::Leaving).collect();
    for (name, number, priority, rules) in [
        ("canary_in", PREROUTING, i32::MIN, entered),
        ("canary_forwarded", FORWARD, i32::MAX, forwarded),
        ("canary_leaving", POSTROUTING, i32::MIN, leaving),
    ] {
        let hook = Some(Hook {
            number,
            priority,
            nat: false,
            device: None,
        });
        table.chains.insert(name.into(), Chain { hook, rules });
    }
}
