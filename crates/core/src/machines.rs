//! State machines without IO and without a clock. Every input carries the time (milliseconds, monotonic, from any
//! start); every output is a command. `next_deadline` returns the latest time to call `handle_deadline`; `drain`
//! returns the pending commands, in order.

mod announce_candidates;
mod announcer;
mod conflicts;
mod departure;
mod drain;
mod fitness;
mod gateway_lag;
mod gateway_liveness;
mod gateway_role;
mod grant_gate;
mod hearing;
mod held_ports;
mod isolation;
mod join_delay;
mod liveness;
mod next_hops;
mod node_leases;
mod peer_memory;
mod port_demand;
mod port_use;
mod program_refusal;
mod schedule;
mod standing;
mod steering_memory;
mod succession;
mod uplink;

pub use announce_candidates::answering_nodes;
pub use announcer::{Announcer, AnnouncerCommand};
pub use conflicts::{ConflictCommand, ConflictInputs, Conflicts};
pub use departure::Departure;
pub use drain::{Drain, DrainPhase, DrainReport};
pub use fitness::{ExternalLink, GatewayFitness, OutboundRoute};
pub use gateway_lag::{GatewayLag, GroupNodes, group_nodes};
pub use gateway_liveness::GatewayLiveness;
pub use gateway_role::{EffectiveGateway, GatewayCommand, GatewayInputs, GatewayRole};
pub use grant_gate::{GrantGate, GrantMemory};
pub use hearing::Hearing;
pub use held_ports::{HeldPorts, HeldReport, ReportNumber};
pub use isolation::Isolation;
pub use join_delay::Entrance;
pub use liveness::{Liveness, LivenessCommand, ProbeSettings};
pub use next_hops::{NextHopProbes, Question};
pub use node_leases::{LeaseReport, NodeLeases};
pub use peer_memory::PeerMemory;
pub use port_demand::{PortDemand, wanted_ports};
pub use port_use::{Destination, PortUse};
pub use program_refusal::ProgramRefusal;
pub use schedule::{Schedule, Turn};
pub use standing::{Standing, counting, standing};
pub use steering_memory::SteeringMemory;
pub use uplink::{Others, Uplink};
