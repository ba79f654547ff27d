//! Multicast groups to which neighbour solicitations for egress addresses go.
//!
//! Otherwise switches with MLD snooping and NICs with a filter drop solicitations. No stack owns an egress address, so
//! no other socket joins.

use super::AnnounceError;
use super::frames::solicited_node;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::zeroed;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// Most memberships of one socket: far below the limit of `net.core.optmem_max` (20 KiB and more).
const GROUPS_PER_SOCKET: usize = 64;
/// `linux/sockios.h`
const SIOCADDMULTI: libc::c_ulong = 0x8931;
/// `linux/sockios.h`
const SIOCDELMULTI: libc::c_ulong = 0x8932;

/// Solicited-node groups of the IPv6 egress addresses that this node may have to answer for, on one device.
///
/// A group is joined twice: by a socket, so that the kernel reports it (MLD) for as long as this value lives; and as a
/// static link-layer entry, so that the NIC still passes solicitations after the agent has ended.
/// [`SolicitedNodes::set`] with fewer addresses removes entries; those of a previous run need [`SolicitedNodes::adopt`]
/// first.
#[derive(Debug)]
pub struct SolicitedNodes {
    ifindex: u32,
    device: String,
    sockets: Vec<(Socket, usize)>,
    /// Index of the socket that holds each group; `None` for a group that was only adopted.
    groups: BTreeMap<Ipv6Addr, Option<usize>>,
}

impl SolicitedNodes {
    /// Starts without groups. `device` is the name of the device with index `ifindex`.
    pub fn new(ifindex: u32, device: &str) -> Self {
        Self {
            ifindex,
            device: device.to_owned(),
            sockets: Vec::new(),
            groups: BTreeMap::new(),
        }
    }

    /// Takes over the link-layer entries of a previous run, which served `addresses`
    /// ([`crate::gateway::GatewayBackend::addresses`]): the next [`SolicitedNodes::set`] joins or removes them.
    pub fn adopt(&mut self, addresses: &BTreeSet<IpAddr>) {
        for group in groups_of(addresses) {
            self.groups.entry(group).or_insert(None);
        }
    }

    /// Joins the groups of exactly these addresses. Tries all groups, also after an error.
    ///
    /// # Errors
    /// Every [`AnnounceError::Group`]: IPv6 is off on the device, or there are too many groups. The next call retries
    /// groups that could not be joined.
    pub fn set(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), Vec<AnnounceError>> {
        let wanted = groups_of(addresses);
        let mut errors = Vec::new();
        let gone: Vec<Ipv6Addr> = self
            .groups
            .keys()
            .filter(|group| !wanted.contains(*group))
            .copied()
            .collect();
        for group in gone {
            self.leave(group)
                .unwrap_or_else(|error| errors.push(self.error(group, error)));
        }
        for group in wanted {
            if self.groups.get(&group).copied().flatten().is_none() {
                self.join(group)
                    .unwrap_or_else(|error| errors.push(self.error(group, error)));
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    fn error(&self, group: Ipv6Addr, source: std::io::Error) -> AnnounceError {
        AnnounceError::Group {
            group,
            ifindex: self.ifindex,
            source,
        }
    }

    fn join(&mut self, group: Ipv6Addr) -> std::io::Result<()> {
        let free = self
            .sockets
            .iter()
            .position(|(_, used)| *used < GROUPS_PER_SOCKET);
        let place = match free {
            Some(place) => place,
            None => {
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
                self.sockets.push((socket, 0));
                self.sockets.len() - 1
            }
        };
        let (socket, used) = &mut self.sockets[place];
        static_entry(socket, &self.device, group, SIOCADDMULTI)?;
        self.groups.entry(group).or_insert(None);
        socket.join_multicast_v6(&group, self.ifindex)?;
        *used += 1;
        self.groups.insert(group, Some(place));
        Ok(())
    }

    fn leave(&mut self, group: Ipv6Addr) -> std::io::Result<()> {
        let place = self.groups.remove(&group).flatten();
        if let Some(place) = place {
            let (socket, used) = &mut self.sockets[place];
            *used -= 1;
            socket.leave_multicast_v6(&group, self.ifindex)?;
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        static_entry(&socket, &self.device, group, SIOCDELMULTI)
    }
}

fn groups_of(addresses: &BTreeSet<IpAddr>) -> BTreeSet<Ipv6Addr> {
    let v6 = addresses.iter().filter_map(|address| match address {
        IpAddr::V6(v6) => Some(solicited_node(*v6)),
        IpAddr::V4(_) => None,
    });
    v6.collect()
}

/// Adds or deletes the group's MAC address on the device. An address already present, or already absent, is no error.
fn static_entry(
    socket: &Socket,
    device: &str,
    group: Ipv6Addr,
    request: libc::c_ulong,
) -> std::io::Result<()> {
    let [.., a, b, c, d] = group.octets();
    let mac = [0x33, 0x33, a, b, c, d];
    // SAFETY: ifreq consists of integers, pointers and unions of them; all zero is a value of it.
    let mut order: libc::ifreq = unsafe { zeroed() };
    let room = order.ifr_name.len() - 1;
    for (to, from) in order.ifr_name[..room].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    let mut address = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    order.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: the request takes an ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut order) };
    if done == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) if request == SIOCADDMULTI => Ok(()),
        Some(libc::ENOENT) if request == SIOCDELMULTI => Ok(()),
        _ => Err(error),
    }
}
