//! Tests of core from outside: whole snapshots through planner, node state and checker.

mod planning;
mod scene;
