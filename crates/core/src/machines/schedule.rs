//! Schedule of the agent's main loop: polls, comparisons with the kernel, rounds, and how long it may sleep.
//!
//! ```text
//!   notification of the kernel --> verify what changed, at most once per settle time --\
//!   tick                       --> verify quickly; retry what failed                   +--> round, if one is due
//!   30 s                       --> verify everything                                   /
//! ```
//!
//! A round decides and applies everything. It is due when an input has changed, when a deadline of a machine has
//! passed, and with the next tick after a round that failed.

use crate::numbers::FULL_DESTINATION_SECS;

/// Poll interval for state without change notifications; bounds how long drift lasts.
const TICK_MS: u64 = 500;
/// Interval of complete comparisons with the kernel, independent of notifications.
const VERIFY_FULL_MS: u64 = 30_000;
/// Minimum time between two comparisons caused by notifications, which come in bursts.
const SETTLE_MS: u64 = 20;
/// The same while a pod waits to start: its own device caused the notification, and its round needs no comparison.
const SETTLE_WHILE_PODS_WAIT_MS: u64 = 200;
/// Interval of counts of source ports in use. A count looks at every bucket of the kernel's table of flows. Who needs more
/// ports at once is learned from events of flows in between.
const COUNT_PORTS_MS: u64 = 10_000;
/// Interval at which full destinations are refused again, well before their entries in the kernel expire.
const REFUSE_FULL_MS: u64 = FULL_DESTINATION_SECS * 1_000 / 3;

/// Actions at the beginning of one turn of the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// A poll interval has passed: poll state without change notifications, and retry what failed.
    pub tick: bool,
    /// Compare everything with the kernel.
    pub verify_full: bool,
    /// Compare the parts that the kernel has notified a change of.
    pub verify_changed: bool,
}

impl Turn {
    /// Whether the turn compares anything with the kernel.
    pub fn verifies(&self) -> bool {
        self.tick || self.verify_full || self.verify_changed
    }
}

/// The schedule of one agent's loop. Times are milliseconds, monotonic, from any start.
#[derive(Debug)]
pub struct Schedule {
    next_tick_ms: u64,
    /// Time of the last complete comparison.
    verified_full_ms: u64,
    /// Time of the last comparison caused by notifications.
    verified_changed_ms: u64,
    /// The kernel has notified a change since then.
    kernel_changed: bool,
    /// An input has changed since the last round.
    round_due: bool,
    /// Time of the last count of ports; `None`: due at once.
    ports_counted_ms: Option<u64>,
    full_refused_ms: u64,
}

impl Schedule {
    /// A schedule in which everything that is polled is due one interval from now.
    pub fn new(now_ms: u64) -> Self {
        Self {
            next_tick_ms: now_ms.saturating_add(TICK_MS),
            verified_full_ms: now_ms,
            verified_changed_ms: now_ms,
            kernel_changed: false,
            round_due: false,
            ports_counted_ms: None,
            full_refused_ms: now_ms,
        }
    }

    /// Requests a round in the next turn, because an input has changed.
    pub fn request_round(&mut self) {
        self.round_due = true;
    }

    /// Requests a round if `changed`.
    pub fn request_round_if(&mut self, changed: bool) {
        self.round_due |= changed;
    }

    /// Records a notification of the kernel that a link, address, route, rule, next hop or neighbour changed.
    pub fn kernel_changed(&mut self) {
        self.kernel_changed = true;
    }

    /// Milliseconds that the loop may wait for an event. `failed`: the last round could not be applied, so the next one
    /// waits for the tick. `deadline_ms`: the earliest deadline of the machines.
    pub fn sleep_ms(&self, failed: bool, deadline_ms: Option<u64>, now_ms: u64) -> u64 {
        if self.round_due && !failed {
            return 0;
        }
        let settled_ms = self.verified_changed_ms.saturating_add(SETTLE_MS);
        let verify = self.kernel_changed.then_some(settled_ms);
        let due = [Some(self.next_tick_ms), verify, deadline_ms];
        let due_ms = due.into_iter().flatten().min().unwrap_or(now_ms);
        due_ms.saturating_sub(now_ms)
    }

