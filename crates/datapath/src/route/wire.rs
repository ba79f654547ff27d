//! rtnetlink messages, in the types of `netlink-packet-route`.

use super::error::RouteError;
use crate::netlink::{NetlinkSocket, Request, flags};
use egret_core::node::MainRoute;
use egret_core::numbers::ROUTE_PROTOCOL;
use ipnet::IpNet;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::address::{AddressMessage, AddressScope};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::route::{RouteProtocol, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_GETNEIGH: u16 = 30;

pub(super) fn execute(
    socket: &mut NetlinkSocket,
    kind: u16,
    flags: u16,
    message: Message,
    what: &str,
) -> Result<(), RouteError> {
    let request = Request {
        kind,
        flags,
        body: serialized(&message),
        what: what.into(),
    };
    Ok(socket.execute(&request)?)
}

pub(super) fn dump(
    socket: &mut NetlinkSocket,
    kind: u16,
    message: Message,
    what: &str,
) -> Result<Vec<Message>, RouteError> {
    let request = Request {
        kind,
        flags: 0,
        body: serialized(&message),
        what: what.into(),
    };
    let replies = socket.dump(&request)?;
    let mut messages = Vec::with_capacity(replies.len());
    for reply in replies {
        let mut header = NetlinkHeader::default();
        header.message_type = reply.kind;
        // What the crate cannot read is none of ours: we write only what it knows.
        if let Ok(message) = Message::deserialize(&header, &reply.body) {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn serialized(message: &Message) -> Vec<u8> {
    let mut body = vec![0; message.buffer_len()];
    message.serialize(&mut body);
    body
}

pub(super) fn family(v6: bool) -> AddressFamily {
    if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

/// Addresses of one device, or of all.
pub(super) fn addresses(
    socket: &mut NetlinkSocket,
    device: Option<u32>,
) -> Result<Vec<AddressMessage>, RouteError> {
    let mut message = AddressMessage::default();
    message.header.index = device.unwrap_or(0);
    let found = dump(
        socket,
        RTM_GETADDR,
        Message::GetAddress(message),
        "addresses",
    )?;
    let wanted = |address: &AddressMessage| device.is_none_or(|d| address.header.index == d);
    let address = |message| match message {
        Message::NewAddress(address) => Some(address).filter(wanted),
        _ => None,
    };
    Ok(found.into_iter().filter_map(address).collect())
}

fn address_message(device: u32, address: IpAddr, prefix_length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.prefix_len = prefix_length;
    message.header.index = device;
    message.header.scope = AddressScope::Link;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    message
}

pub(super) fn add_address(
    socket: &mut NetlinkSocket,
    device: u32,
    address: IpAddr,
    prefix_length: u8,
) -> Result<(), RouteError> {
    let message = Message::NewAddress(address_message(device, address, prefix_length));
    let what = format!("address {address} of the tunnel device");
    execute(
        socket,
        RTM_NEWADDR,
        flags::CREATE | flags::REPLACE,
        message,
        &what,
    )
}

pub(super) fn delete_address(
    socket: &mut NetlinkSocket,
    device: u32,
    address: IpAddr,
    prefix_length: u8,
) -> Result<(), RouteError> {
    let message = Message::DelAddress(address_message(device, address, prefix_length));
    let what = format!("deletion of address {address} of the tunnel device");
    execute(socket, RTM_DELADDR, 0, message, &what)
}

pub(super) fn neighbour(device: u32, address: Ipv6Addr, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(
            address,
        )));
    if let Some(mac) = mac {
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    }
    message
}

pub(super) fn neighbours(
    socket: &mut NetlinkSocket,
    device: u32,
) -> Result<BTreeMap<Ipv6Addr, [u8; 6]>, RouteError> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.attributes = vec![NeighbourAttribute::IfIndex(device)];
    let found = dump(
        socket,
        RTM_GETNEIGH,
        Message::GetNeighbour(message),
        "neighbours",
    )?;
    let mut neighbours = BTreeMap::new();
    for message in found {
        let Message::NewNeighbour(message) = message else {
            continue;
        };
        let mut address = None;
        let mut mac = [0; 6];
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                    address = Some(*found);
                }
                NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => {
                    mac.copy_from_slice(bytes);
                }
                _ => {}
            }
        }
        if let (true, Some(address)) = (message.header.state == NeighbourState::Permanent, address)
        {
            neighbours.insert(address, mac);
        }
    }
    Ok(neighbours)
}

