//! Rules for packets to a next hop. The pods' node sends them through the tunnel unchanged; the gateway translates them
//! to the source that its kernel selects for reaching that next hop.

use super::counters as c;
use super::names::Stage;
use super::profile::refused;
use egret_core::node::{Attachment, GroupNumber, NextHop, NextHopWay, NodeState};
use egret_core::numbers::{MARK_MASK, MARK_SHIFT, TUNNEL_DEVICE};
use egret_kernel::nft::rule::{Builder, End, FAMILIES, Family};
use egret_kernel::nft::rule::{Interface, STATE_ESTABLISHED, STATE_INVALID, STATE_UNTRACKED, rule};
use egret_kernel::nft::{Chain, Rule, Table};

/// Chain that checks packets that leave this node after they came through the tunnel.
const GUARD_FROM_TUNNEL: &str = "guard_from_tunnel";

pub(super) fn chains(state: &NodeState, table: &mut Table) {
    let mut plain = |name: String, rules: Vec<Rule>| {
        table.chains.insert(name, Chain { hook: None, rules });
    };
    for (number, next_hop) in &state.worker.next_hops {
        plain(
            Stage::Classify.next_hop(*number),
            classify(*number, next_hop),
        );
        plain(Stage::Nat.next_hop(*number), vec![nat(next_hop)]);
        plain(Stage::Guard.next_hop(*number), guard(next_hop));
    }
    if attached(state).next().is_some() {
        let mut rules: Vec<Rule> = attached(state)
            .map(|(_, next_hop, here)| passes(next_hop, here))
            .collect();
        rules.push(dropped());
        plain(GUARD_FROM_TUNNEL.into(), rules);
    }
}

fn attached(state: &NodeState) -> impl Iterator<Item = (GroupNumber, &NextHop, &Attachment)> {
    let all = state.worker.next_hops.iter();
    all.filter_map(|(number, next_hop)| match &next_hop.way {
        NextHopWay::Attached(here) => Some((*number, next_hop, here)),
        NextHopWay::Tunnel(_) | NextHopWay::Nowhere => None,
    })
}

/// Packets of the tunnel that the gateway's program has marked with the group number of a next hop. A packet of our own
/// device carries no mark but our own program's.
fn marked(number: GroupNumber, next_hop: &NextHop) -> Builder {
    rule()
        .family(Family::of(next_hop.address))
        .mark_is(MARK_MASK, u32::from(number) << MARK_SHIFT)
}

/// Accepts packets to next hops that come through the tunnel and are no answers.
pub(super) fn from_tunnel(state: &NodeState) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (number, next_hop, _) in attached(state) {
        // The tunnel leads out of the cluster, not to this node.
        let here = marked(number, next_hop).destination_is_local();
        rules.push(here.count(c::UNSOLICITED).drop());
        let chain = Stage::Classify.next_hop(number);
        rules.push(marked(number, next_hop).goto(&chain));
    }
    rules
}

/// Translates the source of packets that come through the tunnel.
pub(super) fn translate(state: &NodeState) -> Vec<Rule> {
    let one = |(number, next_hop, here): (GroupNumber, &NextHop, &Attachment)| {
        rule()
            .device(Interface::In, TUNNEL_DEVICE, true)
            .device(Interface::Out, &here.device, true)
            .next_hop_is(next_hop.address)
            .goto(&Stage::Nat.next_hop(number))
    };
    attached(state).map(one).collect()
}

/// Packets that came through the tunnel may leave only to one of the next hops, by its device and with its source.
/// Holds also if the mark was changed or a foreign rule disabled tracking.
pub(super) fn look_at_tunnel(state: &NodeState) -> Vec<Rule> {
    if attached(state).next().is_none() {
        return Vec::new();
    }
    let from_tunnel = || rule().device(Interface::In, TUNNEL_DEVICE, true);
    let mut rules = vec![from_tunnel().direction(false).goto(GUARD_FROM_TUNNEL)];
    for family in FAMILIES {
        // The tunnel's own outer packets have the tunnel as their input device, and they are untracked.
        let inner = from_tunnel().state(STATE_INVALID | STATE_UNTRACKED);
        let inner = inner.address_not_in(family, End::Destination, &family.named("peers"));
        rules.push(inner.goto(GUARD_FROM_TUNNEL));
    }
    rules
}

fn classify(number: GroupNumber, next_hop: &NextHop) -> Vec<Rule> {
    let family = Family::of(next_hop.address);
    // A flow with another source than it would get now, from before this policy or by another route, ends here.
    let old = || match &next_hop.way {
        NextHopWay::Attached(here) => rule()
            .state(STATE_ESTABLISHED)
            .translated_source_is(here.source, false),
        NextHopWay::Tunnel(_) | NextHopWay::Nowhere => {
            rule().state(STATE_ESTABLISHED).source_is_translated(true)
        }
    };
    let mut rules = refused(family, old);
    let mark = u32::from(number) << MARK_SHIFT;
    rules.push(rule().set_mark(MARK_MASK, mark).accept());
    rules
}

fn nat(next_hop: &NextHop) -> Rule {
    match &next_hop.way {
        NextHopWay::Attached(here) => rule().snat_to(here.source),
        // Identity translation, so that no later rule translates it: the gateway does.
        NextHopWay::Tunnel(_) => rule().snat_to_itself(Family::of(next_hop.address)),
        NextHopWay::Nowhere => rule().drop(),
    }
}

fn guard(next_hop: &NextHop) -> Vec<Rule> {
    let way = match &next_hop.way {
        NextHopWay::Attached(here) => Some(passes(next_hop, here)),
        NextHopWay::Tunnel(_) => Some(
            rule()
                .family(Family::of(next_hop.address))
                .device(Interface::Out, TUNNEL_DEVICE, true)
                .source_is_translated(false)
                .accept(),
        ),
        NextHopWay::Nowhere => None,
    };
    way.into_iter().chain([dropped()]).collect()
}

fn passes(next_hop: &NextHop, here: &Attachment) -> Rule {
    rule()
        .device(Interface::Out, &here.device, true)
        .next_hop_is(next_hop.address)
        .address_is(End::Source, here.source, true)
        .accept()
}

fn dropped() -> Rule {
    rule().count(c::GUARD_SELECTED).drop()
}
