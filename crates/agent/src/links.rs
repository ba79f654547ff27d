//! Tells at once when a link, an address, a route, a rule, a next hop or a neighbour of ours changes.

use crate::AgentError;
use crate::source::spawn;
use egret_core::numbers::TUNNEL_DEVICE;
use netlink_sys::{Socket, SocketAddr};

/// Multicast groups of rtnetlink (`enum rtnetlink_groups`).
const GROUPS: [u32; 10] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH
    4,  // RTNLGRP_TC
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
    32, // RTNLGRP_NEXTHOP
];
const BUFFER_BYTES: usize = 64 * 1024;

/// Starts the watch, which ends when `tell` returns false. What exactly changed does not matter: who is told compares
/// everything.
pub(crate) fn watch(mut tell: impl FnMut() -> bool + Send + 'static) -> Result<(), AgentError> {
    let error = |source| AgentError::Io {
        doing: "watching links and routes",
        source,
    };
    let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE).map_err(error)?;
    socket.bind(&SocketAddr::new(0, 0)).map_err(error)?;
    for group in GROUPS {
        socket.add_membership(group).map_err(error)?;
    }
    spawn("links", move || {
        let mut buffer = vec![0u8; BUFFER_BYTES];
        loop {
            // ENOBUFS means that messages were lost: something changed all the same.
            let message = socket.recv(&mut &mut buffer[..], 0);
            let concerns_us = message.map_or(true, |length| concerns_us(&buffer[..length]));
            if concerns_us && !tell() {
                return;
            }
        }
    })
}

/// Neighbours of other devices come and go all the time and are nobody's business here.
fn concerns_us(message: &[u8]) -> bool {
    let kind = message.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match kind {
        Some(nix::libc::RTM_NEWNEIGH | nix::libc::RTM_DELNEIGH) => {
            // struct ndmsg: family, padding, then the index of the device.
            let index = message.get(20..24).map(|b| [b[0], b[1], b[2], b[3]]);
            let ours = nix::net::if_::if_nametoindex(TUNNEL_DEVICE);
            match (index, ours) {
                (Some(index), Ok(ours)) => u32::from_ne_bytes(index) == ours,
                _ => false,
            }
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_other_devices_wake_nobody() {
        let mut message = vec![0u8; 28];
        message[4..6].copy_from_slice(&nix::libc::RTM_NEWNEIGH.to_ne_bytes());
        message[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(!concerns_us(&message));
        message[4..6].copy_from_slice(&nix::libc::RTM_NEWROUTE.to_ne_bytes());
        assert!(concerns_us(&message));
        assert!(concerns_us(&[]), "what cannot be read may be anything");
    }
}
