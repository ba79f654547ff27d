//! The second driver, `classic`: translation at the node that holds the address, for kube-egress' users
//! (`docs/classic.md`). It shares the data path's parts with the first one and none of its decisions.
//!
//! ```text
//! kube_egress  flags and mapping directories -> ClassicWanted
//! state        ClassicWanted + the node's addresses -> ClassicState: a pure function
//! table, policy_routes   ClassicState -> nftables, routes and rules
//! datapath     carries a state out, in the order that keeps every packet's source right
//! run          reads, decides and carries out when something changes; watch: when mappings change
//! ```

mod datapath;
pub mod kube_egress;
mod policy_routes;
mod run;
pub mod state;
mod table;
mod watch;

pub use datapath::ClassicDatapath;
pub use run::{ClassicConfig, ClassicError, ReadWanted, cleanup_classic, run_classic};
pub use table::{COUNTERS, table};
