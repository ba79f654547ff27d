//! Network devices (rtnetlink(7)).

use super::error::RouteError;
use super::wire;
use crate::netlink::NetlinkSocket;
use egret_core::numbers::TUNNEL_PORT;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags};
use netlink_packet_route::link::{LinkInfo, LinkMessage};

const RTM_GETLINK: u16 = 18;

/// A network device, reduced to the properties that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC address; empty where there is none.
    pub mac: Vec<u8>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up and with carrier.
    pub running: bool,
    /// It is a VXLAN device on our port in collect-metadata mode.
    pub ours: bool,
}

impl Device {
    fn of(message: &LinkMessage) -> Self {
        let mut device = Device {
            index: message.header.index,
            name: String::new(),
            mac: Vec::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            running: message
                .header
                .flags
                .contains(LinkFlags::Up | LinkFlags::LowerUp),
            ours: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name.clone_from(name),
                LinkAttribute::Address(mac) => device.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
                LinkAttribute::LinkInfo(info) => device.ours = is_our_tunnel(info),
                _ => {}
            }
        }
        device
    }
}

fn is_our_tunnel(info: &[LinkInfo]) -> bool {
    info.iter().any(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => {
            data.contains(&InfoVxlan::Port(TUNNEL_PORT))
                && data.contains(&InfoVxlan::CollectMetadata(true))
        }
        _ => false,
    })
}

/// All devices of the namespace.
pub(super) fn devices(socket: &mut NetlinkSocket) -> Result<Vec<Device>, RouteError> {
    let message = Message::GetLink(LinkMessage::default());
    let found = wire::dump(socket, RTM_GETLINK, message, "the devices")?;
    let link = |message| match message {
        Message::NewLink(link) => Some(Device::of(&link)),
        _ => None,
    };
    Ok(found.into_iter().filter_map(link).collect())
}
