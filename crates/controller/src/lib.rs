//! The controller: allocates addresses, grants and revokes leases, writes statuses. Nothing on the data path waits for
//! it.
//!
//! ```text
//! Source --View--> changes --> Planner --ClusterPlan--> write: address records, node records, statuses, deletions
//!    ^                                                    |
//!    +----- written by another meanwhile: plan again -----+      refused: that write waits by itself, others go on
//! ```
//!
//! `egret_core::plan` makes every decision; this crate only decides when to plan and in which order to write. The
//! planner lives from round to round, so that a change costs what it touches; see `write` for what is compared and
//! written then.
#![forbid(unsafe_code)]

mod backoff;
mod health;
mod metrics;
mod pace;
mod status;
mod term;
mod write;

pub use health::Health;
pub use metrics::Metrics;

use egret_core::check::{LeaseAudit, audit_leases};
use egret_core::error::with_causes;
use egret_core::model::Snapshot;
use egret_core::plan::planner::{Planner, Touched};
use egret_objects::{Source, SourceError, View};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use term::Term;
use write::{Round, Writer, Written};

/// Maximum interval between two checks for changes: hold-downs end by time alone.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Interval at which all objects are read even if the source reports no change.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// Pause after an error of the source, to limit the load on a broken store.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);
/// Shortest interval between two audits of the leases; an audit reads every lease.
const AUDIT_INTERVAL: Duration = Duration::from_secs(2);
/// Number of consecutive write conflicts before the loop pauses.
const CONFLICTS_MAX: u32 = 10;

/// Runs until `stop` is set.
pub fn run(mut source: Box<dyn Source>, health: &Arc<Health>, stop: &AtomicBool) {
    let mut work = Work::default();
    let mut conflicts = 0;
    while !stop.load(Ordering::Relaxed) {
        if !source.leads() {
            // The leader changes objects, so earlier plans are stale.
            work = Work::default();
            stand_by(source.as_mut(), health);
            continue;
        }
        match round(source.as_mut(), health, &mut work) {
            Ok(Written::All {
                next_change_secs,
                retry,
            }) => {
                conflicts = 0;
                let due = retry.into_iter().chain(work.audit_due).min();
                let timers = (next_change_secs, due);
                rest(source.as_mut(), health, &work.term, timers, stop);
            }
            Ok(Written::Unfinished) => {
                conflicts = 0;
                health.goes_on();
            }
            Ok(Written::PlanAgain) if conflicts < CONFLICTS_MAX => conflicts += 1,
            Ok(Written::PlanAgain) => {
                conflicts = 0;
                std::thread::park_timeout(PAUSE_AFTER_ERROR);
            }
            // Leadership lost between two writes: the new leader continues from the written objects.
            Err(SourceError::NotLeader) => work = Work::default(),
            Err(error) => {
                let text = with_causes(&error);
                tracing::warn!(error = %text, "the objects could not be read or written");
                health.with(|metrics| {
                    metrics.errors.inc();
                });
                health.round(Some(text));
                std::thread::park_timeout(PAUSE_AFTER_ERROR);
            }
        }
    }
}

/// State of the loop from round to round.
#[derive(Default)]
struct Work {
    term: Term,
    planner: Option<Planner>,
    writer: Writer,
    /// Findings that were logged.
    told: BTreeSet<String>,
    /// Time of the last audit of the leases.
    audited: Option<Instant>,
    /// Time of the next one, where something may have changed since the last one.
    audit_due: Option<Instant>,
}

impl Work {
    /// Compares what nodes hold with the records, or leaves that for later: it was done just now.
    fn audit(&mut self, health: &Health) {
        let last = self.audited.map(|last| last + AUDIT_INTERVAL);
        self.audit_due = last.filter(|next| *next > Instant::now());
        if let (Some(planner), None) = (&self.planner, self.audit_due) {
            let audit = audit_leases(planner.snapshot());
            health.with(|metrics| metrics.audited(audit));
            self.audited = Some(Instant::now());
        }
    }
}

