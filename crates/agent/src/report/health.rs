//! Metrics and readiness of the agent.

use super::metrics::Metrics;
use prometheus_client::encoding::text::encode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shared between the main loop and the HTTP endpoint.
#[derive(Debug)]
pub struct Health {
    metrics: Mutex<Metrics>,
    state: Mutex<(Option<String>, Instant)>,
}

impl Default for Health {
    fn default() -> Self {
        let state = (Some("starting".to_string()), Instant::now());
        Health {
            metrics: Mutex::default(),
            state: Mutex::new(state),
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

    /// Why the agent is not ready; `None` if it is.
    pub fn unready(&self) -> Option<String> {
        lock(&self.state).0.clone()
    }

    /// When the main loop last completed a turn.
    pub fn last_round(&self) -> Instant {
        lock(&self.state).1
    }

    pub(crate) fn with(&self, change: impl FnOnce(&mut Metrics)) {
        change(&mut lock(&self.metrics));
    }

    pub(crate) fn round(&self, unready: Option<String>) {
        *lock(&self.state) = (unready, Instant::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
