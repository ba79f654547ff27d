//! nfnetlink messages of the nf_tables subsystem.

use super::expression::{Rule, value, verdict};
use super::table::{Chain, Count, ElementKey, Set, SetType, TunnelKey, Value};
use crate::netlink::{Attrs, Request, flags};
use std::net::IpAddr;

const SUBSYSTEM: u16 = 10 << 8;
const NFPROTO_INET: u8 = 1;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const NEWOBJ: u16 = 18;
const DELOBJ: u16 = 20;

/// `NFT_OBJECT_COUNTER`.
const OBJECT_COUNTER: u32 = 1;
/// `NFT_OBJECT_TUNNEL`.
const OBJECT_TUNNEL: u32 = 6;

pub(super) const GETTABLE: u16 = 1;
/// `NFT_MSG_GETCHAIN`.
pub const GETCHAIN: u16 = 4;
pub(super) const GETRULE: u16 = 7;
pub(super) const GETSET: u16 = 10;
pub(super) const GETOBJ: u16 = 19;

/// `NFT_TABLE_F_OWNER` (5.12) and `NFT_TABLE_F_PERSIST` (6.9).
pub(super) const TABLE_OWNER_PERSIST: u32 = 0x2 | 0x4;

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_OBJECT: u32 = 0x40;
const SET_CONCAT: u32 = 0x80;
const ELEMENT_INTERVAL_END: u32 = 1;
const DATA_VERDICT: u32 = 0xffff_ff00;
/// User data that marks the key as host order for the `nft` program (type, length, `BYTEORDER_HOST_ENDIAN`).
const USERDATA_HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];
/// Most elements of one message: an attribute is at most 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// A request of the subsystem; its first byte is the family, `NFPROTO_INET`.
pub fn request(kind: u16, flags: u16, attrs: Attrs, what: String) -> Request {
    let body = Attrs::after(&[NFPROTO_INET, 0, 0, 0])
        .extend(attrs)
        .finish();
    Request {
        kind: SUBSYSTEM | kind,
        flags,
        body,
        what,
    }
}

pub(super) fn new_table(table: &str, table_flags: u32) -> Request {
    let attrs = Attrs::default().text(1, table).be32(2, table_flags);
    request(
        NEWTABLE,
        flags::CREATE,
        attrs,
        format!("nftables table {table}"),
    )
}

pub(super) fn delete_table(table: &str) -> Request {
    let attrs = Attrs::default().text(1, table);
    request(
        DELTABLE,
        0,
        attrs,
        format!("deletion of nftables table {table}"),
    )
}

/// Creates a named counter that starts at `from`.
pub(super) fn new_counter(table: &str, name: &str, from: Count) -> Request {
    let attrs = Attrs::default().text(1, table).text(2, name);
    let count = match from {
        Count { packets: 0, .. } => Attrs::default(),
        Count { packets, bytes } => Attrs::default().be64(1, bytes).be64(2, packets),
    };
    let attrs = attrs.be32(3, OBJECT_COUNTER).nest(4, count);
    request(
        NEWOBJ,
        flags::CREATE,
        attrs,
        format!("nftables counter {name}"),
    )
}

/// A tunnel key (`NFTA_TUNNEL_KEY_*`).
pub(super) fn new_tunnel(table: &str, name: &str, tunnel: TunnelKey) -> Request {
    const ZERO_CHECKSUM: u32 = 1;
    const TTL: u8 = 64;
    let end = match tunnel.to {
        IpAddr::V4(to) => Attrs::default().nest(2, Attrs::default().bytes(2, &to.octets())),
        IpAddr::V6(to) => Attrs::default().nest(3, Attrs::default().bytes(2, &to.octets())),
    };
    let key = Attrs::default()
        .be32(1, tunnel.network_identifier)
        .extend(end)
        .be32(4, ZERO_CHECKSUM)
        .u8(6, TTL);
    let attrs = Attrs::default().text(1, table).text(2, name);
    let attrs = attrs.be32(3, OBJECT_TUNNEL).nest(4, key);
    request(
        NEWOBJ,
        flags::CREATE,
        attrs,
        format!("nftables tunnel {name}"),
    )
}

