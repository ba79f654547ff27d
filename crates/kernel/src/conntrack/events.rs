//! Events of flows, as they happen (`NFNLGRP_CONNTRACK_*` of `linux/netfilter/nfnetlink_compat.h`).
//!
//! The kernel generates these events only while a socket listens (`net.netfilter.nf_conntrack_events` = 2, its
//! default since Linux 5.19; 0 turns them off).

use super::{DELETE, Flow, SUBSYSTEM, flow};
use crate::netlink::{NetlinkError, NetlinkSocket, attributes};
use std::time::Duration;

/// New, update, destroy.
const GROUPS: [u32; 3] = [1, 2, 3];
/// `TCP_CONNTRACK_TIME_WAIT`: from this state on the kernel may give the port to a new flow (`nf_nat_may_kill`).
const TIME_WAIT: u8 = 7;

/// Listener for flow events of the namespace of the thread that opened it.
pub struct FlowEvents {
    socket: NetlinkSocket,
}

impl FlowEvents {
    /// Opens the socket and joins the event groups.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = NetlinkSocket::open(libc::NETLINK_NETFILTER)?;
        for group in GROUPS {
            socket.join(group)?;
        }
        Ok(FlowEvents { socket })
    }

    /// Flows of the next events, in their state after the event; none when `longest` has passed.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`]: events were lost (ENOBUFS); the caller must compare its flows with a dump.
    pub fn wait(&mut self, longest: Duration) -> Result<Vec<Flow>, NetlinkError> {
        let messages = self.socket.wait(longest)?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let mut flow = flow(&message.body)?;
                flow.holds_port &= message.kind != SUBSYSTEM | DELETE;
                Some(flow)
            })
            .collect())
    }
}

/// Whether a flow reserves its port: all except TCP connections that have ended.
pub(super) fn holds_port(body: &[u8]) -> bool {
    const CTA_PROTOINFO: u16 = 4;
    let inside = |bytes, kind| attributes(bytes).find(|(found, _)| *found == kind);
    let state = body
        .get(4..)
        .and_then(|body| inside(body, CTA_PROTOINFO))
        .and_then(|(_, info)| inside(info, 1))
        .and_then(|(_, tcp)| inside(tcp, 1))
        .and_then(|(_, state)| state.first().copied());
    state.is_none_or(|state| state < TIME_WAIT)
}
