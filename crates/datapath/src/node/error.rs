//! Errors of a node's data path.

use crate::canary::CanaryError;
use crate::gateway::BackendError;
use crate::uplink::UplinkError;
use crate::worker::driver::DatapathError;

/// Why [`super::NodeDatapath`] could not do something: which part failed, and why.
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