pub(super) fn delete_counter(table: &str, name: &str) -> Request {
    let attrs = Attrs::default().text(1, table).text(2, name);
    request(
        DELOBJ,
        0,
        attrs.be32(3, OBJECT_COUNTER),
        format!("deletion of nftables counter {name}"),
    )
}

pub(super) fn delete_tunnel(table: &str, name: &str) -> Request {
    let attrs = Attrs::default().text(1, table).text(2, name);
    request(
        DELOBJ,
        0,
        attrs.be32(3, OBJECT_TUNNEL),
        format!("deletion of nftables tunnel {name}"),
    )
}

pub(super) fn new_chain(table: &str, name: &str, chain: &Chain) -> Request {
    let mut attrs = Attrs::default().text(1, table).text(3, name);
    if let Some(hook) = chain.hook {
        let mut inner = Attrs::default()
            .be32(1, hook.number)
            .be32(2, hook.priority as u32);
        if let Some(device) = hook.device {
            inner = inner.bytes(3, &device);
        }
        attrs = attrs.nest(4, inner).be32(5, 1);
        attrs = attrs.text(7, if hook.nat { "nat" } else { "filter" });
    }
    request(
        NEWCHAIN,
        flags::CREATE,
        attrs,
        format!("nftables chain {name}"),
    )
}

pub(super) fn delete_chain(table: &str, name: &str) -> Request {
    let attrs = Attrs::default().text(1, table).text(3, name);
    request(
        DELCHAIN,
        0,
        attrs,
        format!("deletion of nftables chain {name}"),
    )
}

/// Deletes all rules of the chain.
pub(super) fn flush_chain(table: &str, name: &str) -> Request {
    let attrs = Attrs::default().text(1, table).text(2, name);
    request(DELRULE, 0, attrs, format!("flush of nftables chain {name}"))
}

pub(super) fn new_rule(table: &str, chain: &str, number: usize, rule: &Rule) -> Request {
    let mut list = Attrs::default();
    for expression in rule {
        list = list.extend(expression.encode());
    }
    let attrs = Attrs::default().text(1, table).text(2, chain).nest(4, list);
    let what = format!("nftables rule {number} of chain {chain}");
    request(NEWRULE, flags::CREATE | flags::APPEND, attrs, what)
}

pub(super) fn new_set(table: &str, name: &str, id: u32, set: &Set) -> Request {
    let concatenated = set.key.len() > 1;
    let mut set_flags = 0;
    set_flags |= if set.interval { SET_INTERVAL } else { 0 };
    set_flags |= if set.verdicts { SET_MAP } else { 0 };
    set_flags |= if set.runtime_max.is_some() && !set.counts_connections {
        SET_TIMEOUT
    } else {
        0
    };
    set_flags |= if set.counters { SET_OBJECT } else { 0 };
    set_flags |= if set.by_packets { SET_EVAL } else { 0 };
    set_flags |= if concatenated && set.interval {
        SET_CONCAT
    } else {
        0
    };
    let key_type = set
        .key
        .iter()
        .fold(0u32, |all, field| (all << 6) | *field as u32);
    let key_bytes: u32 = match concatenated {
        true => set
            .key
            .iter()
            .map(|field| field.bytes().next_multiple_of(4))
            .sum(),
        false => set.key[0].bytes(),
    };
    let mut attrs = Attrs::default()
        .text(1, table)
        .text(2, name)
        .be32(3, set_flags);
    attrs = attrs.be32(4, key_type).be32(5, key_bytes);
    if set.counters {
        attrs = attrs.be32(15, OBJECT_COUNTER);
    }
    if set.verdicts {
        attrs = attrs.be32(6, DATA_VERDICT).be32(7, 0);
    }
    let mut description = Attrs::default();
    if let Some(max) = set.runtime_max {
        description = description.be32(1, max);
    }
    if concatenated && set.interval {
        description = description.nest(2, field_lengths(&set.key));
    }
    if !description.is_empty() {
        attrs = attrs.nest(9, description);
    }
    if matches!(set.key[..], [SetType::InterfaceName | SetType::Mark]) {
        attrs = attrs.bytes(13, &USERDATA_HOST_ORDER);
    }
    request(
        NEWSET,
        flags::CREATE,
        attrs.be32(10, id),
        format!("nftables set {name}"),
    )
}

