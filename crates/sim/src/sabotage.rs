//! Parts broken on purpose: the checker must find each of them.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The planner lets released blocks rest for no time.
    NoHoldDown,
    /// The planner does not wait for gateways to acknowledge that a vanished node is fenced.
    NoFence,
    /// Agents use grants whatever gateways have loaded, and whatever epoch the grants have.
    IgnoreEpochs,
    /// The planner grants from free space that it has read before: nothing is compared at the write.
    StaleGrowth,
    /// Agents acknowledge a record, and apply it a round later.
    AcknowledgeFirst,
    /// Agents use ranges before the store has accepted that they hold them.
    UseBeforeHeld,
    /// A drained gateway stops to announce and sends workers away before others announce.
    LeaveFirst,
    /// Gateways answer probes and announce addresses before their tables are loaded.
    AnnounceFirst,
}
