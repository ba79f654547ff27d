//! One synchronous netlink socket: requests, acknowledgements, dumps, batches; and a writer for attributes.
//!
//! The message types of rtnetlink come from `netlink-packet-route`; messages that no crate has (next hop objects, most
//! nftables expressions) are written with [`Attrs`].

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK};
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Size of the receive buffer; the kernel never builds larger datagrams for dumps.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Size of the socket buffers: one transaction with 100,000 set elements fits.
const SOCKET_BUFFER_BYTES: usize = 64 * 1024 * 1024;
const HEADER_BYTES: usize = 16;

/// `NLM_F_REQUEST` and friends, from `linux/netlink.h`.
pub mod flags {
    #![allow(missing_docs)]
    pub const REQUEST: u16 = 1;
    pub const ACK: u16 = 4;
    pub const DUMP: u16 = 0x300;
    pub const REPLACE: u16 = 0x100;
    pub const EXCL: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

/// Error of a netlink exchange.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused {what}: {text}")]
    Refused {
        /// The request, as text for people.
        what: String,
        /// The kernel's error number (positive).
        errno: i32,
        /// Text of the error, with the extended acknowledgement if there is one.
        text: String,
    },
    /// The kernel changed the table while it was dumped, or dropped messages: dump again.
    #[error("the dump was interrupted")]
    Interrupted,
    /// A message is shorter than its header claims.
    #[error("a message of the kernel is cut short")]
    Truncated,
}

impl NetlinkError {
    /// The kernel's error number, if it refused a request.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// One request to the kernel.
#[derive(Clone, Debug)]
pub struct Request {
    /// Message type.
    pub kind: u16,
    /// Flags besides `REQUEST`.
    pub flags: u16,
    /// Family header and attributes.
    pub body: Vec<u8>,
    /// Text for errors.
    pub what: String,
}

/// One message of the kernel.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Message type.
    pub kind: u16,
    /// Family header and attributes.
    pub body: Vec<u8>,
}

