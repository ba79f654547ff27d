//! Drift: changes of our kernel state by others, by kind.

use std::collections::BTreeMap;
use std::fmt;

/// Drift by kind, with the first changed object of each, as text for people.
pub type DriftReport = BTreeMap<Drift, String>;

/// Kind of an object that was changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drift {
    /// The tunnel device.
    Device,
    /// Its permanent neighbours.
    Neighbours,
    /// Next hop objects or groups.
    NextHops,
    /// Routes.
    Routes,
    /// Policy routing rules.
    Rules,
    /// Our nftables table.
    Ruleset,
    /// Our rules in others' forward chains.
    Forwarding,
    /// Node-wide settings.
    Sysctls,
    /// The gateway's eBPF programs, their attachment, or their pins.
    Programs,
    /// Content of the gateway's eBPF maps.
    Tables,
}

impl Drift {
    /// Name of the kind for logs and metrics, one word.
    pub fn word(self) -> &'static str {
        match self {
            Drift::Device => "device",
            Drift::Neighbours => "neighbours",
            Drift::NextHops => "nexthops",
            Drift::Routes => "routes",
            Drift::Rules => "rules",
            Drift::Ruleset => "ruleset",
            Drift::Forwarding => "forwarding",
            Drift::Sysctls => "sysctls",
            Drift::Programs => "programs",
            Drift::Tables => "tables",
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
