//! Whether other nodes reach this gateway while no other gateway answers it, derived from the kernel's counter of
//! packets that arrive by the tunnel.

use crate::numbers::ISOLATION_REACHED_MS;

/// Time of the counter's last increase, and time since which no gateway answers.
#[derive(Debug, Default)]
pub struct Hearing {
    count: Option<u64>,
    risen_ms: Option<u64>,
    /// Earlier increases are ignored.
    from_ms: Option<u64>,
}

impl Hearing {
    /// Records the current count. A lower one means that the counter was created anew.
    pub fn counted(&mut self, count: u64, now_ms: u64) {
        if self.count.is_some_and(|before| count > before) {
            self.risen_ms = Some(now_ms);
        }
        self.count = Some(count);
    }

    /// Whether other nodes reach this node. `alone`: no gateway answers. Packets that arrived at most `patience_ms`
    /// before that was noticed count (see [`super::Liveness::patience_ms`]); later ones count for
    /// `ISOLATION_REACHED_MS`.
    pub fn is_reached(&mut self, alone: bool, patience_ms: u64, now_ms: u64) -> bool {
        if !alone {
            self.from_ms = None;
            return true;
        }
        let from_ms = *self
            .from_ms
            .get_or_insert_with(|| now_ms.saturating_sub(patience_ms));
        let counts = |at: u64| at >= from_ms && now_ms <= at.saturating_add(ISOLATION_REACHED_MS);
        self.risen_ms.is_some_and(counts)
    }

    /// Records that this node's own link is down: packets that arrived before do not show that it is still reached.
    pub fn cut_off(&mut self, now_ms: u64) {
        self.from_ms = Some(now_ms.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_just_before_counts_and_what_came_long_before_does_not() {
        for (last, reached) in [(900, true), (899, false)] {
            let mut hearing = Hearing::default();
            hearing.counted(7, 0);
            hearing.counted(8, last);
            assert!(hearing.is_reached(false, 100, 950));
            assert_eq!(hearing.is_reached(true, 100, 1_000), reached);
            assert_eq!(
                hearing.is_reached(true, 100, 1_050),
                reached,
                "and so it stays"
            );
            hearing.counted(9, 1_100);
            assert!(hearing.is_reached(true, 100, 1_100));
            let end = 1_100 + ISOLATION_REACHED_MS;
            assert!(hearing.is_reached(true, 100, end));
            assert!(!hearing.is_reached(true, 100, end + 1));
        }
    }

    #[test]
    fn only_a_rise_counts_and_nothing_before_the_own_link_was_down() {
        let mut hearing = Hearing::default();
        hearing.counted(7, 1_000);
        assert!(
            !hearing.is_reached(true, 100, 1_000),
            "what was there before"
        );
        hearing.counted(0, 1_010);
        assert!(!hearing.is_reached(true, 100, 1_010), "a new counter");
        hearing.counted(1, 1_020);
        assert!(hearing.is_reached(true, 100, 1_020));
        hearing.cut_off(1_020);
        assert!(!hearing.is_reached(true, 100, 1_030));
        hearing.counted(2, 1_040);
        assert!(hearing.is_reached(true, 100, 1_040));
    }
}
