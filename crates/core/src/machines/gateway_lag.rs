//! Gateways that answer probes and whose tables stay behind those of their group: their agents are dead, stuck or cut
//! off from the API, while their programs go on to forward.
//!
//! Such a gateway lacks new leases. While it counted, no new range could be used by anybody in its group. It is left out
//! as next hop, as announcer and of the group's steering version until it has caught up; if all of a group are behind,
//! all count.

use super::GatewayLiveness;
use crate::model::{GatewayName, NodeName, Snapshot};
use crate::numbers::GATEWAY_LAG_MS;
use crate::resolve::gateway_nodes;
use std::collections::{BTreeMap, BTreeSet};

/// Gateway nodes by group.
pub type GroupNodes = BTreeMap<GatewayName, BTreeSet<NodeName>>;

/// Gateway nodes of every group.
pub fn group_nodes(snapshot: &Snapshot) -> GroupNodes {
    let groups = snapshot.gateways.values().map(|gateway| {
        let nodes = gateway_nodes(gateway, &snapshot.nodes);
        (gateway.name.clone(), nodes.into_iter().cloned().collect())
    });
    groups.collect()
}

/// What a gateway has to reach.
#[derive(Clone, Copy, Debug)]
struct Goal {
    /// Steering version that another gateway of the group had.
    version: u64,
    since_ms: u64,
}

/// Gateways that stay behind.
#[derive(Clone, Debug, Default)]
pub struct GatewayLag {
    goals: BTreeMap<(GatewayName, NodeName), Goal>,
    lagging: GroupNodes,
}

impl GatewayLag {
    /// Decides again. `own`: this node and the version of its own tables, if it serves as a gateway. Returns whether
    /// [`Self::lagging`] has changed.
    ///
    /// Versions move on all the time, so a gateway is never compared with the newest one of this moment, but with the
    /// one that it had [`GATEWAY_LAG_MS`] for.
    pub fn update(
        &mut self,
        groups: &GroupNodes,
        liveness: &GatewayLiveness,
        own: Option<(&NodeName, u64)>,
        now_ms: u64,
    ) -> bool {
        let mut goals = BTreeMap::new();
        let mut lagging = GroupNodes::new();
        for (group, nodes) in groups {
            let versions = versions(nodes, liveness, own);
            let Some(newest) = versions.values().max().copied() else {
                continue;
            };
            let mut behind = BTreeSet::new();
            for (node, version) in &versions {
                let key = (group.clone(), (*node).clone());
                let known = self.goals.get(&key).copied();
                // The gateway that set the goal may be gone.
                let is_behind = |goal: &Goal| *version < goal.version.min(newest);
                let goal = match known.filter(is_behind) {
                    Some(goal) => goal,
                    None if *version < newest => Goal {
                        version: newest,
                        since_ms: now_ms,
                    },
                    None => continue,
                };
                if now_ms >= goal.since_ms.saturating_add(GATEWAY_LAG_MS) {
                    behind.insert((*node).clone());
                }
                goals.insert(key, goal);
            }
            if !behind.is_empty() && behind.len() < versions.len() {
                lagging.insert(group.clone(), behind);
            }
        }
        self.goals = goals;
        let changed = lagging != self.lagging;
        self.lagging = lagging;
        changed
    }

    /// Gateways that stay behind, by group; no set is empty, and none is the whole group.
    pub fn lagging(&self) -> &GroupNodes {
        &self.lagging
    }

    /// Time of the next decision without a new answer.
    pub fn next_deadline(&self) -> Option<u64> {
        let waiting = self.goals.iter().filter(|((group, node), _)| {
            let behind = self.lagging.get(group);
            behind.is_none_or(|behind| !behind.contains(node))
        });
        waiting
            .map(|(_, goal)| goal.since_ms.saturating_add(GATEWAY_LAG_MS))
            .min()
    }
}

