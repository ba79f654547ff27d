//! Byte formats that leave a process: frozen, without any dependency on the rest of Egret.
//!
//! - [`tunnel_mac`] and [`link_local`]: the addresses of a node inside the tunnel;
//! - [`probe`]: the liveness probe between nodes, answered by the gateway's eBPF program;
//! - [`cni`]: the protocol between the CNI plugin and its agent.
#![forbid(unsafe_code)]

pub mod cni;
pub mod probe;

use std::net::Ipv6Addr;

/// The MAC address of node `index` inside the tunnel: `02:65:67:72` ("egr", locally administered) and the index.
///
/// ```
/// assert_eq!(egret_wire::tunnel_mac(0x0102), [0x02, 0x65, 0x67, 0x72, 0x01, 0x02]);
/// ```
pub const fn tunnel_mac(index: u16) -> [u8; 6] {
    let [high, low] = index.to_be_bytes();
    [0x02, 0x65, 0x67, 0x72, high, low]
}

/// The link-local address of node `index` inside the tunnel: `fe80::<index>`.
///
/// ```
/// assert_eq!(egret_wire::link_local(0x2a).to_string(), "fe80::2a");
/// ```
pub const fn link_local(index: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, index)
}
