//! Tells the main loop at once when a link, an address, a route, a rule or a next hop changes.

use crate::AgentError;
use crate::main_loop::Event;
use crate::source::spawn;
use netlink_sys::{Socket, SocketAddr};
use std::sync::mpsc::Sender;

/// Multicast groups of rtnetlink (`enum rtnetlink_groups`).
const GROUPS: [u32; 6] = [
    1,  // RTNLGRP_LINK
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
    32, // RTNLGRP_NEXTHOP
];
const BUFFER_BYTES: usize = 64 * 1024;

/// Starts the watch. What exactly changed does not matter: the main loop compares everything.
pub(crate) fn watch(events: Sender<Event>) -> Result<(), AgentError> {
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
            let _ = socket.recv(&mut &mut buffer[..], 0);
            if events.send(Event::Links).is_err() {
                return;
            }
        }
    })
}
