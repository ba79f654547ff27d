//! Reports changes of links, addresses, routes, rules, next hops and of our own neighbours at once.

use crate::error::AgentError;
use crate::threads::spawn;
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

/// Starts the watch, which ends when `tell` returns false. Messages are not evaluated: the receiver compares
/// everything. Changes made through the socket with the port `own`, if any, are known already and are not reported.
pub(crate) fn watch(
    own: Option<u32>,
    mut tell: impl FnMut() -> bool + Send + 'static,
) -> Result<(), AgentError> {
    let error = |source| AgentError::Io {
        doing: "watching links and routes",
        source,
    };
    let socket = open().map_err(error)?;
    spawn("links", move || {
        let mut buffer = vec![0u8; BUFFER_BYTES];
        while hear(&socket, &mut buffer, own, &mut tell).is_some() {}
    })
}

fn open() -> std::io::Result<Socket> {
    let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

/// Waits for one message, and reports it if it matters. Returns the kernel's answer; `None`: the receiver is gone.
fn hear(
    socket: &Socket,
    buffer: &mut [u8],
    own: Option<u32>,
    tell: &mut impl FnMut() -> bool,
) -> Option<std::io::Result<usize>> {
    let message = socket.recv(&mut &mut buffer[..], 0);
    // ENOBUFS means that messages were lost, so it counts as a change.
    let length = message.as_ref().map_or(0, |length| *length);
    let heard = &buffer[..length];
    let is_own = own.is_some_and(|port| is_done_by(port, heard));
    let is_news = !is_own && concerns_us(heard);
    (!is_news || tell()).then_some(message)
}

/// The kernel names the port that made the request (`nlmsg_pid` of `linux/netlink.h`), or 0 for its own changes.
fn is_done_by(port: u32, message: &[u8]) -> bool {
    let field = |at: usize| {
        let bytes = message.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let is_one = field(0).is_some_and(|length| length as usize == message.len());
    is_one && field(12) == Some(port)
}

/// Neighbours of foreign devices change constantly and do not matter.
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
    use egret_kernel::netlink::{Attrs, NetlinkSocket, Request, flags};

    /// Adds or deletes a device (`RTM_NEWLINK`, `RTM_DELLINK`, `linux/if_link.h`).
    fn device(name: &str, is_new: bool) {
        const HEADER: [u8; 16] = [0; 16];
        let (kind, flags) = match is_new {
            true => (16, flags::CREATE | flags::EXCL),
            false => (17, 0),
        };
        let link = Attrs::default().text(1, "bridge");
        let body = Attrs::after(&HEADER).text(3, name).nest(18, link).finish();
        let mut socket = NetlinkSocket::open(nix::libc::NETLINK_ROUTE).expect("a socket");
        let what = format!("device {name}");
        let request = Request {
            kind,
            flags,
            body,
            what,
        };
        socket.execute(&request).expect("a device");
    }

    #[test]
    fn what_the_kernel_could_not_tell_is_told_as_a_change_and_the_watch_goes_on() {
        let work = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let socket = open().expect("a socket");
            // The kernel rounds up to its minimum: room for one or two messages.
            socket.set_rx_buf_sz(1).expect("a small buffer");
            for number in 0..32 {
                device(&format!("flood{number}"), true);
            }
            socket.set_non_blocking(true).expect("non-blocking");
            let told = std::cell::Cell::new(0);
            let mut tell = || {
                told.set(told.get() + 1);
                true
            };
            let mut buffer = vec![0; BUFFER_BYTES];
            // Reads until nothing is left; returns the errors and the number of reports, without the report of the end.
            let mut all = || {
                let before = told.get();
                let mut errors = Vec::new();
                loop {
                    let heard = told.get();
                    match hear(&socket, &mut buffer, None, &mut tell).expect("wanted") {
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                        Err(error) => {
                            assert_eq!(told.get(), heard + 1, "not told of {error}");
                            errors.push(error.raw_os_error());
                        }
                        Ok(_) => {}
                    }
                }
                (told.get() - before - 1, errors)
            };
            let (count, errors) = all();
            assert_eq!(errors, [Some(nix::libc::ENOBUFS)]);
            assert!(count < 32, "nothing was lost");
            device("flood0", false);
            let (count, _) = all();
            assert!(count > 0, "deaf after the overflow");
        };
        std::thread::spawn(work).join().expect("the thread passes");
    }

    /// Adds or deletes a route that throws (`RTM_NEWROUTE`, `RTM_DELROUTE`, `linux/rtnetlink.h`), as for a pod.
    fn route(socket: &mut NetlinkSocket, is_new: bool) {
        // struct rtmsg: family, prefix lengths, and so on: table 77, protocol static, scope universe, type throw.
        let header = [2, 32, 0, 0, 77, 4, 0, 9, 0, 0, 0, 0];
        let (kind, flags) = match is_new {
            true => (24, flags::CREATE | flags::EXCL),
            false => (25, 0),
        };
        let request = Request {
            kind,
            flags,
            body: Attrs::after(&header).bytes(1, &[10, 0, 0, 1]).finish(),
            what: "a route".into(),
        };
        socket.execute(&request).expect("a route");
    }

    #[test]
    fn what_was_done_through_the_own_socket_is_not_told() {
        let work = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let socket = open().expect("a socket");
            socket.set_non_blocking(true).expect("non-blocking");
            let netlink = || NetlinkSocket::open(nix::libc::NETLINK_ROUTE).expect("a socket");
            let (mut own, mut theirs) = (netlink(), netlink());
            let port = Some(own.port().expect("a port"));
            let mut buffer = vec![0; BUFFER_BYTES];
            // Number of messages, and how many of them were reported.
            let mut all = || {
                let (mut heard, told) = (0, std::cell::Cell::new(0));
                let mut tell = || {
                    told.set(told.get() + 1);
                    true
                };
                while hear(&socket, &mut buffer, port, &mut tell)
                    .expect("wanted")
                    .is_ok()
                {
                    heard += 1;
                }
                // The end of the messages is reported like every error.
                (heard, told.get() - 1)
            };
            route(&mut own, true);
            assert_eq!(all(), (1, 0));
            route(&mut theirs, false);
            assert_eq!(all(), (1, 1), "others' damage to what is ours");
        };
        std::thread::spawn(work).join().expect("the thread passes");
    }

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
