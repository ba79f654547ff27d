//! Observes how pods' packets may leave this node: devices and their routes, programs of others, and the devices of the
//! routes to the node's own pods.
//!
//! Plugins' names do not matter: a plugin that sends packets past the stack needs a program where pods' packets arrive.

use super::routes::{DESTINATION, ROUTE_BYTES, RTA_OIF, Routes};
use aya::programs::TcAttachType;
use egret_core::node::{PathFacts, Way};
use egret_core::numbers::{LIFT_DEVICE, LIFT_PEER, TUNNEL_DEVICE};
use egret_kernel::netlink::{Attrs, NetlinkError, NetlinkSocket, Reply, Request, attributes};
use egret_kernel::tcx;
use ipnet::IpNet;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use thiserror::Error;

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETRULE: u16 = 34;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, which is also the parent of filters of the older `ingress` qdisc.
const INGRESS: u32 = 0xffff_fff2;
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Sizes of `struct ifinfomsg` and `struct tcmsg`.
const LINK_BYTES: usize = 16;
const TC_BYTES: usize = 20;

/// Error of observing the node.
#[derive(Debug, Error)]
#[error("reading devices, routes and programs")]
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
        // A netkit device exists only to carry programs.
        self.kind == "netkit"
            || tcx::program_ids(self.index, TcAttachType::Ingress)
                .is_ok_and(|programs| !programs.is_empty())
    }
}

/// Device of the node's route to each pod's address; `None`: no route, or a device of our own.
pub type Delivered = BTreeMap<IpAddr, Option<String>>;

/// Routes to some of the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Towards {
    /// Device of each pod's address.
    pub delivered: Delivered,
    /// Those devices, and whether others' programs see packets that arrive by them.
    pub devices: BTreeMap<String, bool>,
}

/// Observer of the network namespace of the thread that opened it.
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

    /// Reads devices, routes and programs. `pods` are the addresses of this node's pods. Choice, refusal and pods'
    /// devices stay at their defaults in the facts.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn look(&mut self, pods: &BTreeSet<IpAddr>) -> Result<(PathFacts, Delivered), LookError> {
        let links = self.links()?;
        let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let routes = self.routes()?;
        let way = |(index, to): &(u32, IpNet)| {
            let link = by_index.get(index)?;
            Some(Way {
                device: link.name.clone(),
                ethernet: link.ethernet,
                to: *to,
            })
        };
        let ways = routes.ways.iter().filter_map(way).collect();
        let delivered = self.delivered(&by_index, &routes, pods)?;
        let named = |is: &dyn Fn(&Link) -> bool| -> BTreeSet<String> {
            let chosen = links.iter().filter(|link| is(link));
            chosen.map(|link| link.name.clone()).collect()
        };
        let facts = PathFacts {
            ways,
            programs: self.programs(&links)?,
            express: named(&|link| link.express),
            switched: named(&|link| link.kind == "openvswitch" || link.port_of == "openvswitch"),
            ..PathFacts::default()
        };
        Ok((facts, delivered))
    }

    /// Routes to these addresses alone, and whether others' programs see packets there. A device that was removed
    /// meanwhile has no name.
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

    /// Devices of all addresses, with as few kernel lookups as routes and rules allow.
    fn delivered(
        &mut self,
        links: &BTreeMap<u32, &Link>,
        routes: &Routes,
        pods: &BTreeSet<IpAddr>,
    ) -> Result<Delivered, LookError> {
        let mut asked: BTreeMap<Option<IpNet>, Option<u32>> = BTreeMap::new();
        let mut delivered = Delivered::new();
        for pod in pods {
            let device = match (routes.straight(*pod), asked.entry(routes.kin(*pod))) {
                (Some(device), _) => Some(device),
                (None, Entry::Occupied(known)) => *known.get(),
                (None, Entry::Vacant(unknown)) => *unknown.insert(self.device_towards(*pod)?),
            };
            let link = device.and_then(|index| links.get(&index));
            delivered.insert(*pod, link.map(|link| link.name.clone()));
        }
        Ok(delivered)
    }

    /// Reads the programs alone: the kernel notifies no attachment.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn look_at_programs(&mut self) -> Result<BTreeSet<String>, LookError> {
        let links = self.links()?;
        self.programs(&links)
    }

    /// Devices at whose ingress others' programs see packets.
    fn programs(&mut self, links: &[Link]) -> Result<BTreeSet<String>, LookError> {
        let filtered = self.filtered()?;
        let has_program = |link: &&Link| filtered.contains(&link.index) || link.has_tcx_program();
        let chosen = links.iter().filter(has_program);
        Ok(chosen.map(|link| link.name.clone()).collect())
    }

    /// Whether others' programs see packets at the ingress of one device.
    fn is_programmed(&mut self, link: &Link) -> bool {
        link.has_tcx_program() || self.is_filtered(link.index)
    }

    fn links(&mut self) -> Result<Vec<Link>, LookError> {
        let replies = self.dump(RTM_GETLINK, vec![0; LINK_BYTES], "the devices")?;
        let links = replies.iter().filter_map(link);
        Ok(links.filter(Link::is_of_others).collect())
    }

    /// A device of others, if it exists.
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

    /// Devices with a clsact filter at ingress, whatever it does.
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
                // A device may be removed at any moment.
                let filters = self.dump(RTM_GETTFILTER, body, "filters of a device");
                filters.is_ok_and(|filters| !filters.is_empty())
            })
    }

    /// Routes and rules of all owners, of both families.
    fn routes(&mut self) -> Result<Routes, LookError> {
        let mut routes = Routes::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![0; ROUTE_BYTES];
            body[0] = family as u8;
            for reply in self.dump(RTM_GETROUTE, body.clone(), "all routes")? {
                routes.add_route(&reply.body);
            }
            for reply in self.dump(RTM_GETRULE, body, "all rules")? {
                routes.add_destination(&reply.body);
            }
        }
        Ok(routes)
    }

    /// Device by which the kernel sends to the address.
    fn device_towards(&mut self, address: IpAddr) -> Result<Option<u32>, LookError> {
        let (family, bits, octets) = match address {
            IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
        };
        let mut header = vec![0; ROUTE_BYTES];
        (header[0], header[1]) = (family as u8, bits);
        let request = Request {
            kind: RTM_GETROUTE,
            flags: 0,
            body: Attrs::after(&header).bytes(DESTINATION, &octets).finish(),
            what: format!("the way to {address}"),
        };
        let reply = match self.socket.query(&request) {
            Ok(reply) => reply,
            // There is no route.
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
            // Something changed meanwhile: one retry is enough.
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
