//! The state of one node: what its kernel must contain, as data. `datapath` carries it out and makes no choice.

mod lookup;
mod state;

pub use lookup::Fate;
pub use state::*;
