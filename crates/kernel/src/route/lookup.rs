//! The kernel's own route lookup for an address.

use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Request, attributes};
use std::net::IpAddr;

/// `struct rtmsg`.
const ROUTE_BYTES: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;

/// Index of the device and source address by which the kernel sends to `address`. `None` where that is no neighbour on
/// a network of this node: its own address, an address behind a router, or one without a route.
pub fn way(
    socket: &mut NetlinkSocket,
    address: IpAddr,
) -> Result<Option<(u32, IpAddr)>, NetlinkError> {
    let Some(reply) = ask(socket, address)? else {
        return Ok(None);
    };
    let (mut device, mut source) = (None, None);
    for (kind, value) in attributes(reply.get(ROUTE_BYTES..).unwrap_or_default()) {
        match kind {
            RTA_GATEWAY | RTA_VIA => return Ok(None),
            RTA_OIF => device = value.try_into().ok().map(u32::from_ne_bytes),
            RTA_PREFSRC => {
                let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                source = v4
                    .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
                    .ok();
            }
            _ => {}
        }
    }
    Ok(device.zip(source))
}

/// Index of the device by which the kernel sends to `address`, over a router or not; `None` without a route.
pub fn device_to(socket: &mut NetlinkSocket, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let reply = ask(socket, address)?.unwrap_or_default();
    let mut found = attributes(reply.get(ROUTE_BYTES..).unwrap_or_default());
    let device = found.find(|(kind, _)| *kind == RTA_OIF);
    Ok(device.and_then(|(_, value)| value.try_into().ok().map(u32::from_ne_bytes)))
}

/// The kernel's route lookup for a unicast address: `struct rtmsg` and attributes.
fn ask(socket: &mut NetlinkSocket, address: IpAddr) -> Result<Option<Vec<u8>>, NetlinkError> {
    let mut header = [0u8; ROUTE_BYTES];
    let octets = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    header[0] = family as u8;
    header[1] = (octets.len() * 8) as u8;
    let request = Request {
        kind: super::wire::RTM_GETROUTE,
        flags: 0,
        body: Attrs::after(&header).bytes(RTA_DST, &octets).finish(),
        what: format!("the way to {address}"),
    };
    let reply = match socket.query(&request) {
        Ok(reply) => reply,
        // There is no route.
        Err(NetlinkError::Refused { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let unicast = reply.body.get(7) == Some(&libc::RTN_UNICAST);
    Ok(unicast.then_some(reply.body))
}
