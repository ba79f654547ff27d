//! An nftables table as a value, and its application to the kernel.
//!
//! [`Table`] is the content of the table; [`Nftables::apply`] sends the difference from what was applied before. Golden
//! tests compare the result with the `nft` program's, made from the same rules written as text.

mod apply;
pub mod attributes;
mod error;
mod expression;
pub mod message;
pub mod read;
pub mod rule;
mod table;
mod verify;

pub use apply::Nftables;
pub use error::NftError;
pub use expression::{
    Base, Checksum, Expression, FibResult, Key, MetaKey, Register, Rule, VERDICT,
};
pub use table::{
    Chain, Count, Element, ElementKey, Elements, Hook, Set, SetType, SharedElements, Table,
    TableFamily, TunnelKey, Value,
};
