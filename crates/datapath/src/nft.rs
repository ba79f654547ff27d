//! Our own nftables table as a value, and its way into the kernel.
//!
//! [`Table`] says what the table contains; [`Nftables::apply`] turns the difference to what was applied before into one
//! transaction. Golden tests compare the result with what the `nft` program makes of the same rules written as text.

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
