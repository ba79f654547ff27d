//! State machines without IO and without a clock: every input brings the time (milliseconds, monotonic, from any start),
//! every output is a command. `next_deadline` says when to call `handle_deadline` at the latest; `drain` hands out what
//! is to be done, in order.

mod announcer;
mod conflicts;
mod entrance;
mod fitness;
mod gateway_liveness;
mod gateway_role;
mod hearing;
mod holders;
mod isolation;
mod liveness;
mod next_hops;
mod port_use;
mod program_refusal;
mod schedule;
mod uplink;

pub use announcer::{Announcer, AnnouncerCommand};
pub use conflicts::{ConflictCommand, ConflictInputs, Conflicts};
pub use entrance::Entrance;
pub use fitness::{ExternalLink, GatewayFitness, OutboundRoute};
pub use gateway_liveness::GatewayLiveness;
pub use gateway_role::{EffectiveGateway, GatewayCommand, GatewayInputs, GatewayRole};
pub use hearing::Hearing;
pub use holders::answering_nodes;
pub use isolation::Isolation;
pub use liveness::{Liveness, LivenessCommand, ProbeSettings};
pub use next_hops::{NextHopProbes, Question};
pub use port_use::{Destination, PortUse};
pub use program_refusal::ProgramRefusal;
pub use schedule::{Schedule, Turn};
pub use uplink::{Others, Uplink};
