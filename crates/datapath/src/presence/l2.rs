//! Presence on the external segment: one gateway at a time answers ARP and neighbour discovery for an address.
//!
//! The gateway's tables give the answers themselves (`announce` of the state), without the agent. This module sends the
//! unsolicited messages of a takeover, and joins the groups without which requests do not arrive.

pub mod ask;
mod claims;
pub mod conflict;
pub(crate) mod frames;
mod groups;
mod socket;

pub use frames::solicited_node;
pub use groups::SolicitedNodes;

use super::ExternalDevice;
use egret_core::machines::GatewayCommand;
use frames::{announcement, send};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use thiserror::Error;

/// Error of an announcement.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// A packet socket could not be made or used.
    #[error("announcing {address} on device {ifindex}")]
    Send {
        /// The egress address.
        address: IpAddr,
        /// The device.
        ifindex: u32,
        /// Error of the kernel.
        #[source]
        source: std::io::Error,
    },
    /// A multicast group could not be joined or left.
    #[error("multicast group {group} on device {ifindex}")]
    Group {
        /// The group.
        group: Ipv6Addr,
        /// The device.
        ifindex: u32,
        /// Error of the kernel.
        #[source]
        source: std::io::Error,
    },
}

/// Addresses on the segment of one external device.
#[derive(Debug)]
pub struct Segment {
    ifindex: u32,
    mac: [u8; 6],
    groups: SolicitedNodes,
}

impl Segment {
    /// Starts without announcements and groups.
    pub fn new(device: &ExternalDevice) -> Self {
        Self {
            ifindex: device.index,
            mac: device.mac,
            groups: SolicitedNodes::new(device.index, &device.name),
        }
    }

    /// Takes over the groups of a previous run for these addresses.
    pub fn adopt(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.groups.adopt(addresses);
    }

    /// Joins groups so that requests for exactly these addresses arrive.
    ///
    /// # Errors
    /// Every [`AnnounceError::Group`] that could not be joined or left.
    pub fn serve(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), Vec<AnnounceError>> {
        self.groups.set(addresses)
    }

    /// Carries out one command. The gateway's tables start and stop answers, so only messages are left to send.
    ///
    /// # Errors
    /// [`AnnounceError::Send`].
    pub fn carry_out(&self, command: &GatewayCommand) -> Result<(), AnnounceError> {
        match command {
            GatewayCommand::SendGratuitous(address) => gratuitous(self.ifindex, self.mac, *address),
            GatewayCommand::Probe(address) => conflict::probe(self.ifindex, self.mac, *address),
            GatewayCommand::Announce(_) | GatewayCommand::Withdraw(_) => Ok(()),
        }
    }
}

/// Sends one round: for IPv4 a gratuitous ARP request and reply (some hosts learn from the one, some from the other:
/// RFC 5227 section 3), for IPv6 an unsolicited neighbour advertisement with the override flag (RFC 4861 section 7.2.6).
///
/// # Errors
/// [`AnnounceError::Send`]: needs CAP_NET_RAW and a device that is up.
pub fn gratuitous(ifindex: u32, mac: [u8; 6], address: IpAddr) -> Result<(), AnnounceError> {
    let error = |source| AnnounceError::Send {
        address,
        ifindex,
        source,
    };
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(error)?;
    for frame in announcement(mac, address) {
        send(&socket, ifindex, &frame).map_err(error)?;
    }
    Ok(())
}
