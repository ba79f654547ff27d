//! rtnetlink messages: types from `netlink-packet-route`, and next hop objects, which it lacks.

use super::kernel::RouteError;
use super::wanted::{NextHop, RouteEntry, RouteKind, RuleEntry};
use crate::netlink::{Attrs, NetlinkSocket, Request, attributes, flags};
use egret_core::numbers::{
    MARK_MASK, NEXTHOP_BASE, NEXTHOP_GROUP_OFFSET, ROUTE_PROTOCOL, RULE_PRIORITY, TUNNEL_VNI,
};
use ipnet::IpNet;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::address::{AddressMessage, AddressScope};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::route::{RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_ENCAP: u16 = 8;
const LWTUNNEL_ENCAP_IP: u16 = 2;
const LWTUNNEL_ENCAP_IP6: u16 = 4;
// The same numbers in both enumerations (linux/lwtunnel.h).
const LWTUNNEL_IP_ID: u16 = 1;
const LWTUNNEL_IP_DST: u16 = 2;
const LWTUNNEL_IP_SRC: u16 = 3;

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

fn family(v6: bool) -> AddressFamily {
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

pub(super) fn route(entry: &RouteEntry) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(entry.to.addr().is_ipv6());
    message.header.destination_prefix_length = entry.to.prefix_len();
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = match entry.kind {
        RouteKind::Group(_) => RouteType::Unicast,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Unreachable => RouteType::Unreachable,
    };
    message.attributes = vec![
        RouteAttribute::Table(entry.table),
        RouteAttribute::Priority(entry.metric),
    ];
    if entry.to.prefix_len() > 0 {
        let address = match entry.to.network() {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message
            .attributes
            .push(RouteAttribute::Destination(address));
    }
    if let RouteKind::Group(id) = entry.kind {
        message.attributes.push(RouteAttribute::NhId(id));
    }
    message
}

pub(super) fn routes(socket: &mut NetlinkSocket) -> Result<BTreeSet<RouteEntry>, RouteError> {
    let mut routes = BTreeSet::new();
    for v6 in [false, true] {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        for message in dump(socket, RTM_GETROUTE, Message::GetRoute(message), "routes")? {
            let Message::NewRoute(message) = message else {
                continue;
            };
            if message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) {
                routes.extend(read_route(&message, v6));
            }
        }
    }
    Ok(routes)
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

/// Whether anybody else's route spreads over several next hops: hash policies are node-wide and would move its flows.
pub(super) fn foreign_multipath(socket: &mut NetlinkSocket) -> Result<bool, RouteError> {
    for v6 in [false, true] {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        for message in dump(
            socket,
            RTM_GETROUTE,
            Message::GetRoute(message),
            "all routes",
        )? {
            let Message::NewRoute(message) = message else {
                continue;
            };
            let ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
            let spreads = |attribute: &RouteAttribute| {
                matches!(
                    attribute,
                    RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_)
                )
            };
            if !ours && message.attributes.iter().any(spreads) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn read_route(message: &RouteMessage, v6: bool) -> Option<RouteEntry> {
    let unspecified: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        [0, 0, 0, 0].into()
    };
    let (mut table, mut metric, mut group) = (u32::from(message.header.table), 0, 0);
    let mut address = unspecified;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::NhId(number) => group = *number,
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = (*found).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(found)) => address = (*found).into(),
            _ => {}
        }
    }
    let kind = match message.header.kind {
        RouteType::Throw => RouteKind::Throw,
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => RouteKind::Group(group),
    };
    let to = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some(RouteEntry {
        table,
        to,
        metric,
        kind,
    })
}

pub(super) fn rule(entry: &RuleEntry) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(entry.v6);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(entry.mark),
        RuleAttribute::FwMask(MARK_MASK),
        RuleAttribute::Table(entry.table),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    message
}

pub(super) fn rules(socket: &mut NetlinkSocket) -> Result<BTreeSet<RuleEntry>, RouteError> {
    let mut rules = BTreeSet::new();
    for v6 in [false, true] {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        for message in dump(socket, RTM_GETRULE, Message::GetRule(message), "rules")? {
            let Message::NewRule(message) = message else {
                continue;
            };
            let ours = RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
            if !message.attributes.contains(&ours) {
                continue;
            }
            let mut entry = RuleEntry {
                v6,
                mark: 0,
                table: u32::from(message.header.table),
            };
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::FwMark(mark) => entry.mark = *mark,
                    RuleAttribute::Table(table) => entry.table = *table,
                    _ => {}
                }
            }
            rules.insert(entry);
        }
    }
    Ok(rules)
}

/// `struct nhmsg`: family, scope, protocol, reserved, flags.
fn nexthop_header(family: i32) -> [u8; 8] {
    [family as u8, 0, ROUTE_PROTOCOL, 0, 0, 0, 0, 0]
}

pub(super) fn new_hop(device: u32, id: u32, hop: &NextHop) -> Request {
    let (kind, encap) = encapsulation(hop);
    let attrs = Attrs::after(&nexthop_header(libc::AF_INET6))
        .u32(NHA_ID, id)
        .u32(NHA_OIF, device);
    let body = attrs
        .bytes(NHA_GATEWAY, &hop.via.octets())
        .u16(NHA_ENCAP_TYPE, kind)
        .nest(NHA_ENCAP, encap)
        .finish();
    let what = format!("next hop {id:#x} to gateway {}", hop.underlay);
    Request {
        kind: RTM_NEWNEXTHOP,
        flags: flags::CREATE | flags::REPLACE,
        body,
        what,
    }
}

