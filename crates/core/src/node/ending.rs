//! When to end the flows that lose their source or their source port by a change of the worker's state.

use super::state::WorkerState;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Addresses of pods that do not run, as the CNI plugin reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    /// Addresses of pods whose first process waits for the plugin's answer.
    pub starting: BTreeSet<IpAddr>,
    /// Addresses of ended pods. No other pod gets them before the plugin's answer.
    pub ended: BTreeSet<IpAddr>,
}

/// By when the flows that a change ends must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The change affects no flow.
    Nothing,
    /// After the change is in force: only addresses of pods that do not run are added or removed.
    Afterwards,
    /// As part of the change: running pods are affected.
    AtOnce,
}

impl Ending {
    /// The requirement of the step from one state to the next. New ranges alone affect no flow. Flows in withdrawn
    /// blocks keep their source address, so nothing waits for their end.
    ///
    /// An added address has no flow with an egress address: the step that removed it from its last pod has ended them,
    /// or the caller ends them before this step. The guard holds back other flows of the address (of an earlier,
    /// unselected pod) from the moment of the change until they are ended. An address that a starting pod takes over
    /// without being selected itself has such flows.
    pub fn of(before: &WorkerState, after: &WorkerState, idle: &Idle) -> Self {
        let addresses = |state: &WorkerState| -> BTreeMap<_, _> {
            let targets = state.targets.iter();
            targets.map(|(id, target)| (*id, target.address)).collect()
        };
        let targets = (addresses(before), addresses(after));
        let same_pods = before.pods == after.pods;
        if same_pods
            && targets.0 == targets.1
            && (&before.profiles, &before.never) == (&after.profiles, &after.never)
            && before.next_hops == after.next_hops
        {
            return match loses_ports(before, after) {
                true => Ending::Afterwards,
                false => Ending::Nothing,
            };
        }
        let changes = after.pods.changes_since(&before.pods);
        let idle_alone = changes.iter().all(|change| {
            let starts = idle.starting.contains(&change.address);
            let ends = idle.ended.contains(&change.address);
            (change.before.is_none() && starts) || (change.after.is_none() && ends && !starts)
        });
        // Everything that the remaining pods use is unchanged; what is added or removed belongs to the pods that are.
        let kept = before.never == after.never
            && keeps(&before.profiles, &after.profiles)
            && keeps(&targets.0, &targets.1)
            && keeps(&before.next_hops, &after.next_hops);
        match !same_pods && idle_alone && kept {
            true => Ending::Afterwards,
            false => Ending::AtOnce,
        }
    }
}

/// Whether flows may be in blocks that this node has no more.
fn loses_ports(before: &WorkerState, after: &WorkerState) -> bool {
    match (&before.flow_ports, &after.flow_ports) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(before), Some(after)) => !after.contains(before),
    }
}

