//! The tunnel device: VXLAN in collect-metadata mode, so that one device leads to every node.

use super::error::RouteError;
use egret_core::node::{Tunnel, TunnelIndex};
use egret_core::numbers::{TUNNEL_ADDRESS, TUNNEL_DEVICE, TUNNEL_PORT};
use egret_kernel::link::{IFLA_AF_SPEC, bare_and_loose, header};
use egret_kernel::netlink::{Attrs, NetlinkSocket, Request, flags};
use egret_kernel::route::device::{Device, devices};
use egret_kernel::route::wire;
use egret_kernel::sysctl::enable_ipv6;
use egret_wire::{link_local, tunnel_mac};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute};
use netlink_packet_route::link::{LinkInfo, LinkMessage};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;

/// Creates or corrects the tunnel device; a device of that name which is not ours is an error.
pub(super) fn ensure(socket: &mut NetlinkSocket, tunnel: &Tunnel) -> Result<Device, RouteError> {
    let mac = tunnel_mac(tunnel.index);
    let mut device = find(socket)?;
    if let Some(found) = &device {
        if !is_ours(found) {
            return Err(RouteError::NotOurs {
                device: TUNNEL_DEVICE.into(),
            });
        }
        if found.mac != mac {
            // The device was made for another tunnel index: neighbours would drop our packets.
            delete(socket)?;
            device = None;
        }
    }
    let device = match device {
        Some(device) => device,
        None => create(socket, mac)?,
    };
    if device.mtu != tunnel.mtu || !device.up {
        configure(socket, device.index, tunnel.mtu)?;
    }
    enable_ipv6(TUNNEL_DEVICE)?;
    addresses(socket, device.index, tunnel.index)?;
    find(socket)?.ok_or(RouteError::Vanished {
        device: TUNNEL_DEVICE.into(),
    })
}

/// Whether it is a tunnel device of Egret.
pub(super) fn is_ours(device: &Device) -> bool {
    device.metadata_vxlan == Some(TUNNEL_PORT)
}

pub(super) fn find(socket: &mut NetlinkSocket) -> Result<Option<Device>, RouteError> {
    Ok(devices(socket)?
        .into_iter()
        .find(|device| device.name == TUNNEL_DEVICE))
}

fn create(socket: &mut NetlinkSocket, mac: [u8; 6]) -> Result<Device, RouteError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(TUNNEL_DEVICE.into()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Port(TUNNEL_PORT),
                InfoVxlan::Learning(false),
                InfoVxlan::UDPZeroCsumTX(true),
                InfoVxlan::UDPZeroCsumRX(true),
            ])),
        ]),
    ];
    let how = flags::CREATE | flags::EXCL;
    wire::execute(
        socket,
        RTM_NEWLINK,
        how,
        Message::NewLink(message),
        "the tunnel device",
    )?;
    let device = find(socket)?.ok_or(RouteError::Vanished {
        device: TUNNEL_DEVICE.into(),
    })?;
    let body = Attrs::after(&header(device.index, false))
        .nest(IFLA_AF_SPEC, bare_and_loose())
        .finish();
    let what = "settings of the tunnel device".to_string();
    socket.execute(&Request {
        kind: RTM_SETLINK,
        flags: 0,
        body,
        what,
    })?;
    Ok(device)
}

fn configure(socket: &mut NetlinkSocket, index: u32, mtu: u32) -> Result<(), RouteError> {
    const IFLA_MTU: u16 = 4;
    let body = Attrs::after(&header(index, true))
        .u32(IFLA_MTU, mtu)
        .finish();
    let what = "MTU and state of the tunnel device".to_string();
    Ok(socket.execute(&Request {
        kind: RTM_SETLINK,
        flags: 0,
        body,
        what,
    })?)
}

fn wanted_addresses(index: TunnelIndex) -> BTreeSet<(IpAddr, u8)> {
    BTreeSet::from([
        (IpAddr::V4(TUNNEL_ADDRESS), 32),
        (IpAddr::V6(link_local(index)), 64),
    ])
}

fn present_addresses(
    socket: &mut NetlinkSocket,
    device: u32,
) -> Result<BTreeSet<(IpAddr, u8)>, RouteError> {
    let found = wire::addresses(socket, Some(device))?;
    let present = found.into_iter().filter_map(|message| {
        let length = message.header.prefix_len;
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some((*address, length)),
                AddressAttribute::Address(address @ IpAddr::V6(_)) => Some((*address, length)),
                _ => None,
            })
    });
    Ok(present.collect())
}

fn addresses(
    socket: &mut NetlinkSocket,
    device: u32,
    index: TunnelIndex,
) -> Result<(), RouteError> {
    let wanted = wanted_addresses(index);
    let present = present_addresses(socket, device)?;
    for (address, length) in wanted.difference(&present) {
        wire::add_address(socket, device, *address, *length)?;
    }
    for (address, length) in present.difference(&wanted) {
        wire::delete_address(socket, device, *address, *length)?;
    }
    Ok(())
}

/// First drift of the tunnel device, of which `before` was the last known state, as text for people.
pub(super) fn drift(
    socket: &mut NetlinkSocket,
    before: &Device,
    tunnel: &Tunnel,
) -> Result<Option<String>, RouteError> {
    let what = match find(socket)? {
        None => "is gone".to_owned(),
        Some(now) if !is_ours(&now) => "is a device of another kind".to_owned(),
        Some(now) if now.index != before.index => "is another device".to_owned(),
        Some(now) if now.mtu != tunnel.mtu => {
            format!("has MTU {}, not {}", now.mtu, tunnel.mtu)
        }
        Some(now) if !now.up => "is down".to_owned(),
        Some(now) => {
            let wanted = wanted_addresses(tunnel.index);
            let present = present_addresses(socket, now.index)?;
            let Some((address, _)) = wanted.symmetric_difference(&present).next() else {
                return Ok(None);
            };
            let is_gone = wanted.iter().any(|(wanted, _)| wanted == address);
            let verb = if is_gone { "lacks" } else { "has" };
            format!("{verb} the address {address}")
        }
    };
    Ok(Some(format!("{TUNNEL_DEVICE} {what}")))
}

/// Deletes the device, and with it all routes and neighbours on it.
pub(super) fn delete(socket: &mut NetlinkSocket) -> Result<bool, RouteError> {
    match find(socket)? {
        Some(device) if is_ours(&device) => {
            let body = header(device.index, false);
            let what = "deletion of the tunnel device".to_string();
            socket.execute(&Request {
                kind: RTM_DELLINK,
                flags: 0,
                body,
                what,
            })?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Whether the address is a neighbour's tunnel address.
pub(super) fn is_tunnel_address(address: Ipv6Addr) -> bool {
    address.segments()[..7] == [0xfe80, 0, 0, 0, 0, 0, 0]
}
