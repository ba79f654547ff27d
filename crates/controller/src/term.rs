//! Time as one leader counts it.

use egret_core::plan::PlanTime;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A term: the time for which one controller leads without a break. The wall clock is read once, at its beginning, so that
/// steps of the clock and differences between machines' clocks change no hold-down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term {
    number: u64,
    began: Instant,
    began_secs: i64,
}

impl Default for Term {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::begin(since.unwrap_or(Duration::ZERO), Instant::now())
    }
}

impl Term {
    /// Begins a term at this time since the Unix epoch. Its number is that time in nanoseconds, which no other term of
    /// this installation has, whatever its clock says; it fits the API's signed numbers until 2262.
    fn begin(wall: Duration, began: Instant) -> Self {
        Self {
            number: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX >> 1) & (u64::MAX >> 1),
            began,
            began_secs: i64::try_from(wall.as_secs()).unwrap_or(i64::MAX),
        }
    }

    /// The present time of this term.
    pub(super) fn now(&self) -> PlanTime {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> PlanTime {
        let passed = now.saturating_duration_since(self.began).as_secs();
        PlanTime {
            now_secs: self
                .began_secs
                .saturating_add(i64::try_from(passed).unwrap_or(i64::MAX)),
            term: self.number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_counted_from_the_beginning_of_the_term() {
        let began = Instant::now();
        let term = Term::begin(Duration::from_millis(1_000_250), began);
        let later = term.at(began + Duration::from_secs(121));
        assert_eq!(later.now_secs, 1_121);
        assert_eq!(later.term, 1_000_250_000_000);
        assert_eq!(term.at(began).now_secs, 1_000);
    }

    #[test]
    fn every_number_fits_the_api() {
        let term = Term::begin(Duration::MAX, Instant::now());
        assert!(i64::try_from(term.at(Instant::now()).term).is_ok());
    }
}
