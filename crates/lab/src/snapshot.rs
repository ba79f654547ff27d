//! Everything that a program could leave behind in a host's kernel, as comparable text.
//!
//! Values that change without a cause (indices, counters, timers, ids, learned neighbours) are left out.

mod collect;
mod tcx;

use crate::namespace::Place;
use crate::{LabError, PlaceName};
use std::collections::BTreeMap;

/// The state of one host at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Lines by section: `links`, `routes 4`, `nft`, `sysctl`, ...
    pub sections: BTreeMap<&'static str, Vec<String>>,
}

impl Snapshot {
    /// Takes the snapshot of a host.
    ///
    /// # Errors
    /// A pod was given, the host is off, or a listing failed.
    pub fn take(place: &Place) -> Result<Self, LabError> {
        let PlaceName::Host(host) = place.name() else {
            return Err(LabError::Place(place.name().to_string()));
        };
        let init = place.state_dir.read()?.init_of(host)?;
        Ok(Self {
            sections: collect::collect(init)?,
        })
    }

    /// Removed (`-`) and new (`+`) lines of `after`; empty if nothing changed.
    pub fn diff(&self, after: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let names = self.sections.keys().chain(after.sections.keys());
        let names: std::collections::BTreeSet<_> = names.collect();
        for name in names {
            let (before, after) = (self.section(name), after.section(name));
            differences.extend(missing(before, after).map(|line| format!("- {name}: {line}")));
            differences.extend(missing(after, before).map(|line| format!("+ {name}: {line}")));
        }
        differences
    }

    fn section(&self, name: &str) -> &[String] {
        self.sections
            .get(name)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

/// Lines of `left` that `right` lacks, or contains less often.
fn missing<'a>(left: &'a [String], right: &[String]) -> impl Iterator<Item = &'a String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in right {
        *counts.entry(line.clone()).or_default() += 1;
    }
    left.iter().filter(move |line| match counts.get_mut(*line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    })
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, lines) in &self.sections {
            writeln!(f, "== {name}")?;
            lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_equal_lines() {
        let snapshot = |lines: &[&str]| Snapshot {
            sections: [("rules", lines.iter().map(ToString::to_string).collect())].into(),
        };
        let (one, two) = (snapshot(&["a", "b"]), snapshot(&["a", "a"]));
        assert_eq!(one.diff(&two), ["- rules: b", "+ rules: a"]);
        assert!(one.diff(&one).is_empty());
    }
}
