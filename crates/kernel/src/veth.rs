//! Pairs of Ethernet devices (veth(4)), at one end of which packets appear to the stack.

use crate::link::{IFLA_AF_SPEC, bare_and_loose, header};
use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Reply, Request, attributes, flags};
use crate::sysctl::{SysctlError, enable_ipv6};
use std::net::Ipv4Addr;
use thiserror::Error;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// Size of `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;
/// Error of making or changing a pair.
#[derive(Debug, Error)]
pub enum VethError {
    /// The kernel refused a request; the error names the device.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The device cannot have IPv6.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A device of our name is not ours; it is left alone.
    #[error("device {0} exists and was made by others: rename or remove it")]
    NotOurs(&'static str),
    /// The device was removed during its setup.
    #[error("device {0} was removed while it was set up")]
    Vanished(&'static str),
}

/// A pair of devices, by its names.
#[derive(Clone, Copy, Debug)]
pub struct VethPair {
    /// The end at which packets appear to the stack.
    pub name: &'static str,
    /// The other end.
    pub peer: &'static str,
    /// Alias that identifies the device as ours, besides its name and kind.
    pub alias: &'static str,
    /// Address of the first end. Without one, loose reverse-path filtering drops all packets that it receives.
    pub address: Ipv4Addr,
    /// Hardware addresses of both ends; `None`: the kernel's choice, another at each start.
    pub macs: Option<[[u8; 6]; 2]>,
}

/// One end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethEnd {
    /// Index.
    pub index: u32,
    /// Hardware address.
    pub mac: [u8; 6],
}

struct Found {
    device: VethEnd,
    up: bool,
    ours: bool,
}

impl VethPair {
    /// Creates or corrects the pair. Returns the end at which packets appear.
    pub fn ensure(&self, socket: &mut NetlinkSocket) -> Result<VethEnd, VethError> {
        let found = match self.find(socket)? {
            Some(found) if !found.ours => return Err(VethError::NotOurs(self.name)),
            Some(found) => found,
            None => {
                self.create(socket)?;
                self.find(socket)?.ok_or(VethError::Vanished(self.name))?
            }
        };
        let index = found.device.index;
        self.configure(socket, index)?;
        enable_ipv6(self.name)?;
        if let Ok(peer) = nix::net::if_::if_nametoindex(self.peer) {
            self.configure(socket, peer)?;
        }
        self.add_address(socket, index)?;
        Ok(found.device)
    }

    /// Whether the pair exists, is up and is the same as before.
    pub fn is_intact(
        &self,
        socket: &mut NetlinkSocket,
        device: &VethEnd,
    ) -> Result<bool, VethError> {
        let found = self.find(socket)?;
        Ok(found.is_some_and(|found| found.ours && found.up && found.device == *device))
    }

    /// Deletes the pair, if it is ours. Returns whether it was there.
    pub fn delete(&self, socket: &mut NetlinkSocket) -> Result<bool, VethError> {
        let Some(found) = self.find(socket)?.filter(|found| found.ours) else {
            return Ok(false);
        };
        socket.execute(&Request {
            kind: RTM_DELLINK,
            flags: 0,
            body: header(found.device.index, false),
            what: format!("deletion of the device {}", self.name),
        })?;
        Ok(true)
    }

