//! Sources of objects, and the only path from API objects to `egret_core::model`.
//!
//! ```text
//!  PATH/**/*.yaml        PATH/status/<kind>/*.yaml        the Kubernetes API
//!        |  user's files        |  ours: whole objects          |
//!        +-------- dir ---------+                             kube
//!                   |  api types, k8s types                     |
//!                   +-------------------+-----------------------+
//!                convert            invalid objects become findings; all others are converted
//!                   |
//!                 View = egret_core::model::Snapshot + findings + statuses
//! ```
//!
//! A [`Source`] is blocking and belongs to one thread. Nothing behind [`View`] knows which source it came from.
#![forbid(unsafe_code)]

pub mod convert;
pub mod dir;
pub mod front_end;
pub mod kube;
pub mod plugin;
mod source;
mod status;

pub use source::*;
pub use status::*;
