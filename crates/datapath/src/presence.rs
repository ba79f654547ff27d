//! Makes egress addresses known to the network outside, each by the presence that the state names
//! ([`egret_core::node::Presence`]).
//!
//! `egret_core::machines::GatewayRole` decides which address is announced when; this module carries out its commands. A
//! new kind of presence is one more value of `egret_core::node::Presence`, and one more variant of [`PresenceDriver`]
//! where the gateway itself has something to do for it.

pub mod l2;

use egret_core::machines::GatewayCommand;
use egret_core::node::{GatewayState, Presence};
use l2::{AnnounceError, Segment};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The device at which egress addresses are reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalDevice {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// Driver of one kind of presence.
#[derive(Debug)]
pub enum PresenceDriver {
    /// ARP and neighbour discovery on the external segment.
    L2(Segment),
    /// Others lead packets to the gateways, by routes: nothing is announced or answered.
    Silent,
}

impl PresenceDriver {
    fn open(presence: Presence, device: &ExternalDevice) -> Self {
        match presence.is_on_segment() {
            true => PresenceDriver::L2(Segment::new(device)),
            false => PresenceDriver::Silent,
        }
    }

    fn adopt(&mut self, addresses: &BTreeSet<IpAddr>) {
        match self {
            PresenceDriver::L2(segment) => segment.adopt(addresses),
            PresenceDriver::Silent => {}
        }
    }

    fn serve(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), Vec<AnnounceError>> {
        match self {
            PresenceDriver::L2(segment) => segment.serve(addresses),
            PresenceDriver::Silent => Ok(()),
        }
    }

    fn carry_out(&self, command: &GatewayCommand) -> Result<(), AnnounceError> {
        match self {
            PresenceDriver::L2(segment) => segment.carry_out(command),
            PresenceDriver::Silent => Ok(()),
        }
    }
}

/// The addresses that a gateway serves, and the presence of each.
#[derive(Debug)]
pub struct Presences {
    drivers: BTreeMap<Presence, PresenceDriver>,
    /// Addresses of the state applied last.
    addresses: BTreeMap<IpAddr, Presence>,
}

impl Presences {
    /// Opens all drivers on one device; changes nothing yet. `left` are the addresses that an earlier run served: their
    /// announcements are taken over.
    pub fn open(device: &ExternalDevice, left: &BTreeSet<IpAddr>) -> Self {
        let drivers = Presence::ALL.map(|presence| {
            let mut driver = PresenceDriver::open(presence, device);
            // The presence that an address had is unknown: each driver takes over what it finds.
            driver.adopt(left);
            (presence, driver)
        });
        Self {
            drivers: drivers.into(),
            addresses: BTreeMap::new(),
        }
    }

    /// Serves exactly the addresses of the state, each by its presence.
    ///
    /// # Errors
    /// Every [`AnnounceError`]; the next call retries what failed.
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

    /// Carries out one command by its address's presence. Does nothing for an address that is not served.
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
