//! `rerun`: failed tests of a run that are worth a second try (docs/decisions/0097), as arguments for `cargo test`.

use crate::test_log::{self, Ended, Kind, Program};
use anyhow::{Context, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// More failed labs and tests are no coincidence.
const FAILED_MAX: usize = 3;
/// Modules whose failure is final: one packet with a wrong source is enough.
const NEVER: [&str; 2] = ["wrong_source::", "matrix::"];
/// Text of a test after the number of forbidden packets.
const WRONG_PACKETS: [&str; 2] = [" offending packets", " packets with a wrong source"];

/// Prints a line for every test program with such tests.
///
/// # Errors
/// The file cannot be read, or no test is run again; the error contains the reason.
pub fn run(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("reading {}", file.display()))?;
    let lines = arguments(&text).context("nothing is run again")?;
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn arguments(text: &str) -> anyhow::Result<Vec<String>> {
    let mut failed: BTreeMap<Program<'_>, Vec<&str>> = BTreeMap::new();
    let ended = test_log::read(text);
    let mut units = BTreeSet::new();
    for test in ended.iter().filter(|test| !test.passed) {
        let is_promise = test.program.is_modular();
        let never = NEVER.iter().any(|module| test.name.starts_with(module));
        ensure!(
            !(is_promise && never),
            "{} failed, and once is enough",
            test.name
        );
        units.insert((test.program, unit(test)));
        failed.entry(test.program).or_default().push(test.name);
    }
    ensure!(!failed.is_empty(), "no test failed");
    ensure!(
        failed.len() >= programs(text),
        "a test program ended without naming the test that failed"
    );
    ensure!(
        units.len() <= FAILED_MAX,
        "{} failed: {units:?}",
        units.len()
    );
    ensure!(
        !text.lines().any(saw_wrong_packets),
        "a capture saw packets that must not be"
    );
    failed.into_iter().map(line).collect()
}

/// Steps of a lab fail together if the lab does not come up.
fn unit<'a>(test: &Ended<'a>) -> &'a str {
    match test.name.rsplit_once("::") {
        Some((group, _)) if test.program.is_modular() && group.contains("::") => group,
        _ => test.name,
    }
}

fn line((program, names): (Program<'_>, Vec<&str>)) -> anyhow::Result<String> {
    let target = match program.kind {
        Kind::Library => "--lib".to_owned(),
        Kind::Binary => "--bins".to_owned(),
        Kind::Test => format!("--test {}", program.name),
        Kind::Documentation => bail!("an example of {} failed", program.name),
    };
    Ok(format!("{target} -- --exact {}", names.join(" ")))
}

/// Programs that failed, as cargo lists them at the end: ``    `-p egret-tests --test lab` ``.
fn programs(text: &str) -> usize {
    let listed = |line: &&str| line.starts_with("    `-p ") && line.ends_with('`');
    text.lines().filter(listed).count()
}

fn saw_wrong_packets(line: &str) -> bool {
    WRONG_PACKETS.iter().any(|words| {
        line.match_indices(words).any(|(at, _)| {
            let number = line[..at].rsplit(|c: char| !c.is_ascii_digit()).next();
            number.is_some_and(|number| number.bytes().any(|digit| digit != b'0'))
        })
    })
}

#[cfg(test)]
mod of_failed_runs {
    use super::*;

    fn log(tests: &str) -> String {
        format!("     Running tests/lab/main.rs (target/debug/deps/lab-63d5f3dc3a0e1f2b)\n{tests}")
    }

    fn refusal(text: &str) -> String {
        arguments(text).unwrap_err().to_string()
    }

    #[test]
    fn failed_tests_are_named_for_each_program() {
        let text = log(
            "test a::lab::one ... FAILED (1s)\ntest a::lab::two ... ok\n\
             \u{20}    Running unittests src/lib.rs (target/debug/deps/egret_core-00)\n\
             test x::y ... FAILED\nerror: 2 targets failed:\n    `-p egret-tests --test lab`\n    `-p egret-core --lib`\n",
        );
        let mut lines = arguments(&text).unwrap();
        lines.sort();
        assert_eq!(
            lines,
            ["--lib -- --exact x::y", "--test lab -- --exact a::lab::one"]
        );
    }

    #[test]
    fn a_lab_counts_once_and_four_of_them_are_too_many() {
        let steps: String = (0..9)
            .map(|step| format!("test a::lab::step{step} ... FAILED\n"))
            .collect();
        assert_eq!(arguments(&log(&steps)).unwrap().len(), 1);
        let labs: String = (0..4)
            .map(|lab| format!("test a::lab{lab}::step ... FAILED\n"))
            .collect();
        assert!(refusal(&log(&labs)).starts_with("4 failed"));
    }

    #[test]
    fn promises_and_wrong_packets_fail_at_once() {
        for module in ["wrong_source::flush", "matrix::lab1::step"] {
            let text = log(&format!("test {module} ... FAILED\n"));
            assert!(refusal(&text).contains("once is enough"), "{text}");
        }
        let failed = "test a::lab::one ... FAILED\n";
        for line in [
            "12 offending packets",
            "seen: 1 packets with a wrong source, 0 lost",
        ] {
            let text = log(&format!("{failed}{line}\n"));
            assert!(refusal(&text).contains("must not be"), "{text}");
        }
        let text = log(&format!("{failed}0 offending packets\n"));
        assert!(arguments(&text).is_ok());
    }

    #[test]
    fn what_names_no_test_is_not_run_again() {
        assert_eq!(refusal("error: could not compile"), "no test failed");
        let text = log(
            "test a::b ... FAILED\n    `-p egret-tests --test lab`\n    `-p egret-lab --test hosts`\n",
        );
        assert!(refusal(&text).contains("without naming"));
    }
}
