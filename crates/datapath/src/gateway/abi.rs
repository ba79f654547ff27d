//! Formats that the eBPF programs and their loader share: the Rust side of `bpf/include/abi.h`.

use egret_core::node::{GatewayPeers, Steering, TunnelIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// Port blocks of one address: 65536 ports by 64.
pub const BLOCKS: usize = 1024;
/// Slot of a block without an owner.
pub const SLOT_NONE: u16 = 0;
/// Slot of a block of this node's own worker role: the packet goes up the stack.
pub const SLOT_SELF: u16 = 0xffff;
/// Flag of an address: this gateway answers ARP and ND for it.
pub const ANNOUNCE: u32 = 1;
/// Position of the number of an address's group in its flags.
pub const GROUP_SHIFT: u32 = 16;
/// Keys of `peers` above all tunnel indexes: this and the number of a group.
pub const RELAY_KEY_BASE: u32 = 0x10000;
/// Most entries of `peers`.
pub const PEERS_MAX: usize = 4096;

/// Format of an address in the programs: IPv4 as `::ffff:a.b.c.d`, network byte order.
pub type Address = [u8; 16];

/// `struct egret_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Index of the external device.
    pub external_ifindex: u32,
    /// Index of the tunnel device.
    pub tunnel_ifindex: u32,
    /// Largest IP packet inside the tunnel, bytes.
    pub tunnel_mtu: u32,
    /// Own tunnel index.
    pub own_index: u16,
    /// MAC address of the external device.
    pub external_mac: [u8; 6],
    /// Own MAC address inside the tunnel.
    pub tunnel_mac: [u8; 6],
    /// Note of the loader: 0 tcx links, 1 clsact filters.
    pub attachment: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// Source of ICMP errors; all zero: none.
    pub external_v4: Address,
    /// Source of ICMPv6 errors; all zero: none.
    pub external_v6: Address,
    /// Steering version that probes report; written last.
    pub steering_version: u64,
    /// Hash of the object that the attached programs came from.
    pub object_hash: u64,
}

/// `struct egret_steering`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeringValue {
    /// Repetition of the key, see `abi.h`.
    pub address: Address,
    /// Zero or [`ANNOUNCE`], and the number of the group from [`GROUP_SHIFT`] on.
    pub flags: u32,
    /// Tunnel index by block, or [`SLOT_NONE`], [`SLOT_SELF`].
    pub slots: [u16; BLOCKS],
}

/// `struct egret_worker`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Underlay address.
    pub underlay: Address,
    /// MAC address inside the tunnel.
    pub tunnel_mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// `struct egret_owner`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Egress address.
    pub address: Address,
    /// Tunnel index (own index for this node's own blocks).
    pub worker: u32,
}

/// Sizes of key and value of `fragments`: only the programs write it.
pub const FRAGMENT_BYTES: (u32, u32) = (40, 16);

// SAFETY: repr(C), only integers and arrays of them, no padding (the tests compare the sizes with the sum of the fields).
unsafe impl aya::Pod for Config {}
// SAFETY: as above.
unsafe impl aya::Pod for SteeringValue {}
// SAFETY: as above.
unsafe impl aya::Pod for Worker {}
// SAFETY: as above.
unsafe impl aya::Pod for Owner {}

/// Converts an address to the programs' format.
pub fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Converts an address from the programs' format.
pub fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

impl Worker {
    /// Entry of a worker.
    pub fn new(index: TunnelIndex, underlay: IpAddr) -> Self {
        Self {
            underlay: address(underlay),
            tunnel_mac: egret_wire::tunnel_mac(index),
            reserved: [0; 2],
        }
    }
}

/// Entries of `peers`. Gateways beyond [`PEERS_MAX`] are left out: nothing is passed to or taken from them.
pub fn peers(state: &GatewayPeers) -> BTreeMap<u32, u32> {
    let relays = state
        .relays
        .iter()
        .map(|(group, index)| (RELAY_KEY_BASE + u32::from(*group), u32::from(*index)));
    let members = state.members.iter().map(|index| (u32::from(*index), 1));
    relays.chain(members).take(PEERS_MAX).collect()
}

impl SteeringValue {
    /// Table of an address on the node `own`. Blocks beyond 1023 are left out: they contain no port.
    pub fn new(egress: IpAddr, steering: &Steering, own: TunnelIndex) -> Self {
        let mut value = Self {
            address: address(egress),
            flags: u32::from(steering.group) << GROUP_SHIFT
                | if steering.announce { ANNOUNCE } else { 0 },
            slots: [SLOT_NONE; BLOCKS],
        };
        for (block, worker) in &steering.blocks {
            debug_assert!(
                usize::from(*block) < BLOCKS,
                "block {block} of {egress} names no port"
            );
            if let Some(slot) = value.slots.get_mut(usize::from(*block)) {
                *slot = if *worker == own { SLOT_SELF } else { *worker };
            }
        }
        value
    }

