//! How pods' packets may leave this node, as far as the kernel shows it: devices and their routes, programs of others,
//! and where the routes to the node's own pods lead.
//!
//! Names of plugins are not asked: whoever takes packets past the stack needs a program where pods' packets arrive.

use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Reply, Request, attributes};
use crate::tcx;
use aya::programs::TcAttachType;
use egret_core::node::{PathFacts, Way};
use egret_core::numbers::{LIFT_DEVICE, LIFT_PEER, ROUTE_PROTOCOL, TUNNEL_DEVICE};
use ipnet::IpNet;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, which is also the parent of the older `ingress` qdisc's filters.
const INGRESS: u32 = 0xffff_fff2;
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Sizes of `struct ifinfomsg`, `struct rtmsg` and `struct tcmsg`.
const LINK_BYTES: usize = 16;
const ROUTE_BYTES: usize = 12;
const TC_BYTES: usize = 20;

/// Why the node cannot be looked at.
#[derive(Debug, Error)]
#[error("looking at devices, routes and programs")]
pub struct LookError(#[from] NetlinkError);

struct Link {
    index: u32,
    name: String,
    ethernet: bool,
    kind: String,
    /// Kind of the bridge or switch that it is a port of.
    port_of: String,
    express: bool,
}

impl Link {
    fn is_of_others(&self) -> bool {
        let ours = [TUNNEL_DEVICE, LIFT_DEVICE, LIFT_PEER, "lo"];
        !ours.contains(&self.name.as_str())
    }

    fn has_tcx_program(&self) -> bool {
        // A netkit device exists for the sake of its programs alone.
        self.kind == "netkit"
            || tcx::program_ids(self.index, TcAttachType::Ingress)
                .is_ok_and(|programs| !programs.is_empty())
    }
}

/// Where packets for some pods go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Towards {
    /// Device by address; `None`: no way at all, or a device of our own.
    pub delivered: BTreeMap<IpAddr, Option<String>>,
    /// Those devices, and whether others' programs look at what arrives by them.
    pub devices: BTreeMap<String, bool>,
}

/// Looks at the network namespace of the thread that opened it.
pub struct Looker {
    socket: NetlinkSocket,
}

impl Looker {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn open() -> Result<Self, LookError> {
        let socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
        Ok(Self { socket })
    }

