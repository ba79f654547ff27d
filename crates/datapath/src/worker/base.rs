//! Sets and chains of every node's table, whatever its policies.

use super::counters as c;
use super::mss::clamp_mss;
use super::names::{BOUND, BOUND_DEVICES, TRANSPORT};
use super::names::{ENDED_SETS, FULL_SETS, GOTO, LATE_SETS, PORTLESS_SETS, Stage};
use super::profile::sent_by_ipvs;
use super::refusal::refuse;
use super::{canary, marks, next_hops};
use egret_core::canary::CanaryHook;
use egret_core::node::{GatewayState, Group, NodeState};
use egret_core::numbers::{
    ENDED_FLOWS_MAX, FULL_DESTINATIONS_MAX, GROUP_LEFT_ALONE, MARK_MASK, MARK_SHIFT, PROBE_PORT,
    REFUSED_PROTOCOL_SECS, REFUSED_PROTOCOLS_MAX, REINJECT_DEVICE, TUNNEL_DEVICE, TUNNEL_PORT,
};
use egret_kernel::nft::rule::{self, FAMILIES, Family};
use egret_kernel::nft::rule::{End, STATE_ESTABLISHED, STATE_INVALID, STATE_NEW, STATE_RELATED};
use egret_kernel::nft::rule::{Interface, rule};
use egret_kernel::nft::rule::{STATE_UNTRACKED, UDP};
use egret_kernel::nft::{Chain, ElementKey, Hook, Rule, Set, SetType, Table, Value};
use ipnet::IpNet;
use std::net::IpAddr;

/// Set of own devices: the tunnel, and the external device of a node that is its own gateway.
const DEVICES: &str = "devices";
/// Set of devices that peers' packets may come by, regardless of routes.
const UNDERLAY_DEVICES: &str = "underlay_devices";
/// Map: egress address -> classification of ICMP errors about its flows.
const ERRORS: &str = "errors";
/// Sets of pod CIDRs and of known pods' addresses; present only where packets of unknown pods are dropped.
const POD_CIDRS: &str = "pod_cidrs";
const KNOWN_PODS: &str = "known_pods";
/// Bytes of the link-local prefix that the tunnel uses: fe80::/64.
const TUNNEL_PREFIX: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];

pub(super) fn sets(state: &NodeState, table: &mut Table) {
    for family in FAMILIES {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let peers = state.peers.values().map(|peer| &peer.underlay);
        let leased = state.worker.targets.values().map(|target| &target.address);
        addresses(
            table,
            family.named("peers"),
            family,
            peers.filter(of_family),
        );
        addresses(
            table,
            family.named("nodes"),
            family,
            state.node_addresses.iter().filter(of_family),
        );
        let egress = &state.worker.egress_addresses;
        addresses(
            table,
            family.named("egress"),
            family,
            egress.iter().filter(of_family),
        );
        addresses(
            table,
            family.named("leased"),
            family,
            leased.filter(of_family),
        );
        let never = &state.worker.never;
        prefixes(table, family.named("never"), family, never.iter());
        unknown_sets(state, table, family);
        bound(state, table, family);
        errors(state, table, family);
        for names in [LATE_SETS, ENDED_SETS] {
            let ty = family.address_type();
            let mut set = Set::new(&[ty, ty, SetType::Protocol, SetType::Port, SetType::Port]);
            set.runtime_max = Some(ENDED_FLOWS_MAX);
            table.sets.insert(names[family as usize].into(), set);
        }
        let ty = family.address_type();
        let mut full = Set::new(&[ty, ty, SetType::Protocol, SetType::Port]);
        full.runtime_max = Some(FULL_DESTINATIONS_MAX as u32);
        table.sets.insert(FULL_SETS[family as usize].into(), full);
        let mut refused = Set::new(&[ty, ty, SetType::Protocol]);
        (refused.runtime_max, refused.by_packets) = (Some(REFUSED_PROTOCOLS_MAX), true);
        table
            .sets
            .insert(PORTLESS_SETS[family as usize].into(), refused);
    }
    marks::sets(group_numbers(state), table);
    let mut transport = Set::new(&[SetType::Protocol]);
    for protocol in [1u8, 6, 17, 58, 132] {
        transport
            .elements
            .insert(ElementKey::single(&[&[protocol]]), Value::Member);
    }
    table.sets.insert(TRANSPORT.into(), transport);
    let mut devices = Set::new(&[SetType::InterfaceName]);
    for device in own_devices(state) {
        devices
            .elements
            .insert(ElementKey::interface(device), Value::Member);
    }
    table.sets.insert(DEVICES.into(), devices);
    let mut underlay = Set::new(&[SetType::InterfaceName]);
    for device in &state.tunnel.devices {
        let key = ElementKey::interface(device);
        underlay.elements.insert(key, Value::Member);
    }
    table.sets.insert(UNDERLAY_DEVICES.into(), underlay);
}

