//! Routes and rules of all owners, reduced to how they divide destinations.
//!
//! A node may have too many pods for one kernel lookup each. Addresses that no route and no rule distinguishes take the
//! same route, so one lookup is enough for all of them.

use egret_core::numbers::ROUTE_PROTOCOL;
use egret_kernel::netlink::attributes;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Sizes of `struct rtmsg` and of `struct fib_rule_hdr`, which begin alike: family, then bits of the destination.
pub(super) const ROUTE_BYTES: usize = 12;
/// `RTA_DST` and `FRA_DST`.
pub(super) const DESTINATION: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;

#[derive(Default)]
pub(super) struct Routes {
    /// Unicast routes of all tables except the local one, by device, without our own.
    pub(super) ways: BTreeSet<(u32, IpNet)>,
    /// Devices of addresses with a host route in the main table; `None`: more than one device.
    hosts: BTreeMap<IpAddr, Option<u32>>,
    /// Destinations of all routes and rules except our own.
    destinations: BTreeSet<IpNet>,
    /// Prefix lengths of those destinations, for each family.
    lengths: BTreeMap<bool, BTreeSet<u8>>,
}

impl Routes {
    /// Adds a route message.
    pub(super) fn add_route(&mut self, body: &[u8]) {
        // Our routes are for marked packets only, and may be one per pod.
        let header = body.get(..ROUTE_BYTES);
        let Some(header) = header.filter(|header| header[5] != ROUTE_PROTOCOL) else {
            return;
        };
        let Some(to) = self.add_destination(body) else {
            return;
        };
        let (table, kind) = (header[4], header[7]);
        if table == libc::RT_TABLE_LOCAL || kind != libc::RTN_UNICAST {
            return;
        }
        let mut devices = BTreeSet::new();
        for (kind, value) in attributes(&body[ROUTE_BYTES..]) {
            match kind {
                RTA_OIF => devices.extend(value.try_into().ok().map(u32::from_ne_bytes)),
                RTA_MULTIPATH => devices.extend(hops(value)),
                _ => {}
            }
        }
        for device in devices {
            self.ways.insert((device, to));
            if table == libc::RT_TABLE_MAIN && to.prefix_len() == to.max_prefix_len() {
                let known = self.hosts.entry(to.addr()).or_insert(Some(device));
                *known = known.filter(|one| *one == device);
            }
        }
    }

    /// Adds the destination of a route or rule message and returns it.
    pub(super) fn add_destination(&mut self, body: &[u8]) -> Option<IpNet> {
        let header = body.get(..ROUTE_BYTES)?;
        let mut to: IpAddr = match i32::from(header[0]) {
            libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut named = attributes(&body[ROUTE_BYTES..]).filter(|(kind, _)| *kind == DESTINATION);
        if let Some((_, value)) = named.next() {
            to = match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
                (Ok(v4), _) => v4.into(),
                (_, Ok(v6)) => v6.into(),
                _ => return None,
            };
        }
        let to = IpNet::new(to, header[1]).ok()?.trunc();
        self.destinations.insert(to);
        let lengths = self.lengths.entry(to.addr().is_ipv4()).or_default();
        lengths.insert(to.prefix_len());
        Some(to)
    }

    /// Device of the main table's host route to this address: plugins without a bridge route to a pod like this.
    pub(super) fn straight(&self, address: IpAddr) -> Option<u32> {
        *self.hosts.get(&address)?
    }

    /// Prefix that represents all addresses covered by the same routes and rules as this one.
    pub(super) fn kin(&self, address: IpAddr) -> Option<IpNet> {
        let lengths = self.lengths.get(&address.is_ipv4())?.iter().rev();
        let mut covering =
            lengths.filter_map(|bits| Some(IpNet::new(address, *bits).ok()?.trunc()));
        covering.find(|net| self.destinations.contains(net))
    }
}

/// Device indexes of a sequence of `struct rtnexthop`.
fn hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let index = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
        bytes = bytes
            .get(length.max(8).next_multiple_of(4)..)
            .unwrap_or(&[]);
        Some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_kernel::netlink::Attrs;

    /// A throw route of this protocol.
    fn thrown(protocol: u8, to: [u8; 4]) -> Vec<u8> {
        let header = [2, 32, 0, 0, 252, protocol, 0, 9, 0, 0, 0, 0];
        Attrs::after(&header).bytes(DESTINATION, &to).finish()
    }

    #[test]
    fn our_own_routes_tell_no_pods_apart_and_those_of_others_do() {
        let pods = [[10, 0, 0, 1], [10, 0, 0, 2]];
        let kin = |protocol: u8| {
            let mut routes = Routes::default();
            for pod in pods {
                routes.add_route(&thrown(protocol, pod));
            }
            pods.map(|pod| routes.kin(IpAddr::from(pod)))
        };
        let [first, second] = kin(ROUTE_PROTOCOL);
        assert_eq!(first, second);
        let [first, second] = kin(4);
        assert_ne!(first, second);
    }
}
