//! Sockets that receive one protocol on one device (packet(7)).

use super::claims::ICMPV6;
use super::frames::{ADVERTISEMENT, SOLICITATION};
use nix::libc;
use socket2::{Domain, SockFilter, Socket, Type};
use std::io::{self, ErrorKind, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;

/// Bytes read of a frame: ARP, or neighbour discovery with a few options.
const FRAME_BYTES: usize = 256;
const ICMPV6_PROTOCOL: u8 = 58;
/// Offsets of IPv6's next header and hop limit in a frame.
const NEXT_HEADER: u32 = 20;
const HOP_LIMIT: u32 = 21;

/// Opens a non-blocking socket for frames of one EtherType that the filter accepts.
///
/// # Errors
/// The kernel's error: needs CAP_NET_RAW and the device.
pub(super) fn open(ifindex: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<Socket> {
    // Without a protocol no frame arrives before the filter is attached.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    if !filter.is_empty() {
        socket.attach_filter(filter)?;
    }
    // SAFETY: sockaddr_ll consists of integers; all zero is a value of it.
    let mut at: libc::sockaddr_ll = unsafe { zeroed() };
    at.sll_family = libc::AF_PACKET as u16;
    at.sll_ifindex = ifindex as i32;
    at.sll_protocol = ethertype.to_be();
    // SAFETY: the address is valid for the length given, which the kernel only reads.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const at).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The next frame, cut to the bytes that are read; `None`: there is none now.
///
/// # Errors
/// The kernel's error, for example when the device is removed or goes down.
pub(super) fn next_frame(mut socket: &Socket) -> io::Result<Option<Vec<u8>>> {
    let mut frame = [0; FRAME_BYTES];
    loop {
        match socket.read(&mut frame) {
            Ok(length) => return Ok(Some(frame[..length].to_vec())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Accepts frames with these values at these offsets: classic BPF (`linux/filter.h`).
fn bytes_are(bytes: &[(u32, u8)]) -> Vec<SockFilter> {
    let mut program = Vec::new();
    for (number, (offset, value)) in bytes.iter().enumerate() {
        // Jumps over the remaining comparisons and the acceptance.
        let miss = (bytes.len() - number - 1) * 2 + 1;
        program.push(SockFilter::new(LOAD_BYTE, 0, 0, *offset));
        let value = u32::from(*value);
        program.push(SockFilter::new(JUMP_EQUAL, 0, miss as u8, value));
    }
    program.push(SockFilter::new(RETURN, 0, 0, FRAME_BYTES as u32));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

/// Accepts ARP replies only, for IPv4 over Ethernet: others' requests on the segment wake no thread.
pub(super) fn arp_replies() -> Vec<SockFilter> {
    bytes_are(&[
        (15, 1),
        (16, 8),
        (17, 0),
        (18, 6),
        (19, 4),
        (20, 0),
        (21, 2),
    ])
}

/// Accepts neighbour advertisements with hop limit 255 (RFC 4861 section 7.1.2), without extension headers (RFC 6980).
pub(super) fn advertisements() -> Vec<SockFilter> {
    bytes_are(&[
        (NEXT_HEADER, ICMPV6_PROTOCOL),
        (HOP_LIMIT, 255),
        (ICMPV6 as u32, ADVERTISEMENT),
    ])
}

/// Accepts neighbour solicitations and advertisements, without extension headers.
pub(super) fn solicitations_and_advertisements() -> Vec<SockFilter> {
    let protocol = u32::from(ICMPV6_PROTOCOL);
    vec![
        SockFilter::new(LOAD_BYTE, 0, 0, NEXT_HEADER),
        SockFilter::new(JUMP_EQUAL, 0, 3, protocol),
        SockFilter::new(LOAD_BYTE, 0, 0, ICMPV6 as u32),
        SockFilter::new(JUMP_AT_LEAST, 0, 1, SOLICITATION.into()),
        SockFilter::new(JUMP_GREATER, 0, 1, ADVERTISEMENT.into()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, FRAME_BYTES as u32),
    ]
}
