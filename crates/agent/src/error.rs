//! Why the agent cannot run.

use egret_datapath::worker::driver::DatapathError;
use egret_objects::SourceError;
use std::io;

/// Why the agent cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel's interfaces cannot be opened.
    #[error("opening the data path")]
    Datapath(#[from] DatapathError),
    /// The source cannot be opened.
    #[error("opening the source of objects")]
    Source(#[from] SourceError),
    /// A thread or socket cannot be made.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
