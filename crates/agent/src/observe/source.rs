//! Thread that reads the objects: a source that hangs stops updates, not traffic.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::error::with_causes;
use egret_objects::{Source, SourceError, View};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for a notification before the source is read anyway.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
/// Pause after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);

/// Opens the source; called once for each thread that uses it.
pub type OpenSource = Arc<dyn Fn() -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// Result of reading the objects.
#[derive(Debug)]
pub(crate) enum Reading {
    /// There is a new view.
    View(LatestView),
    /// Reading failed, with this error; the last view stays valid.
    Failed(String),
}

/// The newest view that is not taken yet. Older ones are dropped: a queue would grow without bound where views arrive
/// faster than they are applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct LatestView(Arc<Mutex<Option<Left>>>);

/// A view, and the time since which an untaken view exists.
type Left = (Box<View>, Instant);

impl LatestView {
    /// Stores a view; returns whether the slot was empty.
    fn put(&self, view: Box<View>) -> bool {
        let mut slot = self.slot();
        let since = slot.as_ref().map(|(_, since)| *since);
        *slot = Some((view, since.unwrap_or_else(Instant::now)));
        since.is_none()
    }

    /// Takes the view, with the time since which it or an older one has waited.
    pub(crate) fn take(&self) -> Option<(Box<View>, Instant)> {
        self.slot().take()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Left>> {
        // A poisoned lock is harmless: the value is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread.
pub(crate) fn read(
    open: &OpenSource,
    stop: &Arc<AtomicBool>,
    notify: Notify<Reading>,
) -> Result<(), AgentError> {
    let mut source = open()?;
    let stop = stop.clone();
    let newest = LatestView::default();
    spawn("source", move || {
        let mut changed = true;
        while !stop.load(Ordering::Relaxed) {
            if changed {
                let reading = match source.snapshot() {
                    Ok(view) => newest
                        .put(Box::new(view))
                        .then(|| Reading::View(newest.clone())),
                    Err(error) => Some(Reading::Failed(with_causes(&error))),
                };
                if reading.is_some_and(|reading| !notify(reading)) {
                    return;
                }
            }
            changed = match source.wait(LOOK_ANYWAY) {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::warn!(error = %with_causes(&error), "waiting for changes failed");
                    thread::park_timeout(PAUSE_AFTER_ERROR);
                    true
                }
            };
        }
    })
}
