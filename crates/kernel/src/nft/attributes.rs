//! Attributes of nfnetlink messages (linux/netfilter/nfnetlink.h).

use crate::netlink::attributes;
use std::collections::BTreeMap;

/// Attributes of an nfnetlink message by type; of several of one type the last.
pub fn named(body: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    attributes(body.get(4..).unwrap_or(&[]))
        .map(|(kind, value)| (kind, value.to_vec()))
        .collect()
}

/// A string attribute without its terminating zero.
pub fn trimmed(value: &[u8]) -> String {
    String::from_utf8_lossy(value)
        .trim_end_matches('\0')
        .to_string()
}

/// The string attribute of this type; empty if absent.
pub fn text(object: &BTreeMap<u16, Vec<u8>>, kind: u16) -> String {
    object
        .get(&kind)
        .map(|value| trimmed(value))
        .unwrap_or_default()
}

/// The 32-bit attribute of this type in network byte order; 0 if absent.
pub fn number(object: &BTreeMap<u16, Vec<u8>>, kind: u16) -> u32 {
    let bytes = object
        .get(&kind)
        .and_then(|value| <[u8; 4]>::try_from(&value[..]).ok());
    bytes.map_or(0, u32::from_be_bytes)
}
