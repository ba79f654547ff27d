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

/// From now on a panic of any thread or task of the process, after its message, aborts it. A thread that died alone would
/// leave an agent that looks ready and does a part of its work no more: without `probes`, no gateway would ever be declared
/// dead. Whoever started the process starts it again; the kernel's state stays meanwhile.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
