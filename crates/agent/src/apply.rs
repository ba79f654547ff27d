//! What carries out decisions beside the data path: the gateway role between observers and data path, and what a restarted
//! agent must know to adopt what its predecessor left.

mod gateway;
mod remembered;

pub(crate) use gateway::{Gateway, RoundInputs};
pub(crate) use remembered::Remembered;
