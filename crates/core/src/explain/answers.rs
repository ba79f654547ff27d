//! Whether gateways answer the node that is asked, and whether their external network answers. Reports of gateways that
//! no longer answer are ignored.

use crate::model::{AnnounceMode, Gateway, NodeName, NodeRecord, Snapshot};
use crate::node::{IssueKind, NodeOutcome, OPEN_TUNNEL, TargetId, TunnelIndex};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Announcer of the address, and whether one exists. `silent`: gateways that do not answer the node, where known.
pub(super) fn announced(
    snapshot: &Snapshot,
    gateway: &Gateway,
    silent: Option<&BTreeSet<NodeName>>,
    address: IpAddr,
) -> (String, bool) {
    let (text, good) = announcers(snapshot, gateway, silent, address);
    // A gateway that has handed the address over does not listen any more.
    let records = || snapshot.node_records.values();
    let says = |record: &NodeRecord| record.announcing.contains(&address);
    let is_announced = records().any(says);
    let listening = records().filter(|record| !is_announced || says(record));
    match listening
        .filter_map(|record| record.conflicts.get(&address))
        .next()
    {
        Some(claim) => (
            format!("{text}; another machine answers for it: {claim}"),
            false,
        ),
        None => (text, good),
    }
}

fn announcers(
    snapshot: &Snapshot,
    gateway: &Gateway,
    silent: Option<&BTreeSet<NodeName>>,
    address: IpAddr,
) -> (String, bool) {
    let records = snapshot.node_records.values();
    let saying = records.filter(|record| record.announcing.contains(&address));
    let is_silent = |node: &NodeName| silent.is_some_and(|silent| silent.contains(node));
    let (gone, live): (Vec<&NodeName>, Vec<&NodeName>) = saying
        .map(|record| &record.node)
        .partition(|node| is_silent(node));
    let names = |nodes: &[&NodeName]| {
        let names: Vec<&str> = nodes.iter().map(|node| node.0.as_str()).collect();
        names.join(", ")
    };
    match (live.as_slice(), gone.as_slice()) {
        ([], _) if gateway.announce == AnnounceMode::Static => {
            (format!("routers lead to its gateways for {address}"), true)
        }
        ([], []) => (
            "nobody reports that it announces the address".to_owned(),
            false,
        ),
        ([], gone) => (
            format!(
                "no gateway that answers this node announces {address}; last said to by {}",
                names(gone)
            ),
            false,
        ),
        (live, _) => (format!("{address} is announced by {}", names(live)), true),
    }
}

/// Whether no gateway of the target answers, so that its group is the last known one (fail static).
pub(super) fn is_kept(outcome: &NodeOutcome, target: TargetId) -> bool {
    outcome.target_groups.get(&target).is_some_and(|key| {
        let mut issues = outcome.issues.iter();
        issues.any(|one| one.kind == IssueKind::FailStatic && one.subject == key.gateway.0)
    })
}

/// The verdict line for that case.
pub(super) fn nothing_comes_back(address: IpAddr, members: &str) -> String {
    format!(
        "no gateway of {address} answers this node's probes: what it sends goes to the last ones, {members}, and \
         nothing comes back; {OPEN_TUNNEL}"
    )
}

/// Whether all of these nodes report that nothing behind their external link answers.
pub(super) fn are_lost(snapshot: &Snapshot, members: &BTreeSet<TunnelIndex>) -> bool {
    let lost = |index: &TunnelIndex| {
        let mut records = snapshot.node_records.values();
        records.any(|record| record.tunnel_index == *index && record.uplink_lost)
    };
    !members.is_empty() && members.iter().all(lost)
}

/// The verdict line for that case.
pub(super) fn no_way_out(address: IpAddr, members: &str) -> String {
    format!(
        "no gateway of {address} has a way out: what it sends goes to {members}, and no next hop of the external device \
         answers there; see the condition NoUplink of their EgressNodes, and the network behind them"
    )
}
