//! Gateway groups of one node and the targets that use them.

use super::cluster::Me;
use super::quotas;
use super::{Group, GroupNumber, NextHop, NextHopRoute, NodeFacts, NodeIssue, TrafficKeyId};
use super::{IssueKind, Target, TargetId, TunnelIndex};
use crate::hash::StableHash;
use crate::machines::{Standing, counting, standing};
use crate::model::*;
use crate::numbers::GROUPS_MAX;
use crate::rendezvous::gateway_order;
use crate::resolve::{gateway_nodes, network_identifier};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

/// Advice for the case that no gateway answers a node.
pub(crate) const OPEN_TUNNEL: &str = "see that their agents run, and that host firewalls have UDP 14789 open in both directions, there and here";

/// How an address can be used now.
#[derive(Clone, Copy)]
pub(super) enum Reach {
    /// By this target; `usable`: new connections get through.
    Target { id: TargetId, usable: bool },
    /// No gateway answers, or none answers any more; the target has the last known members and ranges.
    Dead(TargetId),
    /// No group number is free.
    NoGroup,
}

/// Route of one address's packets, before numbers are assigned.
struct GroupRoute {
    key: GroupKey,
    group: Group,
    /// Highest epoch that all gateways that may receive replies have reached.
    version: u64,
    alive: bool,
}

pub(super) struct Groups<'a> {
    snapshot: &'a Snapshot,
    facts: &'a NodeFacts,
    me: &'a Me<'a>,
    own_version: u64,
    /// Grants in which this node may open flows.
    grants: &'a [Grant],
    pub groups: BTreeMap<GroupNumber, Group>,
    pub targets: BTreeMap<TargetId, Target>,
    pub next_hops: BTreeMap<GroupNumber, NextHop>,
    pub numbers: BTreeMap<GroupKey, GroupNumber>,
    pub members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    pub keys: BTreeMap<TargetId, GroupKey>,
    pub policies: BTreeMap<TargetId, ObjectRef>,
    pub issues: Vec<NodeIssue>,
    known: BTreeMap<(GatewayName, IpAddr, ObjectRef), Reach>,
    /// Gateway nodes by gateway, cached: finding them reads every node of the cluster.
    roles: BTreeMap<GatewayName, Rc<BTreeSet<&'a NodeName>>>,
}

