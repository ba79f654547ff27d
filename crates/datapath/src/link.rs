//! What the messages about our own devices share (rtnetlink(7), linux/if_link.h).

use crate::netlink::Attrs;
use nix::libc;

/// Settings by address family.
pub(crate) const IFLA_AF_SPEC: u16 = 26;

/// `struct ifinfomsg` of the device with this index; `up` raises it, else its state stays.
pub(crate) fn header(index: u32, up: bool) -> Vec<u8> {
    let up = if up { libc::IFF_UP as u32 } else { 0 };
    [0, index, up, up]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// Value of [`IFLA_AF_SPEC`]: no addresses of the kernel's own making, and loose reverse-path filtering, because what
/// comes out of our devices comes from anywhere.
pub(crate) fn bare_and_loose() -> Attrs {
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_RP_FILTER: u16 = 8;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const GEN_MODE_NONE: u8 = 1;
    const LOOSE: u32 = 2;
    let v4 = Attrs::default().nest(
        IFLA_INET_CONF,
        Attrs::default().u32(IPV4_DEVCONF_RP_FILTER, LOOSE),
    );
    let v6 = Attrs::default().u8(IFLA_INET6_ADDR_GEN_MODE, GEN_MODE_NONE);
    Attrs::default()
        .nest(libc::AF_INET as u16, v4)
        .nest(libc::AF_INET6 as u16, v6)
}
