//! The tunnel device and what leads into it: neighbours, next hop objects, groups, routes and rules.
//!
//! Everything carries our route protocol number or hangs on our device, and only that is ever deleted.

mod advertised;
mod device;
mod error;
mod kernel;
mod neighbour;
mod nexthop;
pub(crate) mod policy;
mod routers;
mod tunnel;
pub(crate) mod wanted;
mod way_out;
mod wire;

pub use advertised::Advertised;
pub use device::Device;
pub use error::RouteError;
pub use kernel::Routing;
pub use wanted::{NextHop, RouteEntry, RouteKind, RuleEntry, RuleKind, Wanted};
pub use way_out::WayOut;
