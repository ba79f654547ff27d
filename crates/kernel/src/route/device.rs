//! Network devices (rtnetlink(7)).

use super::wire;
use crate::netlink::{NetlinkError, NetlinkSocket};
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
    /// UDP port, if it is a VXLAN device in collect-metadata mode.
    pub metadata_vxlan: Option<u16>,
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
            metadata_vxlan: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name.clone_from(name),
                LinkAttribute::Address(mac) => device.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
                LinkAttribute::LinkInfo(info) => device.metadata_vxlan = metadata_vxlan(info),
                _ => {}
            }
        }
        device
    }
}

fn metadata_vxlan(info: &[LinkInfo]) -> Option<u16> {
    let mut data = info.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let data = data.find(|data| data.contains(&InfoVxlan::CollectMetadata(true)))?;
    data.iter().find_map(|one| match one {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })
}

/// All devices of the namespace.
pub fn devices(socket: &mut NetlinkSocket) -> Result<Vec<Device>, NetlinkError> {
    let message = Message::GetLink(LinkMessage::default());
    let found = wire::dump(socket, RTM_GETLINK, message, "the devices")?;
    let link = |message| match message {
        Message::NewLink(link) => Some(Device::of(&link)),
        _ => None,
    };
    Ok(found.into_iter().filter_map(link).collect())
}
