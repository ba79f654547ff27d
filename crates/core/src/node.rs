//! The state of one node: what its kernel must contain, as data. `datapath` carries it out and makes no choice.

mod state;

pub use state::*;