/// Reads objects while another controller leads, so that they are current when this one takes over. It plans nothing:
/// the leader changes the objects.
fn stand_by(source: &mut dyn Source, health: &Health) {
    let read = source.snapshot().map(drop);
    // The leader audits.
    health.with(|metrics| metrics.audited(LeaseAudit::default()));
    health.round(read.err().map(|error| with_causes(&error)));
    // Not at every change: nobody waits for this view.
    std::thread::park_timeout(PAUSE_AFTER_ERROR);
    if let Err(error) = source.wait(PAUSE_MAX) {
        tracing::debug!(error = %with_causes(&error), "waiting for changes failed");
    }
}

/// Reads, plans and writes once.
fn round(
    source: &mut dyn Source,
    health: &Health,
    work: &mut Work,
) -> Result<Written, SourceError> {
    let began = Instant::now();
    let mut view = source.snapshot()?;
    let (time, now_secs) = (work.term.now(), now_secs());
    let started = Instant::now();
    let nothing = Snapshot::empty(view.snapshot.settings.clone());
    let snapshot = std::mem::replace(&mut view.snapshot, nothing);
    let (planner, touched) = match work.planner.take() {
        Some(mut planner) => {
            let touched = planner.follow(snapshot, time);
            (planner, touched)
        }
        None => {
            let touched = Touched {
                all: true,
                ..Touched::default()
            };
            (Planner::new(snapshot, time), touched)
        }
    };
    let planner = work.planner.insert(planner);
    let seconds = started.elapsed().as_secs_f64();
    tell(&view, planner.plan(), &mut work.told);
    health.with(|metrics| metrics.observe(&view, planner.plan(), &touched, seconds));
    let round = Round {
        planner,
        touched: &touched,
        now_secs,
        started: began,
    };
    let written = work.writer.write(source, view, &round);
    work.audit(health);
    health.refused(&mut work.writer.backoff);
    written
}

/// Logs each finding once, for as long as it exists.
fn tell(view: &View, cluster: &egret_core::plan::ClusterPlan, told: &mut BTreeSet<String>) {
    let mut now = BTreeSet::new();
    for finding in view.findings.iter().chain(&cluster.findings) {
        let line = format!("{} {} {}", finding.object, finding.field, finding.value);
        if !told.contains(&line) {
            tracing::warn!(
                object = %finding.object,
                field = finding.field,
                value = finding.value,
                remedy = finding.remedy,
                "invalid object"
            );
        }
        now.insert(line);
    }
    *told = now;
}

/// Waits until something may have changed or a change by time alone is due. The check costs as much as there are
/// objects.
fn rest(
    source: &mut dyn Source,
    health: &Health,
    term: &Term,
    (next_change_secs, retry): (Option<i64>, Option<Instant>),
    stop: &AtomicBool,
) {
    let began = Instant::now();
    loop {
        health.round(None);
        let until_change = next_change_secs.map_or(PAUSE_MAX, |at| {
            Duration::from_secs(u64::try_from(at - term.now().now_secs).unwrap_or(0))
        });
        let until_retry =
            retry.map_or(PAUSE_MAX, |at| at.saturating_duration_since(Instant::now()));
        let soonest = until_change.min(until_retry);
        let timeout = soonest.clamp(Duration::from_millis(10), PAUSE_MAX);
        match source.wait(timeout) {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "waiting for changes failed");
                std::thread::park_timeout(PAUSE_AFTER_ERROR);
                return;
            }
        }
        let due = next_change_secs.is_some_and(|at| at <= term.now().now_secs)
            || retry.is_some_and(|at| at <= Instant::now());
        let stopped = stop.load(Ordering::Relaxed);
        if due || stopped || !source.leads() || began.elapsed() >= LOOK_ANYWAY {
            return;
        }
    }
}

fn now_secs() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
