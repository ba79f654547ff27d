//! The second driver: translation at the node that holds the address (design section 4).
//!
//! One node holds each egress address (a keepalived, a person or anything else assigns and moves it). The holder
//! translates; every other node sends selected traffic to the holder, with the pod's own source. There are no leases,
//! no tunnel and no controller: each node decides alone, by the addresses that its kernel has. `docs/classic.md` lists
//! what this driver cannot promise.

use egret_core::node::never_anywhere;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Number of an address, the same on every node, 1..=252: its mark and its routing table.
pub type ClassicNumber = u8;

/// Desired configuration, the same on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicWanted {
    /// Name of the device by which nodes reach the holder of an address.
    pub device: String,
    /// Destinations that are never egress traffic, beside those of [`never_anywhere`].
    pub never: BTreeSet<IpNet>,
    /// Egress addresses with their numbers.
    pub addresses: BTreeMap<IpAddr, ClassicNumber>,
    /// Pod address to egress address of the same family.
    pub pods: BTreeMap<IpAddr, IpAddr>,
    /// The same for ranges of pod addresses. An entry in `pods` takes precedence, and a longer prefix over a shorter
    /// one.
    pub ranges: BTreeMap<IpNet, IpAddr>,
    /// Pods whose egress address is not known: their egress traffic is dropped.
    #[serde(default)]
    pub refused: BTreeSet<IpAddr>,
}

/// Desired state of one node's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicState {
    /// See [`ClassicWanted::device`].
    pub device: String,
    /// Destinations that are never egress traffic; aggregated, so disjoint.
    pub never: BTreeSet<IpNet>,
    /// Egress addresses in use.
    pub addresses: BTreeMap<IpAddr, ClassicAddress>,
    /// Pod address to egress address.
    pub pods: BTreeMap<IpAddr, IpAddr>,
    /// Disjoint ranges of pod addresses, first and last, to egress address; sorted.
    pub ranges: Vec<(IpAddr, IpAddr, IpAddr)>,
    /// Pods whose egress traffic is dropped; none of them is in `pods`.
    #[serde(default)]
    pub refused: BTreeSet<IpAddr>,
}

/// An egress address on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicAddress {
    /// Its number.
    pub number: ClassicNumber,
    /// This node holds it.
    pub held: bool,
}

/// Handling of a flow that a pod opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassicFate {
    /// Not egress traffic: Egret does not touch it.
    Untouched,
    /// Leaves this node with this egress address.
    Translated(IpAddr),
    /// Goes to the holder of this egress address, untranslated.
    Sent(IpAddr),
    /// Dropped: its egress address is not known.
    Refused,
}

/// The state of the node that has the addresses `local`.
pub fn classic_state(wanted: &ClassicWanted, local: &BTreeSet<IpAddr>) -> ClassicState {
    let served = |pod: IpAddr, address: &IpAddr| {
        pod.is_ipv4() == address.is_ipv4() && wanted.addresses.contains_key(address)
    };
    let pods: BTreeMap<IpAddr, IpAddr> = wanted
        .pods
        .iter()
        .filter(|(pod, address)| served(**pod, address))
        .map(|(pod, address)| (*pod, *address))
        .collect();
    let ranges: Vec<(IpNet, IpAddr)> = wanted
        .ranges
        .iter()
        .filter(|(range, address)| served(range.addr(), address))
        .map(|(range, address)| (range.trunc(), *address))
        .collect();
    // Somebody who names pods for an address and then no usable address did not mean the node's address.
    let unserved = wanted.pods.keys().filter(|pod| !pods.contains_key(pod));
    let refused = wanted.refused.iter().filter(|pod| !pods.contains_key(pod));
    let refused = refused.chain(unserved).copied().collect();
    let used: BTreeSet<IpAddr> = pods
        .values()
        .copied()
        .chain(ranges.iter().map(|r| r.1))
        .collect();
    let address = |address: &IpAddr| ClassicAddress {
        number: wanted.addresses[address],
        held: local.contains(address),
    };
    let mut never = never_anywhere();
    never.extend(&wanted.never);
    // Traffic to such an address belongs to its node.
    never.extend(wanted.addresses.keys().copied().map(IpNet::from));
    ClassicState {
        device: wanted.device.clone(),
        never: IpNet::aggregate(&never).into_iter().collect(),
        addresses: used.iter().map(|a| (*a, address(a))).collect(),
        pods,
        ranges: disjoint(ranges),
        refused,
    }
}

impl ClassicState {
    /// Handling of a flow from `source` to `destination`, by this state alone.
    pub fn fate(&self, source: IpAddr, destination: IpAddr) -> ClassicFate {
        let inside = |(first, last, _): &&(IpAddr, IpAddr, IpAddr)| {
            first.is_ipv4() == source.is_ipv4() && *first <= source && source <= *last
        };
        let of_range = || {
            self.ranges
                .iter()
                .find(inside)
                .map(|(_, _, address)| address)
        };
        let refused = self.refused.contains(&source);
        let address = self.pods.get(&source).or_else(of_range);
        if self.never.iter().any(|net| net.contains(&destination)) {
            return ClassicFate::Untouched;
        }
        if refused {
            return ClassicFate::Refused;
        }
        let Some(address) = address else {
            return ClassicFate::Untouched;
        };
        match self.addresses.get(address) {
            Some(here) if here.held => ClassicFate::Translated(*address),
            Some(_) => ClassicFate::Sent(*address),
            None => ClassicFate::Untouched,
        }
    }
}

