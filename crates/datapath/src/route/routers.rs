//! Routers around a node, as its kernel knows them.

use super::error::RouteError;
use super::wire::{self, dump, family};
use crate::netlink::NetlinkSocket;
use egret_core::numbers::{CLASSIC_ROUTE_PROTOCOL, ROUTE_PROTOCOL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteVia,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Next hops of everybody's routes in any table, those of router advertisements among them, and neighbours that have said
/// that they are routers (`NTF_ROUTER` of `linux/neighbour.h`); link-local ones too.
pub(super) fn routers(socket: &mut NetlinkSocket) -> Result<BTreeSet<IpAddr>, RouteError> {
    let ours = [ROUTE_PROTOCOL, CLASSIC_ROUTE_PROTOCOL].map(RouteProtocol::from);
    let mut found = BTreeSet::new();
    for route in wire::routes(socket)? {
        if !ours.contains(&route.header.protocol) {
            next_hops(&route, &mut found);
        }
    }
    let mut message = NeighbourMessage::default();
    message.header.family = family(true);
    let kind = wire::RTM_GETNEIGH;
    let message = Message::GetNeighbour(message);
    for message in dump(socket, kind, message, "neighbours")? {
        if let Message::NewNeighbour(neighbour) = message {
            found.extend(router(&neighbour));
        }
    }
    Ok(found)
}

fn router(neighbour: &NeighbourMessage) -> Option<IpAddr> {
    if !neighbour.header.flags.contains(NeighbourFlags::Router) {
        return None;
    }
    let mut all = neighbour.attributes.iter();
    all.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some((*address).into())
        }
        _ => None,
    })
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

fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address))
        | RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(address))
        | RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}
