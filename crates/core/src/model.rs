//! The validated domain: what the objects of any source mean, with every address parsed and every name typed.
//! `objects` builds these values ("parse, don't validate"); nothing behind knows which front-end an object came from.

mod cluster;
mod link;
mod objects;
mod policy;
mod record;

pub use cluster::*;
pub use link::*;
pub use objects::*;
pub use policy::*;
pub use record::*;
