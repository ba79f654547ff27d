//! The ports of one protocol over one piece of the address line.

use crate::model::{Destination, Protocol};
use std::collections::BTreeSet;

/// A protocol with ports, or all protocols without known ports (GRE, ESP, ...).
pub(crate) type Class = Protocol;

/// Classes of destination ranges.
pub(crate) const PORT_CLASSES: [Class; 4] =
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];

/// A claim by one destination entry on the current piece, best first.
pub(super) struct Cover<'a> {
    pub claim: usize,
    /// `None`: the policy names no destinations.
    pub entry: Option<&'a Destination>,
}

impl Cover<'_> {
    fn all_ports(&self) -> bool {
        self.entry.is_none_or(|e| e.ports.is_empty())
    }

    /// Port ranges of this class; the full range for entries without ports.
    fn ranges(&self, class: Class) -> impl Iterator<Item = (u16, u16)> {
        let whole = self.all_ports().then_some((0, u16::MAX));
        let named = self.entry.into_iter().flat_map(|e| &e.ports);
        let named = named
            .filter(move |p| p.protocol == class)
            .map(move |p| match class {
                Protocol::Icmp => (0, u16::MAX),
                _ => (p.first, p.last),
            });
        whole.into_iter().chain(named)
    }
}

/// A run of ports and the claim that wins it.
pub(super) type Run = (u16, u16, usize);

/// Winner of each port range of `class`; covers are sorted, best first.
pub(super) fn winners(
    covers: &[Cover<'_>],
    class: Class,
    overlaps: &mut BTreeSet<(usize, usize)>,
) -> Vec<Run> {
    let ranges: Vec<(usize, u16, u16)> = covers
        .iter()
        .flat_map(|c| {
            c.ranges(class)
                .filter(|(a, b)| a <= b)
                .map(|(a, b)| (c.claim, a, b))
        })
        .collect();
    let mut cuts: BTreeSet<u32> = BTreeSet::new();
    for (_, first, last) in &ranges {
        cuts.insert(u32::from(*first));
        cuts.insert(u32::from(*last) + 1);
    }
    let cuts: Vec<u32> = cuts.into_iter().collect();
    let mut runs: Vec<Run> = Vec::new();
    for pair in cuts.windows(2) {
        // A cut is at most 65536, so one less than the second fits.
        let (first, last) = (pair[0] as u16, (pair[1] - 1) as u16);
        let mut here = ranges.iter().filter(|(_, a, b)| *a <= first && last <= *b);
        let Some((winner, ..)) = here.next() else {
            continue;
        };
        overlaps.extend(
            here.filter(|(c, ..)| c != winner)
                .map(|(c, ..)| (*winner, *c)),
        );
        match runs.last_mut() {
            Some(run) if run.2 == *winner && u32::from(run.1) + 1 == pair[0] => run.1 = last,
            _ => runs.push((first, last, *winner)),
        }
    }
    runs
}

/// Winner for protocols without ports.
pub(super) fn portless_winner(
    covers: &[Cover<'_>],
    overlaps: &mut BTreeSet<(usize, usize)>,
) -> Option<usize> {
    let mut all = covers.iter().filter(|c| c.all_ports()).map(|c| c.claim);
    let winner = all.next()?;
    overlaps.extend(all.filter(|c| *c != winner).map(|c| (winner, c)));
    Some(winner)
}
