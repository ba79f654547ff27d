//! Errors of a node's data path.

use crate::canary::CanaryError;
use crate::gateway::BackendError;
use crate::uplink::UplinkError;
use crate::worker::driver::DatapathError;

/// Error of [`super::NodeDatapath`], by the part that failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeDatapathError {
    /// The worker: links, routes, nftables, connection tracking, settings.
    #[error(transparent)]
    Worker(#[from] DatapathError),
    /// The gateway's backend.
    #[error(transparent)]
    Gateway(#[from] BackendError),
    /// The uplink programs.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// The canary devices.
    #[error(transparent)]
    Canary(#[from] CanaryError),
}