/// Whether all entries that are in both maps are equal.
fn keeps<K: Ord, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> bool {
    let mut both = before
        .iter()
        .filter_map(|(key, old)| Some((old, after.get(key)?)));
    both.all(|(old, new)| old == new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PortRange;
    use crate::node::{
        DestinationRange, Profile, ProfileId, Target, TargetId, TrafficKeyId, Verdict,
    };

    const FIRST: &str = "10.0.0.1";
    const SECOND: &str = "10.0.0.2";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Worker state with these pods, each with the number of its policy, which has an egress address of its own.
    fn state(pods: &[(&str, u64)]) -> WorkerState {
        let mut state = WorkerState::default();
        for (address, number) in pods {
            state.pods.insert(ip(address), ProfileId(*number));
            let verdict = Verdict::Target(TargetId(*number));
            let everything = DestinationRange {
                first: ip("0.0.0.0"),
                last: ip("255.255.255.255"),
                protocol: None,
                port_first: 0,
                port_last: u16::MAX,
                verdict,
            };
            let boxes = vec![everything];
            let portless = Vec::new();
            let profile = Profile {
                ranges: boxes,
                portless,
            };
            state.profiles.insert(ProfileId(*number), profile);
            let target = Target {
                address: ip(&format!("192.0.2.{number}")),
                group: 1,
                traffic_key: TrafficKeyId(*number),
                quotas: Default::default(),
                ranges: Vec::new(),
            };
            state.targets.insert(TargetId(*number), target);
        }
        state
    }

    fn idle(starting: &[&str], ended: &[&str]) -> Idle {
        let all = |addresses: &[&str]| addresses.iter().map(|address| ip(address)).collect();
        Idle {
            starting: all(starting),
            ended: all(ended),
        }
    }

    fn ending(before: &[(&str, u64)], after: &[(&str, u64)], idle: &Idle) -> Ending {
        Ending::of(&state(before), &state(after), idle)
    }

    #[test]
    fn pods_that_do_not_run_can_wait_for_the_end_of_flows() {
        let (one, two) = ([(FIRST, 1)], [(FIRST, 1), (SECOND, 1)]);
        // The first pod of a policy adds its profile and target, the last one removes them.
        let other = [(FIRST, 1), (SECOND, 2)];
        let starts = idle(&[SECOND], &[]);
        let ended = idle(&[], &[SECOND]);
        let nobody = Idle::default();
        for many in [&two, &other] {
            assert_eq!(ending(&one, many, &starts), Ending::Afterwards);
            assert_eq!(ending(many, &one, &ended), Ending::Afterwards);
            for running in [&nobody, &idle(&[FIRST], &[]), &ended] {
                assert_eq!(ending(&one, many, running), Ending::AtOnce);
            }
            for running in [&nobody, &idle(&[], &[FIRST]), &starts] {
                assert_eq!(ending(many, &one, running), Ending::AtOnce);
            }
        }
    }

    #[test]
    fn an_address_that_was_never_taken_back_cannot_wait() {
        let two = [(FIRST, 1), (SECOND, 1)];
        let starts = idle(&[SECOND], &[]);
        let to_another_policy = [(FIRST, 1), (SECOND, 2)];
        assert_eq!(ending(&two, &to_another_policy, &starts), Ending::AtOnce);
        let to_none = [(FIRST, 1)];
        assert_eq!(ending(&two, &to_none, &starts), Ending::AtOnce);
        // Released, and assigned to another pod at once.
        let both = idle(&[SECOND], &[SECOND]);
        assert_eq!(ending(&two, &to_none, &both), Ending::AtOnce);
        assert_eq!(ending(&two, &to_another_policy, &both), Ending::AtOnce);
    }

    #[test]
    fn a_change_for_others_beside_it_cannot_wait() {
        let both = [(FIRST, 1), (SECOND, 2)];
        let idle = idle(&[SECOND], &[FIRST]);
        let before = state(&both[..1]);
        let changes: [fn(&mut WorkerState); 4] = [
            |state| {
                let target = state.targets.get_mut(&TargetId(1)).unwrap();
                target.address = ip("192.0.2.9");
            },
            |state| {
                let profile = state.profiles.get_mut(&ProfileId(1)).unwrap();
                profile.ranges[0].port_first = 443;
            },
            |state| {
                state.never.insert("192.0.2.0/24".parse().unwrap());
            },
            |state| {
                state.pods.insert(ip(FIRST), ProfileId(2));
            },
        ];
        for change in changes {
            let mut after = state(&both);
            change(&mut after);
            assert_eq!(Ending::of(&before, &after, &idle), Ending::AtOnce);
            let mut alone = before.clone();
            change(&mut alone);
            assert_eq!(Ending::of(&before, &alone, &idle), Ending::AtOnce);
        }
    }

    #[test]
    fn flows_in_withdrawn_blocks_end_afterwards_and_those_of_an_older_record_do_not() {
        let with = |last: Option<u16>| {
            let ranges = last.map(|last| vec![PortRange { first: 1024, last }]);
            let ports = ranges.map(|ranges| BTreeMap::from([(ip("192.0.2.1"), ranges)]).into());
            let mut state = state(&[(FIRST, 1)]);
            state.flow_ports = ports;
            state
        };
        let of = |before, after| Ending::of(&with(before), &with(after), &Idle::default());
        assert_eq!(of(Some(1151), Some(1087)), Ending::Afterwards);
        assert_eq!(of(Some(1087), Some(1151)), Ending::Nothing);
        assert_eq!(of(Some(1151), None), Ending::Nothing);
        assert_eq!(of(None, Some(1151)), Ending::Afterwards);
    }

    #[test]
    fn new_ranges_alone_move_no_flow() {
        let before = state(&[(FIRST, 1)]);
        let mut after = before.clone();
        let (first, last) = (1024, 1087);
        let ranges = &mut after.targets.get_mut(&TargetId(1)).unwrap().ranges;
        ranges.push(PortRange { first, last });
        let nobody = Idle::default();
        assert_eq!(Ending::of(&before, &after, &nobody), Ending::Nothing);
    }
}
