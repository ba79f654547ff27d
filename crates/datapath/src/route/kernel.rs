//! Observes, compares and applies links, routes and rules.

use super::desired::{Desired, RouteEntry};
use super::error::RouteError;
use super::policy::{self, Owner, absent_is_fine};
use super::tunnel;
use crate::drift::{Drift, DriftReport};
use egret_core::node::{ForeignMark, MainRoute, NodeState, Tunnel};
use egret_core::numbers::{
    CLASSIC_ROUTE_PROTOCOL, GROUPS_MAX, LIFT_DEVICE, LIFT_PEER, NEXTHOP_BASE,
};
use egret_core::numbers::{NEXT_HOP_OBJECTS, ROUTE_PROTOCOL, TUNNEL_DEVICE};
use egret_kernel::netlink::{NetlinkError, NetlinkSocket, Request, flags};
use egret_kernel::route::advertised::{self, Advertised};
use egret_kernel::route::device::{self, Device};
use egret_kernel::route::nexthop::{self, NextHop};
use egret_kernel::route::way_out::{self, WayOut};
use egret_kernel::route::{lookup, routers, wire};
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage as Message;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Range;

const OUR_DEVICES: [&str; 3] = [TUNNEL_DEVICE, LIFT_DEVICE, LIFT_PEER];

/// Protocol and ids of our next hop objects: gateways, groups, and gateways for each next hop of policies.
const OUR_NEXT_HOPS: (u8, Range<u32>) = (
    ROUTE_PROTOCOL,
    NEXTHOP_BASE..NEXTHOP_BASE + NEXT_HOP_OBJECTS * (GROUPS_MAX as u32 + 2),
);

/// Links and routes of the namespace of the thread that opened it.
pub struct Routing {
    socket: NetlinkSocket,
    applied: Option<(Tunnel, Device, Desired)>,
    stale: Option<Desired>,
}

impl Routing {
    /// Opens the socket; changes nothing yet.
    pub fn open() -> Result<Self, RouteError> {
        Ok(Routing {
            socket: NetlinkSocket::open(libc::NETLINK_ROUTE)?,
            applied: None,
            stale: None,
        })
    }

    /// Port of the socket of all changes: the kernel's notifications contain it (`nlmsg_pid`).
    pub fn port(&self) -> Result<u32, RouteError> {
        Ok(self.socket.port()?)
    }

    /// All network devices.
    pub fn devices(&mut self) -> Result<Vec<Device>, RouteError> {
        Ok(device::devices(&mut self.socket)?)
    }

