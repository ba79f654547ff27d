//! Routes and policy routing rules of one owner: reading, adding, deleting.

use super::desired::{RouteEntry, RouteKind, RuleEntry, RuleKind};
use super::error::RouteError;
use egret_core::node::ForeignMark;
use egret_core::numbers::{
    CLASSIC_ROUTE_PROTOCOL, CLASSIC_RULE_PRIORITY, MARK_MASK, ROUTE_PROTOCOL, RULE_PRIORITY,
    RULE_PRIORITY_CANARY, RULE_PRIORITY_END, RULE_PRIORITY_OWN_PACKETS, TUNNEL_DEVICE,
};
use egret_kernel::netlink::{NetlinkError, NetlinkSocket, flags};
use egret_kernel::route::wire::{RTM_GETROUTE, dump, execute, family};
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

/// Input device of packets that the node makes itself (fib_rules.c, `LOOPBACK_IFINDEX`).
const LOOPBACK: &str = "lo";

/// Identity of one driver's routes and rules, which distinguishes them from others' and the other driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Route protocol number.
    protocol: u8,
    /// Priority of rules.
    priority: u32,
}

impl Owner {
    pub(crate) const LEASED: Owner = Owner {
        protocol: ROUTE_PROTOCOL,
        priority: RULE_PRIORITY,
    };
    pub(crate) const CLASSIC: Owner = Owner {
        protocol: CLASSIC_ROUTE_PROTOCOL,
        priority: CLASSIC_RULE_PRIORITY,
    };
}

fn route(owner: Owner, entry: &RouteEntry) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(entry.to.addr().is_ipv6());
    message.header.destination_prefix_length = entry.to.prefix_len();
    message.header.protocol = RouteProtocol::Other(owner.protocol);
    message.header.scope = RouteScope::Universe;
    message.header.kind = match entry.kind {
        RouteKind::Group(_) | RouteKind::Neighbour { .. } => RouteType::Unicast,
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
    match entry.kind {
        RouteKind::Group(id) => message.attributes.push(RouteAttribute::NhId(id)),
        RouteKind::Neighbour { address, device } => {
            message.header.flags = RouteFlags::Onlink;
            let gateway = match address {
                IpAddr::V4(address) => RouteAddress::Inet(address),
                IpAddr::V6(address) => RouteAddress::Inet6(address),
            };
            message.attributes.push(RouteAttribute::Gateway(gateway));
            message.attributes.push(RouteAttribute::Oif(device));
        }
        RouteKind::Throw | RouteKind::Unreachable => {}
    }
    message
}

pub(crate) fn routes(
    socket: &mut NetlinkSocket,
    owner: Owner,
) -> Result<BTreeSet<RouteEntry>, RouteError> {
    let mut routes = BTreeSet::new();
    for v6 in [false, true] {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        message.header.protocol = RouteProtocol::Other(owner.protocol);
        for message in dump(socket, RTM_GETROUTE, Message::GetRoute(message), "routes")? {
            let Message::NewRoute(message) = message else {
                continue;
            };
            if message.header.protocol == RouteProtocol::Other(owner.protocol) {
                routes.extend(read_route(&message, v6));
            }
        }
    }
    Ok(routes)
}

fn read_route(message: &RouteMessage, v6: bool) -> Option<RouteEntry> {
    let unspecified: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        [0, 0, 0, 0].into()
    };
    let (mut table, mut metric, mut group) = (u32::from(message.header.table), 0, 0);
    let mut address = unspecified;
    let (mut gateway, mut device) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(found)) => gateway = Some((*found).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(found)) => gateway = Some((*found).into()),
            RouteAttribute::Oif(index) => device = *index,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::NhId(number) => group = *number,
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = (*found).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(found)) => address = (*found).into(),
            _ => {}
        }
    }
    let kind = match (message.header.kind, gateway) {
        (RouteType::Throw, _) => RouteKind::Throw,
        (RouteType::Unreachable, _) => RouteKind::Unreachable,
        (_, Some(address)) if group == 0 => RouteKind::Neighbour { address, device },
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

fn rule(owner: Owner, entry: &RuleEntry) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(entry.v6);
    message.header.action = match entry.kind {
        RuleKind::End => RuleAction::Nop,
        RuleKind::OwnPackets => RuleAction::Goto,
        RuleKind::Canary { .. } | RuleKind::Marked { .. } => RuleAction::ToTable,
    };
    message.attributes = match entry.kind {
        RuleKind::End => vec![RuleAttribute::Priority(RULE_PRIORITY_END)],
        RuleKind::OwnPackets => vec![
            RuleAttribute::Priority(RULE_PRIORITY_OWN_PACKETS),
            RuleAttribute::Iifname(LOOPBACK.into()),
            RuleAttribute::Goto(RULE_PRIORITY_END),
        ],
        RuleKind::Canary { source, table } => {
            message.header.dst_len = if source.is_ipv6() { 128 } else { 32 };
            vec![
                RuleAttribute::Priority(RULE_PRIORITY_CANARY),
                RuleAttribute::Iifname(TUNNEL_DEVICE.into()),
                RuleAttribute::Destination(source),
                RuleAttribute::Table(table),
            ]
        }
        RuleKind::Marked { mark, table } => vec![
            RuleAttribute::Priority(owner.priority),
            RuleAttribute::FwMark(mark),
            RuleAttribute::FwMask(MARK_MASK),
            RuleAttribute::Table(table),
        ],
    };
    let protocol = RouteProtocol::Other(owner.protocol);
    message.attributes.push(RuleAttribute::Protocol(protocol));
    message
}