fn encapsulation(hop: &NextHop) -> (u16, Attrs) {
    let attrs = Attrs::default().be64(LWTUNNEL_IP_ID, u64::from(TUNNEL_VNI));
    match (hop.underlay, hop.source) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            let attrs = attrs.bytes(LWTUNNEL_IP_DST, &to.octets());
            (
                LWTUNNEL_ENCAP_IP,
                attrs.bytes(LWTUNNEL_IP_SRC, &from.octets()),
            )
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            let attrs = attrs.bytes(LWTUNNEL_IP_DST, &to.octets());
            (
                LWTUNNEL_ENCAP_IP6,
                attrs.bytes(LWTUNNEL_IP_SRC, &from.octets()),
            )
        }
        (to, _) => {
            let attrs = match to {
                IpAddr::V4(to) => attrs.bytes(LWTUNNEL_IP_DST, &to.octets()),
                IpAddr::V6(to) => attrs.bytes(LWTUNNEL_IP_DST, &to.octets()),
            };
            (
                if to.is_ipv4() {
                    LWTUNNEL_ENCAP_IP
                } else {
                    LWTUNNEL_ENCAP_IP6
                },
                attrs,
            )
        }
    }
}

pub(super) fn new_group(id: u32, members: &BTreeSet<u32>) -> Request {
    let mut group = Vec::new();
    for member in members {
        // struct nexthop_grp: id, weight - 1, reserved.
        group.extend(member.to_ne_bytes());
        group.extend([0u8; 4]);
    }
    let attrs = Attrs::after(&nexthop_header(libc::AF_UNSPEC)).u32(NHA_ID, id);
    let body = attrs.bytes(NHA_GROUP, &group).finish();
    let what = format!("next hop group {id:#x}");
    Request {
        kind: RTM_NEWNEXTHOP,
        flags: flags::CREATE | flags::REPLACE,
        body,
        what,
    }
}

pub(super) fn delete_nexthop(id: u32) -> Request {
    let mut header = nexthop_header(libc::AF_UNSPEC);
    header[2] = 0;
    let body = Attrs::after(&header).u32(NHA_ID, id).finish();
    let what = format!("deletion of next hop {id:#x}");
    Request {
        kind: RTM_DELNEXTHOP,
        flags: 0,
        body,
        what,
    }
}

/// Our next hops (with `None` where one is not in the form that we write) and groups.
pub(super) struct NextHops {
    pub(super) hops: BTreeMap<u32, Option<NextHop>>,
    pub(super) groups: BTreeMap<u32, BTreeSet<u32>>,
}

pub(super) fn nexthops(
    socket: &mut NetlinkSocket,
    device: u32,
    source: IpAddr,
) -> Result<NextHops, RouteError> {
    let request = Request {
        kind: RTM_GETNEXTHOP,
        flags: 0,
        body: vec![0; 8],
        what: "next hops".into(),
    };
    let mut found = NextHops {
        hops: BTreeMap::new(),
        groups: BTreeMap::new(),
    };
    for reply in socket.dump(&request)? {
        if reply.body.len() < 8 || reply.body[2] != ROUTE_PROTOCOL {
            continue;
        }
        let attrs: BTreeMap<u16, &[u8]> = attributes(&reply.body[8..]).collect();
        let Some(id) = attrs.get(&NHA_ID).and_then(|bytes| number(bytes)) else {
            continue;
        };
        if !(NEXTHOP_BASE..NEXTHOP_BASE + 2 * NEXTHOP_GROUP_OFFSET).contains(&id) {
            continue;
        }
        match attrs.get(&NHA_GROUP) {
            Some(group) => {
                let members = group
                    .chunks_exact(8)
                    .filter_map(|entry| number(&entry[..4]));
                found.groups.insert(id, members.collect());
            }
            None => {
                let there = attrs.get(&NHA_OIF).and_then(|bytes| number(bytes)) == Some(device);
                let hop = there.then(|| read_hop(&attrs, source)).flatten();
                found.hops.insert(id, hop);
            }
        }
    }
    Ok(found)
}

fn read_hop(attrs: &BTreeMap<u16, &[u8]>, source: IpAddr) -> Option<NextHop> {
    let via: [u8; 16] = (*attrs.get(&NHA_GATEWAY)?).try_into().ok()?;
    let encap: BTreeMap<u16, &[u8]> = attributes(attrs.get(&NHA_ENCAP)?).collect();
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        match bytes.len() {
            4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
            16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
            _ => None,
        }
    };
    let vni = u64::from_be_bytes((*encap.get(&LWTUNNEL_IP_ID)?).try_into().ok()?);
    let underlay = address(encap.get(&LWTUNNEL_IP_DST)?)?;
    let found_source = encap.get(&LWTUNNEL_IP_SRC).and_then(|bytes| address(bytes));
    let same = vni == u64::from(TUNNEL_VNI) && found_source.is_none_or(|found| found == source);
    same.then_some(NextHop {
        via: via.into(),
        underlay,
        source,
    })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
