//! Threads of the agent, and the closures that they pass values to.

use crate::error::AgentError;
use std::sync::Arc;
use std::thread;

/// Receives a thread's value; `false`: the receiver is gone, and the thread ends.
pub(crate) type Notify<T> = Arc<dyn Fn(T) -> bool + Send + Sync>;

/// Starts a named thread.
pub(crate) fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), AgentError> {
    let builder = thread::Builder::new().name(name.into());
    let spawned = builder.spawn(body);
    spawned.map(drop).map_err(|source| AgentError::Io {
        doing: "starting a thread",
        source,
    })
}