    /// Workers that own any block, this node by its own index.
    pub fn owners(&self, own: TunnelIndex) -> BTreeSet<Owner> {
        let worker = |slot: &u16| match *slot {
            SLOT_NONE => None,
            SLOT_SELF => Some(own),
            other => Some(other),
        };
        let workers = self.slots.iter().filter_map(worker);
        workers
            .map(|worker| Owner {
                address: self.address,
                worker: u32::from(worker),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::size_of;

    #[test]
    fn no_shape_has_padding() {
        assert_eq!(
            size_of::<Config>(),
            4 * 3 + 2 + 6 * 2 + 1 + 5 + 16 * 2 + 8 * 2
        );
        assert_eq!(size_of::<SteeringValue>(), 16 + 4 + 2 * BLOCKS);
        assert_eq!(size_of::<Worker>(), 16 + 6 + 2);
        assert_eq!(size_of::<Owner>(), 16 + 4);
    }

    #[test]
    fn constants_are_those_of_the_header() {
        let header = include_str!("../../../../bpf/include/abi.h");
        let has = |name: &str, value: &str| {
            let line = header
                .lines()
                .find(|line| line.starts_with(&format!("#define {name} ")));
            assert_eq!(
                line.and_then(|line| line.split_whitespace().nth(2)),
                Some(value),
                "{name}"
            );
        };
        has("EGRET_VNI", &egret_core::numbers::TUNNEL_VNI.to_string());
        has(
            "EGRET_RELAY_VNI",
            &egret_core::numbers::RELAY_VNI.to_string(),
        );
        has(
            "EGRET_NEXT_HOP_VNI_BASE",
            &format!("{:#x}", egret_core::numbers::NEXT_HOP_VNI_BASE),
        );
        // Upper bound of next hops. Another map size would be another map, made anew under traffic.
        const NEXT_HOPS_MAX: u8 = 250;
        const { assert!(egret_core::numbers::GROUPS_MAX <= NEXT_HOPS_MAX) };
        has("EGRET_NEXT_HOPS_MAX", &NEXT_HOPS_MAX.to_string());
        has(
            "EGRET_MARK_MASK",
            &format!("{:#010x}u", egret_core::numbers::MARK_MASK),
        );
        has(
            "EGRET_MARK_SHIFT",
            &egret_core::numbers::MARK_SHIFT.to_string(),
        );
        let v4 = egret_core::numbers::CANARY_DESTINATION_V4.to_bits();
        has("EGRET_CANARY_V4", &format!("{v4:#x}u"));
        let words = egret_core::numbers::CANARY_DESTINATION_V6.segments();
        assert_eq!((words[0], words[1..5].iter().sum()), (0x100, 0u16));
        has("EGRET_CANARY_V6_WORD", &format!("{:#010x}u", words[5]));
        has(
            "EGRET_PROBE_PORT",
            &egret_core::numbers::PROBE_PORT.to_string(),
        );
        has(
            "EGRET_BLOCK_SHIFT",
            &egret_core::numbers::BLOCK_PORTS.ilog2().to_string(),
        );
        has("EGRET_BLOCKS", &BLOCKS.to_string());
        has("EGRET_SLOT_NONE", &SLOT_NONE.to_string());
        has("EGRET_SLOT_SELF", &format!("{SLOT_SELF:#x}"));
        has("EGRET_ANNOUNCE", &format!("{ANNOUNCE}u"));
        has("EGRET_GROUP_SHIFT", &GROUP_SHIFT.to_string());
        has("EGRET_RELAY_KEY_BASE", &format!("{RELAY_KEY_BASE:#x}u"));
        has("EGRET_PEERS_MAX", &PEERS_MAX.to_string());
    }

    #[test]
    fn probes_are_those_of_the_wire_format() {
        assert_eq!(egret_wire::probe::PORT, egret_core::numbers::PROBE_PORT);
        assert_eq!(egret_wire::probe::VNI, egret_core::numbers::TUNNEL_VNI);
    }

    #[test]
    fn a_table_has_its_own_blocks_as_self_and_the_rest_as_nobodys() {
        let steering = Steering {
            blocks: [(16, 7), (17, 3), (1023, 9)].into(),
            announce: true,
            ..Steering::default()
        };
        let value = SteeringValue::new("192.0.2.1".parse().unwrap(), &steering, 3);
        assert_eq!(
            (value.flags, ip(value.address)),
            (ANNOUNCE, "192.0.2.1".parse().unwrap())
        );
        assert_eq!(
            (
                value.slots[15],
                value.slots[16],
                value.slots[17],
                value.slots[1023]
            ),
            (0, 7, SLOT_SELF, 9)
        );
        let owners: Vec<u32> = value.owners(3).iter().map(|owner| owner.worker).collect();
        assert_eq!(owners, [3, 7, 9]);
    }
}