    fn find(&self, socket: &mut NetlinkSocket) -> Result<Option<Found>, VethError> {
        let body = Attrs::after(&header(0, false))
            .text(IFLA_IFNAME, self.name)
            .finish();
        let what = format!("the device {}", self.name);
        let request = Request {
            kind: RTM_GETLINK,
            flags: 0,
            body,
            what,
        };
        match socket.query(&request) {
            Ok(reply) => Ok(self.read(&reply)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, reply: &Reply) -> Option<Found> {
        let fields = reply.body.get(..HEADER_BYTES)?;
        let number = |at: usize| Some(u32::from_ne_bytes(fields.get(at..at + 4)?.try_into().ok()?));
        let (mut mac, mut is_veth, mut is_named) = ([0; 6], false, false);
        for (kind, value) in attributes(&reply.body[HEADER_BYTES..]) {
            match kind {
                IFLA_ADDRESS => mac = value.try_into().ok()?,
                IFLA_IFALIAS => {
                    is_named = value.strip_suffix(&[0]).unwrap_or(value) == self.alias.as_bytes()
                }
                IFLA_LINKINFO => {
                    is_veth = attributes(value).any(|(kind, value)| {
                        kind == IFLA_INFO_KIND
                            && value.strip_suffix(&[0]).unwrap_or(value) == b"veth"
                    });
                }
                _ => {}
            }
        }
        Some(Found {
            device: VethEnd {
                index: number(4)?,
                mac,
            },
            up: number(8)? & libc::IFF_UP as u32 != 0,
            ours: is_veth && is_named,
        })
    }

    fn create(&self, socket: &mut NetlinkSocket) -> Result<(), VethError> {
        let mut peer = Attrs::after(&header(0, false)).text(IFLA_IFNAME, self.peer);
        let mut pair = Attrs::after(&header(0, false)).text(IFLA_IFNAME, self.name);
        if let Some([own, others]) = self.macs {
            pair = pair.bytes(IFLA_ADDRESS, &own);
            peer = peer.bytes(IFLA_ADDRESS, &others);
        }
        let info = Attrs::default()
            .text(IFLA_INFO_KIND, "veth")
            .nest(IFLA_INFO_DATA, Attrs::default().nest(VETH_INFO_PEER, peer));
        let body = pair.nest(IFLA_LINKINFO, info).finish();
        socket.execute(&Request {
            kind: RTM_NEWLINK,
            flags: flags::CREATE | flags::EXCL,
            body,
            what: format!("the device {}", self.name),
        })?;
        // Linux accepts an alias only for an existing device.
        let index =
            nix::net::if_::if_nametoindex(self.name).map_err(|_| VethError::Vanished(self.name))?;
        let body = Attrs::after(&header(index, false))
            .text(IFLA_IFALIAS, self.alias)
            .finish();
        Ok(socket.execute(&Request {
            kind: RTM_SETLINK,
            flags: 0,
            body,
            what: format!("the alias of {}", self.name),
        })?)
    }

    /// Brings the device up, without addresses generated by the kernel and with loose reverse-path filtering: the route
    /// to its packets' sources may use another device.
    fn configure(&self, socket: &mut NetlinkSocket, index: u32) -> Result<(), VethError> {
        let settings = Attrs::after(&header(index, false)).nest(IFLA_AF_SPEC, bare_and_loose());
        // In one message the kernel raises a device before it applies settings, and generates an address when it comes
        // up.
        for body in [settings.finish(), header(index, true)] {
            socket.execute(&Request {
                kind: RTM_SETLINK,
                flags: 0,
                body,
                what: format!("settings of the device {}", self.name),
            })?;
        }
        Ok(())
    }

    /// Adds an IPv4 address: without one, even loose reverse-path filtering drops incoming packets.
    fn add_address(&self, socket: &mut NetlinkSocket, index: u32) -> Result<(), VethError> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const HOST_BITS: u8 = 32;
        let mut body = vec![libc::AF_INET as u8, HOST_BITS, 0, libc::RT_SCOPE_LINK];
        body.extend(index.to_ne_bytes());
        let octets = self.address.octets();
        let body = Attrs::after(&body)
            .bytes(IFA_LOCAL, &octets)
            .bytes(IFA_ADDRESS, &octets)
            .finish();
        Ok(socket.execute(&Request {
            kind: RTM_NEWADDR,
            flags: flags::CREATE | flags::REPLACE,
            body,
            what: format!("address {} of {}", self.address, self.name),
        })?)
    }
}
