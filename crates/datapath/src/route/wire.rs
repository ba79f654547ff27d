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
const RTM_GETNEIGH: u16 = 30;

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
        // A message that the crate cannot parse is not ours: we write only messages that it knows.
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

/// Neighbour entries of one device, or of all, for IPv6 or IPv4.
pub(super) fn neighbour_entries(
    socket: &mut NetlinkSocket,
    device: Option<u32>,
    v6: bool,
) -> Result<Vec<NeighbourMessage>, RouteError> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(v6);
    let device = device.map(NeighbourAttribute::IfIndex);
    message.attributes = device.into_iter().collect();
    let found = dump(
        socket,
        RTM_GETNEIGH,
        Message::GetNeighbour(message),
        "neighbours",
    )?;
    let entry = |message| match message {
        Message::NewNeighbour(entry) => Some(entry),
        _ => None,
    };
    Ok(found.into_iter().filter_map(entry).collect())
}

/// IP address of a neighbour entry.
pub(super) fn neighbour_address(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
            _ => None,
        })
}

/// Permanent IPv6 neighbours of one device with their MAC addresses.
pub(super) fn neighbours(
    socket: &mut NetlinkSocket,
    device: u32,
) -> Result<BTreeMap<Ipv6Addr, [u8; 6]>, RouteError> {
    let mut entries = neighbour_entries(socket, Some(device), true)?;
    entries.retain(|entry| entry.header.state == NeighbourState::Permanent);
    let neighbour = |entry: &NeighbourMessage| {
        let Some(IpAddr::V6(address)) = neighbour_address(entry) else {
            return None;
        };
        let mac = entry
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
                _ => None,
            });
        Some((address, mac.unwrap_or_default()))
    };
    Ok(entries.iter().filter_map(neighbour).collect())
}

/// Index of the device of the main table's default route with the lowest metric, IPv4 before IPv6.
pub(super) fn default_device(socket: &mut NetlinkSocket) -> Result<Option<u32>, RouteError> {
    for v6 in [false, true] {
        let routes = main_unicast_routes(socket, v6)?;
        let default = routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0);
        let ranked = default.filter_map(|route| {
            let (mut metric, mut device) = (0, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Priority(number) => metric = *number,
                    RouteAttribute::Oif(index) => device = Some(*index),
                    _ => {}
                }
            }
            Some((metric, device?))
        });
        if let Some((_, index)) = ranked.min() {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// Unicast routes of the main table, for IPv6 or IPv4.
pub(super) fn main_unicast_routes(
    socket: &mut NetlinkSocket,
    v6: bool,
) -> Result<Vec<RouteMessage>, RouteError> {
    const MAIN: u8 = RouteHeader::RT_TABLE_MAIN;
    let mut message = RouteMessage::default();
    message.header.address_family = family(v6);
    message.header.table = MAIN;
    let found = dump(socket, RTM_GETROUTE, Message::GetRoute(message), "routes")?;
    let route = |message| match message {
        Message::NewRoute(route) => Some(route),
        _ => None,
    };
    let mut routes: Vec<RouteMessage> = found.into_iter().filter_map(route).collect();
    routes.retain(|route| route.header.table == MAIN && route.header.kind == RouteType::Unicast);
    Ok(routes)
}

/// Next hop in an attribute of a route.
pub(super) fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(gateway) => route_address(gateway),
        RouteAttribute::Via(RouteVia::Inet(via)) => Some(IpAddr::from(*via)),
        RouteAttribute::Via(RouteVia::Inet6(via)) => Some(IpAddr::from(*via)),
        _ => None,
    }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::from(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::from(*v6)),
        _ => None,
    }
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
            found.extend(legs(&route));
        }
    }
    Ok(found)
}

/// Next hops of one route, as routes of their own; none for a route by next hop object or to an unreadable destination.
fn legs(route: &RouteMessage) -> Vec<MainRoute> {
    let leg = |attributes: &[RouteAttribute]| {
        let device = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        (device, attributes.iter().find_map(next_hop))
    };
    let mut to = None;
    let mut legs = vec![leg(&route.attributes)];
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => to = route_address(destination),
            RouteAttribute::MultiPath(hops) => {
                legs.extend(hops.iter().map(|hop| {
                    let (_, next_hop) = leg(&hop.attributes);
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
    let legs = legs.into_iter();
    legs.filter_map(|(device, next_hop)| {
        Some(MainRoute {
            to,
            device: device?,
            next_hop,
            protocol: route.header.protocol.into(),
        })
    })
    .collect()
}

/// Routes of all owners, of both families.
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

/// Whether a foreign route spreads over several next hops: hash policies are node-wide and would move its flows.
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
