//! Socket options that the standard library lacks.

use std::io::Error;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

fn is_v4(socket: &UdpSocket) -> std::io::Result<bool> {
    Ok(socket.local_addr()?.is_ipv4())
}

/// Packets of this socket are never fragmented: a send that does not fit fails (ip(7): `IP_PMTUDISC_DO`).
///
/// # Errors
/// The system refuses.
pub fn forbid_fragments(socket: &UdpSocket) -> std::io::Result<()> {
    let (level, name, value) = match is_v4(socket)? {
        true => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        false => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
    };
    set(socket, level, name, value)
}

/// Each send is cut into datagrams of this many bytes (udp(7): `UDP_SEGMENT`).
///
/// # Errors
/// The system refuses.
pub fn segment(socket: &UdpSocket, bytes: u16) -> std::io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, bytes.into())
}

/// A receive may return several datagrams of one flow at once (udp(7): `UDP_GRO`).
///
/// # Errors
/// The system refuses.
pub fn merge(socket: &UdpSocket) -> std::io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Accepts datagrams without a checksum over IPv6, too (RFC 6935), as always over IPv4.
///
/// # Errors
/// The system refuses.
pub fn accept_without_checksum(socket: &UdpSocket) -> std::io::Result<()> {
    /// `linux/udp.h`.
    const UDP_NO_CHECK6_RX: libc::c_int = 102;
    match is_v4(socket)? {
        true => Ok(()),
        false => set(socket, libc::SOL_UDP, UDP_NO_CHECK6_RX, 1),
    }
}

fn set(
    socket: &UdpSocket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> std::io::Result<()> {
    // SAFETY: the descriptor is open for the call, and the value is an int that lives through it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Path MTU that the kernel knows for the peer of a connected socket, in bytes.
///
/// # Errors
/// It is not connected.
pub fn path_mtu(socket: &UdpSocket) -> std::io::Result<u32> {
    let (level, name) = match is_v4(socket)? {
        true => (libc::IPPROTO_IP, libc::IP_MTU),
        false => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and both pointers are to locals of the given sizes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(value.unsigned_abs())
}

/// Whether a packet was refused because it exceeds the path MTU (`EMSGSIZE`).
pub fn is_too_big(result: std::io::Result<usize>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
}