/// Cuts ranges so that none overlap; the longest prefix keeps its whole range.
fn disjoint(mut ranges: Vec<(IpNet, IpAddr)>) -> Vec<(IpAddr, IpAddr, IpAddr)> {
    ranges.sort_by_key(|(range, _)| (std::cmp::Reverse(range.prefix_len()), *range));
    let mut taken: Vec<IpNet> = Vec::new();
    let mut result = Vec::new();
    for (range, address) in ranges {
        for left in without(range, &taken) {
            result.push((left.network(), left.broadcast(), address));
        }
        taken.push(range);
    }
    result.sort_unstable();
    result
}

/// The rest of a prefix without the taken ones, as prefixes.
fn without(range: IpNet, taken: &[IpNet]) -> Vec<IpNet> {
    if taken.iter().any(|other| other.contains(&range)) {
        return Vec::new();
    }
    if !taken.iter().any(|other| range.contains(other)) {
        return vec![range];
    }
    let halves = range.subnets(range.prefix_len() + 1);
    let halves = halves.expect("a prefix that contains a longer one has halves");
    halves.flat_map(|half| without(half, taken)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn wanted() -> ClassicWanted {
        ClassicWanted {
            device: "eth0".into(),
            never: BTreeSet::from(["10.96.0.0/12".parse().unwrap()]),
            addresses: BTreeMap::from([
                (ip("192.0.2.1"), 64),
                (ip("192.0.2.2"), 65),
                (ip("2001:db8::1"), 66),
            ]),
            pods: BTreeMap::from([(ip("10.32.0.7"), ip("192.0.2.2"))]),
            ranges: BTreeMap::from([("10.32.0.0/12".parse().unwrap(), ip("192.0.2.1"))]),
            refused: BTreeSet::new(),
        }
    }

    #[test]
    fn the_holder_translates_and_others_send() {
        let local = BTreeSet::from([ip("192.0.2.1")]);
        let state = classic_state(&wanted(), &local);
        let fate = |from, to| state.fate(ip(from), ip(to));
        assert_eq!(
            fate("10.33.0.1", "203.0.113.9"),
            ClassicFate::Translated(ip("192.0.2.1"))
        );
        assert_eq!(
            fate("10.32.0.7", "203.0.113.9"),
            ClassicFate::Sent(ip("192.0.2.2"))
        );
        for never in [
            "10.96.0.1",
            "224.0.0.5",
            "127.0.0.1",
            "169.254.169.254",
            "192.0.2.2",
        ] {
            assert_eq!(fate("10.33.0.1", never), ClassicFate::Untouched, "{never}");
        }
        assert_eq!(fate("10.50.0.1", "203.0.113.9"), ClassicFate::Untouched);
        assert!(
            !state.addresses.contains_key(&ip("2001:db8::1")),
            "nothing uses it"
        );
    }

    #[test]
    fn a_pod_whose_address_is_of_the_other_family_or_has_no_number_is_refused() {
        let mut wanted = wanted();
        wanted.pods = BTreeMap::from([
            (ip("10.32.0.7"), ip("2001:db8::1")),
            (ip("10.32.0.8"), ip("192.0.2.9")),
        ]);
        wanted.ranges.clear();
        wanted.refused = BTreeSet::from([ip("10.32.0.9")]);
        let state = classic_state(&wanted, &BTreeSet::new());
        assert_eq!((state.pods.len(), state.addresses.len()), (0, 0));
        for pod in ["10.32.0.7", "10.32.0.8", "10.32.0.9"] {
            let fate = |to| state.fate(ip(pod), ip(to));
            assert_eq!(fate("203.0.113.9"), ClassicFate::Refused, "{pod}");
            assert_eq!(fate("10.96.0.1"), ClassicFate::Untouched, "{pod}");
        }
    }

    proptest! {
        /// The expected value: the longest prefix that contains the address, one address at a time.
        #[test]
        fn the_longest_range_wins(
            ranges in proptest::collection::btree_map((any::<u16>(), 16u8..=32), 0u8..4, 0..12),
            pod in any::<u16>(),
        ) {
            let net = |low: u16, length| {
                let address = IpAddr::from([10, 0, (low >> 8) as u8, low as u8]);
                IpNet::new(address, length).unwrap().trunc()
            };
            let egress = |number: u8| IpAddr::from([192, 0, 2, number]);
            let wanted = ClassicWanted {
                addresses: (0..4).map(|n| (egress(n), n + 1)).collect(),
                ranges: ranges.iter().map(|((low, length), n)| (net(*low, *length), egress(*n))).collect(),
                ..ClassicWanted::default()
            };
            let state = classic_state(&wanted, &BTreeSet::new());
            let source = net(pod, 32).addr();
            let best = wanted.ranges.iter().filter(|(range, _)| range.contains(&source));
            let expected = match best.max_by_key(|(range, _)| range.prefix_len()) {
                Some((_, address)) => ClassicFate::Sent(*address),
                None => ClassicFate::Untouched,
            };
            prop_assert_eq!(state.fate(source, egress(99).max(ip("203.0.113.1"))), expected);
            prop_assert!(state.ranges.windows(2).all(|w| w[0].1 < w[1].0), "disjoint");
        }
    }
}
