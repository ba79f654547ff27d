//! Order of the groups, and the printed results.

use super::process::{Ended, Process};
use super::{Arguments, Module, labs};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

#[derive(Default)]
struct Tally {
    passed: usize,
    ignored: usize,
    failed: Vec<String>,
}

/// A group, and the whole names of its selected steps.
struct Job {
    id: String,
    is_omitted: fn() -> bool,
    chosen: Vec<String>,
}

/// Groups that run in parallel.
#[derive(Default)]
struct Round {
    jobs: Vec<Job>,
    at_once: Option<usize>,
}

/// Runs everything that the arguments select.
pub(super) fn run(modules: &[Module], arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    labs::take_down_orphans();
    let rounds = rounds(modules, arguments);
    let jobs = || rounds.iter().flat_map(|round| &round.jobs);
    let all = modules.iter().flat_map(|module| &module.groups);
    let all: usize = all.map(|group| group.steps.len()).sum();
    let chosen: usize = jobs().map(|job| job.chosen.len()).sum();
    println!("\nrunning {chosen} tests");
    let is_live = jobs().count() == 1;
    let tally = Mutex::new(Tally::default());
    for round in rounds {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = arguments.threads.or(round.at_once);
        let threads = threads.unwrap_or_else(processors).min(round.jobs.len());
        let waiting = Mutex::new(round.jobs.into_iter());
        let next = || waiting.lock().expect("nobody panics with it").next();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(job) = next() {
                        run_job(&job, is_live, &tally);
                    }
                });
            }
        });
    }
    let tally = tally.into_inner().expect("nobody panics with it");
    let seconds = started.elapsed().as_secs_f64();
    summary(&tally, all - chosen, seconds)
}

/// First all modules that run in parallel, then each of the others.
fn rounds(modules: &[Module], arguments: &Arguments) -> Vec<Round> {
    let mut rounds = vec![Round::default()];
    for module in modules {
        let jobs = jobs(module, arguments);
        match module.is_shared() {
            true => rounds[0].jobs.extend(jobs),
            false => rounds.push(Round {
                jobs: jobs.collect(),
                at_once: module.at_once,
            }),
        }
    }
    rounds
}

fn jobs(module: &Module, arguments: &Arguments) -> impl Iterator<Item = Job> {
    let jobs = module.groups.iter().map(|group| Job {
        id: group.id(module.name),
        is_omitted: group.is_omitted,
        chosen: group.chosen(module.name, arguments),
    });
    jobs.filter(|job| !job.chosen.is_empty())
}

fn run_job(job: &Job, is_live: bool, tally: &Mutex<Tally>) {
    let lock = || tally.lock().expect("nobody panics with it");
    if (job.is_omitted)() {
        lock().ignored += job.chosen.len();
        return;
    }
    let ended = Process::start(&job.id, is_live).map(Process::wait);
    let Ended { results, why } = ended.unwrap_or_else(|error| Ended {
        results: Default::default(),
        why: format!("{error:#}"),
    });
    let mut tally = lock();
    for name in &job.chosen {
        match results.get(name) {
            Some(true) => tally.passed += 1,
            Some(false) => tally.failed.push(name.clone()),
            None => {
                println!("test {name} ... FAILED\n{why}");
                tally.failed.push(name.clone());
            }
        }
    }
}

/// The last lines, in libtest's format.
fn summary(tally: &Tally, filtered: usize, seconds: f64) -> ExitCode {
    if !tally.failed.is_empty() {
        println!("\nfailures:");
        tally.failed.iter().for_each(|name| println!("    {name}"));
    }
    let result = match tally.failed.is_empty() {
        true => "ok",
        false => "FAILED",
    };
    println!(
        "\ntest result: {result}. {} passed; {} failed; {} ignored; 0 measured; {filtered} filtered out; \
         finished in {seconds:.2}s\n",
        tally.passed,
        tally.failed.len(),
        tally.ignored
    );
    ExitCode::from(u8::from(!tally.failed.is_empty()) * 101)
}

#[cfg(test)]
mod of_rounds {
    use super::super::Group;
    use super::*;

    #[test]
    fn timed_modules_run_alone_and_the_others_beside_each_other() {
        let group = |name| vec![Group::single(name, || ())];
        let modules = [
            Module::new("a", group("one")),
            Module::new("b", group("two")).timed(),
            Module::new("c", group("three")),
            Module::new("d", group("four")).at_once(4),
        ];
        let rounds = rounds(&modules, &Arguments::default());
        let ids = rounds.iter().map(|round| {
            let ids: Vec<&str> = round.jobs.iter().map(|job| job.id.as_str()).collect();
            (ids, round.at_once)
        });
        assert_eq!(
            ids.collect::<Vec<_>>(),
            [
                (vec!["a::one", "c::three"], None),
                (vec!["b::two"], None),
                (vec!["d::four"], Some(4)),
            ]
        );
    }
}
