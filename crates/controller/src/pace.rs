//! How often a status is written. A status that changes with every pod of a busy cluster would otherwise be sent to
//! everybody who watches the object, each time whole.
//!
//! A token bucket per object: what changes now and then is written at once, what changes all the time once per
//! [`STATUS_INTERVAL_MS`]. The newest value is always written in the end. Leases and grants are not statuses and never wait.

use crate::backoff::{Backoff, Outcome, Write};
use egret_core::numbers::{STATUS_BURST, STATUS_INTERVAL_MS};
use egret_objects::SourceError;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(STATUS_INTERVAL_MS);

/// Recent writes of statuses.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// For each object, the time at which its bucket is full again. Objects with a full bucket have no entry.
    full_at: BTreeMap<Write, Instant>,
    /// The earliest time at which a write that waits may be made.
    next: Option<Instant>,
}

impl Pace {
    /// Begins a round: forgets full buckets and writes that waited.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.full_at.retain(|_, full_at| *full_at > now);
        self.next = None;
    }

    /// Writes a status, unless it waits for its turn or after a refusal.
    ///
    /// # Errors
    /// Those of [`Backoff::attempt`].
    pub(crate) fn attempt<T>(
        &mut self,
        backoff: &mut Backoff,
        write: Write,
        carry_out: impl FnOnce() -> Result<T, SourceError>,
    ) -> Result<Outcome<T>, SourceError> {
        if !self.allows(&write, Instant::now()) {
            return Ok(Outcome::Waits);
        }
        let outcome = backoff.attempt(&write, carry_out)?;
        if let Outcome::Written(_) = outcome {
            self.wrote(write, Instant::now());
        }
        Ok(outcome)
    }

    /// Whether this write may be made now. If not, [`Pace::next`] includes the time at which it may.
    fn allows(&mut self, write: &Write, now: Instant) -> bool {
        let Some(full_at) = self.full_at.get(write) else {
            return true;
        };
        // With `STATUS_BURST` tokens missing, the bucket is empty.
        let due = *full_at - INTERVAL * (STATUS_BURST - 1);
        if due <= now {
            return true;
        }
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
        false
    }

    /// Notes that this write was made.
    fn wrote(&mut self, write: Write, now: Instant) {
        let full_at = self.full_at.entry(write).or_insert(now);
        *full_at = (*full_at).max(now) + INTERVAL;
    }

    /// The earliest time at which a write that this round held back may be made.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(last: u8) -> Write {
        Write::AddressStatus(std::net::IpAddr::from([192, 0, 2, last]))
    }

    /// Times, in ms, of the writes of a status that changes every `every` ms for 20 s.
    fn written(every: u64) -> Vec<u64> {
        let (mut pace, start, mut times) = (Pace::default(), Instant::now(), Vec::new());
        for at in (0..20_000).step_by(usize::try_from(every).unwrap()) {
            let now = start + Duration::from_millis(at);
            pace.begin(now);
            if pace.allows(&write(1), now) {
                pace.wrote(write(1), now);
                times.push(at);
            }
        }
        times
    }

    #[test]
    fn what_changes_rarely_is_written_at_once() {
        assert_eq!(written(STATUS_INTERVAL_MS).len(), 20_000 / 2_000);
    }

    #[test]
    fn what_changes_all_the_time_is_written_once_per_interval_after_a_burst() {
        let times = written(100);
        let burst = usize::try_from(STATUS_BURST).unwrap();
        assert_eq!(times[..burst], [0, 100, 200, 300, 400]);
        let later: Vec<u64> = (1..10).map(|number| number * STATUS_INTERVAL_MS).collect();
        assert_eq!(times[burst..], later);
    }

    #[test]
    fn a_write_that_waits_says_until_when_and_others_do_not_wait() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..STATUS_BURST {
            assert!(pace.allows(&write(1), now));
            pace.wrote(write(1), now);
        }
        assert!(!pace.allows(&write(1), now));
        assert!(pace.allows(&write(2), now));
        assert_eq!(pace.next(), Some(now + INTERVAL));
        let full = now + INTERVAL * STATUS_BURST;
        pace.begin(full);
        assert_eq!((pace.full_at.len(), pace.next()), (0, None));
    }
}