/// A synchronous netlink socket, bound to one protocol.
pub struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket for `protocol` (`NETLINK_ROUTE`, `NETLINK_NETFILTER`) in the namespace of the calling thread.
    pub fn open(protocol: i32) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol as isize).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Socket)?;
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            set_option(
                &socket,
                libc::SOL_SOCKET,
                option,
                SOCKET_BUFFER_BYTES as i32,
            )?;
        }
        set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)?;
        Ok(NetlinkSocket {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// Port id of this socket, and owner of the nftables tables that it makes.
    pub fn port(&self) -> Result<u32, NetlinkError> {
        let mut address = SocketAddr::new(0, 0);
        self.socket
            .get_address(&mut address)
            .map_err(NetlinkError::Socket)?;
        Ok(address.port_number())
    }

    /// Joins a multicast group.
    pub fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.socket
            .add_membership(group)
            .map_err(NetlinkError::Socket)
    }

    /// The next messages of the joined groups; none when `longest` has passed.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`]: messages were lost because they came faster than they were read.
    pub fn wait(&mut self, longest: Duration) -> Result<Vec<Reply>, NetlinkError> {
        let mut poll = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut poll, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(errno) => return Err(NetlinkError::Socket(errno.into())),
        }
        self.receive()?.map(|message| Ok(message?.reply)).collect()
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn execute(&mut self, request: &Request) -> Result<(), NetlinkError> {
        self.sequence += 1;
        let message = encode(request, flags::ACK, self.sequence);
        self.send(&message)?;
        self.acknowledgements(&[(self.sequence, request.what.as_str())])
    }

    /// Sends one request and returns the first message of the answer.
    pub fn query(&mut self, request: &Request) -> Result<Reply, NetlinkError> {
        self.sequence += 1;
        let sequence = self.sequence;
        let message = encode(request, 0, sequence);
        self.send(&message)?;
        loop {
            for message in self.receive()? {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                if message.reply.kind == libc::NLMSG_ERROR as u16 {
                    return Err(refusal(&message.reply.body, message.flags, &request.what)
                        .unwrap_or(NetlinkError::Truncated));
                }
                return Ok(message.reply);
            }
        }
    }

    /// Sends a dump request and returns all messages up to the end of the answer.
    pub fn dump(&mut self, request: &Request) -> Result<Vec<Reply>, NetlinkError> {
        self.sequence += 1;
        let sequence = self.sequence;
        let message = encode(request, flags::DUMP, sequence);
        self.send(&message)?;
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.receive()? {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.reply.kind) {
                    libc::NLMSG_DONE if interrupted => return Err(NetlinkError::Interrupted),
                    libc::NLMSG_DONE => return Ok(replies),
                    libc::NLMSG_ERROR => {
                        if let Some(error) =
                            refusal(&message.reply.body, message.flags, &request.what)
                        {
                            return Err(error);
                        }
                    }
                    _ => replies.push(message.reply),
                }
            }
        }
    }

    /// Sends a netfilter batch (`NFNL_MSG_BATCH_BEGIN` .. `END`): the kernel applies all of it, or nothing.
    pub fn batch(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        const NFTABLES: u16 = 10;
        if requests.is_empty() {
            return Ok(());
        }
        let edge = |kind| Request {
            kind,
            flags: 0,
            body: vec![0, 0, (NFTABLES >> 8) as u8, NFTABLES as u8],
            what: "the batch".into(),
        };
        self.sequence += 1;
        let mut bytes = encode(&edge(BEGIN), 0, self.sequence);
        let mut expected = Vec::with_capacity(requests.len());
        for request in requests {
            self.sequence += 1;
            bytes.extend(encode(request, flags::ACK, self.sequence));
            expected.push((self.sequence, request.what.as_str()));
        }
        self.sequence += 1;
        bytes.extend(encode(&edge(END), 0, self.sequence));
        self.send(&bytes)?;
        self.acknowledgements(&expected)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let sent = self.socket.send(bytes, 0).map_err(NetlinkError::Socket)?;
        assert_eq!(sent, bytes.len(), "netlink sends whole messages");
        Ok(())
    }

    /// Waits until each of the requests is acknowledged. Returns the first refusal, after the rest has been read.
    fn acknowledgements(&mut self, expected: &[(u32, &str)]) -> Result<(), NetlinkError> {
        let (first, last) = match (expected.first(), expected.last()) {
            (Some(first), Some(last)) => (first.0, last.0),
            _ => return Ok(()),
        };
        let mut refused = None;
        let mut remaining = expected.len();
        while remaining > 0 {
            for message in self.receive()? {
                let message = message?;
                if i32::from(message.reply.kind) != libc::NLMSG_ERROR {
                    continue;
                }
                // A batch that fails as a whole (out of memory, not permitted) is acknowledged at its begin or end
                // message.
                let inside = (first..=last).contains(&message.sequence);
                let what = match inside {
                    true => expected[(message.sequence - first) as usize].1,
                    false => "the batch",
                };
                if let Some(error) = refusal(&message.reply.body, message.flags, what) {
                    refused.get_or_insert(error);
                    if !inside {
                        return Err(refused.expect("set just above"));
                    }
                }
                if inside {
                    remaining -= 1;
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn receive(&mut self) -> Result<Messages<'_>, NetlinkError> {
        let length = loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(NetlinkError::Interrupted);
                }
                Err(error) => return Err(NetlinkError::Socket(error)),
            }
        };
        Ok(Messages {
            rest: &self.buffer[..length],
        })
    }
}

fn set_option(socket: &Socket, level: i32, option: i32, value: i32) -> Result<(), NetlinkError> {
    // SAFETY: the descriptor is open, and the pointer and length describe one i32 that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(NetlinkError::Socket(io::Error::last_os_error())),
    }
}

