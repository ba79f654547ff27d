//! The content of a worker's nftables table: classification, source translation and guard (design section 4).
//!
//! ```text
//! prerouting -300 raw_in       node-to-peer tunnel packets untracked
//! output     -300 raw_out      node-to-peer tunnel packets untracked
//! input      -150 tunnel_in    tunnel packets from unknown senders dropped
//! forward    -150 clamp        forged tunnel packets dropped; MSS lowered to what the tunnel carries
//! prerouting last classify     late packets of ended flows dropped; source -> profile -> range -> target: mark
//! forward   first routed       our mark is cleared, before any foreign rule of this hook
//! input     first routed_in    the same for packets to the node itself
//! postrouting  90 nat          source -> profile -> range -> target: source translation into the lease
//! postrouting 300 guard        packets that would leave with a wrong source dropped
//! postrouting last into_tunnel the mark of packets that enter the tunnel is cleared
//! ```

mod base;
mod canary;
mod counters;
pub mod driver;
pub mod marks;
mod mss;
mod names;
mod next_hops;
mod profile;
mod quotas;
mod refusal;
mod traffic;

pub use counters::{COUNTERS, Counter, GUARD_IPVS};
pub use names::{ENDED_SETS, FULL_SETS, LATE_SETS, PORTLESS_SETS};
pub use traffic::Traffic;
pub(crate) use traffic::parted;

use egret_core::node::NodeState;
use egret_kernel::nft::Table;

/// Builds the whole table of one node. A pure function: equal states make equal tables.
pub fn table(state: &NodeState) -> Table {
    let mut table = Table {
        counters: COUNTERS.iter().map(|counter| counter.name).collect(),
        ..Table::default()
    };
    base::sets(state, &mut table);
    base::chains(state, &mut table);
    canary::chains(state, &mut table);
    traffic::counters(state, &mut table);
    profile::targets(state, &mut table);
    next_hops::chains(state, &mut table);
    profile::profiles(state, &mut table);
    quotas::add(state, &mut table);
    table
}
