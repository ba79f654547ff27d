//! Earlier egress systems: what they left on a node, and what their objects mean in ours.
//!
//! ```text
//! earlier    whose it is, what a person would type to remove it: a pure function of what was read
//! legacy     reads a node's kernel in the form of `earlier`, and removes from it
//! files      the same for files
//! leftovers  reads both, finds, removes, and reads again
//! convert    objects of other systems -> objects of ours, and every field that is lost
//! ```
//!
//! Objects that Egret serves as they are come through `egret_objects::front_end`. Nothing else of Egret knows this crate,
//! but the commands `doctor` and `convert`.

pub mod convert;
pub mod earlier;
mod files;
mod leftovers;
pub mod legacy;

pub use leftovers::{Failure, Leftovers, Removal};
