//! Runs named steps that share one lab, as a test program without libtest: one lab per group, steps in order, a line
//! for each, and the labs are taken down whatever happens. As many groups at a time as libtest would run tests.
//!
//! Understands what `cargo test` and nextest pass on: filters, `--exact`, `--skip`, `--list`, `--ignored`,
//! `--test-threads`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
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

/// Runs the steps that the arguments want.
type Work = dyn FnOnce(&Arguments) -> Tally + Send;

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
        up: impl FnOnce() -> anyhow::Result<C> + Send + 'static,
        steps: Vec<Step<C>>,
    ) -> Self {
        Self {
            name,
            steps: steps.iter().map(|step| step.name).collect(),
            run: Box::new(move |arguments| run_group(name, up, &steps, arguments)),
        }
    }
}

fn run_group<C>(
    group: &str,
    up: impl FnOnce() -> anyhow::Result<C>,
    steps: &[Step<C>],
    arguments: &Arguments,
) -> Tally {
    let mut tally = Tally::default();
    let full = |step: &Step<C>| format!("{group}::{}", step.name);
    let is_wanted = |step: &&Step<C>| arguments.wants(&full(step));
    let (chosen, others): (Vec<_>, Vec<_>) = steps.iter().partition(is_wanted);
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
    /// Groups at a time.
    threads: usize,
}

impl Arguments {
    fn read() -> Self {
        let mut arguments = Arguments {
            filters: Vec::new(),
            skips: Vec::new(),
            exact: false,
            list: false,
            ignored: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored = true,
                "--skip" => arguments.skips.extend(words.next()),
                "--test-threads" => arguments.read_threads(words.next().as_deref()),
                // Options of libtest that have a value.
                "--format" | "--color" | "--logfile" | "-Z" => {
                    words.next();
                }
                word if word.starts_with('-') => {
                    arguments.read_threads(word.strip_prefix("--test-threads="));
                }
                word => arguments.filters.push(word.to_owned()),
            }
        }
        arguments
    }

    fn read_threads(&mut self, number: Option<&str>) {
        let number = number.and_then(|number| number.parse().ok());
        self.threads = number.filter(|number| *number > 0).unwrap_or(self.threads);
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

fn run_all(groups: Vec<Group>, arguments: &Arguments) -> Tally {
    let threads = arguments.threads.min(groups.len());
    let waiting = Mutex::new(groups.into_iter());
    let all = Mutex::new(Tally::default());
    let next = || waiting.lock().expect("nobody panics with it").next();
    let work = || {
        while let Some(group) = next() {
            let tally = (group.run)(arguments);
            let mut all = all.lock().expect("nobody panics with it");
            all.passed += tally.passed;
            all.skipped += tally.skipped;
            all.failed.extend(tally.failed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    all.into_inner().expect("nobody panics with it")
}

/// The `main` of a test program.
pub fn run(groups: Vec<Group>) -> ExitCode {
    let arguments = Arguments::read();
    if arguments.list {
        for group in &groups {
            let names = group
                .steps
                .iter()
                .map(|step| format!("{}::{step}", group.name));
            names
                .filter(|name| arguments.wants(name))
                .for_each(|name| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let all = run_all(groups, &arguments);
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
