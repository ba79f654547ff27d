//! Backoff of refused writes. Each write waits alone, for growing pauses, and delays no other write.
//!
//! ```text
//!  refused: by the API server, an admission policy, a file that cannot be read   -> this write waits
//!  written by another meanwhile, WRITE_CONFLICTS_MAX times in a row              -> this write waits
//!  not answered in time                                                          -> this write waits, and the round ends
//!  the store is away, another leads                                              -> the round ends
//! ```

use egret_core::error::with_causes;
use egret_core::model::{GatewayName, NodeName, ObjectRef, PoolName};
use egret_core::numbers::{WRITE_CONFLICTS_MAX, WRITE_RETRY_FIRST_MS, WRITE_RETRY_MAX_SECS};
use egret_objects::{Notice, SourceError};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Key of one write: an object, and the part of it that is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Write {
    Address(IpAddr),
    Node(NodeName),
    Policy(ObjectRef),
    Gateway(GatewayName),
    Pool(PoolName),
    AddressStatus(IpAddr),
    Notice(Notice),
    FrontEnd(ObjectRef),
    DeleteAddress(IpAddr),
    DeleteNode(NodeName),
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Address(address) => write!(f, "leases of EgressAddress {address}"),
            Write::Node(node) => write!(f, "grants of EgressNode {node}"),
            Write::Policy(object) | Write::FrontEnd(object) => write!(f, "status of {object}"),
            Write::Gateway(name) => write!(f, "status of EgressGateway {}", name.0),
            Write::Pool(name) => write!(f, "status of EgressPool {}", name.0),
            Write::AddressStatus(address) => write!(f, "status of EgressAddress {address}"),
            Write::Notice(Notice::Invalid(object)) => write!(f, "findings of {object}"),
            Write::Notice(Notice::GatewayLabel(node, _)) => write!(f, "label of EgressNode {node}"),
            Write::DeleteAddress(address) => write!(f, "deletion of EgressAddress {address}"),
            Write::DeleteNode(node) => write!(f, "deletion of EgressNode {node}"),
        }
    }
}

/// Outcome of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// The write was carried out.
    Written(T),
    /// The write was refused, or still waits after an earlier refusal.
    Waits,
}

/// A write that was refused.
#[derive(Debug)]
struct Refused {
    times: u32,
    conflicts: u32,
    next: Option<Instant>,
    why: String,
    /// Number of the last round that attempted it.
    round: u64,
}

/// Every refused write that is still attempted.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    refused: BTreeMap<Write, Refused>,
    round: u64,
    /// Refusals that are not in the metric yet.
    uncounted: u64,
    /// First error of this round that concerns more than one object, although other writes succeeded.
    trouble: Option<SourceError>,
}

impl Backoff {
    /// Begins a round.
    pub(crate) fn begin(&mut self) {
        self.round += 1;
        self.trouble = None;
    }

    /// Ends a complete round: refused writes that it did not attempt again are dropped.
    pub(crate) fn complete(&mut self) -> Result<(), SourceError> {
        let round = self.round;
        self.refused.retain(|_, refused| refused.round == round);
        self.trouble.take().map_or(Ok(()), Err)
    }

    /// Carries out a write, unless its pause after a refusal is not over.
    ///
    /// # Errors
    /// The round must end: nothing can be written now, or the plan is stale.
    pub(crate) fn attempt<T>(
        &mut self,
        write: &Write,
        carry_out: impl FnOnce() -> Result<T, SourceError>,
    ) -> Result<Outcome<T>, SourceError> {
        let round = self.round;
        if let Some(known) = self.refused.get_mut(write) {
            known.round = round;
            if known.next.is_some_and(|next| Instant::now() < next) {
                return Ok(Outcome::Waits);
            }
        }
        let error = match carry_out() {
            Ok(value) => {
                if let Some(known) = self.refused.remove(write)
                    && known.next.is_some()
                {
                    tracing::info!(%write, "written again");
                }
                return Ok(Outcome::Written(value));
            }
            Err(error) => error,
        };
        match error {
            SourceError::Refused { .. } | SourceError::Unreadable { .. } => {
                self.refuse(write, &error);
                Ok(Outcome::Waits)
            }
            SourceError::Io { .. } => {
                self.refuse(write, &error);
                self.trouble.get_or_insert(error);
                Ok(Outcome::Waits)
            }
            SourceError::Conflict { .. } | SourceError::NotFound { .. } => {
                let known = self.known(write);
                known.conflicts += 1;
                if known.conflicts < WRITE_CONFLICTS_MAX {
                    return Err(error);
                }
                self.refuse(write, &error);
                Ok(Outcome::Waits)
            }
            SourceError::Unanswered { .. } => {
                self.refuse(write, &error);
                Err(error)
            }
            _ => Err(error),
        }
    }

