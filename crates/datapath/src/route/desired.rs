//! The rtnetlink objects of a node state, as values that can be compared with the kernel's.

use crate::drift::Drift;
use egret_core::node::{
    CanaryState, Group, NextHop as Neighbour, NextHopWay, NodeState, TunnelIndex,
};
use egret_core::numbers::{
    MARK_SHIFT, NEXT_HOP_OBJECTS, NEXTHOP_BASE, NEXTHOP_GROUP_OFFSET, ROUTE_TABLE_BASE,
    RULE_PRIORITY_END, RULE_PRIORITY_OWN_PACKETS, TUNNEL_VNI,
};
use egret_kernel::difference::{first_changed, first_other};
use egret_kernel::route::NextHop;
use egret_wire::{link_local, tunnel_mac};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Kind of a route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends to this next hop group.
    Group(u32),
    /// Sends to this neighbour on the device with this index, whatever the device's addresses are.
    Neighbour {
        /// The neighbour.
        address: IpAddr,
        /// Index of the device.
        device: u32,
    },
    /// Continues the lookup with the rules of lower precedence (`RTN_THROW`).
    Throw,
    /// Rejects packets; the sender gets destination unreachable (`RTN_UNREACHABLE`).
    Unreachable,
}

/// One route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteEntry {
    /// Table.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
    /// Metric.
    pub metric: u32,
    /// Kind of the route.
    pub kind: RouteKind,
}

impl fmt::Display for RouteEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteEntry {
            table, to, metric, ..
        } = self;
        write!(f, "table {table}: {to} metric {metric} ")?;
        match self.kind {
            RouteKind::Group(id) => write!(f, "to next hop group {id:#010x}"),
            RouteKind::Neighbour { address, device } => {
                write!(f, "via {address} at device {device}")
            }
            RouteKind::Throw => f.write_str("throw"),
            RouteKind::Unreachable => f.write_str("unreachable"),
        }
    }
}

/// Kind of a policy routing rule of ours. Rules are added in this order and removed in the reverse one, so that a
/// `Marked` rule never exists without the two that exempt the node's own packets from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleKind {
    /// Position after our rules, the target of `OwnPackets`.
    End,
    /// Packets of the node itself (including those of other tunnels) skip our rules, whatever their mark is.
    OwnPackets,
    /// Answers to canaries from this address, which come out of the tunnel, use the table.
    Canary {
        /// Source address of canaries.
        source: IpAddr,
        /// Table.
        table: u32,
    },
    /// Forwarded packets with this mark use the table.
    Marked {
        /// Mark under our mask.
        mark: u32,
        /// Table.
        table: u32,
    },
}

/// One policy routing rule of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleEntry {
    /// Kind of the rule.
    pub kind: RuleKind,
    /// IPv6 instead of IPv4.
    pub v6: bool,
}

impl RuleEntry {
    /// The rule that sends packets with the mark to the table, and the two rules that accompany it.
    pub(crate) fn marked(v6: bool, mark: u32, table: u32) -> [RuleEntry; 3] {
        let marked = RuleKind::Marked { mark, table };
        [RuleKind::End, RuleKind::OwnPackets, marked].map(|kind| RuleEntry { kind, v6 })
    }
}

impl fmt::Display for RuleEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        write!(f, "rule {family} ")?;
        match self.kind {
            RuleKind::End => write!(f, "{RULE_PRIORITY_END} that does nothing"),
            RuleKind::OwnPackets => write!(
                f,
                "{RULE_PRIORITY_OWN_PACKETS} that leads the node's own packets to {RULE_PRIORITY_END}"
            ),
            RuleKind::Canary { source, table } => {
                write!(f, "from the tunnel to {source} to table {table}")
            }
            RuleKind::Marked { mark, table } => write!(f, "mark {mark:#010x} to table {table}"),
        }
    }
}

/// All objects besides the device itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Permanent neighbours on the tunnel device.
    pub neighbours: BTreeMap<Ipv6Addr, [u8; 6]>,
    /// Next hops by id.
    pub hops: BTreeMap<u32, NextHop>,
    /// Next hop groups by id.
    pub groups: BTreeMap<u32, BTreeSet<u32>>,
    /// Routes.
    pub routes: BTreeSet<RouteEntry>,
    /// Rules.
    pub rules: BTreeSet<RuleEntry>,
}

/// Metric of the route after the group's: highest number, so lowest precedence.
pub(crate) const METRIC_LAST: u32 = u32::MAX;
/// Metric of routes to groups: the kernel's own default for IPv6.
pub(crate) const METRIC_GROUP: u32 = 1024;

const ANY_V4: &str = "0.0.0.0/0";
const ANY_V6: &str = "::/0";

impl Desired {
    /// First difference of each kind from the desired state.
    pub(super) fn differences(&self, found: &Desired) -> impl Iterator<Item = (Drift, String)> {
        let hex = |what: &str, id: &u32| format!("{what} {id:#010x}");
        let hops = first_changed(&self.hops, &found.hops, |id| hex("next hop", id));
        let groups = first_changed(&self.groups, &found.groups, |id| hex("next hop group", id));
        let neighbours = first_changed(&self.neighbours, &found.neighbours, |address| {
            format!("neighbour {address}")
        });
        let parts = [
            (Drift::Neighbours, neighbours),
            (Drift::NextHops, hops.or(groups)),
            (Drift::Routes, first_other(&self.routes, &found.routes)),
            (Drift::Rules, first_other(&self.rules, &found.rules)),
        ];
        let told = parts.into_iter();
        told.filter_map(|(kind, what)| Some((kind, what?)))
    }

