//! Results of a test run.

use crate::test_log;
use std::collections::{BTreeMap, BTreeSet};

/// Result of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passed.
    pub passed: bool,
    /// Day of the run, `YYYY-MM-DD`, UTC.
    pub day: String,
}

/// Verdicts by test program (or its module, see [`test_log::MODULAR`]) and function.
pub type Verdicts = BTreeMap<(String, String), Verdict>;

/// Reads a run's output; `None` if it does not contain its day.
pub fn read(text: &str) -> Option<Verdicts> {
    let day = text.lines().find_map(|line| line.strip_prefix("run of "))?;
    let day = day.split_whitespace().next()?;
    let skipped: BTreeSet<&str> = text.lines().filter_map(skipped).collect();
    let mut verdicts = Verdicts::new();
    for test in test_log::read(text) {
        let function = test.name.rsplit("::").next().unwrap_or(test.name);
        if skipped.contains(function) {
            continue;
        }
        let file = match test.name.split_once("::") {
            Some((module, _)) if test.program.is_modular() => module,
            _ => test.program.name,
        };
        let passed = test.passed;
        let day = day.to_owned();
        verdicts.insert(
            (file.to_owned(), function.to_owned()),
            Verdict { passed, day },
        );
    }
    Some(verdicts)
}

/// `skipped: name: why`
fn skipped(line: &str) -> Option<&str> {
    line.trim().strip_prefix("skipped: ")?.split(':').next()
}

#[cfg(test)]
mod of_runs {
    use super::*;

    #[test]
    fn verdicts_are_those_of_files_and_functions() {
        let text = "\
run of 2026-11-21 12:00 UTC
     Running tests/lab/main.rs (target/debug/deps/lab-63d5f3dc3a0e1f2b)
test classic::up::one_works ... ok (1.2s)
test classic::up::another ... FAILED (0.2s)
     Running unittests src/lib.rs (target/debug/deps/egret_core-aaaaaaaaaaaaaaaa)
test resolve::tests::a_thing ... ok
     Running tests/kube/main.rs (target/debug/deps/kube-aaaaaaaaaaaaaaaa)

skipped: left_out: it is not built
test kube_pods::left_out ... ok (1ms)
test kube_pods::with_pods ... ok (1s)
";
        let read = read(text).unwrap();
        let found: Vec<(&str, &str, bool)> = read
            .iter()
            .map(|((file, test), verdict)| (file.as_str(), test.as_str(), verdict.passed))
            .collect();
        assert_eq!(
            found,
            [
                ("classic", "another", false),
                ("classic", "one_works", true),
                ("egret_core", "a_thing", true),
                ("kube_pods", "with_pods", true),
            ]
        );
        assert!(read.values().all(|verdict| verdict.day == "2026-11-21"));
    }

    #[test]
    fn a_run_without_a_day_is_none() {
        assert_eq!(read("test a ... ok\n"), None);
    }
}
