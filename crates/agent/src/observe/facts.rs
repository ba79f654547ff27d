//! Facts that only the node itself has: devices, addresses, carrier.

use super::surroundings::device_addresses;
use egret_core::machines::{ExternalLink, OutboundRoute};
use egret_core::model::{NodeName, Snapshot};
use egret_core::node::{
    Attachment, Candidate, External, ExternalChoice, ForeignMark, Policies, external_choice,
};
use egret_core::numbers::{
    CANARY_DESTINATION_V4, CANARY_DESTINATION_V6, EXTERNAL_ADDRESSES_MAX, TUNNEL_DEVICE,
};
use egret_datapath::route::{Device, OutboundNextHops, RouteError, Routing};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// MTU to assume while the underlay's device is not found, bytes (RFC 894).
const ETHERNET_MTU: u32 = 1500;

/// Queries about the node's devices, derived from the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkQuery {
    underlay: Option<IpAddr>,
    external: Option<ExternalChoice>,
    next_hops: BTreeSet<IpAddr>,
}

impl LinkQuery {
    pub(crate) fn of(snapshot: &Snapshot, policies: &Policies<'_>, node: &NodeName) -> Self {
        let own = snapshot.nodes.get(node);
        LinkQuery {
            underlay: own.and_then(|node| node.addresses.first()).copied(),
            external: external_choice(snapshot, node),
            next_hops: policies.next_hops(node),
        }
    }

    /// The same, with the addresses and the external device of an earlier query where this one has none.
    pub(crate) fn or(self, before: &Self) -> Self {
        LinkQuery {
            underlay: self.underlay.or(before.underlay),
            external: self.external.or_else(|| before.external.clone()),
            ..self
        }
    }
}

/// Addresses of the pods on this node, without those that equal the node's own.
pub(crate) fn pod_addresses(snapshot: &Snapshot, node: &NodeName) -> BTreeSet<IpAddr> {
    let own = snapshot.pods.values().filter(|pod| pod.node == *node);
    let own = own.filter(|pod| !pod.host_network && !pod.finished);
    own.flat_map(|pod| &pod.addresses).copied().collect()
}

/// State of the node's devices at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Links {
    /// The queries that this state answers.
    pub(crate) query: LinkQuery,
    /// The external device, on gateways that have one.
    pub(crate) external: Option<(Device, Option<Ipv4Addr>, Option<Ipv6Addr>)>,
    /// Addresses of the external device with their prefix, without link-local ones.
    pub(crate) external_addresses: BTreeSet<IpNet>,
    /// Routes from that device to other networks: IPv4, IPv6.
    pub(crate) outbound: [OutboundNextHops; 2],
    /// Whether the kernel routes packets to the network outside by it: IPv4, IPv6.
    pub(crate) leads_out: [bool; 2],
    /// Its IPv6 link-local address.
    pub(crate) external_link_local: Option<Ipv6Addr>,
    /// MTU of the device that carries the tunnel.
    pub(crate) underlay_mtu: u32,
    /// Devices with an address in the network of the underlay address.
    pub(crate) underlay_devices: BTreeSet<String>,
    /// Whether that device has carrier; true while it is not found.
    pub(crate) underlay_up: bool,
    /// Addresses of every device.
    pub(crate) local_addresses: BTreeSet<IpAddr>,
    /// The same with their prefix, without those of Egret's devices.
    pub(crate) device_addresses: BTreeSet<IpNet>,
    /// Next hops of policies that are on-link at a device with carrier.
    pub(crate) attached: BTreeMap<IpAddr, Attachment>,
    /// Foreign policy routing rules that match bits of our mark.
    pub(crate) foreign_marks: BTreeSet<ForeignMark>,
}

impl Links {
    /// Reads the devices now.
    pub(crate) fn look(routing: &mut Routing, query: LinkQuery) -> Result<Self, RouteError> {
        let devices = routing.devices()?;
        let underlay = query.underlay;
        let by_device = routing.addresses()?;
        let external = match &query.external {
            None => None,
            Some(choice) => {
                let default = routing.default_device()?;
                external(choice, &devices, default.as_ref(), &by_device)
            }
        };
        let attached = attached(routing, &devices, &query.next_hops)?;
        let outbound = match &external {
            Some(device) => [
                routing.outbound_next_hops(device.index, false)?,
                routing.outbound_next_hops(device.index, true)?,
            ],
            None => Default::default(),
        };
        let leads_out = leads_out(routing, external.as_ref())?;
        let mut links = Links {
            query,
            external: None,
            outbound,
            leads_out,
            external_link_local: None,
            external_addresses: BTreeSet::new(),
            underlay_mtu: ETHERNET_MTU,
            underlay_devices: in_network_of(underlay, &devices, &by_device),
            underlay_up: true,
            local_addresses: BTreeSet::new(),
            device_addresses: device_addresses(&devices, &by_device),
            attached,
            foreign_marks: routing.foreign_marks()?,
        };
        for device in &devices {
            let networks = by_device.get(&device.index).cloned().unwrap_or_default();
            let addresses: Vec<IpAddr> = networks.iter().map(IpNet::addr).collect();
            if underlay.is_some_and(|underlay| addresses.contains(&underlay)) {
                links.underlay_mtu = device.mtu;
                links.underlay_up = device.running;
            }
            if external
                .as_ref()
                .is_some_and(|external| external.index == device.index)
            {
                links.external = Some((device.clone(), first_v4(&addresses), first_v6(&addresses)));
                links.external_link_local = addresses.iter().find_map(link_local_v6);
                links.external_addresses = networks
                    .into_iter()
                    .filter(|network| !is_link_local(network.addr()))
                    .take(EXTERNAL_ADDRESSES_MAX)
                    .collect();
            }
            links.local_addresses.extend(addresses);
        }
        Ok(links)
    }