/// Index of the device of the main table's default route with the lowest metric, IPv4 before IPv6.
pub(super) fn default_device(socket: &mut NetlinkSocket) -> Result<Option<u32>, RouteError> {
    const MAIN: u8 = libc::RT_TABLE_MAIN;
    for v6 in [false, true] {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        message.header.table = MAIN;
        let mut best: Option<(u32, u32)> = None;
        for message in dump(
            socket,
            RTM_GETROUTE,
            Message::GetRoute(message),
            "default routes",
        )? {
            let Message::NewRoute(message) = message else {
                continue;
            };
            let header = &message.header;
            if header.destination_prefix_length != 0
                || header.table != MAIN
                || header.kind != RouteType::Unicast
            {
                continue;
            }
            let mut found = (0, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Priority(metric) => found.0 = *metric,
                    RouteAttribute::Oif(index) => found.1 = Some(*index),
                    _ => {}
                }
            }
            if let (metric, Some(index)) = found {
                best = Some(best.unwrap_or((metric, index)).min((metric, index)));
            }
        }
        if let Some((_, index)) = best {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// See [`super::Routing::main_routes`].
pub(super) fn main_routes(socket: &mut NetlinkSocket) -> Result<Vec<MainRoute>, RouteError> {
    let mut found = Vec::new();
    for route in routes(socket)? {
        let header = &route.header;
        if header.kind == RouteType::Unicast
            && header.table == RouteHeader::RT_TABLE_MAIN
            && header.destination_prefix_length > 0
        {
            found.extend(ways(&route));
        }
    }
    Ok(found)
}

/// The ways of one route; none if it is by a next hop object or to a destination that cannot be read.
fn ways(route: &RouteMessage) -> Vec<MainRoute> {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(to) => Some(IpAddr::from(*to)),
        RouteAddress::Inet6(to) => Some(IpAddr::from(*to)),
        _ => None,
    };
    let way = |attributes: &[RouteAttribute]| {
        let (mut device, mut next_hop) = (None, None);
        for attribute in attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Gateway(gateway) => next_hop = ip(gateway),
                RouteAttribute::Via(RouteVia::Inet(via)) => next_hop = Some(IpAddr::from(*via)),
                RouteAttribute::Via(RouteVia::Inet6(via)) => next_hop = Some(IpAddr::from(*via)),
                _ => {}
            }
        }
        (device, next_hop)
    };
    let mut to = None;
    let mut ways = vec![way(&route.attributes)];
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => to = ip(destination),
            RouteAttribute::MultiPath(hops) => {
                ways.extend(hops.iter().map(|hop| {
                    let (_, next_hop) = way(&hop.attributes);
                    (Some(hop.interface_index), next_hop)
                }));
            }
            _ => {}
        }
    }
    let length = route.header.destination_prefix_length;
    let Some(to) = to.and_then(|to| IpNet::new(to, length).ok()) else {
        return Vec::new();
    };
    let ways = ways.into_iter();
    ways.filter_map(|(device, next_hop)| {
        Some(MainRoute {
            to,
            device: device?,
            next_hop,
            protocol: route.header.protocol.into(),
        })
    })
    .collect()
}

/// Everybody's routes of both families.
pub(super) fn routes(socket: &mut NetlinkSocket) -> Result<Vec<RouteMessage>, RouteError> {
    let mut routes = Vec::new();
    for v6 in [false, true] {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        let message = Message::GetRoute(message);
        for message in dump(socket, RTM_GETROUTE, message, "all routes")? {
            if let Message::NewRoute(message) = message {
                routes.push(message);
            }
        }
    }
    Ok(routes)
}

/// Whether anybody else's route spreads over several next hops: hash policies are node-wide and would move its flows.
pub(super) fn foreign_multipath(socket: &mut NetlinkSocket) -> Result<bool, RouteError> {
    let spreads = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_)
        )
    };
    let ours = RouteProtocol::Other(ROUTE_PROTOCOL);
    let mut others = routes(socket)?
        .into_iter()
        .filter(|route| route.header.protocol != ours);
    Ok(others.any(|route| route.attributes.iter().any(spreads)))
}
