//! Errors of links, routes and rules.

use crate::netlink::NetlinkError;
use crate::sysctl::SysctlError;

/// Why links and routes are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tunnel device cannot have IPv6.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// There is a device of our name that is not ours; it is left alone.
    #[error("device {device} exists and is not a tunnel of Egret: rename or remove it")]
    NotOurs {
        /// Name.
        device: String,
    },
    /// There is no device of the name that was asked for.
    #[error("there is no network device {device}")]
    NoDevice {
        /// Name.
        device: String,
    },
    /// The device went away while it was worked on.
    #[error("device {device} was removed while it was set up")]
    Vanished {
        /// Name.
        device: String,
    },
}
