//! Reasons why it is unknown how a pod leaves.

use crate::model::*;
use crate::node::NodeOutcome;
use crate::resolve::{assigned, resolve, select};

/// The line for a removed node: its agent does not change the kernel any more.
pub(super) fn without_node(snapshot: &Snapshot, pod: &Pod) -> Option<String> {
    let text = || {
        format!(
            "there is no Node {}: its ports are taken back, and what its kernel still does is of before",
            pod.node
        )
    };
    (!snapshot.nodes.contains_key(&pod.node)).then(text)
}

/// Whether the state is that of this node.
pub(super) fn is_of(snapshot: &Snapshot, outcome: &NodeOutcome, node: &NodeName) -> bool {
    let record = snapshot.node_records.get(node);
    record.is_some_and(|record| record.tunnel_index == outcome.state.tunnel.index)
}

/// The line for another pod of the node with the same address and other policies: their packets cannot be told apart.
pub(super) fn shared(snapshot: &Snapshot, pod: &Pod) -> Option<String> {
    let shares = |other: &&Pod| {
        let mut addresses = other.own_addresses().iter();
        let is_other = (&other.namespace, &other.name) != (&pod.namespace, &pod.name);
        is_other && other.node == pod.node && addresses.any(|a| pod.addresses.contains(a))
    };
    let others: Vec<&Pod> = snapshot.pods.values().filter(shares).collect();
    if others.is_empty() {
        return None;
    }
    let (resolved, _) = resolve(snapshot, &assigned(snapshot), &snapshot.pods);
    let selected = select(snapshot, &resolved, std::iter::once(pod).chain(others));
    let all = selected.pods.iter().zip(&selected.policies);
    let (other, _) = all
        .into_iter()
        .find(|(_, policies)| **policies != selected.policies[0])?;
    Some(format!(
        "Pod {}/{} has its address too, with other policies, and their packets cannot be told apart",
        other.namespace, other.name
    ))
}