    /// Looks now. `pods` are the addresses of this node's pods. Choice and refusal are left as they are by default.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn look(&mut self, pods: &BTreeSet<IpAddr>) -> Result<PathFacts, LookError> {
        let links = self.links()?;
        let names: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let mut ways = BTreeSet::new();
        for (index, to) in self.routes()? {
            if let Some(link) = names.get(&index) {
                ways.insert(Way {
                    device: link.name.clone(),
                    ethernet: link.ethernet,
                    to,
                });
            }
        }
        let delivered = self.delivered(&links, pods)?;
        let named = |is: &dyn Fn(&Link) -> bool| -> BTreeSet<String> {
            let chosen = links.iter().filter(|link| is(link));
            chosen.map(|link| link.name.clone()).collect()
        };
        Ok(PathFacts {
            ways,
            delivered,
            programs: self.programs(&links)?,
            express: named(&|link| link.express),
            switched: named(&|link| link.kind == "openvswitch" || link.port_of == "openvswitch"),
            ..PathFacts::default()
        })
    }

    /// Where the routes lead for these addresses alone, and whether others' programs look at packets there. A device that
    /// has gone meanwhile has no name.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn look_towards(&mut self, pods: &BTreeSet<IpAddr>) -> Result<Towards, LookError> {
        let mut found = Towards::default();
        let mut links: BTreeMap<u32, Option<Link>> = BTreeMap::new();
        for pod in pods {
            let mut name = None;
            if let Some(index) = self.device_towards(*pod)? {
                if let Entry::Vacant(vacant) = links.entry(index) {
                    let link = self.link(index)?;
                    if let Some(link) = &link {
                        let programmed = self.is_programmed(link);
                        found.devices.insert(link.name.clone(), programmed);
                    }
                    vacant.insert(link);
                }
                name = links[&index].as_ref().map(|link| link.name.clone());
            }
            found.delivered.insert(*pod, name);
        }
        Ok(found)
    }

    fn delivered(
        &mut self,
        links: &[Link],
        pods: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Option<String>>, LookError> {
        let names: BTreeMap<u32, &String> =
            links.iter().map(|link| (link.index, &link.name)).collect();
        let mut delivered = BTreeMap::new();
        for pod in pods {
            let device = self.device_towards(*pod)?;
            let name = device.and_then(|index| names.get(&index));
            delivered.insert(*pod, name.map(|name| (*name).clone()));
        }
        Ok(delivered)
    }

    /// The programs alone: nobody tells when one is attached.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn look_at_programs(&mut self) -> Result<BTreeSet<String>, LookError> {
        let links = self.links()?;
        self.programs(&links)
    }

    /// Devices at whose ingress others' programs look at packets.
    fn programs(&mut self, links: &[Link]) -> Result<BTreeSet<String>, LookError> {
        let filtered = self.filtered()?;
        let has_program = |link: &&Link| filtered.contains(&link.index) || link.has_tcx_program();
        let chosen = links.iter().filter(has_program);
        Ok(chosen.map(|link| link.name.clone()).collect())
    }

    /// The same for one device.
    fn is_programmed(&mut self, link: &Link) -> bool {
        link.has_tcx_program() || self.is_filtered(link.index)
    }

    fn links(&mut self) -> Result<Vec<Link>, LookError> {
        let replies = self.dump(RTM_GETLINK, vec![0; LINK_BYTES], "the devices")?;
        let links = replies.iter().filter_map(link);
        Ok(links.filter(Link::is_of_others).collect())
    }

    /// One device of others, if it is there.
    fn link(&mut self, index: u32) -> Result<Option<Link>, LookError> {
        let mut body = vec![0; LINK_BYTES];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let request = Request {
            kind: RTM_GETLINK,
            flags: 0,
            body,
            what: format!("the device {index}"),
        };
        match self.socket.query(&request) {
            Ok(reply) => Ok(link(&reply).filter(Link::is_of_others)),
            Err(NetlinkError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Devices with a clsact filter for arriving packets, whatever it does.
    fn filtered(&mut self) -> Result<BTreeSet<u32>, LookError> {
        let qdiscs = self.dump(RTM_GETQDISC, vec![0; TC_BYTES], "queueing disciplines")?;
        let number = |reply: &Reply, at: usize| {
            let bytes = reply.body.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let mut filtered = BTreeSet::new();
        for qdisc in &qdiscs {
            let (Some(index), Some(TC_H_INGRESS)) = (number(qdisc, 4), number(qdisc, 12)) else {
                continue;
            };
            if self.is_filtered(index) {
                filtered.insert(index);
            }
        }
        Ok(filtered)
    }

    /// Whether one device has such a filter.
    fn is_filtered(&mut self, index: u32) -> bool {
        [INGRESS, TC_H_INGRESS & 0xffff_0000]
            .into_iter()
            .any(|parent| {
                let fields = [0, index, 0, parent, 0];
                let body = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
                // A device may go at any moment.
                let filters = self.dump(RTM_GETTFILTER, body, "filters of a device");
                filters.is_ok_and(|filters| !filters.is_empty())
            })
    }

    /// Unicast routes of all tables but the local one, by device, without those of our own.
    fn routes(&mut self) -> Result<BTreeSet<(u32, IpNet)>, LookError> {
        let mut routes = BTreeSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![0; ROUTE_BYTES];
            body[0] = family as u8;
            for reply in self.dump(RTM_GETROUTE, body, "all routes")? {
                read_route(&reply.body, &mut routes);
            }
        }
        Ok(routes)
    }

    /// Where the kernel sends a packet for the address.
    fn device_towards(&mut self, address: IpAddr) -> Result<Option<u32>, LookError> {
        const RTA_DST: u16 = 1;
        const RTA_OIF: u16 = 4;
        let (family, bits, octets) = match address {
            IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
        };
        let mut header = vec![0; ROUTE_BYTES];
        (header[0], header[1]) = (family as u8, bits);
        let request = Request {
            kind: RTM_GETROUTE,
            flags: 0,
            body: Attrs::after(&header).bytes(RTA_DST, &octets).finish(),
            what: format!("the way to {address}"),
        };
        let reply = match self.socket.query(&request) {
            Ok(reply) => reply,
            // No way at all.
            Err(NetlinkError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let attributes = attributes(reply.body.get(ROUTE_BYTES..).unwrap_or_default());
        let mut devices = attributes.filter(|(kind, _)| *kind == RTA_OIF);
        let device = devices.next().and_then(|(_, value)| value.try_into().ok());
        Ok(device.map(u32::from_ne_bytes))
    }

    fn dump(&mut self, kind: u16, body: Vec<u8>, what: &str) -> Result<Vec<Reply>, NetlinkError> {
        let request = Request {
            kind,
            flags: 0,
            body,
            what: what.into(),
        };
        match self.socket.dump(&request) {
            // Something changed meanwhile: once more is enough for a look.
            Err(NetlinkError::Interrupted) => self.socket.dump(&request),
            result => result,
        }
    }
}

fn text(value: &[u8]) -> String {
    let bytes = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(bytes).into_owned()
}

fn link(reply: &Reply) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_XDP: u16 = 43;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_SLAVE_KIND: u16 = 4;
    const IFLA_XDP_ATTACHED: u16 = 2;
    /// `ARPHRD_ETHER` of `linux/if_arp.h`.
    const ETHERNET: u16 = 1;
    let header = reply.body.get(..LINK_BYTES)?;
    let mut link = Link {
        index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        name: String::new(),
        ethernet: u16::from_ne_bytes([header[2], header[3]]) == ETHERNET,
        kind: String::new(),
        port_of: String::new(),
        express: false,
    };
    for (kind, value) in attributes(&reply.body[LINK_BYTES..]) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_XDP => {
                let attached = |(kind, value): (u16, &[u8])| {
                    kind == IFLA_XDP_ATTACHED && value.first().is_some_and(|mode| *mode != 0)
                };
                link.express = attributes(value).any(attached);
            }
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = text(value),
                        IFLA_INFO_SLAVE_KIND => link.port_of = text(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn read_route(body: &[u8], routes: &mut BTreeSet<(u32, IpNet)>) {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_MULTIPATH: u16 = 9;
    let Some(header) = body.get(..ROUTE_BYTES) else {
        return;
    };
    let ours = header[5] == ROUTE_PROTOCOL;
    if header[4] == libc::RT_TABLE_LOCAL || header[7] != libc::RTN_UNICAST || ours {
        return;
    }
    let mut to: IpAddr = match i32::from(header[0]) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut devices = BTreeSet::new();
    for (kind, value) in attributes(&body[ROUTE_BYTES..]) {
        match kind {
            RTA_DST => match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
                (Ok(v4), _) => to = v4.into(),
                (_, Ok(v6)) => to = v6.into(),
                _ => return,
            },
            RTA_OIF => devices.extend(value.try_into().ok().map(u32::from_ne_bytes)),
            RTA_MULTIPATH => devices.extend(hops(value)),
            _ => {}
        }
    }
    if let Ok(to) = IpNet::new(to, header[1]) {
        routes.extend(devices.into_iter().map(|device| (device, to.trunc())));
    }
}

/// Devices of `struct rtnexthop` after `struct rtnexthop`.
fn hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let index = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
        bytes = bytes
            .get(length.max(8).next_multiple_of(4)..)
            .unwrap_or(&[]);
        Some(index)
    })
}
