//! Flows that the kernel tracks (ctnetlink): reading them, and deleting them one by one.

mod events;

pub use events::FlowEvents;

use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Request, attributes};
use std::collections::BTreeMap;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;

/// One direction of a flow. For ICMP echo the source port is the id and the destination port is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, or echo id.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Tuple of the original direction, before translation.
    pub original: Tuple,
    /// Tuple of the reply direction; its destination is the source that the other end sees.
    pub reply: Tuple,
    /// Whether it reserves its source port; TCP connections that have ended do not.
    pub holds_port: bool,
    raw_original: Vec<u8>,
    id: [u8; 4],
    zone: Option<u16>,
}

impl Flow {
    /// Source port, or echo id, that the other end sees.
    pub fn outside_port(&self) -> u16 {
        const ICMP: [u8; 2] = [1, 58];
        match ICMP.contains(&self.reply.protocol) {
            true => self.reply.source_port,
            false => self.reply.destination_port,
        }
    }
}

/// The connection tracking table of the namespace of the thread that opened it.
pub struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// Opens the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Conntrack {
            socket: NetlinkSocket::open(libc::NETLINK_NETFILTER)?,
        })
    }

    /// All flows of both families. An interrupted dump is repeated.
    pub fn flows(&mut self) -> Result<Vec<Flow>, NetlinkError> {
        /// Attempts before an interrupted dump is an error.
        const ATTEMPTS_MAX: usize = 5;
        let request = Request {
            kind: SUBSYSTEM | GET,
            flags: 0,
            body: vec![libc::AF_UNSPEC as u8, 0, 0, 0],
            what: "tracked flows".into(),
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.socket.dump(&request) {
                Ok(replies) => return Ok(replies.iter().filter_map(|r| flow(&r.body)).collect()),
                Err(NetlinkError::Interrupted) if attempts < ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Flows that could not be entered into the table since the namespace was made (`insert_failed` of `conntrack -S`);
    /// a packet for which every source port is taken counts here.
    pub fn insert_failed(&mut self) -> Result<u64, NetlinkError> {
        const GET_STATS_CPU: u16 = 4;
        const INSERT_FAILED: u16 = 9;
        let request = Request {
            kind: SUBSYSTEM | GET_STATS_CPU,
            flags: 0,
            body: vec![libc::AF_UNSPEC as u8, 0, 0, 0],
            what: "statistics of connection tracking".into(),
        };
        let of_cpu = |body: &[u8]| {
            let value = attributes(body.get(4..)?)
                .find(|(kind, _)| *kind == INSERT_FAILED)?
                .1;
            Some(u64::from(u32::from_be_bytes(value.try_into().ok()?)))
        };
        let replies = self.socket.dump(&request)?;
        Ok(replies.iter().filter_map(|reply| of_cpu(&reply.body)).sum())
    }

    /// Deletes exactly this flow; one that has ended meanwhile is no error.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), NetlinkError> {
        const CTA_TUPLE_ORIG: u16 = 1;
        const CTA_ID: u16 = 12;
        const CTA_ZONE: u16 = 18;
        let family = match flow.original.source {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        let nested = Attrs::after(&flow.raw_original);
        let mut attrs = Attrs::after(&[family as u8, 0, 0, 0]).nest(CTA_TUPLE_ORIG, nested);
        attrs = attrs.bytes(CTA_ID, &flow.id);
        if let Some(zone) = flow.zone {
            attrs = attrs.bytes(CTA_ZONE, &zone.to_be_bytes());
        }
        let what = format!("deletion of flow {:?}", flow.original);
        let request = Request {
            kind: SUBSYSTEM | DELETE,
            flags: 0,
            body: attrs.finish(),
            what,
        };
        match self.socket.execute(&request) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}

fn flow(body: &[u8]) -> Option<Flow> {
    let attrs: BTreeMap<u16, &[u8]> = attributes(body.get(4..)?).collect();
    let zone = attrs
        .get(&18)
        .and_then(|bytes| Some(u16::from_be_bytes((*bytes).try_into().ok()?)));
    Some(Flow {
        original: tuple(attrs.get(&1)?)?,
        reply: tuple(attrs.get(&2)?)?,
        holds_port: events::holds_port(body),
        raw_original: attrs.get(&1)?.to_vec(),
        id: (*attrs.get(&12)?).try_into().ok()?,
        zone,
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    const V4_SOURCE: u16 = 1;
    const V4_DESTINATION: u16 = 2;
    const V6_SOURCE: u16 = 3;
    const V6_DESTINATION: u16 = 4;
    const NUMBER: u16 = 1;
    const SOURCE_PORT: u16 = 2;
    const DESTINATION_PORT: u16 = 3;
    const ICMP_ID: u16 = 4;
    const ICMPV6_ID: u16 = 7;
    let parts: BTreeMap<u16, &[u8]> = attributes(bytes).collect();
    let addresses: BTreeMap<u16, &[u8]> = attributes(parts.get(&1)?).collect();
    let protocol: BTreeMap<u16, &[u8]> = attributes(parts.get(&2)?).collect();
    let v4 = |kind| {
        let bytes: [u8; 4] = (*addresses.get(&kind)?).try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    let v6 = |kind| {
        let bytes: [u8; 16] = (*addresses.get(&kind)?).try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    let port = |kind| {
        let bytes: [u8; 2] = (*protocol.get(&kind)?).try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    Some(Tuple {
        source: v4(V4_SOURCE).or_else(|| v6(V6_SOURCE))?,
        destination: v4(V4_DESTINATION).or_else(|| v6(V6_DESTINATION))?,
        protocol: *protocol.get(&NUMBER)?.first()?,
        source_port: port(SOURCE_PORT)
            .or_else(|| port(ICMP_ID))
            .or_else(|| port(ICMPV6_ID))?,
        destination_port: port(DESTINATION_PORT).unwrap_or(0),
    })
}
