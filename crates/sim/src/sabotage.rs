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
    /// Gateways answer probes and announce addresses before their tables are loaded.
    AnnounceFirst,
}