/// Group numbers that routing rules match.
fn group_numbers(state: &NodeState) -> impl Iterator<Item = u8> {
    let groups = state.worker.groups.iter();
    let routed = groups.filter(|(_, group)| !matches!(group, Group::Local { .. }));
    let routed = routed.map(|(number, _)| *number);
    routed.chain(state.worker.next_hops.keys().copied())
}

fn own_devices(state: &NodeState) -> impl Iterator<Item = &str> {
    let groups = state.worker.groups.values();
    let local = groups.filter_map(|group| match group {
        Group::Local { device } => Some(device.as_str()),
        Group::Tunnel(_) | Group::Nowhere => None,
    });
    std::iter::once(TUNNEL_DEVICE).chain(local)
}

fn addresses<'a>(
    table: &mut Table,
    name: String,
    family: Family,
    content: impl Iterator<Item = &'a IpAddr>,
) {
    let mut set = Set::new(&[family.address_type()]);
    for address in content {
        set.elements
            .insert(ElementKey::address(*address), Value::Member);
    }
    table.sets.insert(name, set);
}

fn bound(state: &NodeState, table: &mut Table, family: Family) {
    let bound = state.worker.devices.iter();
    let bound = bound.filter(|(address, _)| Family::of(**address) == family);
    let mut devices = Set::new(&[family.address_type(), SetType::InterfaceIndex]);
    for (address, index) in bound.clone() {
        let address = ElementKey::address(*address).first;
        let key = ElementKey::single(&[&address, &index.to_ne_bytes()]);
        devices.elements.insert(key, Value::Member);
    }
    table.sets.insert(family.named(BOUND_DEVICES), devices);
    let only = bound.map(|(address, _)| address);
    addresses(table, family.named(BOUND), family, only);
}

fn errors(state: &NodeState, table: &mut Table, family: Family) {
    let mut map = Set::new(&[family.address_type()]);
    map.verdicts = true;
    for (id, target) in &state.worker.targets {
        if Family::of(target.address) == family {
            let verdict = Value::Verdict(GOTO, Some(Stage::Classify.target(*id)));
            let key = ElementKey::address(target.address);
            map.elements.entry(key).or_insert(verdict);
        }
    }
    table.sets.insert(family.named(ERRORS), map);
}

fn prefixes<'a>(
    table: &mut Table,
    name: String,
    family: Family,
    content: impl Iterator<Item = &'a IpNet>,
) {
    let of_family = content.filter(|prefix| Family::of(prefix.addr()) == family);
    let prefixes: Vec<IpNet> = of_family.copied().collect();
    let mut set = Set::new(&[family.address_type()]);
    set.interval = true;
    for prefix in IpNet::aggregate(&prefixes) {
        let key = ElementKey::addresses(prefix.network(), prefix.broadcast());
        set.elements.insert(key, Value::Member);
    }
    table.sets.insert(name, set);
}

fn unknown_sets(state: &NodeState, table: &mut Table, family: Family) {
    let Some(unknown) = &state.worker.unknown else {
        return;
    };
    let cidrs = unknown.cidrs.iter();
    prefixes(table, family.named(POD_CIDRS), family, cidrs);
    let known = unknown.known.iter();
    let known = known.filter(|address| Family::of(**address) == family);
    addresses(table, family.named(KNOWN_PODS), family, known);
}

