//! Every decision of Egret, as pure functions: no IO, no clock, no randomness, no hash order.
//!
//! ```text
//!  objects (any source)
//!      | parsed, not validated twice
//!  model::Snapshot --plan--> plan::ClusterPlan + findings      (controller: addresses, leases, status)
//!      |                        |
//!      +-------- node::NodeFacts+--> node::NodeState           (agent: what this kernel must contain)
//!                                        |
//!                                   check (independent: never calls plan or node)
//! ```
//!
//! State machines (`machines`) take `now` as an argument and return commands.
#![forbid(unsafe_code)]

pub mod announced;
pub mod canary;
pub mod check;
mod compile;
pub mod condition;
pub mod error;
pub mod explain;
pub mod hash;
pub mod machines;
pub mod model;
pub mod node;
pub mod numbers;
pub mod obstacle;
mod pairs;
pub mod plan;
pub mod rendezvous;
mod resolve;
