//! Runs many seeds on several threads.

use crate::checker::Violation;
use crate::generate;
use crate::sabotage::Sabotage;
use crate::script::Script;
use crate::shrink::shrink;
use crate::world::World;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A seed that fails, with its script as short as possible.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The shortened script.
    pub script: Script,
    /// What its run violates.
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        write!(f, "{}", self.script)
    }
}

/// Runs these seeds, each with this number of steps, until this number of them have failed, or all are run.
pub fn seeds(
    seeds: &[u64],
    steps: usize,
    sabotage: Option<Sabotage>,
    failures_max: usize,
) -> Vec<Failure> {
    let next = AtomicUsize::new(0);
    let failures: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
    let work = || {
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let found = failures.lock().expect("no thread panics with it").len();
            let Some(seed) = seeds
                .get(position)
                .copied()
                .filter(|_| found < failures_max)
            else {
                return;
            };
            let script = generate::script(seed, steps);
            let found = World::run(&script, sabotage).err();
            // What fails anyway says nothing about the broken part.
            let is_whole = || sabotage.is_none() || World::run(&script, None).is_ok();
            if let Some(violation) = found.filter(|_| is_whole()) {
                let (script, violation) = shrink(&script, sabotage, &violation);
                let failure = Failure {
                    seed,
                    script,
                    violation,
                };
                failures
                    .lock()
                    .expect("no thread panics with it")
                    .push(failure);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut failures = failures.into_inner().expect("no thread panics with it");
    failures.sort_by_key(|failure| failure.seed);
    failures
}
