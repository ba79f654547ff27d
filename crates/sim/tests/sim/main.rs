//! Simulated histories of whole clusters (docs/simulation.md).

mod broken;
mod scripts;
mod seeds;
