//! Time that a new gateway waits before it tells other nodes that it forwards (design section 6).
//!
//! Nodes learn of a new gateway from the API at different times. A worker that does not know it yet drops its packets
//! (unknown tunnel peer). So while another gateway answers for its addresses, a new one reports version 0 for a while
//! (decision 102); only then do announcers and workers count on it. This is keepalived's `preempt_delay`
//! (keepalived.conf(5)).

use crate::numbers::ENTRANCE_MS;

/// The join delay of one gateway node.
#[derive(Debug)]
pub struct Entrance {
    /// It has reported that it forwards.
    entered: bool,
    /// Time since which it could forward.
    fit_since_ms: Option<u64>,
}

impl Entrance {
    /// `entered`: an earlier agent's tables are in force, and other nodes count on them already.
    pub fn new(entered: bool) -> Self {
        Self {
            entered,
            fit_since_ms: None,
        }
    }

    /// Decides again. `fit`: tables are loaded and the external link has carrier; without that the delay starts again.
    /// `others`: other gateways serve the same addresses. Without others it joins at once.
    pub fn update(&mut self, fit: bool, others: bool, now_ms: u64) {
        if !fit {
            *self = Self::new(false);
            return;
        }
        let since_ms = *self.fit_since_ms.get_or_insert(now_ms);
        self.entered |= !others || now_ms >= since_ms.saturating_add(ENTRANCE_MS);
    }

    /// Whether other nodes may count on this gateway.
    pub fn entered(&self) -> bool {
        self.entered
    }

    /// Latest time of the next call of [`Self::update`].
    pub fn next_deadline(&self) -> Option<u64> {
        let since_ms = self.fit_since_ms.filter(|_| !self.entered)?;
        Some(since_ms.saturating_add(ENTRANCE_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_gateway_among_others_waits_and_alone_does_not() {
        let mut machine = Entrance::new(false);
        machine.update(true, true, 1_000);
        assert!(!machine.entered());
        assert_eq!(machine.next_deadline(), Some(1_000 + ENTRANCE_MS));
        machine.update(true, true, 999 + ENTRANCE_MS);
        assert!(!machine.entered());
        machine.update(true, true, 1_000 + ENTRANCE_MS);
        assert!(machine.entered());
        assert_eq!(machine.next_deadline(), None);

        let mut alone = Entrance::new(false);
        alone.update(true, false, 0);
        assert!(alone.entered());
        alone.update(true, true, 1);
        assert!(alone.entered(), "what comes later does not make it new");
    }

    #[test]
    fn the_last_one_that_waits_enters_when_the_others_are_gone() {
        let mut machine = Entrance::new(false);
        machine.update(true, true, 0);
        machine.update(true, false, 100);
        assert!(machine.entered());
    }

    #[test]
    fn a_restarted_agent_goes_on_and_a_link_that_was_down_begins_again() {
        let mut machine = Entrance::new(true);
        machine.update(true, true, 0);
        assert!(machine.entered());
        machine.update(false, true, 10);
        assert!(!machine.entered());
        assert_eq!(machine.next_deadline(), None);
        machine.update(true, true, 20);
        assert_eq!(machine.next_deadline(), Some(20 + ENTRANCE_MS));
    }
}