fn encode(request: &Request, extra: u16, sequence: u32) -> Vec<u8> {
    let length = HEADER_BYTES + request.body.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(request.kind.to_ne_bytes());
    bytes.extend((request.flags | extra | flags::REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(&request.body);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

struct Message {
    sequence: u32,
    flags: u16,
    reply: Reply,
}

struct Messages<'a> {
    rest: &'a [u8],
}

impl Iterator for Messages<'_> {
    type Item = Result<Message, NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let length = match self.rest.get(..4) {
            Some(bytes) => u32::from_ne_bytes(bytes.try_into().expect("four bytes")) as usize,
            None => 0,
        };
        if length < HEADER_BYTES || length > self.rest.len() {
            self.rest = &[];
            return Some(Err(NetlinkError::Truncated));
        }
        let (message, rest) = self.rest.split_at(length);
        self.rest = &rest[(length.next_multiple_of(4) - length).min(rest.len())..];
        Some(Ok(Message {
            sequence: u32::from_ne_bytes(message[8..12].try_into().expect("four bytes")),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            reply: Reply {
                kind: u16::from_ne_bytes([message[4], message[5]]),
                body: message[HEADER_BYTES..].to_vec(),
            },
        }))
    }
}

/// The refusal in an `NLMSG_ERROR`, or `None` when it is an acknowledgement.
fn refusal(body: &[u8], message_flags: u16, what: &str) -> Option<NetlinkError> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    const CAPPED: u16 = 0x100;
    const TLVS: u16 = 0x200;
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    let errno = -code;
    let mut text = io::Error::from_raw_os_error(errno).to_string();
    if message_flags & TLVS != 0 {
        let echoed = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?) as usize;
        let skip = if message_flags & CAPPED != 0 {
            HEADER_BYTES
        } else {
            echoed
        };
        for (kind, value) in attributes(body.get(4 + skip.next_multiple_of(4)..).unwrap_or(&[])) {
            if kind == NLMSGERR_ATTR_MSG {
                let words = String::from_utf8_lossy(value);
                text = format!("{text} ({})", words.trim_end_matches('\0'));
            }
        }
    }
    Some(NetlinkError::Refused {
        what: what.into(),
        errno,
        text,
    })
}

/// Attributes of a body: (type without flag bits, value). A truncated attribute ends the list.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// Writes netlink attributes into a growing body.
#[derive(Clone, Debug, Default)]
pub struct Attrs {
    bytes: Vec<u8>,
}

impl Attrs {
    /// Starts a body with these bytes (a family header).
    pub fn after(header: &[u8]) -> Self {
        Attrs {
            bytes: header.to_vec(),
        }
    }

    /// Appends an attribute with raw bytes.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.header(kind, value.len());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// Appends a string with its terminating zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends an octet.
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Appends a 16-bit number in host order (rtnetlink).
    pub fn u16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Appends a 32-bit number in host order (rtnetlink).
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Appends a 32-bit number in network order (netfilter).
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a 64-bit number in network order.
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends nested attributes.
    pub fn nest(mut self, kind: u16, inner: Attrs) -> Self {
        self.header(kind | NLA_F_NESTED, inner.bytes.len());
        self.bytes.extend(inner.bytes);
        self.pad();
        self
    }

    /// Appends another list of attributes.
    pub fn extend(mut self, other: Attrs) -> Self {
        self.bytes.extend(other.bytes);
        self
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the body.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn header(&mut self, kind: u16, value_bytes: usize) {
        let length = u16::try_from(4 + value_bytes).expect("an attribute is shorter than 64 KiB");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let body = Attrs::default()
            .text(3, "egret0")
            .u8(7, 9)
            .nest(5, Attrs::default().be32(1, 2));
        let bytes = body.finish();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read[0], (3, &b"egret0\0"[..]));
        assert_eq!(read[1], (7, &[9u8][..]));
        assert_eq!(
            attributes(read[2].1).collect::<Vec<_>>(),
            vec![(1, &[0u8, 0, 0, 2][..])]
        );
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE).expect("a socket");
        // RTM_DELLINK of a device that cannot exist.
        let request = Request {
            kind: 17,
            flags: 0,
            body: [vec![0u8; 4], i32::MAX.to_ne_bytes().to_vec(), vec![0u8; 8]].concat(),
            what: "deletion of a device".into(),
        };
        let error = socket.execute(&request).expect_err("no such device");
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(
            error.to_string().contains("deletion of a device"),
            "{error}"
        );
    }
}
