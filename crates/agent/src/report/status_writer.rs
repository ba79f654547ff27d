//! Thread that writes this node's status; only the newest one is written.

use crate::clock::now_secs;
use crate::error::AgentError;
use crate::observe::source::OpenSource;
use crate::threads::{Notify, spawn};
use egret_core::error::with_causes;
use egret_core::machines::ReportNumber;
use egret_core::model::{AddressPorts, NodeRecord};
use egret_objects::{NodeReport, Source, SourceError};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// Pause after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);
/// Longest pause after consecutive errors.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// Report of this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeStatus {
    /// The record; only the agent's part of it is written.
    pub(crate) record: NodeRecord,
    /// Report in addition to the record.
    pub(crate) report: NodeReport,
}

/// A status with its number, in the order of sending.
pub(crate) type Numbered = (ReportNumber, NodeStatus);

/// Answer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StatusAnswer {
    /// The status of this number is written, with these ports held.
    Written(ReportNumber, AddressPorts),
    /// There is no record to write it to.
    NoRecord,
}

/// Starts the thread and returns its channel. Only the newest status is written.
pub(crate) fn start(
    open: &OpenSource,
    notify: Notify<StatusAnswer>,
) -> Result<Sender<Numbered>, AgentError> {
    let mut source = open()?;
    let (sender, inbox) = mpsc::channel();
    spawn("status", move || {
        write_loop(source.as_mut(), &inbox, &notify);
    })?;
    Ok(sender)
}

fn write_loop(source: &mut dyn Source, inbox: &Receiver<Numbered>, notify: &Notify<StatusAnswer>) {
    while let Ok((mut number, mut status)) = inbox.recv() {
        let mut pause = PAUSE_AFTER_ERROR;
        loop {
            while let Ok(newer) = inbox.try_recv() {
                (number, status) = newer;
            }
            match source.write_node_status(&status.record, &status.report, now_secs()) {
                Ok(_) => {
                    if pause > PAUSE_AFTER_ERROR {
                        tracing::info!("the node's status is written again");
                    }
                    let held = AddressPorts::from(status.record.held);
                    if !notify(StatusAnswer::Written(number, held)) {
                        return;
                    }
                    break;
                }
                // The record was deleted: the controller creates a new one, and the next view causes a new status.
                Err(SourceError::NotFound { .. }) => {
                    if !notify(StatusAnswer::NoRecord) {
                        return;
                    }
                    break;
                }
                Err(error) => {
                    let error = with_causes(&error);
                    if pause == PAUSE_AFTER_ERROR {
                        tracing::warn!(error, "the node's status could not be written");
                    } else {
                        tracing::debug!(error, "the node's status could not be written again");
                    }
                    match rest(inbox, jittered(pause)) {
                        Ok(newer) => (number, status) = newer.unwrap_or((number, status)),
                        Err(mpsc::RecvError) => return,
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

/// Waits the full pause, even if a newer status arrives: agents must not storm an API server that comes back.
fn rest(inbox: &Receiver<Numbered>, pause: Duration) -> Result<Option<Numbered>, mpsc::RecvError> {
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

/// Three to five quarters of a pause, so that many agents do not retry at the same moment.
fn jittered(pause: Duration) -> Duration {
    // The system seeds it.
    let random = RandomState::new().build_hasher().finish() % 512;
    let share = u32::try_from(random).unwrap_or(0);
    pause * 3 / 4 + pause * share / 1024
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