    /// Addresses of every device with their prefix length, by its index.
    pub fn addresses(&mut self) -> Result<BTreeMap<u32, Vec<IpNet>>, RouteError> {
        use netlink_packet_route::address::AddressAttribute;
        let mut addresses: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for message in wire::addresses(&mut self.socket, None)? {
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(address)
                    | AddressAttribute::Address(address @ IpAddr::V6(_)) => {
                        let length = message.header.prefix_len;
                        let network = IpNet::new(*address, length);
                        let known = addresses.entry(message.header.index).or_default();
                        // The kernel's prefix lengths never exceed the address length.
                        known.extend(network.ok());
                    }
                    _ => {}
                }
            }
        }
        Ok(addresses)
    }

    /// The device of the default route with the lowest metric, IPv4 before IPv6.
    pub fn default_device(&mut self) -> Result<Option<Device>, RouteError> {
        let index = wire::default_device(&mut self.socket)?;
        Ok(self
            .devices()?
            .into_iter()
            .find(|device| Some(device.index) == index))
    }

    /// Next hops by which the kernel sends out of a device to other networks, for IPv6 or IPv4.
    pub fn way_out(&mut self, device: u32, v6: bool) -> Result<WayOut, RouteError> {
        Ok(way_out::way_out(&mut self.socket, device, v6)?)
    }

    /// Index of the device and source address by which the kernel sends to `address`. `None` where that is no neighbour
    /// on a network of this node: its own address, an address behind a router, or one without a route.
    pub fn neighbour_way(&mut self, address: IpAddr) -> Result<Option<(u32, IpAddr)>, RouteError> {
        Ok(lookup::way(&mut self.socket, address)?)
    }

    /// Index of the device by which the kernel sends to `address`, over a router or not; `None` without a route.
    pub fn device_to(&mut self, address: IpAddr) -> Result<Option<u32>, RouteError> {
        Ok(lookup::device_to(&mut self.socket, address)?)
    }

    /// Next hops of all owners' routes, and neighbours that advertised themselves as routers; link-local ones too.
    pub fn routers(&mut self) -> Result<BTreeSet<IpAddr>, RouteError> {
        let ours = [ROUTE_PROTOCOL, CLASSIC_ROUTE_PROTOCOL];
        Ok(routers::routers(&mut self.socket, &ours)?)
    }

    /// Whether a route of others spreads over several next hops: hash policies are node-wide and would move its flows.
    pub fn foreign_multipath(&mut self) -> Result<bool, RouteError> {
        Ok(wire::foreign_multipath(&mut self.socket, ROUTE_PROTOCOL)?)
    }

    /// Unicast routes of the main table except default routes.
    pub fn main_routes(&mut self) -> Result<Vec<MainRoute>, RouteError> {
        let legs = wire::main_routes(&mut self.socket)?.into_iter();
        let routes = legs.map(|leg| MainRoute {
            to: leg.to,
            device: leg.device,
            next_hop: leg.next_hop,
            protocol: leg.protocol,
        });
        Ok(routes.collect())
    }

    /// Devices that depend on router advertisements, or may do so.
    pub fn advertised(&mut self) -> Result<Advertised, RouteError> {
        Ok(advertised::look(&mut self.socket, &OUR_DEVICES)?)
    }

    /// Devices that lead to a network of the node's own, by their kind: network cards, bonds, teams and VLANs.
    pub fn uplinks(&mut self) -> Result<BTreeSet<String>, RouteError> {
        Ok(advertised::uplinks(&mut self.socket, &OUR_DEVICES)?)
    }

    /// Policy routing rules of others that match bits of our mark.
    pub fn foreign_marks(&mut self) -> Result<BTreeSet<ForeignMark>, RouteError> {
        policy::foreign_marks(&mut self.socket)
    }

    /// Creates or corrects the tunnel device alone: probes need it before anything else is decided.
    pub fn ensure_tunnel(&mut self, tunnel: &Tunnel) -> Result<Device, RouteError> {
        tunnel::ensure(&mut self.socket, tunnel)
    }

    /// Adds the state's missing objects from the bottom up, so that no rule ever leads nowhere. Unchanged objects cost
    /// nothing after the first call, which compares with the kernel and adopts an earlier process's objects.
    /// [`Self::settle`] then removes obsolete objects.
    pub fn prepare(&mut self, state: &NodeState) -> Result<Device, RouteError> {
        let wanted = Desired::of(state);
        let (device, before) = match self.applied.take() {
            Some((tunnel, device, before)) if tunnel == state.tunnel => (device, before),
            _ => {
                let device = tunnel::ensure(&mut self.socket, &state.tunnel)?;
                let before = self.observe(&device, state.tunnel.underlay)?;
                (device, before)
            }
        };
        self.grow(&device, &before, &wanted)?;
        self.stale = Some(before);
        self.applied = Some((state.tunnel.clone(), device.clone(), wanted));
        Ok(device)
    }

    /// Removes the obsolete objects that the last [`Self::prepare`] found, from the top down.
    pub fn settle(&mut self) -> Result<(), RouteError> {
        match (self.stale.take(), self.applied.clone()) {
            (Some(before), Some((_, device, wanted))) => self.shrink(&device, &before, &wanted),
            _ => Ok(()),
        }
    }

    /// Detects drift of the objects applied. Drift forgets them, so that the next [`Self::prepare`] repairs them. Empty
    /// if nothing is applied.
    pub fn verify(&mut self) -> Result<DriftReport, RouteError> {
        let Some((tunnel, device, wanted)) = self.applied.take() else {
            return Ok(DriftReport::new());
        };
        let mut drift = DriftReport::new();
        if let Some(what) = tunnel::drift(&mut self.socket, &device, &tunnel)? {
            drift.insert(Drift::Device, what);
        }
        let found = self.observe(&device, tunnel.underlay)?;
        drift.extend(wanted.differences(&found));
        if drift.is_empty() {
            self.applied = Some((tunnel, device, wanted));
        }
        Ok(drift)
    }

    /// Removes rules, routes, next hops and the device. Returns whether there was anything.
    pub fn remove(&mut self) -> Result<bool, RouteError> {
        self.applied = None;
        let device = tunnel::find(&mut self.socket)?.filter(tunnel::is_ours);
        let index = device.as_ref().map_or(0, |device| device.index);
        let rules = policy::rules(&mut self.socket, Owner::LEASED)?;
        let routes = policy::routes(&mut self.socket, Owner::LEASED)?;
        let hops = nexthop::nexthops(
            &mut self.socket,
            OUR_NEXT_HOPS,
            index,
            IpAddr::from([0, 0, 0, 0]),
        )?;
        for rule in rules.iter().rev() {
            policy::delete_rule(&mut self.socket, Owner::LEASED, rule)?;
        }
        for route in &routes {
            policy::delete_route(&mut self.socket, Owner::LEASED, route)?;
        }
        for id in hops.groups.keys().chain(hops.hops.keys()) {
            self.gone(nexthop::delete_nexthop(*id))?;
        }
        let device = tunnel::delete(&mut self.socket)?;
        let something = !(rules.is_empty() && routes.is_empty() && hops.hops.is_empty());
        Ok(device || something)
    }

    fn observe(&mut self, device: &Device, source: IpAddr) -> Result<Desired, RouteError> {
        let hops = nexthop::nexthops(&mut self.socket, OUR_NEXT_HOPS, device.index, source)?;
        let mut neighbours = wire::neighbours(&mut self.socket, device.index)?;
        neighbours.retain(|address, _| tunnel::is_tunnel_address(*address));
        let unusable = |id: &u32| NextHop {
            via: std::net::Ipv6Addr::UNSPECIFIED,
            underlay: IpAddr::from(id.to_be_bytes()),
            source,
            network_identifier: 0,
        };
        let hops_found: BTreeMap<_, _> = hops
            .hops
            .into_iter()
            .map(|(id, hop)| (id, hop.unwrap_or_else(|| unusable(&id))))
            .collect();
        Ok(Desired {
            neighbours,
            hops: hops_found,
            groups: hops.groups,
            routes: policy::routes(&mut self.socket, Owner::LEASED)?,
            rules: policy::rules(&mut self.socket, Owner::LEASED)?,
        })
    }

    fn grow(&mut self, device: &Device, old: &Desired, new: &Desired) -> Result<(), RouteError> {
        let replace = flags::CREATE | flags::REPLACE;
        for (address, mac) in &new.neighbours {
            if old.neighbours.get(address) != Some(mac) {
                let message = wire::neighbour(device.index, *address, Some(*mac));
                let message = Message::NewNeighbour(message);
                self.send(
                    wire::RTM_NEWNEIGH,
                    replace,
                    message,
                    &format!("neighbour {address}"),
                )?;
            }
        }
        for (id, hop) in &new.hops {
            if old.hops.get(id) != Some(hop) {
                self.socket
                    .execute(&nexthop::new_hop(ROUTE_PROTOCOL, device.index, *id, hop))?;
            }
        }
        for (id, members) in &new.groups {
            if old.groups.get(id) != Some(members) {
                self.socket
                    .execute(&nexthop::new_group(ROUTE_PROTOCOL, *id, members))?;
            }
        }
        for route in new.routes.difference(&old.routes) {
            policy::add_route(&mut self.socket, Owner::LEASED, route)?;
        }
        for rule in new.rules.difference(&old.rules) {
            policy::add_rule(&mut self.socket, Owner::LEASED, rule)?;
        }
        Ok(())
    }

    fn shrink(&mut self, device: &Device, old: &Desired, new: &Desired) -> Result<(), RouteError> {
        let stale: Vec<_> = old.rules.difference(&new.rules).collect();
        for rule in stale.into_iter().rev() {
            policy::delete_rule(&mut self.socket, Owner::LEASED, rule)?;
        }
        for route in old.routes.difference(&new.routes) {
            // A route replaced by another (same table, prefix and metric) is already gone.
            let same = |new: &&RouteEntry| {
                (new.table, new.to, new.metric) == (route.table, route.to, route.metric)
            };
            if !new.routes.iter().any(|new| same(&new)) {
                policy::delete_route(&mut self.socket, Owner::LEASED, route)?;
            }
        }
        for id in old.groups.keys().filter(|id| !new.groups.contains_key(id)) {
            self.gone(nexthop::delete_nexthop(*id))?;
        }
        for id in old.hops.keys().filter(|id| !new.hops.contains_key(id)) {
            self.gone(nexthop::delete_nexthop(*id))?;
        }
        for address in old
            .neighbours
            .keys()
            .filter(|a| !new.neighbours.contains_key(a))
        {
            let message = Message::DelNeighbour(wire::neighbour(device.index, *address, None));
            let what = format!("deletion of neighbour {address}");
            let result = self.send(wire::RTM_DELNEIGH, 0, message, &what);
            absent_is_fine(result)?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        kind: u16,
        how: u16,
        message: Message,
        what: &str,
    ) -> Result<(), NetlinkError> {
        wire::execute(&mut self.socket, kind, how, message, what)
    }

    fn gone(&mut self, request: Request) -> Result<(), RouteError> {
        absent_is_fine(self.socket.execute(&request))
    }
}
