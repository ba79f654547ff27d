//! Errors of links, routes and rules.

use egret_kernel::netlink::NetlinkError;
use egret_kernel::sysctl::SysctlError;

/// Error of links, routes and rules.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel refused a message.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tunnel device cannot have IPv6.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A device of our name is not ours; it is left alone.
    #[error("device {device} exists and is not a tunnel of Egret: rename or remove it")]
    NotOurs {
        /// Name.
        device: String,
    },
    /// No device has this name.
    #[error("there is no network device {device}")]
    NoDevice {
        /// Name.
        device: String,
    },
    /// The device was removed during its setup.
    #[error("device {device} was removed while it was set up")]
    Vanished {
        /// Name.
        device: String,
    },
}
