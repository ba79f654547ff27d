//! What others did to things of ours, by kind.

use std::fmt;

/// A kind of thing that was found changed or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Damage {
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
    /// The gateway's eBPF programs, where they are attached, or their pins.
    Programs,
    /// Content of the gateway's eBPF maps.
    Tables,
}

impl Damage {
    /// One word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Damage::Device => "device",
            Damage::Neighbours => "neighbours",
            Damage::NextHops => "nexthops",
            Damage::Routes => "routes",
            Damage::Rules => "rules",
            Damage::Ruleset => "ruleset",
            Damage::Forwarding => "forwarding",
            Damage::Sysctls => "sysctls",
            Damage::Programs => "programs",
            Damage::Tables => "tables",
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
