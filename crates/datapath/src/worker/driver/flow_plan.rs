//! Plan of how a change of state ends flows, made before anything changes.

use super::drain_next_hops::intermediate_state;
use egret_core::node::{Ending, Idle, NodeState};

/// Flows' part of one change.
#[derive(Debug)]
pub(super) struct FlowPlan {
    /// Intermediate state in which pods that leave a next hop have no route, so that their flows end in it.
    pub(super) intermediate: Option<NodeState>,
    /// Put flows that the change ends into the run-time sets before the ruleset changes, so that their packets are
    /// refused from the first moment on.
    pub(super) mark_first: bool,
    /// When to end flows that the change takes from their source.
    pub(super) ending: Ending,
}

impl FlowPlan {
    /// Plans from the state applied last. `unfinished`: a later change failed halfway, so that the existing flows are
    /// unknown.
    pub(super) fn of(
        applied: Option<&NodeState>,
        state: &NodeState,
        idle: &Idle,
        unfinished: bool,
    ) -> Self {
        let intermediate = applied.and_then(|before| intermediate_state(before, state));
        let ending = match applied {
            Some(before) if !unfinished && intermediate.is_none() => {
                Ending::of(&before.worker, &state.worker, idle)
            }
            _ => Ending::AtOnce,
        };
        FlowPlan {
            mark_first: intermediate.is_none() && ending == Ending::AtOnce && applied.is_some(),
            intermediate,
            ending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::node::{DestinationRange, Tunnel};
    use egret_core::node::{NextHop, NextHopRoute, Profile, ProfileId, Verdict, WorkerState};
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// One pod; its packets to all destinations get this verdict.
    fn state(verdict: Verdict) -> NodeState {
        let everything = DestinationRange {
            first: ip("0.0.0.0"),
            last: ip("255.255.255.255"),
            protocol: None,
            port_first: 0,
            port_last: u16::MAX,
            verdict,
        };
        let profile = Profile {
            ranges: vec![everything],
            portless: Vec::new(),
        };
        let next_hop = NextHop {
            address: ip("10.9.0.1"),
            network_identifier: 0x80_0001,
            route: NextHopRoute::Nowhere,
        };
        let id = ProfileId(match verdict {
            Verdict::NextHop(_) => 1,
            _ => 2,
        });
        NodeState {
            tunnel: Tunnel::new(1, ip("192.168.122.11"), 1450),
            peers: BTreeMap::new(),
            node_addresses: Default::default(),
            worker: WorkerState {
                next_hops: [(2, next_hop)].into(),
                profiles: [(id, profile)].into(),
                pods: [(ip("10.244.1.5"), id)].into_iter().collect(),
                ..WorkerState::default()
            },
            gateway: None,
        }
    }

    #[test]
    fn after_a_start_flows_of_an_earlier_process_end_at_once_and_nothing_is_marked_first() {
        let plan = FlowPlan::of(None, &state(Verdict::Unavailable), &Idle::default(), false);
        assert!(plan.intermediate.is_none() && !plan.mark_first);
        assert_eq!(plan.ending, Ending::AtOnce);
    }

    #[test]
    fn an_equal_state_ends_nothing_unless_the_change_before_has_failed() {
        let state = state(Verdict::Unavailable);
        let again = FlowPlan::of(Some(&state), &state, &Idle::default(), false);
        assert!(again.ending == Ending::Nothing && !again.mark_first);
        let repeated = FlowPlan::of(Some(&state), &state, &Idle::default(), true);
        assert!(repeated.ending == Ending::AtOnce && repeated.mark_first);
    }

    #[test]
    fn who_leaves_a_next_hop_passes_through_a_state_without_it() {
        let (before, after) = (state(Verdict::NextHop(2)), state(Verdict::Unavailable));
        let plan = FlowPlan::of(Some(&before), &after, &Idle::default(), false);
        assert!(plan.intermediate.is_some() && !plan.mark_first);
        assert_eq!(plan.ending, Ending::AtOnce);
    }
}
