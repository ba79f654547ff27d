//! Makes egress addresses known to the network outside, each in the way that the state names
//! ([`egret_core::node::Presence`]).
//!
//! Who announces what, and when, is decided by `egret_core::machines::GatewayRole`; here its commands are carried out. A new
//! way is one more value of `egret_core::node::Presence` and one more variant of [`PresenceDriver`].

pub mod l2;

use egret_core::machines::GatewayCommand;
use egret_core::node::{GatewayState, Presence};
use l2::{AnnounceError, Segment};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The device that egress addresses are reached by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalDevice {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// Carries out one way of making addresses known.
#[derive(Debug)]
pub enum PresenceDriver {
    /// ARP and neighbour discovery on the external segment.
    L2(Segment),
    /// Routers lead to the gateways by themselves: nothing is said or answered.
    Routed,
}

impl PresenceDriver {
    fn open(presence: Presence, device: &ExternalDevice) -> Self {
        match presence {
            Presence::L2 => PresenceDriver::L2(Segment::new(device)),
            Presence::Routed => PresenceDriver::Routed,
        }
    }

    fn adopt(&mut self, addresses: &BTreeSet<IpAddr>) {
        match self {
            PresenceDriver::L2(segment) => segment.adopt(addresses),
            PresenceDriver::Routed => {}
        }
    }

    fn serve(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), Vec<AnnounceError>> {
        match self {
            PresenceDriver::L2(segment) => segment.serve(addresses),
            PresenceDriver::Routed => Ok(()),
        }
    }

    fn carry_out(&self, command: &GatewayCommand) -> Result<(), AnnounceError> {
        match self {
            PresenceDriver::L2(segment) => segment.carry_out(command),
            PresenceDriver::Routed => Ok(()),
        }
    }
}

/// The addresses that a gateway serves, and how each is made known.
#[derive(Debug)]
pub struct Presences {
    drivers: BTreeMap<Presence, PresenceDriver>,
    /// Of the state applied last.
    addresses: BTreeMap<IpAddr, Presence>,
}

impl Presences {
    /// Opens every way on one device; nothing is changed yet. `left` are the addresses that an earlier run served: what it
    /// made known of them is taken over.
    pub fn open(device: &ExternalDevice, left: &BTreeSet<IpAddr>) -> Self {
        let drivers = Presence::ALL.map(|presence| {
            let mut driver = PresenceDriver::open(presence, device);
            // Which way an address had is not known: a way takes over what it finds.
            driver.adopt(left);
            (presence, driver)
        });
        Self {
            drivers: drivers.into(),
            addresses: BTreeMap::new(),
        }
    }

    /// Serves exactly the addresses of the state, each in its way.
    ///
    /// # Errors
    /// Every [`AnnounceError`]; what failed is tried again by the next call.
    pub fn serve(&mut self, state: &GatewayState) -> Result<(), Vec<AnnounceError>> {
        let steered = state.addresses.iter();
        self.addresses = steered.map(|(ip, table)| (*ip, table.presence)).collect();
        let mut errors = Vec::new();
        for (presence, driver) in &mut self.drivers {
            let own = self.addresses.iter().filter(|(_, way)| *way == presence);
            let own = own.map(|(address, _)| *address).collect();
            errors.extend(driver.serve(&own).err().into_iter().flatten());
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors),
        }
    }

    /// Carries one command out in the way of its address. Of an address that is not served nothing is said.
    ///
    /// # Errors
    /// [`AnnounceError`].
    pub fn carry_out(&self, command: &GatewayCommand) -> Result<(), AnnounceError> {
        let presence = self.addresses.get(&command.address());
        match presence.and_then(|presence| self.drivers.get(presence)) {
            Some(driver) => driver.carry_out(command),
            None => Ok(()),
        }
    }
}
