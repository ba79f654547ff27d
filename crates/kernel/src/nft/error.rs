//! Errors of nftables.

use crate::netlink::NetlinkError;

/// Error of programming or reading the table.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel refused a request.
    #[error("programming nftables table {table}")]
    Netlink {
        /// Name of the table.
        table: String,
        /// Cause.
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
