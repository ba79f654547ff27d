//! Links, addresses, routes and rules. The bodies of messages are stored: a deletion must contain nearly all
//! attributes, and the kernel's own message is the most exact.

use super::{LegacyError, dump, host_u32, text};
use egret_core::earlier::{Address, Device, Node, PolicyRule, Route};
use egret_kernel::netlink::{NetlinkSocket, Request, attributes};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETRULE: u16 = 34;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_DELRULE: u16 = 33;

const INET: u8 = libc::AF_INET as u8;
/// Lengths of the family headers: `ifinfomsg`, `ifaddrmsg`, `rtmsg` and `fib_rule_hdr`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

pub(super) fn read(socket: &mut NetlinkSocket, node: &mut Node) -> Result<(), LegacyError> {
    let mut all = |kind, family, header: usize, what: &str| {
        let mut body = vec![0; header];
        body[0] = family;
        let request = Request {
            kind,
            flags: 0,
            body,
            what: what.into(),
        };
        let replies = dump(socket, &request)?;
        Ok::<_, LegacyError>(replies.into_iter().map(|reply| reply.body))
    };
    let links = all(RTM_GETLINK, 0, LINK_HEADER, "the devices")?;
    node.devices = links.filter_map(|body| device(&body)).collect();
    let addresses = all(RTM_GETADDR, INET, ADDRESS_HEADER, "the addresses")?;
    node.addresses = addresses.filter_map(|body| address(&body)).collect();
    let routes = all(RTM_GETROUTE, INET, ROUTE_HEADER, "the routes")?;
    node.routes = routes.filter_map(|body| route(&body)).collect();
    let rules = all(RTM_GETRULE, INET, ROUTE_HEADER, "the routing rules")?;
    node.policy = rules.filter_map(|body| policy_rule(&body)).collect();
    Ok(())
}

