//! Formats that the uplink programs and their loader share: the Rust side of `bpf/include/uplink.h`.

use crate::gateway::abi::address;
use egret_core::node::ProfileId;
use egret_core::numbers::{GROUP_LEFT_ALONE, MARK_MASK, MARK_SHIFT};
use ipnet::IpNet;

/// Leading bits of an IPv4 prefix in its form as an IPv6 address.
const MAPPED_BITS: u32 = 96;
/// Bits of the family, which comes before the address and always counts fully.
const FAMILY_BITS: u32 = 32;
/// Bits of the profile, which comes before the family.
const PROFILE_BITS: u32 = 64;

/// `struct egret_uplink_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Index of the device at whose ingress reinjected packets appear.
    pub reinject_ifindex: u32,
    /// Our bits of a packet's mark.
    pub mark_mask: u32,
    /// Mark of a reinjected packet that the ruleset has left alone.
    pub mark_left: u32,
    /// MAC address of that device.
    pub reinject_mac: [u8; 6],
    /// Note of the loader: 0 tcx links, 1 clsact filters.
    pub attachment: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// Hash of the object that the attached programs came from.
    pub object_hash: u64,
}

/// Family and address of `struct egret_prefix`.
pub type Prefix = [u8; 20];
/// Profile, family and address of `struct egret_destination`.
pub type Destination = [u8; 28];
/// `struct egret_profile`.
pub type Profile = [u8; 8];

// SAFETY: repr(C), only integers and arrays of them, no padding (a test compares the size with the sum of the fields).
unsafe impl aya::Pod for Config {}

impl Config {
    /// Configuration of the programs for the reinject device; notes of the loader stay.
    pub fn of(ifindex: u32, mac: [u8; 6], old: &Config) -> Self {
        Config {
            reinject_ifindex: ifindex,
            mark_mask: MARK_MASK,
            mark_left: u32::from(GROUP_LEFT_ALONE) << MARK_SHIFT,
            reinject_mac: mac,
            ..*old
        }
    }
}

/// Converts a profile's name to the programs' format.
pub fn profile(id: ProfileId) -> Profile {
    id.0.to_ne_bytes()
}

/// Converts a prefix to the programs' format: number of bits that count, and family and address.
pub fn prefix(prefix: IpNet) -> (u32, Prefix) {
    let (front, version) = match prefix {
        IpNet::V4(_) => (MAPPED_BITS, 4u32),
        IpNet::V6(_) => (0, 6),
    };
    let mut key = [0; 20];
    key[..4].copy_from_slice(&version.to_ne_bytes());
    key[4..].copy_from_slice(&address(prefix.network()));
    (FAMILY_BITS + front + u32::from(prefix.prefix_len()), key)
}

/// Converts a profile's destination to the programs' format; `None`: all destinations of both families.
pub fn destination(id: ProfileId, to: Option<IpNet>) -> (u32, Destination) {
    let (bits, rest) = to.map_or((0, [0; 20]), prefix);
    let mut key = [0; 28];
    key[..8].copy_from_slice(&profile(id));
    key[8..].copy_from_slice(&rest);
    (PROFILE_BITS + bits, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::size_of;

    #[test]
    fn no_shape_has_padding() {
        assert_eq!(size_of::<Config>(), 4 * 3 + 6 + 1 + 5 + 8);
    }

    #[test]
    fn prefixes_of_both_families_lie_in_one_table() {
        let all: IpNet = "0.0.0.0/0".parse().unwrap();
        assert_eq!(prefix(all).0, 32 + 96);
        assert_eq!(prefix("2001:db8::/32".parse().unwrap()).0, 32 + 32);
        let (bits, key) = destination(ProfileId(7), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(bits, 64 + 32 + 96 + 8);
        assert_eq!(key[..8], 7u64.to_ne_bytes());
        assert_eq!(key[8..12], 4u32.to_ne_bytes());
        assert_eq!(key[22..], [0xff, 0xff, 10, 0, 0, 0]);
        assert_eq!(destination(ProfileId(7), None).0, 64);
    }
}
