//! The tunnel device and the objects that lead into it: neighbours, next hop objects, groups, routes and rules.
//!
//! Every object carries our route protocol number or belongs to our device, and only those are deleted.

mod advertised;
pub(crate) mod desired;
mod device;
mod error;
mod kernel;
mod neighbour;
mod nexthop;
pub(crate) mod policy;
mod routers;
mod tunnel;
mod way_out;
mod wire;

pub use advertised::Advertised;
pub use desired::{Desired, NextHop, RouteEntry, RouteKind, RuleEntry, RuleKind};
pub use device::Device;
pub use error::RouteError;
pub use kernel::Routing;
pub use way_out::OutboundNextHops;
