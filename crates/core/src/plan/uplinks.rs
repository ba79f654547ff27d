//! Gateways whose external network does not answer: a policy is Ready only if some gateway reaches its external
//! network.

use super::GatewayNode;
use crate::condition::{Condition, ConditionType, Reason};
use crate::model::Policy;

const REMEDY: &str = "see the condition NoUplink of their EgressNodes, and the network behind their external devices";

/// Names of the running gateway nodes whose external network does not answer, and whether those are all that run.
fn lost(nodes: &[GatewayNode]) -> Option<(String, bool)> {
    let running = || nodes.iter().filter(|node| node.running);
    let lost: Vec<&str> = running()
        .filter(|node| node.uplink_lost)
        .map(|node| node.node.0.as_str())
        .collect();
    let all = lost.len() == running().count();
    (!lost.is_empty()).then(|| (lost.join(", "), all))
}

/// Why no gateway reaches its external network.
pub(super) fn none_left(nodes: &[GatewayNode]) -> Option<String> {
    let (names, all) = lost(nodes)?;
    all.then(|| {
        format!("no next hop answers any gateway ({names}), so that nothing comes back; {REMEDY}")
    })
}

/// The same for one policy. `None` if its packets do not need the default next hop: they go to a next hop of the
/// policy's own, or to a network that the gateways are attached to.
pub(super) fn none_left_for(policy: &Policy, nodes: &[GatewayNode]) -> Option<String> {
    let attached = |cidr| {
        let mut networks = nodes.iter().flat_map(|node| &node.external);
        networks.any(|network| network.trunc().contains(cidr))
    };
    let destinations = policy.destinations.as_ref();
    let on_link = destinations.is_some_and(|all| all.iter().all(|one| attached(&one.cidr)));
    match policy.next_hop().is_some() || on_link {
        true => None,
        false => none_left(nodes),
    }
}

/// Condition: the external network of some gateways does not answer, while other gateways serve.
pub(super) fn some_lost(nodes: &[GatewayNode]) -> Option<Condition> {
    let (names, all) = lost(nodes)?;
    (!all).then(|| {
        let text =
            format!("no next hop answers these gateways, and others serve: {names}; {REMEDY}");
        Condition::new(ConditionType::Degraded, true, Reason::NoUplink, text)
    })
}
