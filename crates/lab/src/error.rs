//! Errors of the lab.

use crate::topology::TopologyError;
use std::path::PathBuf;
use std::time::Duration;

/// Error of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The topology cannot be built.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The lab's name contains other characters than lower-case letters, digits and `-`, or is too long.
    #[error("lab name {0:?}: 1 to 32 lower-case letters, digits or '-' are allowed")]
    Name(String),
    /// The lab is up already.
    #[error("lab {0:?} is up already; take it down first, or use another --name")]
    IsUp(String),
    /// The lab does not exist.
    #[error("lab {0:?} is not up")]
    NotUp(String),
    /// The host does not exist.
    #[error("no host {host:?} in this lab; hosts are {known}")]
    NoSuchHost {
        /// The requested name.
        host: String,
        /// The existing names.
        known: String,
    },
    /// The pod does not exist.
    #[error("no pod {0} in this lab; `egret lab status` lists them")]
    NoSuchPod(String),
    /// A place is neither `HOST` nor `pod/NAMESPACE/NAME`.
    #[error("{0:?} is neither HOST nor pod/NAMESPACE/NAME")]
    Place(String),
    /// The host is switched off.
    #[error("host {0:?} is off; `egret lab start {0}` switches it on")]
    Off(String),
    /// The control namespace has neither power nor cables.
    #[error(
        "`control` is no host: only its controller can be killed or frozen (--how agent, --how freeze)"
    )]
    NotControl,
    /// The host has no agent to kill or freeze.
    #[error("no agent runs on host {0:?}")]
    NoAgent(String),
    /// The program cannot be seen from inside the hosts.
    #[error(
        "{0} is below /run or /var/lib, which hosts of the lab have for themselves; put the program elsewhere"
    )]
    HiddenProgram(PathBuf),
    /// A manifest cannot be applied or deleted.
    #[error("{place}: {problem}")]
    Manifest {
        /// File and document.
        place: String,
        /// The fault.
        problem: String,
    },
    /// Another command holds the lab's lock.
    #[error("another command has been working on lab {0:?} for a minute")]
    Locked(String),
    /// The state file is not of the known form.
    #[error("{path} is not of the known form: {problem}")]
    State {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: String,
    },
    /// A program failed.
    #[error("{what} failed: {said}{}", with_input(.input))]
    Command {
        /// The command line.
        what: String,
        /// Its standard error.
        said: String,
        /// Its standard input.
        input: String,
    },
    /// A standing program ended.
    #[error("{what}: it ended at once; see the lab's log folder")]
    Ended {
        /// The condition that was awaited.
        what: String,
    },
    /// A condition did not become true in time.
    #[error("waited {after:?} in vain for {what}")]
    Timeout {
        /// The condition.
        what: String,
        /// The timeout.
        after: Duration,
    },
    /// A system call or file operation failed.
    #[error("{what}")]
    Io {
        /// The operation.
        what: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Parts that could not be taken down; all others were.
    #[error("not everything could be taken down: {0}")]
    Remains(String),
}

fn with_input(input: &str) -> String {
    if input.is_empty() {
        String::new()
    } else {
        format!("\nits input was:\n{input}")
    }
}

/// Adds the operation to an IO error.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> LabError {
    move |source| LabError::Io {
        what: what.into(),
        source,
    }
}
