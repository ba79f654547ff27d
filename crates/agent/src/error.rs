//! Errors that prevent the agent from running.

use egret_datapath::worker::driver::DatapathError;
use egret_objects::SourceError;
use std::io;

/// Error that prevents the agent from running.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel's interfaces cannot be opened.
    #[error("opening the data path")]
    Datapath(#[from] DatapathError),
    /// The source cannot be opened.
    #[error("opening the source of objects")]
    Source(#[from] SourceError),
    /// A thread or socket cannot be created.
    #[error("{doing}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}