    fn known(&mut self, write: &Write) -> &mut Refused {
        let round = self.round;
        let known = self.refused.entry(write.clone());
        known.or_insert_with(|| Refused {
            times: 0,
            conflicts: 0,
            next: None,
            why: String::new(),
            round,
        })
    }

    fn refuse(&mut self, write: &Write, error: &SourceError) {
        let why = with_causes(error);
        let known = self.known(write);
        let first = known.times == 0 || known.why != why;
        let pause = pause(known.times);
        known.times = known.times.saturating_add(1);
        known.next = Some(Instant::now() + pause);
        known.why.clone_from(&why);
        let secs = pause.as_secs_f64();
        match first {
            true => {
                tracing::warn!(%write, error = why, again_in_secs = secs, "refused; others go on")
            }
            false => tracing::debug!(%write, error = why, again_in_secs = secs, "refused again"),
        }
        self.uncounted += 1;
    }

    /// Number of refusals since the last call.
    pub(crate) fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.uncounted)
    }

    /// Time of the earliest retry.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.refused
            .values()
            .filter_map(|refused| refused.next)
            .min()
    }

    /// Each waiting write, and the reason of its refusal.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (&Write, &str)> {
        let waiting = self.refused.iter().filter(|(_, one)| one.next.is_some());
        waiting.map(|(write, one)| (write, one.why.as_str()))
    }
}

/// Pause of a write after this number of refusals.
fn pause(times: u32) -> Duration {
    let first = Duration::from_millis(WRITE_RETRY_FIRST_MS);
    let longest = Duration::from_secs(WRITE_RETRY_MAX_SECS);
    first.saturating_mul(1 << times.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(last: u8) -> Write {
        Write::Address(IpAddr::from([192, 0, 2, last]))
    }

    fn refusal() -> SourceError {
        SourceError::Refused {
            object: "o".to_owned(),
            why: "because".to_owned(),
        }
    }

    fn conflict() -> SourceError {
        SourceError::Conflict {
            object: "o".to_owned(),
            expected: 1,
            found: 2,
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<u64> = (0..9)
            .map(|times| pause(times).as_millis() as u64)
            .collect();
        assert_eq!(
            pauses,
            [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
        );
        assert_eq!(pause(u32::MAX), Duration::from_secs(60));
    }

    #[test]
    fn a_refused_write_waits_alone_and_is_forgotten_when_it_is_written_or_not_wanted() {
        let mut backoff = Backoff::default();
        backoff.begin();
        let refused = backoff.attempt::<()>(&write(1), || Err(refusal()));
        assert_eq!(refused.unwrap(), Outcome::Waits);
        let tried = backoff.attempt(&write(1), || -> Result<(), _> { panic!("it waits") });
        assert_eq!(tried.unwrap(), Outcome::Waits);
        let other = backoff.attempt(&write(2), || Ok(7));
        assert_eq!(other.unwrap(), Outcome::Written(7));
        assert!(backoff.next().is_some());
        backoff.complete().unwrap();
        assert_eq!(backoff.waiting().count(), 1);
        // The write is no longer attempted.
        backoff.begin();
        backoff.complete().unwrap();
        assert_eq!(backoff.waiting().count(), 0);
        assert_eq!((backoff.next(), backoff.take_count()), (None, 1));
    }

    #[test]
    fn conflicts_mean_to_plan_again_until_they_repeat() {
        let mut backoff = Backoff::default();
        for round in 1..=WRITE_CONFLICTS_MAX {
            backoff.begin();
            let outcome = backoff.attempt::<()>(&write(1), || Err(conflict()));
            assert_eq!(outcome.is_ok(), round == WRITE_CONFLICTS_MAX, "{round}");
        }
        assert_eq!(backoff.waiting().count(), 1);
    }

    #[test]
    fn what_is_about_no_object_ends_the_round() {
        let mut backoff = Backoff::default();
        backoff.begin();
        let away = SourceError::NotLeader;
        assert!(backoff.attempt::<()>(&write(1), || Err(away)).is_err());
        assert_eq!(backoff.waiting().count(), 0);
        let silent = SourceError::Unanswered {
            object: "o".to_owned(),
        };
        assert!(backoff.attempt::<()>(&write(1), || Err(silent)).is_err());
        // The next round skips it.
        let tried = backoff.attempt(&write(1), || -> Result<(), _> { panic!("it waits") });
        assert_eq!(tried.unwrap(), Outcome::Waits);
    }
}