    /// The external device as `core` expects it.
    pub(crate) fn external_fact(&self) -> Option<External> {
        let (device, ..) = self.external.as_ref()?;
        Some(External {
            device: device.name.clone(),
            link_up: device.running,
            leads_out: self.leads_out,
        })
    }

    /// The external link as `core` judges it.
    pub(crate) fn external_link(&self) -> ExternalLink {
        let device = self.external.as_ref().map(|(device, ..)| device);
        ExternalLink {
            device: device.map(|device| device.name.clone()),
            carrier: device.is_some_and(|device| device.running),
            routes: self.outbound.each_ref().map(outbound_route),
        }
    }
}

fn outbound_route(next_hops: &OutboundNextHops) -> OutboundRoute {
    match next_hops {
        OutboundNextHops::Direct => OutboundRoute::Direct,
        OutboundNextHops::Via(hops) => OutboundRoute::Via(hops.clone()),
        OutboundNextHops::OtherDevice => OutboundRoute::OtherDevice,
    }
}

/// Looks up routes to the addresses of canaries, since those are in no real network.
fn leads_out(routing: &mut Routing, external: Option<&Device>) -> Result<[bool; 2], RouteError> {
    let mut leads = [false; 2];
    if let Some(external) = external {
        let to: [IpAddr; 2] = [CANARY_DESTINATION_V4.into(), CANARY_DESTINATION_V6.into()];
        for (leads, address) in leads.iter_mut().zip(to) {
            *leads = routing.device_to(address)? == Some(external.index);
        }
    }
    Ok(leads)
}

/// The external device of a gateway.
fn external(
    choice: &ExternalChoice,
    devices: &[Device],
    default: Option<&Device>,
    by_device: &BTreeMap<u32, Vec<IpNet>>,
) -> Option<Device> {
    let others = |device: &&Device| device.name != "lo";
    let candidates: Vec<Candidate<'_>> = devices
        .iter()
        .filter(others)
        .map(|device| Candidate {
            name: &device.name,
            default: default.is_some_and(|default| default.index == device.index),
            networks: by_device.get(&device.index).map_or(&[], Vec::as_slice),
        })
        .collect();
    let name = choice.among(&candidates)?;
    devices.iter().find(|device| device.name == name).cloned()
}

/// Names of the devices with an address in the underlay address's network.
fn in_network_of(
    underlay: Option<IpAddr>,
    devices: &[Device],
    by_device: &BTreeMap<u32, Vec<IpNet>>,
) -> BTreeSet<String> {
    let all = || by_device.values().flatten();
    let network = all().find(|network| Some(network.addr()) == underlay);
    let Some(network) = network else {
        return BTreeSet::new();
    };
    let inside = |device: &&Device| {
        let networks = by_device.get(&device.index);
        let mut networks = networks.into_iter().flatten();
        networks.any(|one| one.trunc() == network.trunc())
    };
    let names = devices.iter().filter(inside);
    names.map(|device| device.name.clone()).collect()
}

/// Routes of the kernel to the next hops of policies.
fn attached(
    routing: &mut Routing,
    devices: &[Device],
    next_hops: &BTreeSet<IpAddr>,
) -> Result<BTreeMap<IpAddr, Attachment>, RouteError> {
    let mut attached = BTreeMap::new();
    for address in next_hops.iter().copied() {
        let Some((index, source)) = routing.neighbour_way(address)? else {
            continue;
        };
        let device = devices.iter().find(|device| device.index == index);
        if let Some(device) = device.filter(|d| d.running && d.name != TUNNEL_DEVICE) {
            let device = device.name.clone();
            let attachment = Attachment {
                device,
                index,
                source,
            };
            attached.insert(address, attachment);
        }
    }
    Ok(attached)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn first_v4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

fn link_local_v6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => Some(*address),
        _ => None,
    }
}

/// The first global IPv6 address, else any.
fn first_v6(addresses: &[IpAddr]) -> Option<Ipv6Addr> {
    let v6 = || {
        addresses.iter().filter_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        })
    };
    v6().find(|address| !address.is_unicast_link_local())
        .or_else(|| v6().next())
}
