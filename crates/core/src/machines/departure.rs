//! A node that is no gateway any more goes on to forward for a while: by its label, by the selector of its
//! `EgressGateway`, or because its Node object is gone. Routers and workers notice it at different times.
//!
//! It goes on with the tables that it has. They may lack leases of the last moments: nobody chooses this node for a new
//! connection once its successor is known.

use crate::model::{GatewayName, NodeName, Snapshot};
use crate::numbers::DEPARTURE_MS;
use std::collections::BTreeSet;

/// The departure of one node.
#[derive(Clone, Debug, Default)]
pub struct Departure {
    /// Gateways that selected this node in the last round.
    served: BTreeSet<GatewayName>,
    /// This node.
    node: Option<NodeName>,
    since_ms: Option<u64>,
}

impl Departure {
    /// Records the gateways that select this node.
    pub fn selected(&mut self, snapshot: &Snapshot, node: &NodeName) {
        self.node = Some(node.clone());
        let Some(node) = snapshot.nodes.get(node) else {
            return;
        };
        let gateways = snapshot.gateways.values();
        let mine = gateways.filter(|gateway| gateway.selects(node));
        self.served = mine.map(|gateway| gateway.name.clone()).collect();
        self.since_ms = None;
    }

    /// Whether this node, which no gateway selects, goes on to forward. `empty`: nothing arrives any more. A fenced node
    /// stops at once: others count on that.
    pub fn goes_on(&mut self, snapshot: &Snapshot, empty: bool, now_ms: u64) -> bool {
        // Without its `EgressGateway` the addresses are nobody's.
        self.served
            .retain(|gateway| snapshot.gateways.contains_key(gateway));
        let node = self.node.as_ref().and_then(|node| snapshot.nodes.get(node));
        let is_fenced = node.is_some_and(|node| node.maintenance.fence.is_some());
        if self.served.is_empty() || is_fenced {
            return false;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        if empty || now_ms >= since_ms.saturating_add(DEPARTURE_MS) {
            *self = Self::default();
            return false;
        }
        true
    }

    /// Time of the next call of [`Self::goes_on`] although nothing has changed.
    pub fn next_deadline(&self) -> Option<u64> {
        Some(self.since_ms?.saturating_add(DEPARTURE_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Gateway, LabelSelector, Maintenance, Node, Settings, UnpooledAddresses};

    fn snapshot() -> (Snapshot, NodeName) {
        let mut snapshot = Snapshot::empty(Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: Vec::new(),
            hold_down_secs: 120,
        });
        let name = NodeName("g1".into());
        let node = Node {
            name: name.clone(),
            labels: Default::default(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            maintenance: Maintenance::default(),
        };
        snapshot.nodes.insert(name.clone(), node);
        let main = GatewayName("main".into());
        let gateway = Gateway::new(main.clone(), LabelSelector::default());
        snapshot.gateways.insert(main, gateway);
        (snapshot, name)
    }

    #[test]
    fn a_node_that_is_no_longer_selected_goes_on_until_nothing_arrives() {
        let (snapshot, node) = snapshot();
        let mut departure = Departure::default();
        assert!(!departure.goes_on(&snapshot, false, 0), "it never served");
        departure.selected(&snapshot, &node);
        assert_eq!(departure.next_deadline(), None);
        assert!(departure.goes_on(&snapshot, false, 1_000));
        assert!(departure.goes_on(&snapshot, false, 2_000));
        assert!(!departure.goes_on(&snapshot, true, 3_000));
        assert!(!departure.goes_on(&snapshot, false, 3_001));
    }

    #[test]
    fn a_fenced_node_stops_at_once() {
        let (mut snapshot, name) = snapshot();
        let mut departure = Departure::default();
        departure.selected(&snapshot, &name);
        let mut node = snapshot.nodes.get(&name).unwrap().clone();
        node.maintenance.fence = Some("no power".into());
        snapshot.nodes.insert(name, node);
        assert!(!departure.goes_on(&snapshot, false, 1_000));
    }

    #[test]
    fn it_ends_in_any_case_after_a_time_and_at_once_without_its_gateway() {
        let (mut snapshot, node) = snapshot();
        let mut departure = Departure::default();
        departure.selected(&snapshot, &node);
        assert!(departure.goes_on(&snapshot, false, 1_000));
        let end = departure.next_deadline().unwrap();
        assert!(departure.goes_on(&snapshot, false, end - 1));
        assert!(!departure.goes_on(&snapshot, false, end));
        departure.selected(&snapshot, &node);
        snapshot.gateways.clear();
        assert!(!departure.goes_on(&snapshot, false, 0));
    }
}
