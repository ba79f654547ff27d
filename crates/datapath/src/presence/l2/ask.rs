//! Requests by ARP and neighbour discovery for addresses on the external network, and their answers.
//!
//! Does not use the kernel's own neighbour table: that notices a silent neighbour only after half a minute, and
//! contains egress addresses on no gateway.

use super::claims::{Claim, claim, is_answer};
use super::frames::{ETHERTYPE_ARP, ETHERTYPE_IPV6, question, send};
use super::socket::{advertisements, arp_replies, next_frame, open};
use socket2::Socket;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

/// Most messages read in one call.
const BURST_MAX: usize = 256;

/// Device that sends requests, with the addresses that it sends them from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index; an Ethernet device.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// An IPv6 address of it, link-local if there is one.
    pub v6: Option<Ipv6Addr>,
}

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// To a neighbour, as the kernel does it: at this MAC address where it is known (RFC 1122 section 2.3.2.1).
    IsThere(Option<[u8; 6]>),
    /// To the owner of the address, without a claim of our own (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2):
    /// receivers learn nothing from it.
    HasIt,
}

/// A neighbour's claim of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The address.
    pub address: IpAddr,
    /// The MAC address in the claim.
    pub mac: [u8; 6],
    /// It was sent to this device alone, as the answer to a request: both directions work.
    pub is_answer: bool,
}

/// Sockets for requests and answers on one device.
#[derive(Debug)]
pub struct Asker {
    device: Device,
    arp: Socket,
    nd: Socket,
}

impl Asker {
    /// Opens the sockets. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(device: Device) -> io::Result<Self> {
        Ok(Self {
            arp: open(device.ifindex, ETHERTYPE_ARP, &arp_replies())?,
            nd: open(device.ifindex, ETHERTYPE_IPV6, &advertisements())?,
            device,
        })
    }

    /// Device that the sockets were opened for.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sends one request.
    ///
    /// # Errors
    /// The kernel's error: the device is down or gone.
    pub fn ask(&self, address: IpAddr, who: Who) -> io::Result<()> {
        let frame = frame(&self.device, address, who);
        send(&self.arp, self.device.ifindex, &frame)
    }

    /// Claims of others since the last call.
    pub fn heard(&self) -> Vec<Statement> {
        let mut all = Vec::new();
        for socket in [&self.arp, &self.nd] {
            for _ in 0..BURST_MAX {
                let Ok(Some(frame)) = next_frame(socket) else {
                    break;
                };
                all.extend(statement(&frame, self.device.mac));
            }
        }
        all
    }

    /// Sockets that become readable when a frame arrives.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.arp.as_fd(), self.nd.as_fd()]
    }
}

fn frame(device: &Device, address: IpAddr, who: Who) -> Vec<u8> {
    let own = match address {
        IpAddr::V4(_) => device.v4.map(IpAddr::from),
        IpAddr::V6(_) => device.v6.map(IpAddr::from),
    };
    match who {
        Who::IsThere(at) => question(device.mac, own, address, at),
        Who::HasIt => question(device.mac, None, address, None),
    }
}

/// Claim of another device in a frame.
fn statement(frame: &[u8], own: [u8; 6]) -> Option<Statement> {
    let Claim { address, mac } = claim(frame).filter(|claim| claim.mac != own)?;
    Some(Statement {
        address,
        mac,
        is_answer: is_answer(frame, own),
    })
}

#[cfg(test)]
mod tests {
    use super::super::frames::announcement;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
    const DEVICE: Device = Device {
        ifindex: 1,
        mac: MAC,
        v4: Some(Ipv4Addr::new(192, 0, 2, 9)),
        v6: Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9)),
    };

    #[test]
    fn only_who_asks_for_a_neighbour_says_who_it_is() {
        let sender = |address: &str, who| {
            let address: IpAddr = address.parse().unwrap();
            let frame = frame(&DEVICE, address, who);
            match address {
                IpAddr::V4(_) => frame[28..32].to_vec(),
                IpAddr::V6(_) => frame[22..38].to_vec(),
            }
        };
        assert_eq!(sender("192.0.2.7", Who::HasIt), [0; 4]);
        assert_eq!(sender("2001:db8::7", Who::HasIt), [0; 16]);
        let neighbour = Who::IsThere(Some(OTHER));
        assert_eq!(sender("192.0.2.7", neighbour), [192, 0, 2, 9]);
        let own = DEVICE.v6.unwrap().octets();
        assert_eq!(sender("2001:db8::7", neighbour), own);
    }

    #[test]
    fn announcements_and_answers_are_statements() {
        for address in ["192.0.2.7", "2001:db8::7"] {
            let address: IpAddr = address.parse().unwrap();
            for mut frame in announcement(OTHER, address) {
                let mut expected = Statement {
                    address,
                    mac: OTHER,
                    is_answer: false,
                };
                assert_eq!(statement(&frame, MAC), Some(expected));
                assert_eq!(statement(&frame, OTHER), None, "its own");
                frame[..6].copy_from_slice(&MAC);
                let is_request = frame[12..14] == [8, 6] && frame[21] == 1;
                expected.is_answer = !is_request;
                assert_eq!(statement(&frame, MAC), Some(expected));
            }
        }
    }
}
