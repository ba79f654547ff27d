//! Telling the link that an egress address is here now, and making sure that questions about it arrive.
//!
//! [`gratuitous`] sends one round of unsolicited ARP or neighbour advertisements; when and how often is the caller's.
//! [`SolicitedNodes`] joins the multicast groups to which neighbour solicitations go: switches with MLD snooping and
//! NICs with a filter drop them otherwise. No stack owns an egress address, so nobody else joins.

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use thiserror::Error;

/// Why an announcement failed.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// A packet socket could not be made or used.
    #[error("announcing {address} on device {ifindex}")]
    Send {
        /// The egress address.
        address: IpAddr,
        /// The device.
        ifindex: u32,
        /// What the kernel said.
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
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Memberships of one socket: far below what `net.core.optmem_max` (20 KiB and more) has room for.
const GROUPS_PER_SOCKET: usize = 64;
/// `linux/sockios.h`
const SIOCADDMULTI: libc::c_ulong = 0x8931;
/// `linux/sockios.h`
const SIOCDELMULTI: libc::c_ulong = 0x8932;

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
    for frame in frames(mac, address) {
        send(&socket, ifindex, &frame).map_err(error)?;
    }
    Ok(())
}

/// The frames of one round.
pub fn frames(mac: [u8; 6], address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => vec![arp(mac, v4, 1), arp(mac, v4, 2)],
        IpAddr::V6(v6) => vec![advertisement(mac, v6)],
    }
}

/// The solicited-node multicast group of an address (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn arp(mac: [u8; 6], address: Ipv4Addr, operation: u16) -> Vec<u8> {
    let target_mac = if operation == 1 { [0; 6] } else { BROADCAST };
    arp_frame(BROADCAST, operation, (mac, address), (target_mac, address))
}

/// ARP of Ethernet and IPv4: sender and target, each with hardware address.
pub(super) fn arp_frame(
    to: [u8; 6],
    operation: u16,
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut frame = ethernet(to, sender.0, ETHERTYPE_ARP);
    frame.extend([0, 1, 0x08, 0x00, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    icmpv6_frame((ALL_NODES_MAC, mac), address, ALL_NODES, message)
}

/// A message of neighbour discovery, shorter than 256 bytes, with its checksum, in a frame to the first hardware address from
/// the second.
pub(super) fn icmpv6_frame(
    (to, from): ([u8; 6], [u8; 6]),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mut message: Vec<u8>,
) -> Vec<u8> {
    let sum = checksum(source, destination, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(to, from, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    frame
}

/// Of an ICMPv6 message of even length whose own checksum is zero (RFC 4443 section 2.3).
pub(super) fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let addresses = [from.octets(), to.octets()].concat();
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&addresses[..], &length, &[0, 0, 0, 58], message].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(super) fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes()].concat()
}

pub(super) fn send(socket: &Socket, ifindex: u32, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: sockaddr_ll consists of integers; all zero is a value of it.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
    // SAFETY: frame and address are valid for the lengths given, which the kernel only reads.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The solicited-node groups of the IPv6 egress addresses that this node may have to answer for, on one device.
///
/// A group is joined twice: by a socket, so that the kernel reports it (MLD) for as long as this value lives; and as a
/// static link-layer entry, so that the NIC goes on letting solicitations through when the agent is gone. The entries
/// go by [`SolicitedNodes::set`] with fewer addresses, and those of a previous run by [`SolicitedNodes::adopt`] first.
#[derive(Debug)]
pub struct SolicitedNodes {
    ifindex: u32,
    device: String,
    sockets: Vec<(Socket, usize)>,
    /// Group to the socket that holds it; `None` for one that was only adopted.
    groups: BTreeMap<Ipv6Addr, Option<usize>>,
}

impl SolicitedNodes {
    /// No groups yet. `device` is the name of the device with index `ifindex`.
    pub fn new(ifindex: u32, device: &str) -> Self {
        Self {
            ifindex,
            device: device.to_owned(),
            sockets: Vec::new(),
            groups: BTreeMap::new(),
        }
    }

    /// Takes over the link-layer entries of a previous run, which served `addresses`
    /// ([`super::GatewayDriver::addresses`]): the next [`SolicitedNodes::set`] joins or removes them.
    pub fn adopt(&mut self, addresses: &BTreeSet<IpAddr>) {
        for group in groups_of(addresses) {
            self.groups.entry(group).or_insert(None);
        }
    }

    /// Joins the groups of exactly these addresses. All groups are tried.
    ///
    /// # Errors
    /// Every [`AnnounceError::Group`]: IPv6 is off on the device, or there are too many groups. Groups that could not
    /// be joined are tried again by the next call.
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

/// Adds or deletes the group's MAC address on the device. One that is there, or gone, already is no error.
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

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn both_forms_of_gratuitous_arp_name_sender_and_target() {
        let frames = frames(MAC, "192.0.2.7".parse().unwrap());
        assert_eq!(frames.len(), 2);
        for (frame, operation) in frames.iter().zip([1, 2]) {
            assert_eq!(frame[..14], [&[0xff; 6][..], &MAC, &[0x08, 0x06]].concat());
            assert_eq!(frame[20..22], [0, operation]);
            assert_eq!(frame[22..28], MAC);
            assert_eq!(frame[28..32], [192, 0, 2, 7]);
            assert_eq!(frame[38..42], [192, 0, 2, 7]);
        }
    }

    #[test]
    fn the_advertisement_is_unsolicited_overrides_and_has_a_right_checksum() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let frames = frames(MAC, address.into());
        let packet = SlicedPacket::from_ethernet(&frames[0]).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
            panic!("no ICMPv6")
        };
        assert!(icmp.is_checksum_valid(address.octets(), ALL_NODES.octets()));
        assert_eq!(
            (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()),
            (136, 0, [0x20, 0, 0, 0])
        );
        assert_eq!(
            icmp.payload(),
            [&address.octets()[..], &[2, 1], &MAC].concat()
        );
        assert_eq!(frames[0][21], 255);
    }

    #[test]
    fn the_solicited_node_group_has_the_last_three_bytes() {
        let group = solicited_node("2001:db8::1:2233:4455".parse().unwrap());
        assert_eq!(group, "ff02::1:ff33:4455".parse::<Ipv6Addr>().unwrap());
    }
}
