//! Whether the kernel refuses the uplink programs. One failure proves nothing: somebody may be changing the device at
//! that moment. After several consecutive failures the programs count as refused, and the node falls back to operation
//! without them.

/// Consecutive failures after which the programs count as refused.
const FAILURES_MAX: u32 = 3;

/// Results of attempts to attach and update the programs.
#[derive(Debug, Default)]
pub struct ProgramRefusal {
    /// Consecutive failures.
    failures: u32,
    /// Why the programs count as refused.
    reason: Option<String>,
}

impl ProgramRefusal {
    /// Records a successful attempt to attach or update the programs.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Records a failed attempt with its reason.
    pub fn failed(&mut self, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.reason = Some(reason.to_owned());
        }
    }

    /// Records that the programs could be loaded after a refusal: attaching is tried again. Earlier failures still
    /// count, so the next failure refuses them at once.
    pub fn loaded_again(&mut self) {
        self.reason = None;
    }

    /// Why the programs count as refused; `None`: they do not.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_count_as_a_refusal() {
        let mut refusal = ProgramRefusal::default();
        for _ in 0..2 {
            refusal.failed("busy");
            refusal.failed("busy");
            assert_eq!(refusal.reason(), None);
            refusal.succeeded();
        }
        refusal.failed("busy");
        refusal.failed("busy");
        refusal.failed("not permitted");
        assert_eq!(refusal.reason(), Some("not permitted"));
    }

    #[test]
    fn after_a_refusal_one_success_ends_the_row_and_one_failure_goes_on_with_it() {
        let mut refusal = ProgramRefusal::default();
        (0..3).for_each(|_| refusal.failed("not permitted"));
        refusal.loaded_again();
        assert_eq!(refusal.reason(), None);
        refusal.failed("no such device");
        assert_eq!(refusal.reason(), Some("no such device"));
        refusal.loaded_again();
        refusal.succeeded();
        refusal.failed("busy");
        assert_eq!(refusal.reason(), None);
    }
}