impl<'a> Groups<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        facts: &'a NodeFacts,
        (me, own_version): (&'a Me<'a>, u64),
        grants: &'a [Grant],
    ) -> Self {
        Self {
            snapshot,
            facts,
            me,
            own_version,
            grants,
            groups: BTreeMap::new(),
            targets: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            numbers: BTreeMap::new(),
            members: BTreeMap::new(),
            keys: BTreeMap::new(),
            policies: BTreeMap::new(),
            issues: Vec::new(),
            known: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }

    /// How this address can be used now, by this gateway and for this policy. Each combination has a target of its own,
    /// under whose traffic key its packets are counted.
    pub(super) fn reach(
        &mut self,
        gateway: &Gateway,
        address: IpAddr,
        policy: &ObjectRef,
    ) -> Reach {
        let key = (gateway.name.clone(), address, policy.clone());
        if let Some(reach) = self.known.get(&key) {
            return *reach;
        }
        let reach = self.find(gateway, address, policy);
        self.known.insert(key, reach);
        reach
    }

    fn find(&mut self, gateway: &Gateway, address: IpAddr, policy: &ObjectRef) -> Reach {
        let route = self.route(gateway, address);
        if !route.alive {
            self.report_dead(&route);
        }
        let Some(number) = self.number(&route.key) else {
            return Reach::NoGroup;
        };
        let id = target_id(address, &route.key, policy);
        let ranges = self.usable_ranges(gateway, address, route.version);
        let is_broken = self
            .facts
            .broken_paths
            .iter()
            .any(|path| path.group == route.key && path.v6 == address.is_ipv6());
        let usable = !ranges.is_empty() && route.group != Group::Nowhere && !is_broken;
        if let Group::Tunnel(members) = &route.group {
            self.members.insert(route.key.clone(), members.clone());
        }
        self.groups.insert(number, route.group);
        self.targets.insert(
            id,
            Target {
                address,
                group: number,
                ranges,
                traffic_key: TrafficKeyId::OTHER,
                quotas: quotas::of_address(self.snapshot, gateway, address),
            },
        );
        self.policies.insert(id, policy.clone());
        self.keys.insert(id, route.key);
        if route.alive {
            Reach::Target { id, usable }
        } else {
            Reach::Dead(id)
        }
    }

    /// Own ranges that every gateway that may receive replies has in its steering table.
    fn usable_ranges(
        &mut self,
        gateway: &Gateway,
        address: IpAddr,
        version: u64,
    ) -> Vec<PortRange> {
        let grants = self.grants.iter();
        let mine: Vec<&Grant> = grants
            .filter(|grant| grant.address == address && grant.gateway == gateway.name)
            .collect();
        for grant in mine.iter().filter(|grant| grant.epoch > version) {
            self.issues.push(NodeIssue {
                kind: IssueKind::AwaitingGateways,
                subject: address.to_string(),
                text: format!(
                    "ranges of epoch {} are not used yet: gateways of {} are at {version}",
                    grant.epoch, gateway.name.0
                ),
            });
        }
        let usable = mine.into_iter().filter(|grant| grant.epoch <= version);
        let mut ranges: Vec<PortRange> = usable.flat_map(|grant| &grant.ranges).copied().collect();
        ranges.sort_unstable();
        ranges
    }

    fn nodes(&mut self, gateway: &Gateway) -> Rc<BTreeSet<&'a NodeName>> {
        if let Some(nodes) = self.roles.get(&gateway.name) {
            return nodes.clone();
        }
        let nodes = Rc::new(gateway_nodes(gateway, &self.snapshot.nodes));
        self.roles.insert(gateway.name.clone(), nodes.clone());
        nodes
    }

    /// Whether this node's own kernel reaches the next hop.
    pub(super) fn has(&self, next_hop: IpAddr) -> bool {
        self.facts.attached.contains_key(&next_hop)
    }

    /// The number of this next hop for the gateway's nodes, and whether it can be reached; `None` where no number is
    /// free. Not fail static: without an attached gateway that answers, packets are rejected at once.
    pub(super) fn next_hop(
        &mut self,
        gateway: &Gateway,
        address: IpAddr,
    ) -> Option<(GroupNumber, bool)> {
        let key = GroupKey {
            gateway: gateway.name.clone(),
            only: None,
            next_hop: Some(address),
        };
        if let Some(number) = self.numbers.get(&key) {
            let known = self.next_hops.get(number);
            return Some((*number, known.is_some_and(NextHop::is_reachable)));
        }
        let number = self.number(&key)?;
        let nodes = self.nodes(gateway);
        let has = |node: &NodeName| {
            let record = self.snapshot.node_records.get(node);
            record.is_some_and(|record| record.next_hops.contains(&address))
        };
        let attached = self.facts.attached.get(&address);
        let route = match attached.filter(|_| nodes.contains(self.me.name)) {
            Some(attachment) => NextHopRoute::Attached(attachment.clone()),
            None => {
                let others = nodes.iter().filter(|n| **n != self.me.name);
                let live = others.filter(|n| self.facts.live.contains(**n) && has(n));
                let live: Vec<&NodeName> = live.copied().collect();
                // A drained gateway says version 0. One that has just started may say so, too.
                let serving = live.iter().copied().filter(|node| self.version(node) > 0);
                let serving: Vec<&NodeName> = serving.collect();
                let used = if serving.is_empty() { live } else { serving };
                let used = used.into_iter();
                let members: BTreeSet<TunnelIndex> =
                    used.filter_map(|node| self.index(node)).collect();
                match members.is_empty() {
                    true => NextHopRoute::Nowhere,
                    false => NextHopRoute::Tunnel(members),
                }
            }
        };
        if route == NextHopRoute::Nowhere && self.facts.settled {
            self.issues.push(NodeIssue {
                kind: IssueKind::NoGateway,
                subject: key.gateway.0.clone(),
                text: format!("no gateway of it that has the next hop {address} answers"),
            });
        }
        let next_hop = NextHop {
            address,
            network_identifier: network_identifier(address),
            route,
        };
        let reachable = next_hop.is_reachable();
        self.next_hops.insert(number, next_hop);
        Some((number, reachable))
    }

    /// Route of this address's packets.
    fn route(&mut self, gateway: &Gateway, address: IpAddr) -> GroupRoute {
        let nodes = self.nodes(gateway);
        let local =
            nodes.contains(self.me.name) && self.facts.external.as_ref().is_some_and(|e| e.link_up);
        // A gateway that reports version 0 has loaded no table yet and would drop everything.
        let live: BTreeSet<&NodeName> = nodes
            .iter()
            .copied()
            .filter(|n| *n != self.me.name && self.facts.live.contains(n) && self.version(n) > 0)
            .filter(|n| self.index(n).is_some())
            .collect();
        let live = self.counting(&gateway.name, live, local);
        let own = local.then_some(self.own_version);
        let versions = live.iter().map(|n| self.version(n)).chain(own);
        let version = versions.min().unwrap_or(0);
        let alive = local || !live.is_empty();
        let key = |only: Option<&NodeName>| GroupKey {
            gateway: gateway.name.clone(),
            only: only.cloned(),
            next_hop: None,
        };
        let (key, group) = match gateway.outbound {
            Outbound::AnyGateway if local => (key(None), self.local()),
            Outbound::AnyGateway if alive => (key(None), self.tunnel(live.iter().copied())),
            Outbound::AnyGateway => return self.last(key(None), &nodes),
            Outbound::Announcer => {
                let order = gateway_order(Some(gateway), address, nodes.iter().copied());
                let standing = |node| self.standing(&gateway.name, node);
                let gives_way = standing(self.me.name) == Standing::Draining
                    && live.iter().any(|node| standing(node) == Standing::Good);
                let sends_itself = local && !gives_way;
                let sends =
                    |n: &&&NodeName| live.contains(**n) || (sends_itself && **n == self.me.name);
                match order.iter().find(sends).copied() {
                    Some(me) if me == self.me.name => (key(Some(me)), self.local()),
                    Some(other) => (key(Some(other)), self.tunnel(std::iter::once(other))),
                    None => {
                        // Only groups in use are remembered, so the first in this order is the one that this address
                        // had: an earlier one would have been selected.
                        let members = &self.facts.last_group_members;
                        let remembered =
                            order.iter().find(|n| members.contains_key(&key(Some(**n))));
                        let ever = || order.iter().find(|n| self.facts.ever_live.contains(**n));
                        let last = remembered.or_else(ever);
                        return self.last(key(last.copied()), &nodes);
                    }
                }
            }
        };
        GroupRoute {
            key,
            group,
            version,
            alive,
        }
    }

    fn standing(&self, group: &GatewayName, node: &NodeName) -> Standing {
        standing(self.snapshot, &self.facts.lagging, (group, node))
    }

    /// Live gateways of a group that count as next hops. A drained one counts until it says version 0: others must
    /// announce its addresses first.
    fn counting(
        &mut self,
        group: &GatewayName,
        live: BTreeSet<&'a NodeName>,
        local: bool,
    ) -> BTreeSet<&'a NodeName> {
        for node in live.iter().copied() {
            if self.standing(group, node) != Standing::Behind {
                continue;
            }
            self.issues.push(NodeIssue {
                kind: IssueKind::AwaitingGateways,
                subject: group.0.clone(),
                text: format!(
                    "{node} answers, and its steering tables stay behind those of its group: it is left out until they \
                     have caught up; see its agent, and its connection to the API server"
                ),
            });
        }
        let me = self.me.name;
        let of = |node: &NodeName| match self.standing(group, node) {
            _ if node == me => Standing::Good,
            Standing::Draining => Standing::Good,
            other => other,
        };
        let own = local.then_some(me);
        let mut best = counting(live.into_iter().chain(own), of, |_| true);
        best.remove(me);
        best
    }

    /// Fail static: the last members stay, with the ranges that they had.
    fn last(&self, key: GroupKey, nodes: &BTreeSet<&NodeName>) -> GroupRoute {
        let others = || nodes.iter().filter(|n| **n != self.me.name);
        // An index may have been assigned to another node since; only gateways of the group count.
        let gateways: BTreeSet<TunnelIndex> = others().filter_map(|n| self.index(n)).collect();
        let known: BTreeSet<TunnelIndex> = self
            .facts
            .last_group_members
            .get(&key)
            .map(|last| last.intersection(&gateways).copied().collect())
            .unwrap_or_default();
        let ever = others()
            .filter(|n| key.only.as_ref().is_none_or(|only| only == **n))
            .filter(|n| self.facts.ever_live.contains(**n));
        let members: BTreeSet<TunnelIndex> = if known.is_empty() {
            ever.filter_map(|n| self.index(n)).collect()
        } else {
            known
        };
        let version = self
            .snapshot
            .node_records
            .values()
            .filter(|record| members.contains(&record.tunnel_index))
            .map(|record| self.version(&record.node))
            .min()
            .unwrap_or(0);
        let group = if members.is_empty() {
            Group::Nowhere
        } else {
            Group::Tunnel(members)
        };
        GroupRoute {
            key,
            group,
            version,
            alive: false,
        }
    }

    fn report_dead(&mut self, route: &GroupRoute) {
        if !self.facts.settled {
            return;
        }
        let (kind, text) = match &route.group {
            Group::Nowhere => (IssueKind::NoGateway, "no gateway of it has ever answered"),
            _ => (
                IssueKind::FailStatic,
                "no gateway of it answers: the last ones are kept",
            ),
        };
        let text = format!("{text}; {OPEN_TUNNEL}");
        let subject = route.key.gateway.0.clone();
        self.issues.push(NodeIssue {
            kind,
            subject,
            text,
        });
    }

    fn local(&self) -> Group {
        let device = self.facts.external.as_ref().map(|e| e.device.clone());
        Group::Local {
            device: device.expect("local only with an external device"),
        }
    }

    fn tunnel<'n>(&self, nodes: impl Iterator<Item = &'n NodeName>) -> Group {
        Group::Tunnel(nodes.filter_map(|n| self.index(n)).collect())
    }

    fn index(&self, node: &NodeName) -> Option<TunnelIndex> {
        self.snapshot
            .node_records
            .get(node)
            .map(|record| record.tunnel_index)
    }

    fn version(&self, node: &NodeName) -> u64 {
        self.facts.versions.get(node).copied().unwrap_or(0)
    }

    /// A number for the group: its previous one, else an unused one, else one that is free now. Numbers that policy
    /// routing rules of others match are used last.
    fn free_number(&self, key: &GroupKey) -> Option<GroupNumber> {
        let used: BTreeSet<GroupNumber> = self.numbers.values().copied().collect();
        let reserved: BTreeSet<GroupNumber> =
            self.facts.previous_groups.values().copied().collect();
        let free = |n: &GroupNumber| (1..=GROUPS_MAX).contains(n) && !used.contains(n);
        let foreign = &self.facts.foreign_marks;
        let apart = |n: &GroupNumber| free(n) && !foreign.iter().any(|mark| mark.asks_for(*n));
        let before = self.facts.previous_groups.get(key).copied();
        let fresh = || (1..=GROUPS_MAX).find(|n| apart(n) && !reserved.contains(n));
        before
            .filter(apart)
            .or_else(fresh)
            .or_else(|| (1..=GROUPS_MAX).find(apart))
            .or_else(|| before.filter(free))
            .or_else(|| (1..=GROUPS_MAX).find(free))
    }

    /// The number of a group; `None` where all numbers are in use.
    fn number(&mut self, key: &GroupKey) -> Option<GroupNumber> {
        if let Some(number) = self.numbers.get(key) {
            return Some(*number);
        }
        let number = self.free_number(key);
        match number {
            Some(number) => {
                self.numbers.insert(key.clone(), number);
            }
            None => self.issues.push(NodeIssue {
                kind: IssueKind::Limit,
                subject: key.gateway.0.clone(),
                text: format!("more than {GROUPS_MAX} gateway groups: its traffic is dropped here"),
            }),
        }
        number
    }
}

fn target_id(address: IpAddr, key: &GroupKey, policy: &ObjectRef) -> TargetId {
    let hash = StableHash::new("target")
        .address(address)
        .text(&key.gateway.0);
    let hash = match &key.only {
        Some(node) => hash.number(1).text(&node.0),
        None => hash.number(0),
    };
    TargetId(hash.text(&policy.to_string()).finish())
}
