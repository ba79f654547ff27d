//! Test programs of this build, run in an emulated machine.

use super::Machine;
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most lines about faults that an error shows of a failed program, and its last lines.
const SHOWN_LINES: usize = 60;
const LAST_LINES: usize = 15;
/// Factor for all time limits of the lab inside: see `egret_lab::slowness`.
const SLOWNESS: u32 = 10;
/// The repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A test program of a package, by the name of its file in `tests/`.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Folder of the package in the repository.
    pub package: &'static str,
    /// Name of the program.
    pub name: &'static str,
}

/// Results of a test program.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Number of tests that passed.
    pub passed: usize,
    /// Whole output.
    pub lines: Vec<String>,
}

impl Program {
    /// Runs the tests that the arguments select. All of them must pass, and at least one must run.
    ///
    /// # Errors
    /// It is not built, a test fails, or it takes longer than `limit`.
    pub fn run(self, machine: &Machine, arguments: &str, limit: Duration) -> anyhow::Result<Ran> {
        let program = self.path()?;
        let package = Path::new(REPOSITORY).join(self.package).canonicalize()?;
        let line = format!(
            "cd {package} && export CARGO_MANIFEST_DIR={package} EGRET_BIN={egret} EGRET_LAB_SLOWNESS={SLOWNESS} \
             NO_COLOR=1 CARGO_TERM_COLOR=never && {program} {arguments}",
            package = package.display(),
            egret = crate::egret()?.display(),
            program = program.display(),
        );
        let output = machine.run(&line, limit)?;
        let passed = passed(&output.lines);
        for skipped in output
            .lines
            .iter()
            .filter(|line| line.starts_with("skipped: "))
        {
            // Not as `skipped: `: on this machine's own kernel the same test may run.
            println!("inside {skipped}");
        }
        if output.status != 0 {
            let shown = shown(&output.lines).join("\n  | ");
            let status = output.status;
            bail!("{} {arguments}: exit code {status}\n  | {shown}", self.name);
        }
        let passed = passed.with_context(|| format!("{} prints no result", self.name))?;
        ensure!(passed > 0, "{} {arguments} selects no test", self.name);
        Ok(Ran {
            passed,
            lines: output.lines,
        })
    }

    /// The newest program of that name beside this one: `target/debug/deps/NAME-<16 hex digits>`.
    fn path(self) -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe()?;
        let folder = own.parent().context("the folder of this program")?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)?.filter_map(Result::ok) {
            if is_program(&entry.file_name().to_string_lossy(), self.name) {
                found.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        found.sort();
        let newest = found.pop().with_context(|| {
            format!(
                "the test program {} is not built: run `cargo build --workspace --all-targets`",
                self.name
            )
        })?;
        Ok(newest.1)
    }
}

/// Runs `egret lab demo`, all of whose checks must pass.
///
/// # Errors
/// It is not built, a check is wrong, or it takes longer than `limit`.
pub fn demo(machine: &Machine, limit: Duration) -> anyhow::Result<()> {
    let egret = crate::egret()?;
    let line = format!(
        "cd /root && EGRET_LAB_SLOWNESS={SLOWNESS} {} lab demo",
        egret.display()
    );
    let output = machine.run(&line, limit)?;
    let passed = output
        .lines
        .iter()
        .filter(|line| line.starts_with("   ok "))
        .count();
    if output.status != 0 {
        let shown = shown(&output.lines).join("\n  | ");
        bail!("the demo: exit code {}\n  | {shown}", output.status);
    }
    ensure!(passed > 0, "the demo checks nothing: {:?}", output.lines);
    println!("{passed} checks of the demo");
    Ok(())
}

fn is_program(file: &str, name: &str) -> bool {
    let hash = file
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('-'));
    hash.is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// What an error shows of a program's output: results that are wrong, reasons, and the last lines.
fn shown(lines: &[String]) -> Vec<&str> {
    let last = lines.len().saturating_sub(LAST_LINES);
    let marks = ["FAILED", "panicked at", "WRONG", "error"];
    let is_wrong = |at: usize| {
        let near = [at.checked_sub(1), Some(at)].into_iter().flatten();
        near.map(|at| &lines[at])
            .any(|line| marks.iter().any(|mark| line.contains(mark)))
    };
    let wrong = (0..last).filter(|&at| is_wrong(at)).take(SHOWN_LINES);
    wrong
        .chain(last..lines.len())
        .map(|at| lines[at].as_str())
        .collect()
}

/// Number of passed tests in the line `test result: ok. 3 passed; ...`.
fn passed(lines: &[String]) -> Option<usize> {
    let result = lines
        .iter()
        .rev()
        .find(|line| line.starts_with("test result: "))?;
    let (before, _) = result.split_once(" passed")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod of_output {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_name_and_hash() {
        assert!(is_program("ruleset-76301d0d494bf6bc", "ruleset"));
        for other in [
            "ruleset-76301d0d494bf6bc.d",
            "ruleset",
            "classic_ruleset-76301d0d494bf6bc",
        ] {
            assert!(!is_program(other, "ruleset"), "{other}");
        }
    }

    #[test]
    fn the_result_is_read() {
        let lines = [
            "running 2 tests",
            "test result: ok. 12 passed; 0 failed; 0 ignored",
        ];
        assert_eq!(passed(&lines.map(str::to_owned)), Some(12));
        assert_eq!(passed(&["running 2 tests".to_owned()]), None);
    }
}
