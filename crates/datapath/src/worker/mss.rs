//! TCP maximum segment size (MSS) through the tunnel.

use egret_core::node::NodeState;
use egret_kernel::nft::Rule;
use egret_kernel::nft::rule::{Builder, Family, TCP_SYN};

const TCP_SYN_RST: u8 = 0x06;

/// Lowers the MSS of a SYN to what fits into the tunnel (RFC 9293 section 3.7.1).
pub(super) fn clamp_mss(packet: Builder, family: Family, state: &NodeState) -> Rule {
    let headers = if family == Family::V4 { 40 } else { 60 };
    let mss = u16::try_from(state.tunnel.mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
    packet
        .family(family)
        .tcp_flags(TCP_SYN_RST, TCP_SYN, true)
        .mss_at_most(mss)
}
