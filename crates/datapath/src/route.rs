//! The tunnel device and the objects that lead into it: neighbours, next hop objects, groups, routes and rules.
//!
//! Every object carries our route protocol number or belongs to our device, and only those are deleted.

pub(crate) mod desired;
mod error;
mod kernel;
pub(crate) mod policy;
mod tunnel;

pub use desired::{Desired, RouteEntry, RouteKind, RuleEntry, RuleKind};
pub use egret_kernel::route::{Advertised, Device, NextHop, WayOut};
pub use error::RouteError;
pub use kernel::Routing;
