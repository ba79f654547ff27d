//! Stateful part between decisions and data path: the gateway role, and the state file that a restarted agent reads to
//! adopt its predecessor's kernel state.

mod gateway;
mod remembered;

pub(crate) use gateway::{Departed, Gateway, RoundInputs};
pub(crate) use remembered::Remembered;
