//! The two threads that touch the source: one reads, one writes this node's status.

use crate::main_loop::Event;
use crate::{AgentError, OpenSource, chain};
use egret_core::model::NodeRecord;
use egret_objects::{NodeReport, Source, SourceError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest wait for a change before the source is looked at anyway.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
/// Pause after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);

/// What this node reports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    /// The agent's part is what counts.
    pub(crate) record: NodeRecord,
    /// Beside it.
    pub(crate) report: NodeReport,
}

/// Starts the thread that reads.
pub(crate) fn read(
    open: &OpenSource,
    events: Sender<Event>,
    stop: &Arc<AtomicBool>,
) -> Result<(), AgentError> {
    let mut source = open()?;
    let stop = stop.clone();
    spawn("source", move || {
        let mut changed = true;
        while !stop.load(Ordering::Relaxed) {
            if changed {
                let event = match source.snapshot() {
                    Ok(view) => Event::View(Box::new(view)),
                    Err(error) => Event::SourceError(chain(&error)),
                };
                if events.send(event).is_err() {
                    return;
                }
            }
            changed = match source.wait(LOOK_ANYWAY) {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "waiting for changes failed");
                    thread::park_timeout(PAUSE_AFTER_ERROR);
                    true
                }
            };
        }
    })
}

/// Starts the thread that writes, and returns the way to it. Only the newest status counts.
pub(crate) fn write(open: &OpenSource) -> Result<Sender<Status>, AgentError> {
    let mut source = open()?;
    let (sender, inbox) = mpsc::channel();
    spawn("status", move || write_loop(source.as_mut(), &inbox))?;
    Ok(sender)
}

fn write_loop(source: &mut dyn Source, inbox: &Receiver<Status>) {
    while let Ok(mut status) = inbox.recv() {
        loop {
            while let Ok(newer) = inbox.try_recv() {
                status = newer;
            }
            match source.write_node_status(&status.record, &status.report, now_secs()) {
                Ok(_) => break,
                // The record has gone: the controller makes a new one, and the next view brings a new status.
                Err(SourceError::NotFound { .. }) => break,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the node's status could not be written");
                    match inbox.recv_timeout(PAUSE_AFTER_ERROR) {
                        Ok(newer) => status = newer,
                        Err(mpsc::RecvTimeoutError::Timeout) => {}
                        Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                }
            }
        }
    }
}

fn now_secs() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

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
