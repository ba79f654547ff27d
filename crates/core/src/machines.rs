//! State machines without IO and without a clock: every input brings the time (milliseconds, monotonic, from any start),
//! every output is a command. `next_deadline` says when to call `handle_deadline` at the latest; `drain` hands out what
//! is to be done, in order.

mod announcer;
mod entrance;
mod holders;
mod liveness;
mod port_use;

pub use announcer::{Announcer, AnnouncerCommand};
pub use entrance::Entrance;
pub use holders::answering_nodes;
pub use liveness::{Liveness, LivenessCommand, ProbeSettings};
pub use port_use::{Destination, PortUse};
