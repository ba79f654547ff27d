//! Addresses that agents found occupied or unusable: addresses of nodes' devices, of their routers, and those of their
//! networks that no host may have.

use crate::model::*;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Occupant of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occupant<'a> {
    /// A node has it on a device.
    Device(&'a NodeName),
    /// A router of this node.
    Router(&'a NodeName),
    /// The network's own address (RFC 1122 section 3.2.1.3).
    Network(IpNet),
    /// The directed broadcast address of the network.
    Broadcast(IpNet),
    /// The Subnet-Router anycast address of the network (RFC 4291 section 2.6.1).
    Anycast(IpNet),
    /// A gateway has it on its external device, where keepalived or a person assigned it. The node that has an address
    /// answers for it (decision 95), so policies may name it, and pools do not allocate it.
    Holder(&'a NodeName),
}

impl Occupant<'_> {
    /// Whether no policy may have the address.
    pub(crate) fn refuses(&self) -> bool {
        !matches!(self, Occupant::Holder(_))
    }

    /// Whether it is an address of a machine, in contrast to one that no host may have.
    pub(crate) fn is_machine(&self) -> bool {
        use Occupant::{Device, Holder, Router};
        matches!(self, Device(_) | Router(_) | Holder(_))
    }
}

impl fmt::Display for Occupant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Occupant::Device(node) | Occupant::Holder(node) => {
                write!(f, "Node {node} has this address on a device")
            }
            Occupant::Router(node) => write!(f, "it is a router of Node {node}"),
            Occupant::Network(net) => write!(f, "it is the network address of {net}"),
            Occupant::Broadcast(net) => write!(f, "it is the broadcast address of {net}"),
            Occupant::Anycast(net) => write!(f, "it is the subnet-router anycast address of {net}"),
        }
    }
}

/// The wanted addresses that are occupied.
#[derive(Default)]
pub(crate) struct Occupied<'a>(BTreeMap<IpAddr, Occupant<'a>>);

impl<'a> Occupied<'a> {
    pub(crate) fn of(snapshot: &'a Snapshot, wanted: impl Fn(&IpAddr) -> bool) -> Self {
        let mut all = BTreeMap::new();
        let mut networks: BTreeSet<IpNet> = BTreeSet::new();
        // A removed node has no addresses; its record stays until its leases have ended.
        let records = || {
            let all = snapshot.node_records.values();
            all.filter(|record| snapshot.nodes.contains_key(&record.node))
        };
        for record in records() {
            for network in &record.node_addresses {
                networks.insert(network.trunc());
                let address = network.addr();
                if wanted(&address) {
                    put(&mut all, address, of_device(record, address));
                }
            }
        }
        for record in records() {
            for address in record.routers.iter().filter(|a| wanted(a)) {
                put(&mut all, *address, Occupant::Router(&record.node));
            }
        }
        for (address, occupant) in networks.into_iter().flat_map(of_network) {
            if wanted(&address) {
                put(&mut all, address, occupant);
            }
        }
        Self(all)
    }

    pub(crate) fn get(&self, address: &IpAddr) -> Option<&Occupant<'a>> {
        self.0.get(address)
    }
}

/// The first occupant counts, except that a device of a node takes precedence over a holder.
fn put<'a>(all: &mut BTreeMap<IpAddr, Occupant<'a>>, address: IpAddr, occupant: Occupant<'a>) {
    let known = all.entry(address).or_insert(occupant);
    if !known.refuses() {
        *known = occupant;
    }
}

fn of_device(record: &NodeRecord, address: IpAddr) -> Occupant<'_> {
    let mut external = record.external_addresses.iter();
    match external.any(|network| network.addr() == address) {
        true => Occupant::Holder(&record.node),
        false => Occupant::Device(&record.node),
    }
}

/// Addresses of a network that no host may have; point-to-point networks have none (RFC 3021, RFC 6164).
fn of_network(network: IpNet) -> impl Iterator<Item = (IpAddr, Occupant<'static>)> {
    let is_link = network.max_prefix_len() - network.prefix_len() < 2;
    let both = match network {
        _ if is_link => [None, None],
        IpNet::V4(_) => [
            Some((network.network(), Occupant::Network(network))),
            Some((network.broadcast(), Occupant::Broadcast(network))),
        ],
        IpNet::V6(_) => [Some((network.network(), Occupant::Anycast(network))), None],
    };
    both.into_iter().flatten()
}

/// Every address that a record makes occupied, and whether a gateway only holds it: its contribution to [`Occupied`].
pub(crate) fn occupies(record: &NodeRecord) -> BTreeSet<(IpAddr, bool)> {
    let devices = record.node_addresses.iter().map(|network| {
        let address = network.addr();
        (address, of_device(record, address).refuses())
    });
    let networks = record.node_addresses.iter().copied();
    let special = networks.flat_map(|network| of_network(network.trunc()));
    let special = special.map(|(address, _)| (address, true));
    let routers = record.routers.iter().map(|router| (*router, true));
    devices.chain(special).chain(routers).collect()
}
