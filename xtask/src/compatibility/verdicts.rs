//! What a run of tests printed: one line for each test, by libtest and by `egret_tests::steps` alike.

use std::collections::{BTreeMap, BTreeSet};

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passed.
    pub passed: bool,
    /// Day of the run, `YYYY-MM-DD`, UTC.
    pub day: String,
}

/// Verdicts by test program and function.
pub type Verdicts = BTreeMap<(String, String), Verdict>;

/// Reads a run's output; none where it does not say of which day it is.
pub fn read(text: &str) -> Option<Verdicts> {
    let day = text.lines().find_map(|line| line.strip_prefix("run of "))?;
    let day = day.split_whitespace().next()?;
    let skipped: BTreeSet<&str> = text.lines().filter_map(skipped).collect();
    let mut verdicts = Verdicts::new();
    let mut program = String::new();
    // A test that prints by itself: its result stands on a line of its own.
    let mut open: Option<&str> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = running(line) {
            program = name;
            open = None;
            continue;
        }
        let (name, result) = match (test(line), open) {
            (Some(found), _) => found,
            (None, Some(name)) => (name, line),
            (None, None) => continue,
        };
        open = None;
        let function = name.rsplit("::").next().unwrap_or(name);
        let passed = match result.split_whitespace().next() {
            Some("ok") => true,
            Some("FAILED") => false,
            Some("ignored") => continue,
            _ => {
                open = Some(name);
                continue;
            }
        };
        if skipped.contains(function) {
            continue;
        }
        let key = (program.clone(), function.to_owned());
        let day = day.to_owned();
        verdicts.insert(key, Verdict { passed, day });
    }
    Some(verdicts)
}

/// `Running tests/classic.rs (target/debug/deps/classic-0123456789abcdef)`
fn running(line: &str) -> Option<String> {
    let path = line.strip_prefix("Running ")?;
    let (_, path) = path.rsplit_once('(')?;
    let name = path.trim_end_matches(')').rsplit('/').next()?;
    let (name, _hash) = name.rsplit_once('-')?;
    Some(name.to_owned())
}

/// `test group::name ... ok (1.2s)`
fn test(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ...")?;
    Some((name, result))
}

/// `skipped: name: why`
fn skipped(line: &str) -> Option<&str> {
    line.trim().strip_prefix("skipped: ")?.split(':').next()
}

#[cfg(test)]
mod of_runs {
    use super::*;

    #[test]
    fn lines_of_both_harnesses_are_read() {
        let text = "\
run of 2026-11-21 12:00 UTC
     Running tests/classic.rs (target/debug/deps/classic-63d5f3dc3a0e1f2b)
lab  classic up after 3.1s
test classic::one_works ... ok (1.2s)
test classic::another ... FAILED (0.2s)
it was not as it should be
     Running unittests src/lib.rs (target/debug/deps/egret_core-aaaaaaaaaaaaaaaa)
test resolve::tests::a_thing ... ok
test resolve::tests::slow ... ignored
     Running tests/kube_pods.rs (target/debug/deps/kube_pods-aaaaaaaaaaaaaaaa)
test left_out ... 
skipped: left_out: it is not built
ok
test prints_much ... 
something
ok
";
        let read = read(text).unwrap();
        let found: Vec<(&str, &str, bool)> = read
            .iter()
            .map(|((program, test), verdict)| (program.as_str(), test.as_str(), verdict.passed))
            .collect();
        assert_eq!(
            found,
            [
                ("classic", "another", false),
                ("classic", "one_works", true),
                ("egret_core", "a_thing", true),
                ("kube_pods", "prints_much", true),
            ]
        );
        assert!(read.values().all(|verdict| verdict.day == "2026-11-21"));
    }

    #[test]
    fn a_run_without_a_day_is_none() {
        assert_eq!(read("test a ... ok\n"), None);
    }
}
