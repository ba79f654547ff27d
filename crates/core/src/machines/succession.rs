//! Who announces an address next, and whether it does already.

use super::{GroupNodes, Standing, counting, standing};
use crate::model::{Gateway, MacAddress, NodeName, Snapshot};
use crate::rendezvous::announcer_order;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Milliseconds for which an announcement counts that was heard before this node had to give way: the next announcer may
/// have read the objects earlier.
const HEARD_BEFORE_MS: u64 = 1_000;

/// Announcements of other gateways on the external segment, with the time of the last one in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<(IpAddr, MacAddress), u64>);

impl Heard {
    /// Adds an announcement; returns whether it is the first of this gateway for the address.
    pub(super) fn insert(&mut self, claim: (IpAddr, MacAddress), now_ms: u64) -> bool {
        self.0.insert(claim, now_ms).is_none()
    }

    /// Forgets what is older, but for addresses that are being handed over.
    pub(super) fn forget(&mut self, handing_over: &BTreeSet<IpAddr>, now_ms: u64) {
        self.0.retain(|(address, _), at| {
            handing_over.contains(address) || now_ms <= at.saturating_add(HEARD_BEFORE_MS)
        });
    }

    /// Whether any gateway announces the address.
    pub(super) fn of_any(&self, address: IpAddr) -> bool {
        self.0.keys().any(|(heard, _)| *heard == address)
    }
}

/// Nodes that may announce, as one gateway sees them.
pub(super) struct Candidates<'a> {
    pub me: &'a NodeName,
    pub snapshot: &'a Snapshot,
    pub lagging: &'a GroupNodes,
    /// Other gateways that answer and have loaded their tables.
    pub live: &'a BTreeSet<NodeName>,
    /// Other nodes may count on this gateway.
    pub joined: bool,
}

impl Candidates<'_> {
    fn serves(&self, node: &NodeName) -> bool {
        match node == self.me {
            true => self.joined,
            false => self.live.contains(node),
        }
    }

    fn gateway(&self, address: IpAddr) -> Option<&Gateway> {
        let record = self.snapshot.addresses.get(&address)?;
        self.snapshot.gateways.get(&record.gateway)
    }

    fn standing(&self, gateway: &Gateway, node: &NodeName) -> Standing {
        standing(self.snapshot, self.lagging, (&gateway.name, node))
    }

    /// Addresses that this node could go on to announce.
    pub(super) fn able(
        &self,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
    ) -> BTreeSet<IpAddr> {
        let may = |address: &IpAddr, nodes: &BTreeSet<NodeName>| {
            let gateway = self.gateway(*address);
            let behind = |gateway| self.standing(gateway, self.me) == Standing::Behind;
            self.joined && nodes.contains(self.me) && !gateway.is_some_and(behind)
        };
        let able = addresses
            .iter()
            .filter(|(address, nodes)| may(address, nodes));
        able.map(|(address, _)| *address).collect()
    }

    /// Leaves to each address the nodes that count: those of the best standing, or the one that its gateway names.
    pub(super) fn limit(&self, addresses: &mut BTreeMap<IpAddr, BTreeSet<NodeName>>) {
        for (address, nodes) in addresses {
            let Some(gateway) = self.gateway(*address) else {
                continue;
            };
            let standing = |node: &NodeName| self.standing(gateway, node);
            let best = counting(nodes.iter(), standing, |node| self.serves(node));
            let named = gateway.announcers.get(address);
            let named = named.filter(|node| best.contains(node) && self.serves(node));
            *nodes = match named {
                Some(node) => [node.clone()].into(),
                None => best.into_iter().cloned().collect(),
            };
        }
    }

    /// Addresses that no other node serves whose standing is good.
    pub(super) fn alone_for(
        &self,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
    ) -> BTreeSet<IpAddr> {
        let takes_over = |address: &IpAddr, node: &NodeName| {
            let gateway = self.gateway(*address);
            node != self.me
                && self.serves(node)
                && gateway.is_some_and(|one| self.standing(one, node) == Standing::Good)
        };
        let alone = addresses
            .iter()
            .filter(|(address, nodes)| !nodes.iter().any(|node| takes_over(address, node)));
        alone.map(|(address, _)| *address).collect()
    }
}

/// Evidence that an address has another announcer.
pub(super) struct Succession<'a> {
    pub candidates: &'a Candidates<'a>,
    /// Nodes that count for each address.
    pub addresses: &'a BTreeMap<IpAddr, BTreeSet<NodeName>>,
    pub heard: &'a Heard,
}

impl Succession<'_> {
    /// Whether the node that is to announce the address now does so: it says it in its record, or was heard. A claim of
    /// a third node proves nothing, because that one may be about to give way itself.
    pub(super) fn has_taken_over(&self, address: IpAddr) -> bool {
        let Some(nodes) = self.addresses.get(&address) else {
            return true;
        };
        let order = announcer_order(address, nodes);
        let mut alive = order
            .into_iter()
            .filter(|node| self.candidates.serves(node));
        let next = alive.next().filter(|node| *node != self.candidates.me);
        let record = next.and_then(|node| self.candidates.snapshot.node_records.get(node));
        record.is_some_and(|record| {
            let was_heard = |mac| self.heard.0.contains_key(&(address, mac));
            record.announcing.contains(&address) || record.external_mac.is_some_and(was_heard)
        })
    }
}
