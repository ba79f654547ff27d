//! Errors of a cluster.

use egret_lab::LabError;
use std::path::PathBuf;

/// Error of bringing a cluster up or using it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Kubernetes, etcd or containerd are missing.
    #[error("{0}")]
    NotBuilt(String),
    /// The system refused an operation.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The cluster's lab refused an operation, or a command failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The cluster is not up.
    #[error("cluster {0:?} is not up: ./dev cluster up")]
    NotUp(String),
    /// A program that should run on ended.
    #[error("{what} ended; the end of {log}:\n{tail}")]
    Ended {
        /// The program.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// An expected state was not reached in time.
    #[error("{what} was not there after {seconds} s: {said}")]
    Timeout {
        /// The expected state.
        what: String,
        /// Seconds of the wait.
        seconds: u64,
        /// The last answer, or the end of a log.
        said: String,
    },
    /// kubectl refused.
    #[error("kubectl {arguments}: {said}")]
    Kubectl {
        /// Its arguments.
        arguments: String,
        /// Its output.
        said: String,
    },
    /// A pod has no network of its own, or its network was not found.
    #[error("no network of the pod {0}")]
    NoNetwork(String),
    /// Objects that remain after taking down.
    #[error("still there: {0}")]
    Remains(String),
}

/// Wraps an error of the system.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::Io { what, source }
}
