//! Real traffic between hosts and pods, without external tools: an answering server, requests to it, and flows that
//! measure themselves. Every function has a deadline; every background flow ends when it is stopped or dropped.

pub mod busy;
pub mod idle;
pub mod ping;
pub mod probe;
pub mod server;
pub mod source;

pub use busy::{BusyFlows, BusyReport};
pub use idle::{IdleFlows, IdleReport};
pub use ping::{PingOptions, ping};
pub use probe::{ProbeReport, UdpProbe};
pub use server::Server;
pub use source::{ping_source, tcp_source, udp_source};

use crate::LabError;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for a connection, and for an answer to a request.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Error of traffic.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The network or the peer refused, or no answer arrived in time (`ErrorKind::TimedOut`).
    #[error("{what} {peer}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The peer.
        peer: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The peer's answer is not that of the lab's server.
    #[error("{peer} answered {answer:?}, not an address and port")]
    Answer {
        /// The peer.
        peer: SocketAddr,
        /// The answer.
        answer: String,
    },
    /// The echo got no answer, or the server did not see the request.
    #[error("ping")]
    Ping(#[from] ping::PingError),
    /// The place cannot be entered.
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl TrafficError {
    fn io(what: &'static str, peer: SocketAddr) -> impl FnOnce(std::io::Error) -> Self {
        move |source| {
            // A socket's own timeout is reported as WouldBlock; callers should not have to know that.
            let source = match source.kind() {
                std::io::ErrorKind::WouldBlock => std::io::ErrorKind::TimedOut.into(),
                _ => source,
            };
            Self::Io { what, peer, source }
        }
    }

    /// Kind of the system's error, if there is one.
    pub fn kind(&self) -> Option<std::io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// Flag that ends threads, and that they can wait for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    flag: Arc<AtomicBool>,
    changed: Arc<(Mutex<()>, Condvar)>,
}

impl Stop {
    pub(crate) fn set(&self) {
        let guard = self
            .changed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.flag.store(true, Ordering::SeqCst);
        drop(guard);
        self.changed.1.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Waits until `due` or until the flag is set.
    pub(crate) fn wait_until(&self, due: Instant) {
        let mut guard = self
            .changed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_set() {
                return;
            }
            guard = match self.changed.1.wait_timeout(guard, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