    /// Objects that this state needs.
    pub fn of(state: &NodeState) -> Self {
        let mut wanted = Desired::default();
        let gateways = state.peers.iter().filter(|(_, peer)| peer.gateway);
        for (index, _) in gateways {
            let neighbour = (link_local(*index), tunnel_mac(*index));
            wanted.neighbours.extend([neighbour]);
            wanted.hop(NEXTHOP_BASE, *index, TUNNEL_VNI, state);
        }
        for (number, group) in &state.worker.groups {
            match group {
                Group::Tunnel(members) => wanted.group(*number, NEXTHOP_BASE, members, state),
                Group::Nowhere => wanted.table(*number, None, state),
                Group::Local { .. } => {}
            }
        }
        for (number, next_hop) in &state.worker.next_hops {
            wanted.next_hop(*number, next_hop, state);
        }
        if let Some(canary) = &state.worker.canary {
            wanted.canary(canary);
        }
        wanted
    }

    /// Adds the route of canaries' answers to their device; no other packet uses it, whoever has the address.
    fn canary(&mut self, canary: &CanaryState) {
        let table = ROUTE_TABLE_BASE;
        for source in canary.sources.iter().copied() {
            let v6 = source.is_ipv6();
            let default = if v6 { ANY_V6 } else { ANY_V4 };
            self.routes.insert(RouteEntry {
                table,
                to: default.parse().expect("a constant prefix"),
                metric: METRIC_GROUP,
                kind: RouteKind::Neighbour {
                    address: source,
                    device: canary.device,
                },
            });
            let kind = RuleKind::Canary { source, table };
            self.rules.insert(RuleEntry { kind, v6 });
        }
    }

    /// Adds the next hop of a gateway, with an id counted from `base`.
    fn hop(&mut self, base: u32, index: TunnelIndex, identifier: u32, state: &NodeState) {
        let peer = state.peers.get(&index);
        let Some(peer) = peer.filter(|peer| peer.gateway) else {
            return;
        };
        let hop = NextHop {
            via: link_local(index),
            underlay: peer.underlay,
            source: state.tunnel.underlay,
            network_identifier: identifier,
        };
        self.hops.insert(base + u32::from(index), hop);
    }

    /// Adds the route to a next hop of policies: through the tunnel with its identifier, or by this node's own device.
    fn next_hop(&mut self, number: u8, next_hop: &Neighbour, state: &NodeState) {
        let base = NEXTHOP_BASE + NEXT_HOP_OBJECTS * (u32::from(number) + 1);
        match &next_hop.way {
            NextHopWay::Tunnel(members) => {
                for index in members {
                    self.hop(base, *index, next_hop.network_identifier, state);
                }
                self.group(number, base, members, state);
            }
            NextHopWay::Attached(attachment) => {
                self.table(number, None, state);
                let address = next_hop.address;
                let default = if address.is_ipv6() { ANY_V6 } else { ANY_V4 };
                let (table, metric) = (ROUTE_TABLE_BASE + u32::from(number), METRIC_GROUP);
                let device = attachment.index;
                self.routes.insert(RouteEntry {
                    table,
                    to: default.parse().expect("a constant prefix"),
                    metric,
                    kind: RouteKind::Neighbour { address, device },
                });
            }
            NextHopWay::Nowhere => self.table(number, None, state),
        }
    }

    fn group(&mut self, number: u8, base: u32, members: &BTreeSet<TunnelIndex>, state: &NodeState) {
        let id = NEXTHOP_BASE + NEXTHOP_GROUP_OFFSET + u32::from(number);
        let hops: BTreeSet<u32> = members
            .iter()
            .map(|index| base + u32::from(*index))
            .filter(|id| self.hops.contains_key(id))
            .collect();
        if hops.is_empty() {
            return self.table(number, None, state);
        }
        self.groups.insert(id, hops);
        self.table(number, Some(id), state);
    }

    fn table(&mut self, number: u8, group: Option<u32>, state: &NodeState) {
        let table = ROUTE_TABLE_BASE + u32::from(number);
        for v6 in [false, true] {
            let default = if v6 { ANY_V6 } else { ANY_V4 };
            let to: IpNet = default.parse().expect("a constant prefix");
            let mut route = |metric, kind| {
                self.routes.insert(RouteEntry {
                    table,
                    to,
                    metric,
                    kind,
                });
            };
            route(METRIC_LAST, RouteKind::Unreachable);
            if let Some(id) = group {
                route(METRIC_GROUP, RouteKind::Group(id));
            }
            let mark = u32::from(number) << MARK_SHIFT;
            self.rules.extend(RuleEntry::marked(v6, mark, table));
        }
        for prefix in &state.worker.throw {
            let kind = RouteKind::Throw;
            self.routes.insert(RouteEntry {
                table,
                to: *prefix,
                metric: METRIC_GROUP,
                kind,
            });
        }
    }
}
