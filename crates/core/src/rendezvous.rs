//! Rendezvous (highest random weight) order: everyone who knows the names computes the same order without
//! communication. Removing a name moves only what that name had.

use crate::hash::StableHash;
use crate::model::{Gateway, NodeName};
use std::net::IpAddr;

/// Gateway nodes in the order in which they announce `address`: the first live one is the announcer.
pub fn announcer_order<'a>(
    address: IpAddr,
    nodes: impl IntoIterator<Item = &'a NodeName>,
) -> Vec<&'a NodeName> {
    let mut scored: Vec<(u64, &NodeName)> = nodes
        .into_iter()
        .map(|node| {
            (
                StableHash::new("announcer")
                    .address(address)
                    .text(&node.0)
                    .finish(),
                node,
            )
        })
        .collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.into_iter().map(|(_, node)| node).collect()
}

/// [`announcer_order`] of the gateway's nodes, with the node first that the gateway names for the address.
pub fn gateway_order<'a>(
    gateway: Option<&Gateway>,
    address: IpAddr,
    nodes: impl IntoIterator<Item = &'a NodeName>,
) -> Vec<&'a NodeName> {
    let named = gateway.and_then(|gateway| gateway.announcers.get(&address));
    let mut order = announcer_order(address, nodes);
    // Stable: the others keep their order.
    order.sort_by_key(|node| Some(*node) != named);
    order
}

/// Announcer of an address among the nodes that report announcing it: the last in the order of announcers. A node
/// announces only while it sees none before it alive; the record of a dead node still contains its last report.
pub fn announcer<'a>(
    gateway: Option<&Gateway>,
    address: IpAddr,
    saying: impl IntoIterator<Item = &'a NodeName>,
) -> Option<&'a NodeName> {
    gateway_order(gateway, address, saying).pop()
}

/// The address that a pod is paired to (RFC 4787 REQ-2); stable as long as it is among `addresses`.
pub(crate) fn paired(pod_uid: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Option<IpAddr> {
    addresses
        .into_iter()
        .map(|a| {
            (
                StableHash::new("pairing").text(pod_uid).address(a).finish(),
                a,
            )
        })
        .max()
        .map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_node_comes_first_and_its_last_report_gives_way_to_the_one_that_took_over() {
        let nodes: Vec<NodeName> = (0..4).map(|n| NodeName(format!("gateway{n}"))).collect();
        let address = IpAddr::from([192, 0, 2, 1]);
        let order = announcer_order(address, &nodes);
        let named = order[3];
        let labels = crate::model::LabelSelector::default();
        let mut gateway = Gateway::new(crate::model::GatewayName("main".into()), labels);
        gateway.announcers.insert(address, named.clone());
        let moved = gateway_order(Some(&gateway), address, &nodes);
        assert_eq!(moved, [named, order[0], order[1], order[2]]);
        let saying = [named, order[0]];
        assert_eq!(announcer(Some(&gateway), address, saying), Some(order[0]));
        assert_eq!(announcer(None, address, saying), Some(named));
    }

    #[test]
    fn a_lost_node_moves_only_its_own_addresses() {
        let nodes: Vec<NodeName> = (0..5).map(|n| NodeName(format!("gateway{n}"))).collect();
        let mut firsts = std::collections::BTreeSet::new();
        for last in 1..=200u8 {
            let address = IpAddr::from([192, 0, 2, last]);
            let before = announcer_order(address, &nodes);
            firsts.insert(before[0].clone());
            let after = announcer_order(address, nodes.iter().filter(|n| *n != &nodes[2]));
            let expected: Vec<_> = before.into_iter().filter(|n| *n != &nodes[2]).collect();
            assert_eq!(after, expected);
        }
        assert_eq!(
            firsts.len(),
            nodes.len(),
            "every gateway announces some of 200 addresses"
        );
    }
}
