//! Which gateways of a group count: the one place that decides it for announcers and for next hops.
//!
//! Gateways of the best standing that serves count. So a drain, or tables that stay behind, never leave an address
//! without a gateway: if nobody does better, those count that are there.

use super::GroupNodes;
use crate::model::{GatewayName, NodeName, Snapshot};
use std::collections::BTreeSet;

/// Standing of a gateway in its group, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing speaks against it.
    Good,
    /// Its node is drained: it hands over to others, and can still forward everything.
    Draining,
    /// Its tables stay behind ([`super::GatewayLag`]), so it lacks new leases.
    Behind,
}

/// Standing of this node in the group of a gateway.
pub fn standing(
    snapshot: &Snapshot,
    lagging: &GroupNodes,
    (gateway, node): (&GatewayName, &NodeName),
) -> Standing {
    let behind = lagging.get(gateway);
    let maintenance = snapshot.nodes.get(node).map(|node| &node.maintenance);
    if behind.is_some_and(|behind| behind.contains(node)) {
        Standing::Behind
    } else if maintenance.is_some_and(|maintenance| maintenance.drain.is_some()) {
        Standing::Draining
    } else {
        Standing::Good
    }
}

/// Those of `nodes` whose standing is the best that a node for which `serves` is true has; all, if none serves.
pub fn counting<'a>(
    nodes: impl IntoIterator<Item = &'a NodeName>,
    standing: impl Fn(&NodeName) -> Standing,
    serves: impl Fn(&NodeName) -> bool,
) -> BTreeSet<&'a NodeName> {
    let mut nodes: BTreeSet<&NodeName> = nodes.into_iter().collect();
    let serving = nodes.iter().filter(|node| serves(node));
    if let Some(best) = serving.map(|node| standing(node)).min() {
        nodes.retain(|node| standing(node) == best);
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_best_standing_that_serves_counts_and_somebody_always_does() {
        use Standing::{Behind, Draining, Good};
        let all = [("a", Good), ("b", Draining), ("c", Behind), ("d", Good)];
        let name = |text: &str| NodeName(text.into());
        let nodes: BTreeMap<NodeName, Standing> =
            all.iter().map(|(text, one)| (name(text), *one)).collect();
        for (serving, counts) in [
            ("abcd", "ad"),
            ("bcd", "ad"),
            ("bc", "b"),
            ("c", "c"),
            ("", "abcd"),
        ] {
            let serves = |node: &NodeName| serving.contains(&node.0);
            let found = counting(nodes.keys(), |node| nodes[node], serves);
            let found: String = found.iter().map(|node| node.0.as_str()).collect();
            assert_eq!(found, counts, "where {serving} serve");
        }
    }
}
