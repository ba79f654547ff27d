//! Devices that depend on router advertisements (RFC 4861 section 4.2), for callers that turn forwarding on.

use super::wire;
use crate::netlink::{NetlinkError, NetlinkSocket};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::address::{AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use std::collections::{BTreeMap, BTreeSet};

const RTM_GETLINK: u16 = 18;

/// Devices that have got a route or address from a router advertisement, or may still get one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// Names of devices with a route or an address that a router advertised.
    pub heard: BTreeSet<String>,
    /// Names of devices that lead to a network of the node's own, whether or not they have one yet: network cards,
    /// bonds, teams and VLANs. Devices of pods and bridges are excluded, since a pod that advertises itself as a router
    /// must not be believed.
    pub uplinks: BTreeSet<String>,
}

/// Reads the devices from the kernel, except those of these names.
pub fn look(socket: &mut NetlinkSocket, except: &[&str]) -> Result<Advertised, NetlinkError> {
    let names = links(socket, except)?;
    let mut heard = BTreeSet::new();
    for route in wire::routes(socket)? {
        if route.header.protocol == RouteProtocol::Ra {
            heard.extend(devices_of(&route));
        }
    }
    for address in wire::addresses(socket, None)? {
        if is_temporary(&address) {
            heard.insert(address.header.index);
        }
    }
    let named = |index: &u32| names.get(index).map(|(name, _)| name.clone());
    let heard: BTreeSet<String> = heard.iter().filter_map(named).collect();
    let uplinks = names.into_values().filter(|(_, is_uplink)| *is_uplink);
    let uplinks = uplinks.map(|(name, _)| name);
    Ok(Advertised {
        uplinks: uplinks.filter(|name| !heard.contains(name)).collect(),
        heard,
    })
}

/// See [`Advertised::uplinks`]; includes devices that have accepted no advertisement.
pub fn uplinks(
    socket: &mut NetlinkSocket,
    except: &[&str],
) -> Result<BTreeSet<String>, NetlinkError> {
    let devices = links(socket, except)?.into_values();
    let uplinks = devices.filter(|(_, is_uplink)| *is_uplink);
    Ok(uplinks.map(|(name, _)| name).collect())
}

/// Name of each device by its index, and whether it leads to a network of the node's own.
fn links(
    socket: &mut NetlinkSocket,
    except: &[&str],
) -> Result<BTreeMap<u32, (String, bool)>, NetlinkError> {
    let message = Message::GetLink(LinkMessage::default());
    let mut names = BTreeMap::new();
    for message in wire::dump(socket, RTM_GETLINK, message, "the devices")? {
        let Message::NewLink(link) = message else {
            continue;
        };
        let name = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
        let Some(name) = name.filter(|name| !except.contains(&&**name)) else {
            continue;
        };
        names.insert(link.header.index, (name, is_uplink(&link)));
    }
    Ok(names)
}

fn is_uplink(link: &LinkMessage) -> bool {
    let kind = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => info.iter().find_map(|one| match one {
                LinkInfo::Kind(kind) => Some(kind),
                _ => None,
            }),
            _ => None,
        });
    let is_bridged = link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    let is_of_network = matches!(
        kind,
        None | Some(InfoKind::Bond | InfoKind::Team | InfoKind::Vlan)
    );
    link.header.link_layer_type == LinkLayerType::Ether && is_of_network && !is_bridged
}

fn devices_of(route: &RouteMessage) -> Vec<u32> {
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices
}

/// Whether this is a global IPv6 address with a lifetime: it comes from an advertised prefix if the device accepts any.
fn is_temporary(message: &AddressMessage) -> bool {
    let flags = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
    let is_permanent = match flags {
        Some(flags) => flags.contains(AddressFlags::Permanent),
        None => message.header.flags.contains(AddressHeaderFlags::Permanent),
    };
    message.header.family == wire::family(true)
        && message.header.scope == AddressScope::Universe
        && !is_permanent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_cards_bonds_and_vlans_lead_to_networks_and_pods_devices_do_not() {
        let link = |attributes: &[LinkAttribute]| {
            let mut link = LinkMessage::default();
            link.header.link_layer_type = LinkLayerType::Ether;
            link.attributes = attributes.to_vec();
            link
        };
        let kind = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        assert!(is_uplink(&link(&[])));
        assert!(is_uplink(&link(&[kind(InfoKind::Bond)])));
        assert!(is_uplink(&link(&[kind(InfoKind::Vlan)])));
        for other in [
            InfoKind::Veth,
            InfoKind::Bridge,
            InfoKind::Tun,
            InfoKind::Dummy,
        ] {
            assert!(!is_uplink(&link(&[kind(other)])));
        }
        assert!(
            !is_uplink(&link(&[LinkAttribute::Controller(3)])),
            "of a bridge or bond"
        );
        let mut loopback = link(&[]);
        loopback.header.link_layer_type = LinkLayerType::Loopback;
        assert!(!is_uplink(&loopback));
    }
}
