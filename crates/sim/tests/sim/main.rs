//! Simulated histories of whole clusters (docs/simulation.md).

mod seeds;
