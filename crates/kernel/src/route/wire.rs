//! rtnetlink messages, in the types of `netlink-packet-route`.

use crate::netlink::{NetlinkError, NetlinkSocket, Request, flags};
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

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// Reads routes.
pub const RTM_GETROUTE: u16 = 26;
/// Adds a neighbour.
pub const RTM_NEWNEIGH: u16 = 28;
/// Deletes a neighbour.
pub const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

/// Sends one request; `what` is its text for errors.
///
/// # Errors
/// The kernel refused it, or the socket failed; so for all functions here.
pub fn execute(
    socket: &mut NetlinkSocket,
    kind: u16,
    flags: u16,
    message: Message,
    what: &str,
) -> Result<(), NetlinkError> {
    let request = Request {
        kind,
        flags,
        body: serialized(&message),
        what: what.into(),
    };
    socket.execute(&request)
}

/// Reads all objects that the request asks for. A message that the crate cannot parse is left out.
pub fn dump(
    socket: &mut NetlinkSocket,
    kind: u16,
    message: Message,
    what: &str,
) -> Result<Vec<Message>, NetlinkError> {
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

/// IPv6 or IPv4.
pub fn family(v6: bool) -> AddressFamily {
    if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

/// Addresses of one device, or of all.
pub fn addresses(
    socket: &mut NetlinkSocket,
    device: Option<u32>,
) -> Result<Vec<AddressMessage>, NetlinkError> {
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

/// Gives a device a link-local address without duplicate address detection.
pub fn add_address(
    socket: &mut NetlinkSocket,
    device: u32,
    address: IpAddr,
    prefix_length: u8,
) -> Result<(), NetlinkError> {
    let message = Message::NewAddress(address_message(device, address, prefix_length));
    let what = format!("address {address} of device {device}");
    execute(
        socket,
        RTM_NEWADDR,
        flags::CREATE | flags::REPLACE,
        message,
        &what,
    )
}

/// Takes an address from a device.
pub fn delete_address(
    socket: &mut NetlinkSocket,
    device: u32,
    address: IpAddr,
    prefix_length: u8,
) -> Result<(), NetlinkError> {
    let message = Message::DelAddress(address_message(device, address, prefix_length));
    let what = format!("deletion of address {address} of device {device}");
    execute(socket, RTM_DELADDR, 0, message, &what)
}

/// A permanent IPv6 neighbour; without `mac` to delete it.
pub fn neighbour(device: u32, address: Ipv6Addr, mac: Option<[u8; 6]>) -> NeighbourMessage {
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
pub fn neighbour_entries(
    socket: &mut NetlinkSocket,
    device: Option<u32>,
    v6: bool,
) -> Result<Vec<NeighbourMessage>, NetlinkError> {
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
pub fn neighbour_address(entry: &NeighbourMessage) -> Option<IpAddr> {
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
pub fn neighbours(
    socket: &mut NetlinkSocket,
    device: u32,
) -> Result<BTreeMap<Ipv6Addr, [u8; 6]>, NetlinkError> {
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
pub fn default_device(socket: &mut NetlinkSocket) -> Result<Option<u32>, NetlinkError> {
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
pub fn main_unicast_routes(
    socket: &mut NetlinkSocket,
    v6: bool,
) -> Result<Vec<RouteMessage>, NetlinkError> {
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
pub fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
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

/// One next hop of a unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Destination.
    pub to: IpNet,
    /// Index of the device.
    pub device: u32,
    /// The next hop; `None`: destinations are neighbours.
    pub next_hop: Option<IpAddr>,
    /// Route protocol number, which says who made the route.
    pub protocol: u8,
}

/// Unicast routes of the main table except default routes, one for each next hop.
pub fn main_routes(socket: &mut NetlinkSocket) -> Result<Vec<Leg>, NetlinkError> {
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
fn legs(route: &RouteMessage) -> Vec<Leg> {
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
        Some(Leg {
            to,
            device: device?,
            next_hop,
            protocol: route.header.protocol.into(),
        })
    })
    .collect()
}

/// Routes of all owners, of both families.
pub fn routes(socket: &mut NetlinkSocket) -> Result<Vec<RouteMessage>, NetlinkError> {
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

/// Whether a route of another protocol than `ours` spreads over several next hops.
pub fn foreign_multipath(socket: &mut NetlinkSocket, ours: u8) -> Result<bool, NetlinkError> {
    let spreads = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_)
        )
    };
    let ours = RouteProtocol::Other(ours);
    let mut others = routes(socket)?
        .into_iter()
        .filter(|route| route.header.protocol != ours);
    Ok(others.any(|route| route.attributes.iter().any(spreads)))
}