/// Versions of the serving gateways of a group.
fn versions<'a>(
    nodes: &'a BTreeSet<NodeName>,
    liveness: &GatewayLiveness,
    own: Option<(&NodeName, u64)>,
) -> BTreeMap<&'a NodeName, u64> {
    let version = |node: &NodeName| match own {
        Some((me, version)) if me == node => Some(version).filter(|version| *version > 0),
        _ if liveness.serves(node) => liveness.versions.get(node).copied(),
        _ => None,
    };
    nodes
        .iter()
        .filter_map(|node| Some((node, version(node)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 7_000;

    fn name(text: &str) -> NodeName {
        NodeName(text.into())
    }

    fn group(nodes: &[&str]) -> GroupNodes {
        let nodes = nodes.iter().map(|node| name(node)).collect();
        [(GatewayName("edge".into()), nodes)].into()
    }

    fn alive(versions: &[(&str, u64)]) -> GatewayLiveness {
        GatewayLiveness {
            live: versions.iter().map(|(node, _)| name(node)).collect(),
            versions: versions.iter().map(|(node, v)| (name(node), *v)).collect(),
            settled: true,
            ..GatewayLiveness::default()
        }
    }

    fn behind(lag: &GatewayLag) -> Vec<&str> {
        let all = lag.lagging().values().flatten();
        all.map(|node| node.0.as_str()).collect()
    }

    #[test]
    fn a_gateway_that_stays_behind_is_left_out_and_counts_again_once_it_has_caught_up() {
        let (mut lag, all) = (GatewayLag::default(), group(&["a", "b"]));
        assert!(!lag.update(&all, &alive(&[("a", 5), ("b", 4)]), None, NOW));
        assert_eq!(lag.next_deadline(), Some(NOW + GATEWAY_LAG_MS));
        let late = NOW + GATEWAY_LAG_MS;
        assert!(!lag.update(&all, &alive(&[("a", 9), ("b", 4)]), None, late - 1));
        assert!(lag.update(&all, &alive(&[("a", 9), ("b", 4)]), None, late));
        assert_eq!(behind(&lag), ["b"]);
        assert_eq!(lag.next_deadline(), None);
        assert!(lag.update(&all, &alive(&[("a", 9), ("b", 9)]), None, late + 1));
        assert!(behind(&lag).is_empty());
    }

    #[test]
    fn a_gateway_that_is_always_a_little_behind_counts() {
        let (mut lag, all) = (GatewayLag::default(), group(&["a", "b"]));
        for step in 1..100 {
            let now_ms = NOW + step * (GATEWAY_LAG_MS - 1);
            lag.update(&all, &alive(&[("a", step + 1), ("b", step)]), None, now_ms);
            assert!(behind(&lag).is_empty());
        }
    }

    #[test]
    fn a_dead_gateway_is_not_compared_and_this_node_is() {
        let (mut lag, all) = (GatewayLag::default(), group(&["a", "b", "c"]));
        let mut liveness = alive(&[("a", 9), ("b", 4)]);
        liveness.live.remove(&name("a"));
        let me = name("c");
        for (version, right) in [(5, vec!["b"]), (4, vec![]), (0, vec![])] {
            let mut lag = lag.clone();
            let own = Some((&me, version));
            lag.update(&all, &liveness, own, NOW);
            lag.update(&all, &liveness, own, NOW + GATEWAY_LAG_MS);
            assert_eq!(behind(&lag), right);
        }
        let own = Some((&me, 3));
        lag.update(&all, &liveness, own, NOW);
        lag.update(&all, &liveness, own, NOW + GATEWAY_LAG_MS);
        assert_eq!(behind(&lag), ["c"], "this node's own agent is cut off");
    }

    proptest! {
        /// Property: a gateway of the newest version is never left out, and never a whole group.
        #[test]
        fn somebody_always_counts(steps in prop::collection::vec((0u64..4, 0u64..4, 0u64..4, 0u64..4_000), 1..40)) {
            let (mut lag, all) = (GatewayLag::default(), group(&["a", "b", "c"]));
            let mut now_ms = NOW;
            for (a, b, c, wait_ms) in steps {
                now_ms += wait_ms;
                let liveness = alive(&[("a", a), ("b", b), ("c", c)]);
                lag.update(&all, &liveness, None, now_ms);
                let newest = a.max(b).max(c);
                for node in behind(&lag) {
                    prop_assert!(liveness.versions[&name(node)] < newest);
                }
            }
        }
    }
}
