//! Routers in a node's neighbourhood, as its kernel knows them.

use super::wire::{neighbour_address, neighbour_entries, next_hop, routes};
use crate::netlink::{NetlinkError, NetlinkSocket};
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Next hops of routes in any table except those of these protocols, including those of router advertisements, and neighbours that
/// advertised themselves as routers (`NTF_ROUTER` of `linux/neighbour.h`). Includes link-local addresses.
pub fn routers(
    socket: &mut NetlinkSocket,
    except: &[u8],
) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut found = BTreeSet::new();
    for route in routes(socket)? {
        if !except.contains(&u8::from(route.header.protocol)) {
            next_hops(&route, &mut found);
        }
    }
    let mut neighbours = neighbour_entries(socket, None, true)?;
    neighbours.retain(|entry| entry.header.flags.contains(NeighbourFlags::Router));
    found.extend(neighbours.iter().filter_map(neighbour_address));
    Ok(found)
}

fn next_hops(route: &RouteMessage, found: &mut BTreeSet<IpAddr>) {
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::MultiPath(hops) => {
                let all = hops.iter().flat_map(|hop| &hop.attributes);
                found.extend(all.filter_map(next_hop));
            }
            one => found.extend(next_hop(one)),
        }
    }
}