fn field_lengths(key: &[SetType]) -> Attrs {
    key.iter().fold(Attrs::default(), |list, field| {
        list.nest(1, Attrs::default().be32(1, field.bytes()))
    })
}

pub(super) fn delete_set(table: &str, name: &str) -> Request {
    let attrs = Attrs::default().text(1, table).text(2, name);
    request(DELSET, 0, attrs, format!("deletion of nftables set {name}"))
}

/// Deletes all elements of the set.
pub(super) fn flush_set(table: &str, name: &str) -> Request {
    let attrs = Attrs::default().text(1, table).text(2, name);
    request(
        DELSETELEM,
        0,
        attrs,
        format!("flush of nftables set {name}"),
    )
}

/// Messages that add (or delete) elements.
pub(super) fn elements<'a>(
    table: &str,
    name: &str,
    set: &Set,
    content: impl Iterator<Item = (&'a ElementKey, &'a Value, Option<u64>)>,
    delete: bool,
) -> Vec<Request> {
    let mut encoded = Vec::new();
    for (key, data, timeout_secs) in content {
        encode_element(set, key, data, timeout_secs, delete, &mut encoded);
    }
    let kind = if delete { DELSETELEM } else { NEWSETELEM };
    let what = match delete {
        true => format!("deletion of elements of nftables set {name}"),
        false => format!("elements of nftables set {name}"),
    };
    encoded
        .chunks(ELEMENTS_PER_MESSAGE)
        .map(|chunk| {
            let mut list = Attrs::default();
            for element in chunk {
                list = list.nest(1, element.clone());
            }
            let attrs = Attrs::default().text(1, table).text(2, name).nest(3, list);
            request(
                kind,
                if delete { 0 } else { flags::CREATE },
                attrs,
                what.clone(),
            )
        })
        .collect()
}

fn encode_element(
    set: &Set,
    key: &ElementKey,
    data: &Value,
    timeout_secs: Option<u64>,
    delete: bool,
    into: &mut Vec<Attrs>,
) {
    let length = set.key[0].bytes() as usize;
    // The kernel stores sets of one field as half-open intervals: a start, and an end that is one past the last.
    let tree = set.interval && set.key.len() == 1;
    let first = if set.key.len() == 1 {
        &key.first[..length]
    } else {
        &key.first[..]
    };
    let mut element = Attrs::default().nest(1, value(first));
    if set.interval && !tree {
        element = element.nest(10, value(&key.last));
    }
    if let (Value::Verdict(code, chain), false) = (data, delete) {
        let inner = Attrs::default().nest(2, verdict(*code, chain.as_deref()));
        element = element.nest(2, inner);
    }
    if let (Value::Counter(name), false) = (data, delete) {
        element = element.text(9, name);
    }
    if let Some(timeout_secs) = timeout_secs {
        element = element.be64(4, timeout_secs * 1000);
    }
    into.push(element);
    if let (true, Some(end)) = (tree, successor(&key.last[..length])) {
        into.push(
            Attrs::default()
                .nest(1, value(&end))
                .be32(3, ELEMENT_INTERVAL_END),
        );
    }
}

/// The next number in network byte order; `None` after the last.
pub(super) fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, overflow) = byte.overflowing_add(1);
        *byte = sum;
        if !overflow {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::successor;

    #[test]
    fn the_successor_carries_and_ends() {
        assert_eq!(successor(&[10, 0, 255]), Some(vec![10, 1, 0]));
        assert_eq!(successor(&[255, 255]), None);
    }
}
