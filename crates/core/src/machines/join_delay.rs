//! When a gateway that begins to forward tells others that it does (design section 6).
//!
//! Everybody hears of a new gateway from the API, each in its own time. A worker that has not heard of it yet drops what
//! it brings (a stranger in the tunnel). So while another gateway answers for its addresses, a new one says nothing for a
//! while (decision 102); only then it counts for announcers and workers. This is keepalived's `preempt_delay` (keepalived.conf(5)).

use crate::numbers::ENTRANCE_MS;

/// The entrance of one gateway node.
#[derive(Debug)]
pub struct Entrance {
    /// It has told that it forwards.
    entered: bool,
    /// Since when it could.
    fit_since_ms: Option<u64>,
}

impl Entrance {
    /// `entered`: what an earlier agent left goes on forwarding and tells so.
    pub fn new(entered: bool) -> Self {
        Self {
            entered,
            fit_since_ms: None,
        }
    }

    /// Decides anew. `fit`: tables are loaded and the external link has carrier; without that everything begins again.
    /// `others`: other gateways forward what this one is to forward. Alone, it enters at once: there is nothing to lose.
    pub fn update(&mut self, fit: bool, others: bool, now_ms: u64) {
        if !fit {
            *self = Self::new(false);
            return;
        }
        let since_ms = *self.fit_since_ms.get_or_insert(now_ms);
        self.entered |= !others || now_ms >= since_ms.saturating_add(ENTRANCE_MS);
    }

    /// Whether others may count on this gateway.
    pub fn entered(&self) -> bool {
        self.entered
    }

    /// When to call [`Self::update`] next.
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
