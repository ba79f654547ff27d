//! Ending flows to next hops. Such a flow has the pod's own source or that of one of the node's devices, so no rule
//! tells its packets from others once its policy is gone: it would continue by the main routes. So its packets are
//! dropped first, then the flows are deleted, and only then the new ruleset is applied.

use egret_core::node::{
    GroupNumber, NextHopRoute, NodeState, Profile, ProfileId, Verdict, WorkerState,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Next hop and source that a group number stands for: a change of either ends flows.
fn meaning(worker: &WorkerState, number: GroupNumber) -> Option<(IpAddr, Option<IpAddr>)> {
    let next_hop = worker.next_hops.get(&number)?;
    let source = match &next_hop.route {
        NextHopRoute::Attached(here) => Some(here.source),
        NextHopRoute::Tunnel(_) | NextHopRoute::Nowhere => None,
    };
    Some((next_hop.address, source))
}

fn numbers(profile: &Profile) -> impl Iterator<Item = GroupNumber> {
    profile.ranges.iter().filter_map(|one| match one.verdict {
        Verdict::NextHop(number) => Some(number),
        _ => None,
    })
}

/// The state before, in which pods that will leave their next hop have no route; `None`: there are no such pods.
pub(super) fn intermediate_state(before: &NodeState, after: &NodeState) -> Option<NodeState> {
    let (old, new) = (&before.worker, &after.worker);
    if old.next_hops.is_empty() {
        return None;
    }
    let stays = |id: &ProfileId, profile: &Profile| {
        old.never == new.never
            && new.profiles.get(id) == Some(profile)
            && numbers(profile).all(|number| meaning(old, number) == meaning(new, number))
    };
    let all = old.profiles.iter();
    let ended: BTreeMap<ProfileId, bool> = all
        .filter(|(_, profile)| numbers(profile).next().is_some())
        .map(|(id, profile)| (*id, !stays(id, profile)))
        .collect();
    let leaves = |address: &IpAddr, id: &ProfileId| match ended.get(id) {
        None => false,
        Some(ended) => *ended || new.pods.get(address) != Some(id),
    };
    let leaving: Vec<(IpAddr, ProfileId)> = old
        .pods
        .iter()
        .filter(|(address, id)| leaves(address, id))
        .map(|(address, id)| (*address, *id))
        .collect();
    if leaving.is_empty() {
        return None;
    }
    let mut state = before.clone();
    for (address, id) in leaving {
        // A name that no profile has: they are hashes, and an inverted hash is another one.
        let closed = ProfileId(!id.0);
        let mut profile = old.profiles[&id].clone();
        for one in &mut profile.ranges {
            if matches!(one.verdict, Verdict::NextHop(_)) {
                one.verdict = Verdict::Unavailable;
            }
        }
        state.worker.profiles.insert(closed, profile);
        state.worker.pods.insert(address, closed);
    }
    Some(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::node::{Attachment, DestinationRange, NextHop, Tunnel};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn state(route: NextHopRoute) -> NodeState {
        let one = |first: &str, last: &str, verdict| DestinationRange {
            first: ip(first),
            last: ip(last),
            protocol: None,
            port_first: 0,
            port_last: 65535,
            verdict,
        };
        let ranges = vec![
            one("192.0.2.0", "192.0.2.255", Verdict::FamilyNotCovered),
            one("203.0.113.0", "203.0.113.255", Verdict::NextHop(2)),
        ];
        let profile = Profile {
            ranges,
            portless: Vec::new(),
        };
        let next_hop = NextHop {
            address: ip("10.9.0.1"),
            network_identifier: 0x80_0001,
            route,
        };
        NodeState {
            tunnel: Tunnel::new(1, ip("192.168.122.11"), 1450),
            peers: BTreeMap::new(),
            node_addresses: Default::default(),
            worker: WorkerState {
                next_hops: [(2, next_hop)].into(),
                profiles: [(ProfileId(9), profile)].into(),
                pods: [
                    (ip("10.244.1.5"), ProfileId(9)),
                    (ip("10.244.1.6"), ProfileId(9)),
                ]
                .into_iter()
                .collect(),
                ..WorkerState::default()
            },
            gateway: None,
        }
    }

    fn closed(before: &NodeState, after: &NodeState) -> Vec<IpAddr> {
        let Some(intermediate) = intermediate_state(before, after) else {
            return Vec::new();
        };
        let worker = &intermediate.worker;
        let dropped = |pod: &IpAddr| {
            let profile = &worker.profiles[worker.pods.get(pod).expect("a profile")];
            numbers(profile).next().is_none()
        };
        let pods = worker.pods.keys().copied();
        pods.filter(dropped).collect()
    }

    #[test]
    fn only_pods_whose_next_hop_ends_are_closed_and_only_towards_it() {
        let tunnel = |index| NextHopRoute::Tunnel([index].into());
        let attached = |source| {
            NextHopRoute::Attached(Attachment {
                device: "eth1".into(),
                index: 3,
                source: ip(source),
            })
        };
        let before = state(tunnel(7));
        let both = [ip("10.244.1.5"), ip("10.244.1.6")];
        // Another gateway, or none for now: flows wait or continue.
        for route in [tunnel(8), NextHopRoute::Nowhere] {
            assert!(closed(&before, &state(route)).is_empty());
        }
        assert_eq!(closed(&before, &state(attached("10.9.0.21"))), both);
        let other = closed(&state(attached("10.9.0.21")), &state(attached("10.9.0.22")));
        assert_eq!(other, both);
        let mut one = before.clone();
        one.worker.pods.remove(&both[0]);
        assert_eq!(closed(&before, &one), both[..1]);
        let mut none = before.clone();
        none.worker = WorkerState::default();
        assert_eq!(closed(&before, &none), both);
        assert!(closed(&none, &before).is_empty());
        let intermediate = intermediate_state(&before, &none).expect("a state");
        let profile = &intermediate.worker.profiles[&ProfileId(!9)];
        assert_eq!(profile.ranges[0].verdict, Verdict::FamilyNotCovered);
        assert_eq!(profile.ranges[1].verdict, Verdict::Unavailable);
    }
}
