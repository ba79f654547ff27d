//! Tests of core's public interface: whole snapshots through planner, node state and checker.

mod announced;
mod canaries;
mod corruption;
mod destinations;
mod effects;
mod explaining;
mod external;
mod foreign_marks;
mod gateway_role;
mod histories;
mod incremental;
mod lagging;
mod lease_life;
mod leases;
mod next_hops;
mod nodes;
mod objects;
mod obstacles;
mod paths;
mod planning;
mod pod_addresses;
mod pools;
mod probe_targets;
mod scene;
mod somebodys;
mod telling;
