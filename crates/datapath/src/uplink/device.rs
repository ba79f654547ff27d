//! The lift device: one end of a veth pair of our own, at whose ingress lifted packets appear to the stack.

use crate::link::{IFLA_AF_SPEC, bare_and_loose, header};
use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Reply, Request, attributes, flags};
use crate::sysctl::{SysctlError, enable_ipv6};
use egret_core::numbers::{LIFT_ADDRESS, LIFT_DEVICE, LIFT_PEER};
use thiserror::Error;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// Size of `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;
/// What a device of ours is known by, beside its name and kind.
const ALIAS: &str = "egret: what pods send past the stack comes in here";

/// Why there is no lift device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The kernel refused something.
    #[error("the lift device {LIFT_DEVICE}")]
    Netlink(#[from] NetlinkError),
    /// It cannot have IPv6.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// There is a device of our name that is not ours; it is left alone.
    #[error("device {LIFT_DEVICE} exists and is none of Egret's: rename or remove it")]
    NotOurs,
    /// It went away while it was worked on.
    #[error("device {LIFT_DEVICE} was removed while it was set up")]
    Vanished,
}

/// What the programs must know about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LiftDevice {
    pub index: u32,
    pub mac: [u8; 6],
}

struct Found {
    device: LiftDevice,
    up: bool,
    ours: bool,
}

/// Makes the pair what it should be.
pub(super) fn ensure(socket: &mut NetlinkSocket) -> Result<LiftDevice, DeviceError> {
    let found = match find(socket)? {
        Some(found) if !found.ours => return Err(DeviceError::NotOurs),
        Some(found) => found,
        None => {
            create(socket)?;
            find(socket)?.ok_or(DeviceError::Vanished)?
        }
    };
    let index = found.device.index;
    configure(socket, index)?;
    enable_ipv6(LIFT_DEVICE)?;
    if let Ok(peer) = nix::net::if_::if_nametoindex(LIFT_PEER) {
        configure(socket, peer)?;
    }
    address(socket, index)?;
    Ok(found.device)
}

/// Whether it is there and up, and still the same.
pub(super) fn is_intact(
    socket: &mut NetlinkSocket,
    device: &LiftDevice,
) -> Result<bool, DeviceError> {
    let found = find(socket)?;
    Ok(found.is_some_and(|found| found.ours && found.up && found.device == *device))
}

/// Deletes the pair, if it is ours. Whether it was there.
pub(super) fn delete(socket: &mut NetlinkSocket) -> Result<bool, DeviceError> {
    let Some(found) = find(socket)?.filter(|found| found.ours) else {
        return Ok(false);
    };
    socket.execute(&Request {
        kind: RTM_DELLINK,
        flags: 0,
        body: header(found.device.index, false),
        what: format!("deletion of the lift device {LIFT_DEVICE}"),
    })?;
    Ok(true)
}

fn find(socket: &mut NetlinkSocket) -> Result<Option<Found>, DeviceError> {
    let body = Attrs::after(&header(0, false))
        .text(IFLA_IFNAME, LIFT_DEVICE)
        .finish();
    let what = format!("the device {LIFT_DEVICE}");
    let request = Request {
        kind: RTM_GETLINK,
        flags: 0,
        body,
        what,
    };
    match socket.query(&request) {
        Ok(reply) => Ok(read(&reply)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read(reply: &Reply) -> Option<Found> {
    let fields = reply.body.get(..HEADER_BYTES)?;
    let number = |at: usize| Some(u32::from_ne_bytes(fields.get(at..at + 4)?.try_into().ok()?));
    let (mut mac, mut is_veth, mut is_named) = ([0; 6], false, false);
    for (kind, value) in attributes(&reply.body[HEADER_BYTES..]) {
        match kind {
            IFLA_ADDRESS => mac = value.try_into().ok()?,
            IFLA_IFALIAS => {
                is_named = value.strip_suffix(&[0]).unwrap_or(value) == ALIAS.as_bytes()
            }
            IFLA_LINKINFO => {
                is_veth = attributes(value).any(|(kind, value)| {
                    kind == IFLA_INFO_KIND && value.strip_suffix(&[0]).unwrap_or(value) == b"veth"
                });
            }
            _ => {}
        }
    }
    Some(Found {
        device: LiftDevice {
            index: number(4)?,
            mac,
        },
        up: number(8)? & libc::IFF_UP as u32 != 0,
        ours: is_veth && is_named,
    })
}

fn create(socket: &mut NetlinkSocket) -> Result<(), DeviceError> {
    let peer = Attrs::after(&header(0, false)).text(IFLA_IFNAME, LIFT_PEER);
    let info = Attrs::default()
        .text(IFLA_INFO_KIND, "veth")
        .nest(IFLA_INFO_DATA, Attrs::default().nest(VETH_INFO_PEER, peer));
    let body = Attrs::after(&header(0, false))
        .text(IFLA_IFNAME, LIFT_DEVICE)
        .nest(IFLA_LINKINFO, info)
        .finish();
    socket.execute(&Request {
        kind: RTM_NEWLINK,
        flags: flags::CREATE | flags::EXCL,
        body,
        what: format!("the lift device {LIFT_DEVICE}"),
    })?;
    // Linux takes an alias for a device that is there only.
    let index = nix::net::if_::if_nametoindex(LIFT_DEVICE).map_err(|_| DeviceError::Vanished)?;
    let body = Attrs::after(&header(index, false))
        .text(IFLA_IFALIAS, ALIAS)
        .finish();
    Ok(socket.execute(&Request {
        kind: RTM_SETLINK,
        flags: 0,
        body,
        what: format!("the alias of {LIFT_DEVICE}"),
    })?)
}

/// Up, without addresses of the kernel's own making, and with loose reverse-path filtering: what is lifted has its way
/// back by the pod's own device.
fn configure(socket: &mut NetlinkSocket, index: u32) -> Result<(), DeviceError> {
    let body = Attrs::after(&header(index, true))
        .nest(IFLA_AF_SPEC, bare_and_loose())
        .finish();
    Ok(socket.execute(&Request {
        kind: RTM_SETLINK,
        flags: 0,
        body,
        what: format!("settings of the lift device {LIFT_DEVICE}"),
    })?)
}

/// Without an IPv4 address of its own even loose reverse-path filtering drops what comes in.
fn address(socket: &mut NetlinkSocket, index: u32) -> Result<(), DeviceError> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const HOST_BITS: u8 = 32;
    let mut body = vec![libc::AF_INET as u8, HOST_BITS, 0, libc::RT_SCOPE_LINK];
    body.extend(index.to_ne_bytes());
    let octets = LIFT_ADDRESS.octets();
    let body = Attrs::after(&body)
        .bytes(IFA_LOCAL, &octets)
        .bytes(IFA_ADDRESS, &octets)
        .finish();
    Ok(socket.execute(&Request {
        kind: RTM_NEWADDR,
        flags: flags::CREATE | flags::REPLACE,
        body,
        what: format!("address {LIFT_ADDRESS} of {LIFT_DEVICE}"),
    })?)
}