pub(super) fn chains(state: &NodeState, table: &mut Table) {
    const PREROUTING: u32 = 0;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    let mut base = |name: &str, number, priority, rules: Vec<Rule>| {
        let hook = Hook {
            number,
            priority,
            nat: name == "nat",
            device: None,
        };
        table.chains.insert(
            name.into(),
            Chain {
                hook: Some(hook),
                rules,
            },
        );
    };
    base("raw_in", PREROUTING, -300, raw_in(state));
    base("raw_out", OUTPUT, -300, raw_out(state));
    base("tunnel_in", INPUT, -150, tunnel_in(state));
    base("clamp", FORWARD, -150, clamp(state));
    // The last chain before routing and the first one after it: no foreign rule sees our mark.
    base("classify", PREROUTING, i32::MAX, classify(state));
    base("routed", FORWARD, i32::MIN, routed(state));
    base("routed_in", INPUT, i32::MIN, marks::restore());
    let mut nat = by_pod(Stage::Nat);
    nat.extend(next_hops::translate(state));
    base("nat", POSTROUTING, 90, nat);
    base("guard", POSTROUTING, 300, guard(state));
    // The tunnel routes its outer packet by the packet's mark. Marks of others are not about the outer packet; foreign
    // rules see them up to here.
    let into_tunnel = rule().device(Interface::Out, TUNNEL_DEVICE, true);
    let unmark = vec![into_tunnel.set_mark(u32::MAX, 0).done()];
    base("into_tunnel", POSTROUTING, i32::MAX, unmark);
    let mut plain = |name: &str, rules: Vec<Rule>| {
        table
            .chains
            .insert(name.into(), Chain { hook: None, rules });
    };
    plain("from_tunnel", from_tunnel(state));
    plain("refuse_ended", refuse(c::ENDED));
    plain("refuse_full", refuse(c::FULL));
    // No TCP reset: it would come from the egress address, and the guard drops that.
    plain("refuse_hairpin", vec![rule().count(c::HAIRPIN).prohibit()]);
    for (reason, counter) in [("family", c::FAMILY), ("unavailable", c::UNAVAILABLE)] {
        let classified = match reason {
            // TCP by a reset: an ICMP error in answer to a SYN finds the pod's socket still locked by connect(), as it
            // is on this same kernel; only the retransmission a second later would fail.
            "family" => refuse(counter),
            _ => vec![rule().count(counter).drop()],
        };
        plain(&Stage::Classify.refusal(reason), classified);
    }
    let remember = |family: Family| {
        let set = PORTLESS_SETS[family as usize].into();
        rule().remember(family, set, REFUSED_PROTOCOL_SECS)
    };
    let mut portless: Vec<Rule> = FAMILIES.into_iter().map(remember).collect();
    portless.push(rule().count(c::PORTLESS).prohibit());
    plain(&Stage::Classify.refusal("portless"), portless);
    let mut selected: Vec<Rule> = FAMILIES.into_iter().map(sent_by_ipvs).collect();
    selected.push(rule().count(c::GUARD_SELECTED).drop());
    plain(&Stage::Guard.refusal("selected"), selected);
}

/// Rules of the first chain of the forward hook.
fn routed(state: &NodeState) -> Vec<Rule> {
    let mut rules: Vec<Rule> = canary::outward_at(state, CanaryHook::Routed)
        .into_iter()
        .collect();
    rules.extend(canary::answers_at(state, CanaryHook::AnswerRouted));
    rules.extend(marks::restore());
    rules
}

fn tunnel_packet() -> rule::Builder {
    rule().protocol(UDP).port(End::Destination, TUNNEL_PORT)
}

fn raw_in(state: &NodeState) -> Vec<Rule> {
    let family = Family::of(state.tunnel.underlay);
    let from_peer = || {
        tunnel_packet()
            .address_in(family, End::Source, &family.named("peers"))
            .address_is(End::Destination, state.tunnel.underlay, true)
    };
    vec![
        // Drops packets of a pod that borrows a peer's address: the reverse route of that address is not the pod's
        // device. Checked here, since kernels before 5.18 do not offer reverse-path lookups in the input hook.
        from_peer()
            .source_is_implausible()
            .comes_by_none_of(UNDERLAY_DEVICES)
            .count(c::STRANGER)
            .drop(),
        from_peer().notrack(),
    ]
}

fn raw_out(state: &NodeState) -> Vec<Rule> {
    let family = Family::of(state.tunnel.underlay);
    vec![
        tunnel_packet()
            .address_is(End::Source, state.tunnel.underlay, true)
            .address_in(family, End::Destination, &family.named("peers"))
            .notrack(),
    ]
}

/// The tunnel device accepts packets to any address of the node; only its underlay address is valid.
fn tunnel_in(state: &NodeState) -> Vec<Rule> {
    let family = Family::of(state.tunnel.underlay);
    let mut rules: Vec<Rule> = FAMILIES
        .into_iter()
        .filter(|other| *other != family)
        .map(|other| tunnel_packet().family(other).count(c::STRANGER).drop())
        .collect();
    rules.extend([
        tunnel_packet()
            .address_not_in(family, End::Source, &family.named("peers"))
            .count(c::STRANGER)
            .drop(),
        tunnel_packet()
            .address_is(End::Destination, state.tunnel.underlay, false)
            .count(c::STRANGER)
            .drop(),
        // Drops packets that were sent to another address and translated to the underlay address.
        tunnel_packet()
            .destination_is_translated()
            .count(c::STRANGER)
            .drop(),
    ]);
    rules
}

