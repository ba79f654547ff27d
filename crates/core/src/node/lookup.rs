//! Evaluation of a node state for one existing flow, with the same result as the kernel's maps.

use super::state::{Group, NextHop, NextHopRoute, Verdict, WorkerState};
use crate::model::Protocol;
use std::net::IpAddr;

/// Handling of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No policy selects it: Egret does not touch it.
    Untouched,
    /// It leaves with this source address.
    Egress(IpAddr),
    /// It goes to this next hop, with this source.
    NextHop {
        /// The next hop.
        address: IpAddr,
        /// The source that it leaves this node with.
        source: IpAddr,
    },
    /// It is selected, but cannot leave now.
    Refused,
}

impl WorkerState {
    /// Whether a local pod address can open connections to everything that its policies select; true if no policy
    /// selects it.
    pub fn is_usable(&self, pod: IpAddr) -> bool {
        let profile = self.pods.get(&pod).and_then(|id| self.profiles.get(id));
        let own = profile.into_iter().flat_map(|profile| &profile.ranges);
        let mut own = own.filter(|one| one.first.is_ipv4() == pod.is_ipv4());
        own.all(|one| match one.verdict {
            Verdict::FamilyNotCovered => true,
            Verdict::Unavailable => false,
            Verdict::NextHop(number) => self
                .next_hops
                .get(&number)
                .is_some_and(NextHop::is_reachable),
            Verdict::Target(id) => self.targets.get(&id).is_some_and(|target| {
                let group = self.groups.get(&target.group);
                !target.ranges.is_empty() && group.is_some_and(|group| *group != Group::Nowhere)
            }),
        })
    }

    /// Handling of a flow, by its pod, its destination after any destination translation, its IP protocol number and
    /// its destination port.
    pub fn fate(&self, pod: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Fate {
        let profile = self.pods.get(&pod).and_then(|id| self.profiles.get(id));
        let Some(profile) = profile else {
            return Fate::Untouched;
        };
        if self
            .never
            .iter()
            .any(|prefix| prefix.contains(&destination))
        {
            return Fate::Untouched;
        }
        let protocol = match (protocol, destination) {
            (6, _) => Protocol::Tcp,
            (17, _) => Protocol::Udp,
            (132, _) => Protocol::Sctp,
            (1, IpAddr::V4(_)) | (58, IpAddr::V6(_)) => Protocol::Icmp,
            _ => {
                let inside = |(first, last): &(IpAddr, IpAddr)| {
                    first.is_ipv4() == destination.is_ipv4()
                        && (*first..=*last).contains(&destination)
                };
                let refused = profile.portless.iter().any(inside);
                return if refused {
                    Fate::Refused
                } else {
                    Fate::Untouched
                };
            }
        };
        let found = profile.ranges.iter().find(|b| {
            b.first.is_ipv4() == destination.is_ipv4()
                && (b.first..=b.last).contains(&destination)
                && b.protocol.is_none_or(|p| p == protocol)
                && (protocol == Protocol::Icmp || (b.port_first..=b.port_last).contains(&port))
        });
        match found.map(|b| b.verdict) {
            None => Fate::Untouched,
            Some(Verdict::FamilyNotCovered | Verdict::Unavailable) => Fate::Refused,
            Some(Verdict::Target(id)) => self
                .targets
                .get(&id)
                .map_or(Fate::Refused, |target| Fate::Egress(target.address)),
            Some(Verdict::NextHop(number)) => {
                let Some(next_hop) = self.next_hops.get(&number) else {
                    return Fate::Refused;
                };
                // While no gateway answers, flows through the tunnel wait for one.
                let source = match &next_hop.route {
                    NextHopRoute::Tunnel(_) | NextHopRoute::Nowhere => pod,
                    NextHopRoute::Attached(attachment) => attachment.source,
                };
                let address = next_hop.address;
                Fate::NextHop { address, source }
            }
        }
    }
}
