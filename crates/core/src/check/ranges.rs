//! Disjointness, by a sweep that shares nothing with the compiler's.

use super::{Found, Rule};
use crate::model::Protocol;
use crate::node::{DestinationRange, Profile, ProfileId};
use std::collections::BTreeMap;
use std::net::IpAddr;

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];

/// Destination ranges are well formed, sorted and disjoint; so are the ranges of protocols without ports.
pub(super) fn check_profile(id: ProfileId, profile: &Profile, found: &mut Found) {
    let subject = format!("profile {:x}", id.0);
    for one in &profile.ranges {
        let family = one.first.is_ipv4() == one.last.is_ipv4();
        let order = one.first <= one.last && one.port_first <= one.port_last;
        let whole = matches!(one.protocol, None | Some(Protocol::Icmp));
        let ports = !whole || (one.port_first, one.port_last) == (0, u16::MAX);
        found.expect(
            family && order && ports,
            Rule::BoxMalformed,
            &subject,
            &format!("{one:?}"),
        );
    }
    let sorted = profile.ranges.is_sorted();
    found.expect(sorted, Rule::BoxMalformed, &subject, "boxes are not sorted");
    for protocol in PROTOCOLS {
        overlaps(&subject, profile, protocol, found);
    }
    for pair in profile.portless.windows(2) {
        let apart = pair[0].1 < pair[1].0;
        found.expect(
            apart,
            Rule::Overlap,
            &subject,
            "ranges of protocols without ports",
        );
    }
    for (first, last) in &profile.portless {
        let good = first.is_ipv4() == last.is_ipv4() && first <= last;
        found.expect(
            good,
            Rule::BoxMalformed,
            &subject,
            &format!("{first}-{last}"),
        );
    }
}

/// Ranges that cover the current address, by first port: (last port, last address).
type Open = BTreeMap<u16, (u16, IpAddr)>;

fn overlaps(subject: &str, profile: &Profile, protocol: Protocol, found: &mut Found) {
    let mine = profile
        .ranges
        .iter()
        .filter(|b| b.protocol.is_none_or(|p| p == protocol));
    let mut boxes: Vec<&DestinationRange> = mine.collect();
    boxes.sort_by_key(|b| (b.first, b.port_first));
    let mut open: Open = BTreeMap::new();
    // Ends first: ranges that end before this one starts do not overlap it.
    let mut ends: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
    for one in boxes {
        while let Some(entry) = ends.first_entry().filter(|entry| *entry.key() < one.first) {
            let end = *entry.key();
            for port in entry.remove() {
                if open.get(&port).is_some_and(|(_, last)| *last == end) {
                    open.remove(&port);
                }
            }
        }
        let below = open.range(..=one.port_last).next_back();
        if below.is_some_and(|(_, (last, _))| *last >= one.port_first) {
            found.add(
                Rule::Overlap,
                subject,
                format!("{protocol:?}: {one:?} and one before it"),
            );
        }
        open.insert(one.port_first, (one.port_last, one.last));
        ends.entry(one.last).or_default().push(one.port_first);
    }
}
