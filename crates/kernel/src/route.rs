//! Devices, routes, next hops and neighbours (rtnetlink(7)).

pub mod advertised;
pub mod device;
pub mod lookup;
pub mod nexthop;
pub mod routers;
pub mod way_out;
pub mod wire;

pub use advertised::Advertised;
pub use device::Device;
pub use nexthop::NextHop;
pub use way_out::WayOut;
