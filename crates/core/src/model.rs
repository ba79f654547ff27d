//! The validated domain model: objects of any source, with every address parsed and every name typed. `objects` builds
//! these values ("parse, don't validate"). Code behind the model does not know which front-end an object came from.

mod cluster;
mod finding;
mod gateway;
mod held_by;
mod ids;
mod link;
mod policy;
mod pool;
mod port_blocks;
mod quotas;
mod record;
mod reserved;
mod settings;
mod shared_map;

pub use cluster::*;
pub use finding::*;
pub use gateway::*;
pub use held_by::*;
pub use ids::*;
pub use link::*;
pub use policy::*;
pub use pool::*;
pub use port_blocks::*;
pub use quotas::*;
pub use record::*;
pub use settings::*;
pub use shared_map::*;
