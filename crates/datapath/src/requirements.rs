//! Kernel requirements of the data path. `docs/requirements.md` documents them; `cargo test -p xtask` compares.

/// Oldest kernel that the gateway's programs support.
pub const FLOOR: (u8, u8) = (5, 15);
/// First kernel with tcx links; before, programs are attached as clsact filters.
pub const TCX: (u8, u8) = (6, 6);
/// First kernel with nftables tables that have an owner and outlive it.
pub const TABLE_OWNERS: (u8, u8) = (6, 9);
/// First kernel on which changes of a map of ranges take effect at once.
pub const MAPS_AT_ONCE: (u8, u8) = (6, 17);

/// Kernel options of every node.
pub const OPTIONS: &[&str] = &[
    "VXLAN",
    "LWTUNNEL",
    "IP_MULTIPLE_TABLES",
    "IPV6_MULTIPLE_TABLES",
    "IP_ROUTE_MULTIPATH",
    "NF_TABLES",
    "NF_TABLES_INET",
    "NFT_CT",
    "NFT_NAT",
    "NFT_REJECT",
    "NFT_FIB_INET",
    "NF_CONNTRACK",
    "NF_CT_NETLINK",
];
/// Further options where eBPF programs run.
pub const BPF_OPTIONS: &[&str] = &["BPF_SYSCALL", "BPF_JIT", "NET_SCH_INGRESS", "NET_CLS_BPF"];
/// Further options where packets are reinjected into the stack.
pub const REINJECT_OPTIONS: &[&str] = &["VETH"];
/// Further options where a quota applies.
pub const QUOTA_OPTIONS: &[&str] = &["NFT_CONNLIMIT"];
