//! A cluster in one process: the real planner and the real decisions of agents over a model of the API, the network and
//! the kernels, in virtual time (docs/simulation.md).
//!
//! ```text
//!   seed -> generate::script -> Script: one Step per line
//!                                 |
//!                               World: Store (objects with versions)  <-> Controllers: core's Planner
//!                                 |       |                           <-> Machines: core's node_state and machines
//!                                 |       +- every client reads it late      and a model Kernel each
//!                               Checker: after every step, over the kernels
//! ```
//!
//! A script decides everything: there is no randomness in a run. So a failing script can be shortened step by step
//! ([`shrink::shrink`]) and kept as a file.
#![forbid(unsafe_code)]

mod agent;
mod checker;
mod cluster;
mod controller;
pub mod generate;
mod kernel;
mod machine;
mod rest;
mod rules;
pub mod run;
pub mod sabotage;
pub mod script;
pub mod shrink;
mod step;
mod store;
mod world;

pub use checker::{Rule, Violation};
pub use script::{Cluster, Script};
pub use step::{Client, Fate, Kind, Part, Place, Step};
pub use world::World;
