//! The two threads that touch the source: one reads, one writes this node's status.

use crate::main_loop::Event;
use crate::{AgentError, OpenSource, chain};
use egret_core::model::NodeRecord;
use egret_objects::{NodeReport, Source, SourceError, View};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest wait for a change before the source is looked at anyway.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
/// Pause after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);
/// Longest pause after several errors in a row.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// What this node reports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    /// The agent's part is what counts.
    pub(crate) record: NodeRecord,
    /// Beside it.
    pub(crate) report: NodeReport,
}

/// The newest view that nobody has looked at yet. Older ones are of no use to anybody, and a queue of them grows without
/// bound where views come faster than they are carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Newest(Arc<Mutex<Option<Left>>>);

/// A view, and since when there has been one that nobody has looked at.
type Left = (Box<View>, Instant);

impl Newest {
    /// Leaves a view; whether there was none.
    fn put(&self, view: Box<View>) -> bool {
        let mut slot = self.slot();
        let since = slot.as_ref().map(|(_, since)| *since);
        *slot = Some((view, since.unwrap_or_else(Instant::now)));
        since.is_none()
    }

    /// Takes it, and since when it or an older one has waited.
    pub(crate) fn take(&self) -> Option<(Box<View>, Instant)> {
        self.slot().take()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Left>> {
        // A value is put or taken whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread that reads.
pub(crate) fn read(
    open: &OpenSource,
    events: Sender<Event>,
    stop: &Arc<AtomicBool>,
) -> Result<(), AgentError> {
    let mut source = open()?;
    let stop = stop.clone();
    let newest = Newest::default();
    spawn("source", move || {
        let mut changed = true;
        while !stop.load(Ordering::Relaxed) {
            if changed {
                let event = match source.snapshot() {
                    Ok(view) => newest
                        .put(Box::new(view))
                        .then(|| Event::View(newest.clone())),
                    Err(error) => Some(Event::SourceError(chain(&error))),
                };
                if event.is_some_and(|event| events.send(event).is_err()) {
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
        let mut pause = PAUSE_AFTER_ERROR;
        loop {
            while let Ok(newer) = inbox.try_recv() {
                status = newer;
            }
            match source.write_node_status(&status.record, &status.report, now_secs()) {
                Ok(_) => {
                    if pause > PAUSE_AFTER_ERROR {
                        tracing::info!("the node's status is written again");
                    }
                    break;
                }
                // The record has gone: the controller makes a new one, and the next view brings a new status.
                Err(SourceError::NotFound { .. }) => break,
                Err(error) => {
                    let error = chain(&error);
                    if pause == PAUSE_AFTER_ERROR {
                        tracing::warn!(error, "the node's status could not be written");
                    } else {
                        tracing::debug!(error, "the node's status could not be written again");
                    }
                    match rest(inbox, jittered(pause)) {
                        Ok(newer) => status = newer.unwrap_or(status),
                        Err(mpsc::RecvError) => return,
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

/// Waits for this long, also if there is a newer status by then: an API server that comes back is not stormed.
fn rest(inbox: &Receiver<Status>, pause: Duration) -> Result<Option<Status>, mpsc::RecvError> {
    let deadline = Instant::now() + pause;
    let mut newest = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(left) {
            Ok(newer) => newest = Some(newer),
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(newest),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(mpsc::RecvError),
        }
    }
}

/// Between three and five quarters of a pause, so that many agents do not come back in one moment.
fn jittered(pause: Duration) -> Duration {
    // Seeded by the system.
    let random = RandomState::new().build_hasher().finish() % 512;
    let share = u32::try_from(random).unwrap_or(0);
    pause * 3 / 4 + pause * share / 1024
}

/// Seconds since the Unix epoch.
pub(crate) fn now_secs() -> i64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_and_stay_near_what_was_asked() {
        let pauses: Vec<Duration> = (0..64).map(|_| jittered(PAUSE_MAX)).collect();
        let near = PAUSE_MAX * 3 / 4..=PAUSE_MAX * 5 / 4;
        assert!(
            pauses.iter().all(|pause| near.contains(pause)),
            "{pauses:?}"
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
