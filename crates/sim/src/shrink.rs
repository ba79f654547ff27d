//! Shortens a failing script: delta debugging (Zeller and Hildebrandt, 2002) over its steps.

use crate::checker::Violation;
use crate::sabotage::Sabotage;
use crate::script::Script;
use crate::world::World;

/// Runs of one shrinking, at most.
const RUNS_MAX: usize = 2_000;

/// The shortest script found that violates the same rule.
pub fn shrink(
    script: &Script,
    sabotage: Option<Sabotage>,
    found: &Violation,
) -> (Script, Violation) {
    let mut best = Script {
        steps: script.steps[..found.step].to_vec(),
        ..script.clone()
    };
    let mut violation = found.clone();
    let mut runs = 0;
    let mut fails = |script: &Script| {
        runs += 1;
        let found = World::run(script, sabotage)
            .err()
            .filter(|new| new.rule == found.rule);
        (runs < RUNS_MAX).then_some(found)
    };
    let mut size = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut shorter = false;
        while from < best.steps.len() {
            let mut candidate = best.clone();
            let to = (from + size).min(candidate.steps.len());
            candidate.steps.drain(from..to);
            match fails(&candidate) {
                None => return (best, violation),
                Some(Some(new)) => {
                    candidate.steps.truncate(new.step);
                    (best, violation, shorter) = (candidate, new, true);
                }
                Some(None) => from += size,
            }
        }
        match (shorter, size) {
            (false, 1) => return (best, violation),
            (true, _) => {}
            (false, _) => size = size.div_ceil(2),
        }
    }
}