fn clamp(state: &NodeState) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let nodes = family.named("nodes");
        rules.push(
            tunnel_packet()
                .address_in(family, End::Destination, &nodes)
                .count(c::HANDMADE)
                .drop(),
        );
    }
    let through = rule().device(Interface::In, TUNNEL_DEVICE, true);
    rules.push(
        through
            .device(Interface::Out, TUNNEL_DEVICE, true)
            .count(c::TRANSIT)
            .drop(),
    );
    for way in [Interface::In, Interface::Out] {
        for family in FAMILIES {
            let through = rule().device(way, TUNNEL_DEVICE, true);
            rules.push(clamp_mss(through, family, state));
        }
    }
    rules
}

fn classify(state: &NodeState) -> Vec<Rule> {
    let mut rules = vec![
        rule()
            .device(Interface::In, TUNNEL_DEVICE, true)
            .goto("from_tunnel"),
        marks::set_aside(),
    ];
    rules.extend(canary::outward_at(state, CanaryHook::Classified));
    for family in FAMILIES {
        // Only packets that come by the reverse route of an egress address are really from it. A pod's packet with such
        // a source is forged, since translation comes later.
        let forged = rule().address_in(family, End::Source, &family.named("egress"));
        let forged = forged.destination_is_elsewhere().source_is_implausible();
        rules.push(forged.count(c::FORGED).drop());
    }
    for family in FAMILIES {
        // Packet from the other end of an ended flow: neither the pod nor this node's stack may answer it. A newer flow
        // with the same port is established and passes.
        let late = rule().state(STATE_NEW | STATE_INVALID | STATE_UNTRACKED);
        rules.push(
            late.tuple_in(family, LATE_SETS[family as usize])
                .count(c::LATE)
                .drop(),
        );
    }
    if let Some(gateway) = &state.gateway {
        // Return packets of a node that is its own gateway: those that conntrack did not translate back belong to no
        // flow.
        for family in FAMILIES {
            let back = || to_egress_address(gateway, family);
            // With bridge-nf-call-iptables a bridge's frames pass here before the gateway's program sees them, and not
            // afterwards. The guard drops the rest of them.
            rules.push(back().comes_by_bridge().accept());
            rules.push(back().count(c::UNSOLICITED).drop());
        }
    }
    rules.push(rule().direction(true).accept());
    for family in FAMILIES {
        // A pod's ICMP error about its flow takes the flow's route, whatever its policy's verdict on ICMP.
        let error = rule().icmp_error(family);
        rules.push(error.by_translated_source(family, family.named(ERRORS)));
    }
    rules.extend(by_pod(Stage::Classify));
    for family in FAMILIES {
        // No longer selected, but its flow still has an egress address: a policy was removed.
        let was_ours = rule().state(STATE_ESTABLISHED).source_is_translated(true);
        rules.push(
            was_ours
                .translated_source_in(family, &family.named("egress"))
                .goto("refuse_ended"),
        );
        // A new flow of the same ports is established before it sends its second packet.
        let ended = rule().state(STATE_NEW | STATE_INVALID | STATE_UNTRACKED);
        let ended = ended.tuple_in(family, ENDED_SETS[family as usize]);
        rules.push(ended.tcp_not_first().goto("refuse_ended"));
    }
    if state.worker.unknown.is_some() {
        rules.extend(FAMILIES.map(unknown_pod));
    }
    rules
}

/// Matches packets from outside to an egress address.
fn to_egress_address(gateway: &GatewayState, family: Family) -> rule::Builder {
    rule()
        .device(Interface::In, &gateway.external_device, true)
        .address_in(family, End::Destination, &family.named("egress"))
}

/// Drops new flows of a pod that is not in the state yet: whether a policy selects it is unknown.
fn unknown_pod(family: Family) -> Rule {
    rule()
        .state(STATE_NEW | STATE_INVALID | STATE_UNTRACKED)
        .address_in(family, End::Source, &family.named(POD_CIDRS))
        .address_not_in(family, End::Source, &family.named(KNOWN_PODS))
        .address_not_in(family, End::Destination, &family.named("never"))
        .count(c::UNKNOWN_POD)
        .drop()
}

fn by_pod(stage: Stage) -> Vec<Rule> {
    FAMILIES
        .into_iter()
        .map(|family| rule().by_source(family, stage.pods(family)))
        .collect()
}

