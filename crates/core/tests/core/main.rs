//! Tests of core from outside: whole snapshots through planner, node state and checker.

mod destinations;
mod histories;
mod planning;
mod scene;
