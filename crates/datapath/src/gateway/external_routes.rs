//! Routes of packets out of the external device: the main table's routes over it.

use egret_kernel::netlink::{NetlinkError, NetlinkSocket, Request, attributes};
use ipnet::IpNet;
use nix::libc;
use std::net::IpAddr;

const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_VIA: u16 = 18;
/// Size of `struct rtmsg`.
const HEADER_BYTES: usize = 12;

/// One route over the external device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExternalRoute {
    /// Destination.
    pub to: IpNet,
    /// Router; `None`: the destination itself is on the link.
    pub via: Option<IpAddr>,
}

/// The unicast routes of the main table over the device, longest prefix first, lowest metric first among equals.
///
/// Routes over several next hops name no device of their own and are left out.
pub(super) fn external_routes(
    socket: &mut NetlinkSocket,
    device: u32,
) -> Result<Vec<ExternalRoute>, NetlinkError> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = vec![0; HEADER_BYTES];
        body[0] = family as u8;
        let request = Request {
            kind: RTM_GETROUTE,
            flags: 0,
            body,
            what: "routes over the external device".into(),
        };
        for reply in socket.dump(&request)? {
            found.extend(read(&reply.body, device));
        }
    }
    found.sort_by_key(|(metric, route)| (u8::MAX - route.to.prefix_len(), *metric, route.to));
    let mut routes: Vec<ExternalRoute> = found.into_iter().map(|(_, route)| route).collect();
    routes.dedup_by_key(|route| route.to);
    Ok(routes)
}

fn read(body: &[u8], device: u32) -> Option<(u32, ExternalRoute)> {
    let header = body.get(..HEADER_BYTES)?;
    let v6 = i32::from(header[0]) == libc::AF_INET6;
    if header[4] != libc::RT_TABLE_MAIN || header[7] != libc::RTN_UNICAST {
        return None;
    }
    let mut to: IpAddr = if v6 {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    };
    let (mut via, mut oif, mut metric) = (None, None, 0);
    for (kind, value) in attributes(&body[HEADER_BYTES..]) {
        match kind {
            RTA_DST => to = address(value)?,
            RTA_GATEWAY => via = Some(address(value)?),
            // An IPv4 destination behind an IPv6 router: `fwd ip` cannot resolve a neighbour of the other family.
            RTA_VIA => return None,
            RTA_OIF => oif = value.try_into().ok().map(u32::from_ne_bytes),
            RTA_PRIORITY => metric = value.try_into().ok().map(u32::from_ne_bytes)?,
            _ => {}
        }
    }
    let to = IpNet::new(to, header[1]).ok()?;
    (oif == Some(device)).then_some((metric, ExternalRoute { to, via }))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
