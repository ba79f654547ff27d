//! (stand-in until the directory source is merged)
#![forbid(unsafe_code)]
mod source;
mod status;
pub use source::*;
pub use status::*;
