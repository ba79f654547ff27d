//! Runs named steps that share one lab, as a test program without libtest: one lab per group, steps in order, a line
//! for each, and the labs are taken down whatever happens.
//!
//! Understands what `cargo test` and nextest pass on: filters, `--exact`, `--skip`, `--list`, `--ignored`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// Result of a step: an error or a panic fails it.
pub type Outcome = anyhow::Result<()>;

/// A named behaviour.
pub struct Step<C> {
    /// Name, a sentence with underscores.
    pub name: &'static str,
    /// What it does with the shared lab.
    pub run: fn(&C) -> Outcome,
}

/// Steps named by their functions.
#[macro_export]
macro_rules! steps {
    ($($step:ident),* $(,)?) => {
        vec![$($crate::Step { name: stringify!($step), run: $step }),*]
    };
}

/// Runs the steps that the function wants.
type Work = dyn FnOnce(&dyn Fn(&str) -> bool) -> Tally;

/// Steps that share one lab.
pub struct Group {
    name: &'static str,
    steps: Vec<&'static str>,
    run: Box<Work>,
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl Group {
    /// Steps with the function that brings their lab up; it is not called where no step is wanted.
    pub fn new<C: 'static>(
        name: &'static str,
        up: impl FnOnce() -> anyhow::Result<C> + 'static,
        steps: Vec<Step<C>>,
    ) -> Self {
        Self {
            name,
            steps: steps.iter().map(|step| step.name).collect(),
            run: Box::new(move |wanted| run_group(name, up, &steps, wanted)),
        }
    }
}

fn run_group<C>(
    group: &str,
    up: impl FnOnce() -> anyhow::Result<C>,
    steps: &[Step<C>],
    wanted: &dyn Fn(&str) -> bool,
) -> Tally {
    let mut tally = Tally::default();
    let full = |step: &Step<C>| format!("{group}::{}", step.name);
    let (chosen, others): (Vec<_>, Vec<_>) = steps.iter().partition(|step| wanted(&full(step)));
    tally.skipped = others.len();
    if chosen.is_empty() {
        return tally;
    }
    let started = Instant::now();
    let context = match caught(up) {
        Ok(context) => context,
        Err(why) => {
            println!("test {group} (bringing the lab up) ... FAILED\n{why}");
            tally.failed.extend(chosen.into_iter().map(full));
            return tally;
        }
    };
    println!("lab  {group} up after {:.1?}", started.elapsed());
    for step in chosen {
        let started = Instant::now();
        let result = caught(|| (step.run)(&context));
        let took = started.elapsed();
        match result {
            Ok(()) => {
                println!("test {} ... ok ({took:.1?})", full(step));
                tally.passed += 1;
            }
            Err(why) => {
                println!("test {} ... FAILED ({took:.1?})\n{why}", full(step));
                tally.failed.push(full(step));
            }
        }
    }
    tally
}

fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        // The panic hook has printed what and where.
        Err(_) => Err("panicked".to_owned()),
    }
}

struct Arguments {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
}

impl Arguments {
    fn read() -> Self {
        let mut arguments = Arguments {
            filters: Vec::new(),
            skips: Vec::new(),
            exact: false,
            list: false,
            ignored: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored = true,
                "--skip" => arguments.skips.extend(words.next()),
                // Options of libtest that have a value.
                "--format" | "--test-threads" | "--color" | "--logfile" | "-Z" => {
                    words.next();
                }
                word if word.starts_with('-') => {}
                word => arguments.filters.push(word.to_owned()),
            }
        }
        arguments
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |filter: &String| match self.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skips.iter().any(matches)
    }
}

/// The `main` of a test program.
pub fn run(groups: Vec<Group>) -> ExitCode {
    let arguments = Arguments::read();
    let wanted = |name: &str| arguments.wants(name);
    if arguments.list {
        for group in &groups {
            let names = group
                .steps
                .iter()
                .map(|step| format!("{}::{step}", group.name));
            names
                .filter(|name| wanted(name))
                .for_each(|name| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let mut all = Tally::default();
    for group in groups {
        let tally = (group.run)(&wanted);
        all.passed += tally.passed;
        all.skipped += tally.skipped;
        all.failed.extend(tally.failed);
    }
    let result = if all.failed.is_empty() {
        "ok"
    } else {
        "FAILED"
    };
    println!(
        "\ntest result: {result}. {} passed; {} failed; {} filtered out",
        all.passed,
        all.failed.len(),
        all.skipped
    );
    all.failed.iter().for_each(|name| println!("    {name}"));
    ExitCode::from(u8::from(!all.failed.is_empty()) * 101)
}