pub(crate) fn rules(
    socket: &mut NetlinkSocket,
    owner: Owner,
) -> Result<BTreeSet<RuleEntry>, RouteError> {
    let mut rules = BTreeSet::new();
    for v6 in [false, true] {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        for message in dump(socket, RTM_GETRULE, Message::GetRule(message), "rules")? {
            let Message::NewRule(message) = message else {
                continue;
            };
            let ours = RuleAttribute::Protocol(RouteProtocol::Other(owner.protocol));
            if !message.attributes.contains(&ours) {
                continue;
            }
            let kind = kind(&message);
            rules.insert(RuleEntry { kind, v6 });
        }
    }
    Ok(rules)
}

fn kind(message: &RuleMessage) -> RuleKind {
    let (mut marked, mut table) = (0, u32::from(message.header.table));
    let mut canary = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::FwMark(mark) => marked = *mark,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Destination(address) => canary = Some(*address),
            _ => {}
        }
    }
    if let Some(source) = canary {
        return RuleKind::Canary { source, table };
    }
    match message.header.action {
        RuleAction::Nop => RuleKind::End,
        RuleAction::Goto => RuleKind::OwnPackets,
        _ => RuleKind::Marked {
            mark: marked,
            table,
        },
    }
}

/// Rules of others whose mark overlaps ours: their packets may take our routes, and ours theirs. A rule without a mask
/// and without our bits matches packets that we never touch.
pub(super) fn foreign_marks(
    socket: &mut NetlinkSocket,
) -> Result<BTreeSet<ForeignMark>, RouteError> {
    const ALL_BITS: u32 = u32::MAX;
    let ours = [Owner::LEASED, Owner::CLASSIC]
        .map(|owner| RuleAttribute::Protocol(RouteProtocol::Other(owner.protocol)));
    let mut found = BTreeSet::new();
    for v6 in [false, true] {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        for message in dump(socket, RTM_GETRULE, Message::GetRule(message), "rules")? {
            let Message::NewRule(message) = message else {
                continue;
            };
            if ours.iter().any(|ours| message.attributes.contains(ours)) {
                continue;
            }
            let mut rule = ForeignMark {
                priority: 0,
                mark: 0,
                mask: 0,
            };
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::Priority(priority) => rule.priority = *priority,
                    RuleAttribute::FwMark(mark) => rule.mark = *mark,
                    RuleAttribute::FwMask(mask) => rule.mask = *mask,
                    _ => {}
                }
            }
            let by_mask = rule.mask != ALL_BITS && rule.mask & MARK_MASK != 0;
            if by_mask || rule.mark & MARK_MASK != 0 {
                found.insert(rule);
            }
        }
    }
    Ok(found)
}

pub(crate) fn add_route(
    socket: &mut NetlinkSocket,
    owner: Owner,
    entry: &RouteEntry,
) -> Result<(), RouteError> {
    let message = Message::NewRoute(route(owner, entry));
    let how = flags::CREATE | flags::REPLACE;
    Ok(execute(
        socket,
        RTM_NEWROUTE,
        how,
        message,
        &format!("route {entry:?}"),
    )?)
}

pub(crate) fn delete_route(
    socket: &mut NetlinkSocket,
    owner: Owner,
    entry: &RouteEntry,
) -> Result<(), RouteError> {
    let message = Message::DelRoute(route(owner, entry));
    let what = format!("deletion of route {entry:?}");
    absent_is_fine(execute(socket, RTM_DELROUTE, 0, message, &what))
}

pub(crate) fn add_rule(
    socket: &mut NetlinkSocket,
    owner: Owner,
    entry: &RuleEntry,
) -> Result<(), RouteError> {
    let message = Message::NewRule(rule(owner, entry));
    let how = flags::CREATE | flags::EXCL;
    Ok(execute(
        socket,
        RTM_NEWRULE,
        how,
        message,
        &format!("rule {entry:?}"),
    )?)
}

pub(crate) fn delete_rule(
    socket: &mut NetlinkSocket,
    owner: Owner,
    entry: &RuleEntry,
) -> Result<(), RouteError> {
    let message = Message::DelRule(rule(owner, entry));
    let what = format!("deletion of rule {entry:?}");
    absent_is_fine(execute(socket, RTM_DELRULE, 0, message, &what))
}

pub(super) fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), RouteError> {
    const ABSENT: [i32; 3] = [libc::ENOENT, libc::ESRCH, libc::ENODEV];
    match result {
        Err(error) if error.errno().is_some_and(|errno| ABSENT.contains(&errno)) => Ok(()),
        result => Ok(result?),
    }
}
