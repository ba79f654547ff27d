//! Messages of next hop objects (`linux/nexthop.h`, `linux/lwtunnel.h`), which `netlink-packet-route` lacks.

use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Request, attributes, flags};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_ENCAP: u16 = 8;
const LWTUNNEL_ENCAP_IP: u16 = 2;
const LWTUNNEL_ENCAP_IP6: u16 = 4;
// Both enumerations have the same numbers (linux/lwtunnel.h).
const LWTUNNEL_IP_ID: u16 = 1;
const LWTUNNEL_IP_DST: u16 = 2;
const LWTUNNEL_IP_SRC: u16 = 3;

/// A next hop object: a neighbour inside a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Link-local address inside the tunnel.
    pub via: Ipv6Addr,
    /// Underlay address of the other end.
    pub underlay: IpAddr,
    /// Own underlay address.
    pub source: IpAddr,
    /// VXLAN network identifier, 24 bits.
    pub network_identifier: u32,
}

/// `struct nhmsg`: family, scope, protocol, reserved, flags.
fn nexthop_header(family: i32, protocol: u8) -> [u8; 8] {
    [family as u8, 0, protocol, 0, 0, 0, 0, 0]
}

/// Creates or replaces a next hop on a tunnel device in collect-metadata mode. `protocol` names the owner.
pub fn new_hop(protocol: u8, device: u32, id: u32, hop: &NextHop) -> Request {
    let (kind, encap) = encapsulation(hop);
    let attrs = Attrs::after(&nexthop_header(libc::AF_INET6, protocol))
        .u32(NHA_ID, id)
        .u32(NHA_OIF, device);
    let body = attrs
        .bytes(NHA_GATEWAY, &hop.via.octets())
        .u16(NHA_ENCAP_TYPE, kind)
        .nest(NHA_ENCAP, encap)
        .finish();
    let what = format!("next hop {id:#x} to {}", hop.underlay);
    Request {
        kind: RTM_NEWNEXTHOP,
        flags: flags::CREATE | flags::REPLACE,
        body,
        what,
    }
}

fn encapsulation(hop: &NextHop) -> (u16, Attrs) {
    let attrs = Attrs::default().be64(LWTUNNEL_IP_ID, u64::from(hop.network_identifier));
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

/// Creates or replaces a group of next hops of equal weight.
pub fn new_group(protocol: u8, id: u32, members: &BTreeSet<u32>) -> Request {
    let mut group = Vec::new();
    for member in members {
        // struct nexthop_grp: id, weight - 1, reserved.
        group.extend(member.to_ne_bytes());
        group.extend([0u8; 4]);
    }
    let attrs = Attrs::after(&nexthop_header(libc::AF_UNSPEC, protocol)).u32(NHA_ID, id);
    let body = attrs.bytes(NHA_GROUP, &group).finish();
    let what = format!("next hop group {id:#x}");
    Request {
        kind: RTM_NEWNEXTHOP,
        flags: flags::CREATE | flags::REPLACE,
        body,
        what,
    }
}

/// Deletes a next hop or a group.
pub fn delete_nexthop(id: u32) -> Request {
    let body = Attrs::after(&nexthop_header(libc::AF_UNSPEC, 0))
        .u32(NHA_ID, id)
        .finish();
    let what = format!("deletion of next hop {id:#x}");
    Request {
        kind: RTM_DELNEXTHOP,
        flags: 0,
        body,
        what,
    }
}

/// Next hops and groups of one owner, by id.
pub struct NextHops {
    /// Next hops; `None` for one that is not in the form of [`new_hop`].
    pub hops: BTreeMap<u32, Option<NextHop>>,
    /// Members of the groups.
    pub groups: BTreeMap<u32, BTreeSet<u32>>,
}

/// Reads the objects with this protocol and these ids. Next hops on another device than this one, or with another own
/// underlay address than `source`, are not in our form.
pub fn nexthops(
    socket: &mut NetlinkSocket,
    (protocol, ids): (u8, Range<u32>),
    device: u32,
    source: IpAddr,
) -> Result<NextHops, NetlinkError> {
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
        if reply.body.len() < 8 || reply.body[2] != protocol {
            continue;
        }
        let attrs: BTreeMap<u16, &[u8]> = attributes(&reply.body[8..]).collect();
        let Some(id) = attrs.get(&NHA_ID).and_then(|bytes| number(bytes)) else {
            continue;
        };
        if !ids.contains(&id) {
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
    let same = found_source.is_none_or(|found| found == source);
    let network_identifier = u32::try_from(vni).ok().filter(|_| same)?;
    Some(NextHop {
        via: via.into(),
        underlay,
        source,
        network_identifier,
    })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
