//! Health of the controller, as its HTTP endpoint shows it: metrics, readiness, refused writes.

use crate::backoff::Backoff;
use crate::metrics::Metrics;
use prometheus_client::encoding::text::encode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shared between the main loop and the HTTP endpoint.
#[derive(Debug)]
pub struct Health {
    metrics: Mutex<Metrics>,
    state: Mutex<(Option<String>, Instant)>,
    /// Refused writes that wait, with reasons.
    waiting: Mutex<Vec<String>>,
}

/// Maximum number of waiting writes that are shown.
const SHOWN_MAX: usize = 20;

impl Default for Health {
    fn default() -> Self {
        let state = (Some("starting".to_string()), Instant::now());
        Health {
            metrics: Mutex::default(),
            state: Mutex::new(state),
            waiting: Mutex::default(),
        }
    }
}

impl Health {
    /// The metrics in OpenMetrics text.
    pub fn metrics_text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &lock(&self.metrics).registry).expect("writing to a string cannot fail");
        text
    }

    /// Reason why the controller is not ready; `None` if it is.
    pub fn unready(&self) -> Option<String> {
        lock(&self.state).0.clone()
    }

    /// Time of the main loop's last round.
    pub fn last_round(&self) -> Instant {
        lock(&self.state).1
    }

    /// Refused writes that wait, with reasons. They do not affect readiness, since they delay no other write.
    pub fn waiting(&self) -> Vec<String> {
        lock(&self.waiting).clone()
    }

    /// Publishes the refused writes.
    pub(crate) fn refused(&self, backoff: &mut Backoff) {
        let lines = backoff.waiting().take(SHOWN_MAX);
        *lock(&self.waiting) = lines
            .map(|(write, why)| format!("{write}: {why}"))
            .collect();
        let count = i64::try_from(backoff.waiting().count()).unwrap_or(i64::MAX);
        let refusals = backoff.take_count();
        self.with(|metrics| metrics.refused(count, refusals));
    }

    pub(crate) fn with(&self, change: impl FnOnce(&mut Metrics)) {
        change(&mut lock(&self.metrics));
    }

    /// Records progress of a round that has more to write; readiness does not change.
    pub(crate) fn goes_on(&self) {
        lock(&self.state).1 = Instant::now();
    }

    pub(crate) fn round(&self, unready: Option<String>) {
        *lock(&self.state) = (unready, Instant::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
