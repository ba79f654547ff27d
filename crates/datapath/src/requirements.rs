//! What the data path needs of the kernel. `docs/requirements.md` tells people; `cargo test -p xtask` compares.

/// The oldest kernel that the gateway's programs are made for.
pub const FLOOR: (u8, u8) = (5, 15);
/// tcx links; before, programs are attached as clsact filters.
pub const TCX: (u8, u8) = (6, 6);
/// nftables tables that have an owner and outlive it.
pub const TABLE_OWNERS: (u8, u8) = (6, 9);
/// Changes of a map of ranges take effect at once.
pub const MAPS_AT_ONCE: (u8, u8) = (6, 17);

/// Options of every node.
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
/// Further ones where eBPF programs run.
pub const BPF_OPTIONS: &[&str] = &["BPF_SYSCALL", "BPF_JIT", "NET_SCH_INGRESS", "NET_CLS_BPF"];
/// Further ones where packets are lifted into the stack.
pub const LIFT_OPTIONS: &[&str] = &["VETH"];