fn from_tunnel(state: &NodeState) -> Vec<Rule> {
    let mut rules = Vec::new();
    if state.gateway.is_some() {
        // Probes; they get here only where no eBPF program answers them.
        let probe = rule()
            .address_starts(Family::V6, End::Source, &TUNNEL_PREFIX)
            .address_starts(Family::V6, End::Destination, &TUNNEL_PREFIX)
            .protocol(UDP);
        rules.push(probe.port(End::Destination, PROBE_PORT).accept());
    }
    rules.extend([
        // Answers to this node's probes.
        rule()
            .address_starts(Family::V6, End::Source, &TUNNEL_PREFIX)
            .address_starts(Family::V6, End::Destination, &TUNNEL_PREFIX)
            .protocol(UDP)
            .port(End::Source, PROBE_PORT)
            .accept(),
    ]);
    let known = || {
        rule()
            .state(STATE_ESTABLISHED | STATE_RELATED)
            .direction(true)
    };
    if state.worker.canary.is_some() {
        for family in FAMILIES {
            rules.push(canary::answered(known(), family));
        }
    }
    rules.push(known().accept());
    rules.extend(next_hops::from_tunnel(state));
    if state.gateway.is_some() {
        // From a pod's egress address to an address of this gateway: the gateway's program has verified who owns the
        // port.
        for family in FAMILIES {
            let from_pod = rule().address_in(family, End::Source, &family.named("egress"));
            rules.push(from_pod.destination_is_local().accept());
        }
    }
    rules.push(rule().count(c::UNSOLICITED).drop());
    rules
}

/// Relies on no mark: foreign rules clear marks, and the kernel's own MLD reports carry arbitrary ones.
fn guard(state: &NodeState) -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.extend(canary::outward_at(state, CanaryHook::Guarded));
    rules.extend(next_hops::look_at_tunnel(state));
    if let Some(gateway) = &state.gateway {
        // Frames that a bridge only forwards have no input device here.
        for family in FAMILIES {
            let back = to_egress_address(gateway, family);
            rules.push(back.count(c::UNSOLICITED).drop());
        }
    }
    for family in FAMILIES {
        let error = rule()
            .forwarded(true)
            .direction(false)
            .icmp_error(family)
            .leaves_by(DEVICES)
            .address_in(family, End::Source, &family.named("leased"));
        rules.push(error.accept());
    }
    for family in FAMILIES {
        let pods = Stage::Guard.pods(family);
        let tracked = rule().forwarded(true).direction(false);
        rules.push(tracked.by_original_source(family, pods.clone()));
        let untracked = rule()
            .forwarded(true)
            .state(STATE_INVALID | STATE_UNTRACKED);
        rules.push(untracked.by_source(family, pods));
    }
    for family in FAMILIES {
        let elsewhere = || {
            rule()
                .address_in(family, End::Source, &family.named("egress"))
                .leaves_by_other_than(DEVICES)
        };
        // Packets that arrived with such a source by its reverse route are somebody's connection to this node's pods.
        for ours in [
            elsewhere().forwarded(false),
            elsewhere().source_is_translated(true),
        ] {
            rules.push(ours.count(c::GUARD_EGRESS).drop());
        }
    }
    // Drops packets of this node itself into the tunnel, among them its own multicast reports.
    rules.push(
        rule()
            .device(Interface::Out, TUNNEL_DEVICE, true)
            .forwarded(false)
            .drop(),
    );
    // The kernel's MLD reports have the tunnel as their input device, as if they were forwarded.
    rules.push(
        rule()
            .device(Interface::Out, TUNNEL_DEVICE, true)
            .address_starts(Family::V6, End::Destination, &[0xff])
            .drop(),
    );
    for family in FAMILIES {
        rules.push(
            rule()
                .device(Interface::Out, TUNNEL_DEVICE, true)
                .address_not_in(family, End::Source, &family.named("leased"))
                .count(c::GUARD_DEVICE)
                .drop(),
        );
    }
    rules.extend(canary::outward_at(state, CanaryHook::Sent));
    rules.extend(canary::end_here(state));
    if !state.worker.reinject.is_empty() {
        // Tells the uplink program that this ruleset saw the packet and left it alone. Without this mark the uplink
        // program drops packets of a selected pod.
        let left = u32::from(GROUP_LEFT_ALONE) << MARK_SHIFT;
        let reinjected = rule().device(Interface::In, REINJECT_DEVICE, true);
        rules.push(reinjected.set_mark(MARK_MASK, left).done());
    }
    rules
}
