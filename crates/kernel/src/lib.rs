//! What the Linux kernel offers to a program that moves packets: netlink, nftables, routes, flows, settings, devices.
//! Knows nothing of Egret: names, numbers and marks are arguments.
//!
//! ```text
//! netlink    one synchronous socket, and a writer for attributes
//! nft        a table as a value, the transactions that lead to it, and its comparison with the kernel
//! route      devices, routes, next hops, neighbours: reading them, and messages that no crate has
//! conntrack  flows: reading, deleting, events
//! sysctl     settings, with a record of what was changed
//! veth       pairs of devices
//! tcx, clsact  order of the eBPF programs of a device
//! ```

pub mod clsact;
pub mod conntrack;
pub mod difference;
pub mod link;
pub mod netlink;
pub mod nft;
pub mod route;
pub mod sysctl;
pub mod tcx;
pub mod veth;
