//! Next hops by which the kernel sends out of one device.

use super::wire::{main_unicast_routes, neighbour_address, neighbour_entries, next_hop};
use crate::netlink::{NetlinkError, NetlinkSocket};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Next hops of a device towards other networks, for one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WayOut {
    /// No next hop to probe: destinations are neighbours, or a next hop needs no resolution, or there is no route.
    #[default]
    Direct,
    /// By these next hops: those of the default route, or where there is none, of all routes.
    By(BTreeSet<IpAddr>),
    /// The device has no route but to its own networks, and the default route leads to another one.
    Elsewhere,
}

/// One route of the main table, reduced to its next hops on the device.
#[derive(Debug)]
struct Found {
    /// Length of its prefix and its metric.
    rank: (u8, u32),
    next_hops: BTreeSet<IpAddr>,
}

/// Reads the main table. A next hop with a permanent neighbour entry makes it [`WayOut::Direct`]: it is never resolved.
pub fn way_out(socket: &mut NetlinkSocket, device: u32, v6: bool) -> Result<WayOut, NetlinkError> {
    let mut routes = Vec::new();
    let mut elsewhere = false;
    for message in main_unicast_routes(socket, v6)? {
        match by_device(&message, device) {
            Some(found) => routes.push(found),
            None => elsewhere |= message.header.destination_prefix_length == 0,
        }
    }
    let fixed = permanent(socket, device, v6)?;
    Ok(judge(routes, elsewhere, &fixed))
}

fn judge(mut routes: Vec<Found>, elsewhere: bool, fixed: &BTreeSet<IpAddr>) -> WayOut {
    let default = routes
        .iter()
        .map(|route| route.rank)
        .filter(|(length, _)| *length == 0)
        .min();
    if let Some(default) = default {
        routes.retain(|route| route.rank == default);
    }
    let straight = default.is_some() && routes.iter().any(|route| route.next_hops.is_empty());
    let next_hops: BTreeSet<IpAddr> = routes.into_iter().flat_map(|r| r.next_hops).collect();
    match (next_hops.is_empty(), default.is_none() && elsewhere) {
        (true, true) => WayOut::Elsewhere,
        (true, false) => WayOut::Direct,
        (false, _) if straight || !next_hops.is_disjoint(fixed) => WayOut::Direct,
        (false, _) => WayOut::By(next_hops),
    }
}

/// Next hops of the route on the device; `None`: the route does not use it.
fn by_device(message: &RouteMessage, device: u32) -> Option<Found> {
    let (mut metric, mut leads) = (0, false);
    let mut next_hops = BTreeSet::new();
    let mut single = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => leads |= *index == device,
            RouteAttribute::MultiPath(all) => {
                for one in all.iter().filter(|one| one.interface_index == device) {
                    leads = true;
                    next_hops.extend(one.attributes.iter().find_map(next_hop));
                }
            }
            other => single = single.or(next_hop(other)),
        }
    }
    // Without a multipath attribute the device is that of the only next hop.
    next_hops.extend(single);
    leads.then_some(Found {
        rank: (message.header.destination_prefix_length, metric),
        next_hops,
    })
}

/// Neighbours of a device with a permanent entry, or without need for resolution.
fn permanent(
    socket: &mut NetlinkSocket,
    device: u32,
    v6: bool,
) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut entries = neighbour_entries(socket, Some(device), v6)?;
    entries.retain(|entry| {
        [NeighbourState::Permanent, NeighbourState::Noarp].contains(&entry.header.state)
    });
    Ok(entries.iter().filter_map(neighbour_address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 4] = [192, 0, 2, 1];
    const B: [u8; 4] = [192, 0, 2, 2];

    fn route(length: u8, metric: u32, hops: &[[u8; 4]]) -> Found {
        Found {
            rank: (length, metric),
            next_hops: hops.iter().map(|hop| IpAddr::from(*hop)).collect(),
        }
    }

    fn by(hops: &[[u8; 4]]) -> WayOut {
        WayOut::By(hops.iter().map(|hop| IpAddr::from(*hop)).collect())
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_decides_and_else_all_routes() {
        let none = BTreeSet::new();
        let default = || vec![route(24, 0, &[]), route(0, 200, &[A]), route(0, 100, &[B])];
        assert_eq!(judge(default(), true, &none), by(&[B]));
        let specific = vec![route(24, 0, &[]), route(8, 0, &[A]), route(12, 0, &[B])];
        assert_eq!(judge(specific, true, &none), by(&[A, B]));
        let both = vec![route(0, 0, &[A, B])];
        assert_eq!(judge(both, false, &none), by(&[A, B]));
    }

    #[test]
    fn neighbours_alone_are_good_unless_the_default_route_leads_elsewhere() {
        let none = BTreeSet::new();
        let link = || vec![route(24, 0, &[])];
        assert_eq!(judge(link(), false, &none), WayOut::Direct);
        assert_eq!(judge(link(), true, &none), WayOut::Elsewhere);
        assert_eq!(judge(vec![route(0, 0, &[])], true, &none), WayOut::Direct);
    }

    #[test]
    fn a_next_hop_that_is_written_down_is_not_asked() {
        let fixed = BTreeSet::from([IpAddr::from(A)]);
        assert_eq!(
            judge(vec![route(0, 0, &[A])], false, &fixed),
            WayOut::Direct
        );
    }
}
