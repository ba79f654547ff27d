//! Reports changes of links, addresses, routes, rules, next hops and of our own neighbours at once.

use crate::error::AgentError;
use crate::threads::spawn;
use egret_core::numbers::TUNNEL_DEVICE;
use egret_kernel::route::changes::Changes;

/// Starts the watch, which ends when `tell` returns false. Changes made through the socket with the port `own` are known
/// already and are not reported.
pub(crate) fn watch(
    own: u32,
    tell: impl FnMut() -> bool + Send + 'static,
) -> Result<(), AgentError> {
    let changes = Changes::open().map_err(|source| AgentError::Io {
        doing: "watching links and routes",
        source,
    })?;
    spawn("links", move || {
        changes.watch(Some(own), TUNNEL_DEVICE, tell);
    })
}