/// Body of a deletion, after checking that it is still the same device.
pub(super) fn deletion_of_device(
    socket: &mut NetlinkSocket,
    index: u32,
    name: &str,
) -> Result<Vec<u8>, LegacyError> {
    let mut header = vec![0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let request = Request {
        kind: RTM_GETLINK,
        flags: 0,
        body: header.clone(),
        what: format!("device {name}"),
    };
    match socket.query(&request) {
        Ok(reply) if device(&reply.body).is_some_and(|found| found.name == name) => Ok(header),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(header),
        Err(error) => Err(error.into()),
        Ok(_) => Err(LegacyError::Device(name.to_owned())),
    }
}

fn v4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn device(body: &[u8]) -> Option<Device> {
    const NAME: u16 = 3;
    const INFO: u16 = 18;
    const STATS64: u16 = 23;
    const INFO_KIND: u16 = 1;
    const INFO_DATA: u16 = 2;
    /// `IFLA_GRE_LOCAL`, `IFLA_GRE_REMOTE`.
    const GRE_LOCAL: u16 = 6;
    const GRE_REMOTE: u16 = 7;
    let mut found = Device {
        index: host_u32(body.get(4..)?)?,
        ..Device::default()
    };
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            NAME => found.name = text(value),
            STATS64 => {
                let number = |at: usize| {
                    let bytes = value
                        .get(at..at + 8)
                        .and_then(|bytes| bytes.try_into().ok());
                    bytes.map_or(0, u64::from_ne_bytes)
                };
                found.packets = number(0) + number(8);
            }
            INFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        INFO_KIND => found.kind = text(value),
                        INFO_DATA if found.kind == "gre" => {
                            for (kind, value) in attributes(value) {
                                match kind {
                                    GRE_LOCAL => found.local = v4(value),
                                    GRE_REMOTE => found.remote = v4(value),
                                    _ => {}
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(found)
}

fn address(body: &[u8]) -> Option<Address> {
    const LOCAL: u16 = 2;
    const LABEL: u16 = 3;
    let (mut local, mut label) = (None, String::new());
    for (kind, value) in attributes(body.get(ADDRESS_HEADER..)?) {
        match kind {
            LOCAL => local = v4(value),
            LABEL => label = text(value),
            _ => {}
        }
    }
    Some(Address {
        device: host_u32(body.get(4..)?)?,
        address: Ipv4Net::new(local?, *body.get(1)?).ok()?,
        label,
        raw: body.to_vec(),
    })
}

fn route(body: &[u8]) -> Option<Route> {
    const TO: u16 = 1;
    const DEVICE: u16 = 4;
    const VIA: u16 = 5;
    const TABLE: u16 = 15;
    const UNICAST: u8 = 1;
    if body.first() != Some(&INET) || body.get(7) != Some(&UNICAST) {
        return None;
    }
    let mut found = Route {
        table: u32::from(*body.get(4)?),
        raw: body.to_vec(),
        ..Route::default()
    };
    let mut to = Ipv4Addr::UNSPECIFIED;
    for (kind, value) in attributes(body.get(ROUTE_HEADER..)?) {
        match kind {
            TO => to = v4(value)?,
            DEVICE => found.device = host_u32(value)?,
            VIA => found.via = v4(value),
            TABLE => found.table = host_u32(value)?,
            _ => {}
        }
    }
    found.to = Ipv4Net::new(to, *body.get(1)?).ok();
    Some(found)
}

fn policy_rule(body: &[u8]) -> Option<PolicyRule> {
    const PRIORITY: u16 = 6;
    const MARK: u16 = 10;
    const SUPPRESS_PREFIX: u16 = 14;
    const TABLE: u16 = 15;
    const MASK: u16 = 16;
    const PROTOCOL: u16 = 21;
    const TO_TABLE: u8 = 1;
    const INVERT: u32 = 2;
    let mut found = PolicyRule {
        table: u32::from(*body.get(4)?),
        // No prefixes, no type of service, action `lookup`, not inverted.
        is_plain: body.get(1..4)? == [0; 3]
            && *body.get(7)? == TO_TABLE
            && host_u32(body.get(8..)?)? & INVERT == 0,
        raw: body.to_vec(),
        ..PolicyRule::default()
    };
    for (kind, value) in attributes(body.get(ROUTE_HEADER..)?) {
        match kind {
            PRIORITY => found.priority = host_u32(value)?,
            MARK => found.mark = host_u32(value)?,
            MASK => found.mask = host_u32(value)?,
            TABLE => found.table = host_u32(value)?,
            PROTOCOL => {}
            SUPPRESS_PREFIX if host_u32(value) == Some(u32::MAX) => {}
            _ => found.is_plain = false,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_kernel::netlink::Attrs;

    /// The kernel's link message after `ip link add tun1921681221 type gre remote 192.168.122.1 local 192.168.122.11`.
    #[test]
    fn a_gre_device_tells_both_its_ends() {
        let mut header = [0; LINK_HEADER];
        header[4] = 7;
        let mut stats = vec![0; 16];
        stats[0] = 3;
        stats[8] = 4;
        let gre = Attrs::default()
            .bytes(6, &[192, 168, 122, 11])
            .bytes(7, &[192, 168, 122, 1]);
        let info = Attrs::default().text(1, "gre").nest(2, gre);
        let body = Attrs::after(&header)
            .text(3, "tun1921681221")
            .nest(18, info)
            .bytes(23, &stats);
        let found = device(&body.finish()).unwrap();
        assert_eq!(
            (found.index, found.name.as_str(), found.kind.as_str()),
            (7, "tun1921681221", "gre")
        );
        assert_eq!(found.remote, Some(Ipv4Addr::new(192, 168, 122, 1)));
        assert_eq!(found.local, Some(Ipv4Addr::new(192, 168, 122, 11)));
        assert_eq!(found.packets, 7);
    }

    #[test]
    fn a_rule_that_looks_at_more_than_its_mark_is_not_plain() {
        let header = [INET, 0, 0, 0, 99, 0, 0, 1, 0, 0, 0, 0];
        let plain = Attrs::after(&header)
            .u32(6, 32764)
            .u32(10, 1000)
            .u32(16, u32::MAX)
            .u32(15, 99);
        let plain = plain.u32(14, u32::MAX).u8(21, 3);
        let found = policy_rule(&plain.clone().finish()).unwrap();
        assert!(found.is_plain);
        assert_eq!(
            (found.priority, found.mark, found.mask, found.table),
            (32764, 1000, u32::MAX, 99)
        );
        let by_device = plain.text(3, "eth0").finish();
        assert!(!policy_rule(&by_device).unwrap().is_plain);
        let from = [INET, 0, 24, 0, 99, 0, 0, 1, 0, 0, 0, 0];
        assert!(!policy_rule(&from).unwrap().is_plain);
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        assert_eq!(device(&[0; 3]), None);
        assert_eq!(address(&[0; 9]), None);
        assert_eq!(route(&[INET]), None);
        assert_eq!(policy_rule(&[INET, 0]), None);
    }
}
