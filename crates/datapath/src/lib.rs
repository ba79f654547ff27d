//! (skeleton)

pub mod gateway;
