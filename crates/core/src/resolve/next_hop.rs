//! Policies whose packets go to a next hop on the gateways' network instead of leaving with an egress address.

use super::address::unusable as no_host;
use super::{Problem, Refusal, Resolved};
use crate::condition::Reason;
use crate::hash::StableHash;
use crate::model::*;
use crate::numbers::{NEXT_HOP_VNI_BASE, NEXT_HOP_VNI_BITS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// VXLAN network identifier by which gateways recognise a packet's next hop. Every node computes it from the address
/// alone: a number from a list would denote another next hop for a moment whenever the list changes.
pub(crate) fn network_identifier(next_hop: IpAddr) -> u32 {
    let hash = StableHash::new("next hop").address(next_hop).finish();
    let bits = hash & ((1 << NEXT_HOP_VNI_BITS) - 1);
    NEXT_HOP_VNI_BASE | u32::try_from(bits).expect("fewer bits than a u32 has")
}

/// Problem of a policy whose next hop cannot be a neighbour.
pub(super) fn problem(policy: &Policy) -> Option<Problem> {
    let next_hop = policy.next_hop()?;
    no_host(next_hop).then(|| {
        Problem::new(
            Reason::AddressInvalid,
            "next hop",
            next_hop,
            "no host can have this address, or only together with a device; name a unicast address of a router",
        )
    })
}

/// Of next hops with the same network identifier, those of the oldest policy are valid.
pub(super) fn settle(resolved: &mut [Resolved<'_>], findings: &mut BTreeSet<Finding>) {
    let used = |one: &Resolved<'_>| one.policy.next_hop().filter(|_| one.refusal.is_none());
    let mut order: Vec<usize> = (0..resolved.len())
        .filter(|i| used(&resolved[*i]).is_some())
        .collect();
    order.sort_by_key(|i| {
        let policy = resolved[*i].policy;
        (policy.created_secs, &policy.object)
    });
    let mut taken: BTreeMap<u32, (IpAddr, &ObjectRef)> = BTreeMap::new();
    for i in order {
        let one = &mut resolved[i];
        let Some(next_hop) = used(one) else { continue };
        let (first, by) = *taken
            .entry(network_identifier(next_hop))
            .or_insert((next_hop, &one.policy.object));
        if first == next_hop {
            continue;
        }
        let remedy = format!(
            "in the tunnel it cannot be told from {first}, the next hop of {by}, which is older; give the router another \
             address, or remove one of the two"
        );
        let problem = Problem::new(Reason::Duplicate, "next hop", next_hop, remedy);
        findings.insert(problem.finding(&one.policy.object));
        one.refusal = Some(Refusal {
            reason: problem.reason,
            message: problem.remedy,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: nodes of two versions must agree.
    #[test]
    fn an_identifier_is_the_same_on_every_node_and_in_every_version() {
        let of = |text: &str| network_identifier(text.parse().unwrap());
        assert_eq!(of("10.9.0.1"), 0xa8_91d5);
        assert_eq!(of("192.168.122.1"), 0xf5_d2d2);
        assert_eq!(of("2001:db8::1"), 0x9c_a187);
    }
}
