//! The tunnel device and the objects that lead into it: neighbours, next hop objects, groups, routes and rules.
//!
//! Every object carries our route protocol number or belongs to our device, and only those are deleted.

mod desired;
mod error;
mod kernel;
pub mod policy;
mod tunnel;

pub use desired::{Desired, METRIC_GROUP, METRIC_LAST, RouteEntry, RouteKind, RuleEntry, RuleKind};
pub use egret_kernel::route::{Advertised, Device, NextHop, OutboundNextHops};
pub use error::RouteError;
pub use kernel::Routing;
