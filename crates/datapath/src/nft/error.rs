//! Errors of nftables.

use crate::netlink::NetlinkError;

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel refused something.
    #[error("programming nftables table {table}")]
    Netlink {
        /// Name of the table.
        table: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// Another live process owns the table of our name.
    #[error(
        "nftables table inet {table} belongs to another running process (port id {owner}): stop that agent first"
    )]
    Owned {
        /// Name of the table.
        table: String,
        /// Its netlink port id.
        owner: u32,
    },
}
