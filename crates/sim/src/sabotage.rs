//! Parts broken on purpose: the checker must find each of them.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The planner lets released blocks rest for no time.
    NoHoldDown,
    /// The planner does not wait for gateways to acknowledge that a vanished node is fenced.
    NoFence,
    /// The controller writes what it planned from a stale cache, without comparing versions.
    StaleFreeSpace,
    /// Agents use grants whatever gateways have loaded, and whatever epoch the grants have.
    IgnoreEpochs,
    /// Agents acknowledge grants before their kernel has them.
    AcknowledgeFirst,
    /// Agents use ranges before they have reported to hold them.
    UseBeforeHeld,
    /// Gateways answer probes and announce addresses before their tables are loaded.
    AnnounceFirst,
}

impl Sabotage {
    /// Every one.
    pub const ALL: [Sabotage; 7] = [
        Sabotage::NoHoldDown,
        Sabotage::NoFence,
        Sabotage::StaleFreeSpace,
        Sabotage::IgnoreEpochs,
        Sabotage::AcknowledgeFirst,
        Sabotage::UseBeforeHeld,
        Sabotage::AnnounceFirst,
    ];
}
