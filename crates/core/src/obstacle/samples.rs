//! Packets to evaluate: one per family that the node's state sends through the tunnel, else one whose answer may arrive
//! through it.

use super::{Sample, Samples};
use crate::model::Protocol;
use crate::node::{DestinationRange, Group, NextHopRoute, NodeState, Target, Verdict, WorkerState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Documentation addresses, used by nobody (RFC 5737, RFC 3849).
pub(super) fn nobody(is_v4: bool) -> IpAddr {
    match is_v4 {
        true => Ipv4Addr::new(192, 0, 2, 1).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

impl Samples {
    /// Samples of a node's state.
    pub fn of(state: &NodeState) -> Self {
        let worker = &state.worker;
        // Another gateway may receive the answers to packets that leave by this one.
        let shared = state.peers.values().any(|peer| peer.gateway);
        let of = |is_v4| {
            let here = || sample(worker, is_v4, true).filter(|_| shared);
            sample(worker, is_v4, false).or_else(here)
        };
        Samples {
            v4: of(true),
            v6: of(false),
            tunnel: !state.peers.is_empty(),
        }
    }
}

/// `leaves_here`: by the node's own device, not through the tunnel.
fn sample(worker: &WorkerState, is_v4: bool, leaves_here: bool) -> Option<Sample> {
    let of_family = worker.pods.iter().filter(|(pod, _)| pod.is_ipv4() == is_v4);
    for (pod, profile) in of_family {
        let boxes = worker
            .profiles
            .get(profile)
            .map_or(&[][..], |profile| &profile.ranges);
        let of_family = boxes.iter().filter(|one| one.first.is_ipv4() == is_v4);
        for one in of_family {
            let Some(target) = sent(worker, one, leaves_here) else {
                continue;
            };
            let nobody = nobody(is_v4);
            let has_nobody = (one.first..=one.last).contains(&nobody);
            let https = (one.port_first..=one.port_last).contains(&443);
            return Some(Sample {
                pod: Some(*pod),
                egress: target.map(|target| target.address),
                outside: Some(if has_nobody { nobody } else { one.first }),
                protocol: one.protocol.map(number),
                port: Some(if https { 443 } else { one.port_first }),
                reinjected: !worker.reinject.is_empty(),
                leaves_here,
            });
        }
    }
    None
}

/// The target of a destination range, if it has one; `None`: the range is not sent this way.
fn sent<'a>(
    worker: &'a WorkerState,
    one: &DestinationRange,
    leaves_here: bool,
) -> Option<Option<&'a Target>> {
    match one.verdict {
        Verdict::Target(id) => {
            let target = worker.targets.get(&id)?;
            let is_so = match worker.groups.get(&target.group)? {
                Group::Tunnel(_) => !leaves_here,
                Group::Local { .. } => leaves_here,
                Group::Nowhere => false,
            };
            is_so.then_some(Some(target))
        }
        Verdict::NextHop(number) => {
            let route = &worker.next_hops.get(&number)?.route;
            (!leaves_here && matches!(route, NextHopRoute::Tunnel(_))).then_some(None)
        }
        Verdict::FamilyNotCovered | Verdict::Unavailable => None,
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
        Protocol::Icmp => 1,
    }
}