    /// Begins a turn and returns the actions that are due. `pods_wait`: a pod waits to start, and no round includes it
    /// yet.
    pub fn begin_turn(&mut self, pods_wait: bool, now_ms: u64) -> Turn {
        let settle_ms = match pods_wait {
            true => SETTLE_WHILE_PODS_WAIT_MS,
            false => SETTLE_MS,
        };
        let passed = |since_ms: u64, interval_ms| now_ms >= since_ms.saturating_add(interval_ms);
        let turn = Turn {
            tick: now_ms >= self.next_tick_ms,
            verify_full: passed(self.verified_full_ms, VERIFY_FULL_MS),
            verify_changed: self.kernel_changed && passed(self.verified_changed_ms, settle_ms),
        };
        if turn.tick {
            self.next_tick_ms = now_ms.saturating_add(TICK_MS);
        }
        if turn.verify_full {
            self.verified_full_ms = now_ms;
        }
        if turn.verify_changed {
            self.verified_changed_ms = now_ms;
            self.kernel_changed = false;
            // Whatever changed, facts about the node may have changed too.
            self.round_due = true;
        }
        turn
    }

    /// Whether this turn has a round, which is then no longer due. `failed`: the last round was not applied.
    /// `deadline_ms`: when a machine decides although nothing has changed.
    pub fn take_round(
        &mut self,
        turn: Turn,
        failed: bool,
        deadline_ms: Option<u64>,
        now_ms: u64,
    ) -> bool {
        let retry = turn.tick && failed;
        let passed = deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms);
        std::mem::take(&mut self.round_due) || retry || passed
    }

    /// Requests a count of ports in the next round, because many changed at once.
    pub fn count_ports_soon(&mut self) {
        self.ports_counted_ms = None;
    }

    /// Whether a count of ports in use is due.
    pub fn is_count_due(&self, now_ms: u64) -> bool {
        let passed = |at: u64| now_ms >= at.saturating_add(COUNT_PORTS_MS);
        self.ports_counted_ms.is_none_or(passed)
    }

    /// Records that ports in use were counted.
    pub fn ports_counted(&mut self, now_ms: u64) {
        self.ports_counted_ms = Some(now_ms);
    }

    /// Whether full destinations are to be refused again.
    pub fn is_refusal_due(&self, now_ms: u64) -> bool {
        now_ms >= self.full_refused_ms.saturating_add(REFUSE_FULL_MS)
    }

    /// Records that full destinations were refused.
    pub fn full_refused(&mut self, now_ms: u64) {
        self.full_refused_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    #[test]
    fn nothing_to_do_sleeps_until_the_tick_or_the_deadline_before_it() {
        let mut schedule = Schedule::new(NOW);
        assert_eq!(schedule.sleep_ms(false, None, NOW), TICK_MS);
        assert_eq!(schedule.sleep_ms(false, Some(NOW + 7), NOW), 7);
        assert_eq!(schedule.sleep_ms(false, Some(NOW - 7), NOW), 0);
        assert_eq!(
            schedule.sleep_ms(false, Some(NOW + TICK_MS + 1), NOW),
            TICK_MS
        );
        let early = schedule.begin_turn(false, NOW + TICK_MS - 1);
        assert_eq!(early, Turn::default());
        assert!(!early.verifies());
        let late = schedule.begin_turn(false, NOW + TICK_MS + 3);
        assert!(late.tick && late.verifies() && !late.verify_full);
        assert_eq!(schedule.sleep_ms(false, None, NOW + TICK_MS + 3), TICK_MS);
    }

    #[test]
    fn a_changed_input_gives_one_round_at_once() {
        let mut schedule = Schedule::new(NOW);
        schedule.request_round_if(false);
        assert!(!schedule.take_round(Turn::default(), false, None, NOW));
        schedule.request_round_if(true);
        schedule.request_round_if(false);
        assert_eq!(schedule.sleep_ms(false, None, NOW), 0);
        assert!(schedule.take_round(Turn::default(), false, None, NOW));
        assert!(!schedule.take_round(Turn::default(), false, None, NOW));
    }

    #[test]
    fn what_failed_is_retried_with_the_tick_and_not_before() {
        let mut schedule = Schedule::new(NOW);
        schedule.request_round();
        assert_eq!(schedule.sleep_ms(true, None, NOW), TICK_MS);
        assert!(schedule.take_round(Turn::default(), true, None, NOW));
        let turn = schedule.begin_turn(false, NOW + 1);
        assert!(!schedule.take_round(turn, true, None, NOW + 1));
        let turn = schedule.begin_turn(false, NOW + TICK_MS);
        assert!(schedule.take_round(turn, true, None, NOW + TICK_MS));
        assert!(!schedule.take_round(turn, false, None, NOW + TICK_MS));
    }

    #[test]
    fn a_deadline_that_has_passed_gives_a_round() {
        let mut schedule = Schedule::new(NOW);
        let turn = Turn::default();
        assert!(!schedule.take_round(turn, false, Some(NOW + 1), NOW));
        assert!(schedule.take_round(turn, false, Some(NOW), NOW));
    }

    #[test]
    fn a_burst_of_notifications_is_one_comparison_per_settle_time() {
        let mut schedule = Schedule::new(NOW);
        schedule.kernel_changed();
        assert_eq!(schedule.sleep_ms(false, None, NOW), SETTLE_MS);
        assert!(
            !schedule
                .begin_turn(false, NOW + SETTLE_MS - 1)
                .verify_changed
        );
        let now_ms = NOW + SETTLE_MS;
        assert!(schedule.begin_turn(false, now_ms).verify_changed);
        assert!(schedule.take_round(Turn::default(), false, None, now_ms));
        schedule.kernel_changed();
        assert!(!schedule.begin_turn(false, now_ms + 1).verify_changed);
        assert!(
            schedule
                .begin_turn(false, now_ms + SETTLE_MS)
                .verify_changed
        );
        let later_ms = now_ms + 2 * SETTLE_MS;
        assert!(
            !schedule.begin_turn(false, later_ms).verify_changed,
            "nothing was notified since"
        );
    }

    #[test]
    fn while_a_pod_waits_its_own_device_does_not_hold_it_up() {
        let mut schedule = Schedule::new(NOW);
        schedule.kernel_changed();
        let turn = schedule.begin_turn(true, NOW + SETTLE_WHILE_PODS_WAIT_MS - 1);
        assert!(!turn.verify_changed);
        let turn = schedule.begin_turn(true, NOW + SETTLE_WHILE_PODS_WAIT_MS);
        assert!(turn.verify_changed);
    }

    #[test]
    fn everything_is_compared_now_and_then() {
        let mut schedule = Schedule::new(NOW);
        assert!(
            !schedule
                .begin_turn(false, NOW + VERIFY_FULL_MS - 1)
                .verify_full
        );
        assert!(schedule.begin_turn(false, NOW + VERIFY_FULL_MS).verify_full);
        assert!(
            !schedule
                .begin_turn(false, NOW + VERIFY_FULL_MS + 1)
                .verify_full
        );
    }

    #[test]
    fn ports_are_counted_at_first_when_asked_for_and_at_intervals() {
        let mut schedule = Schedule::new(NOW);
        assert!(schedule.is_count_due(NOW));
        schedule.ports_counted(NOW);
        assert!(!schedule.is_count_due(NOW + COUNT_PORTS_MS - 1));
        assert!(schedule.is_count_due(NOW + COUNT_PORTS_MS));
        schedule.count_ports_soon();
        assert!(schedule.is_count_due(NOW));
    }

    #[test]
    fn full_destinations_are_refused_anew_before_the_kernel_forgets_them() {
        let mut schedule = Schedule::new(NOW);
        assert!(!schedule.is_refusal_due(NOW + REFUSE_FULL_MS - 1));
        assert!(schedule.is_refusal_due(NOW + REFUSE_FULL_MS));
        schedule.full_refused(NOW + REFUSE_FULL_MS);
        assert!(!schedule.is_refusal_due(NOW + REFUSE_FULL_MS + 1));
        let kept_ms = FULL_DESTINATION_SECS * 1_000;
        assert!(REFUSE_FULL_MS + TICK_MS < kept_ms);
    }
}
