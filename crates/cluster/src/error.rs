//! Why a cluster did not come up, or something in it did not work.

use egret_lab::LabError;
use std::path::PathBuf;

/// Why a cluster did not come up, or something in it did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Kubernetes, etcd or containerd are not there.
    #[error("{0}")]
    NotBuilt(String),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The lab below the cluster refused something, or a command failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The cluster is not up.
    #[error("cluster {0:?} is not up: ./dev cluster up")]
    NotUp(String),
    /// A program ended although it should go on.
    #[error("{what} ended; the end of {log}:\n{tail}")]
    Ended {
        /// The program.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what} was not there after {seconds} s: {said}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// The last answer, or the end of a log.
        said: String,
    },
    /// kubectl refused.
    #[error("kubectl {arguments}: {said}")]
    Kubectl {
        /// Its arguments.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// A pod has no network of its own, or it could not be found.
    #[error("no network of the pod {0}")]
    NoNetwork(String),
    /// What remains after taking down.
    #[error("still there: {0}")]
    Remains(String),
}

/// Wraps what the system said.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::Io { what, source }
}
