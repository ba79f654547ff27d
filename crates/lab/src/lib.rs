//! The lab: a cluster in namespaces on one machine, with real packets.
//!
//! ```text
//!  worker1..3   gateway1..3        each host: own process tree, mounts, network, name, /run, /var/lib/egret, bpffs
//!     |  |  |     |  |  |
//!   ==+==+==+==nodes==+==+==       each segment: a bridge in the namespace `control` (the controller runs there too)
//!              |
//!            router                knows no pod prefix
//!              |
//!   ========outside========
//!              |
//!            server
//! ```
//!
//! The root network namespace is never changed: every device is in a namespace that ends with its processes, so
//! [`Lab::down`] only has to kill them. The lab starts the program `egret` and links none of its crates.

pub mod capture;
pub mod cli;
pub mod demo;
pub mod error;
pub mod faults;
mod firewall;
mod host;
pub mod lab;
pub mod layout;
mod manifest;
pub mod namespace;
pub mod process;
mod ready;
pub mod slowness;
pub mod snapshot;
pub mod state;
pub mod status;
mod teardown;
pub mod topology;
pub mod traffic;

pub use capture::Capture;
pub use cli::LabCommand;
pub use demo::DemoOptions;
pub use error::LabError;
pub use faults::Hurt;
pub use lab::{Lab, OwnedLab, UpOptions};
pub use namespace::{Place, PlaceName};
pub use snapshot::Snapshot;
pub use state::StateDir;
pub use status::HostStatus;
pub use topology::Topology;
