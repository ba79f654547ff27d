//! Our own nftables table as a value, and its application to the kernel.
//!
//! [`Table`] is the content of the table; [`Nftables::apply`] sends the difference from what was applied before. Golden
//! tests compare the result with the `nft` program's, made from the same rules written as text.

mod apply;
mod attributes;
mod error;
mod expression;
mod forward;
mod message;
pub(crate) mod read;
pub(crate) mod rule;
mod table;
mod verify;

pub use apply::Nftables;
pub use error::NftError;
pub use expression::{
    Base, Checksum, Expression, FibResult, Key, MetaKey, Register, Rule, VERDICT,
};
pub use forward::Forwarding;
pub use table::{
    ByAddress, Chain, Count, Element, ElementKey, Hook, Set, SetType, Table, TableFamily, Value,
};
