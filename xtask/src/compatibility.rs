//! `compatibility`: the page about the acceptance cases of earlier systems, generated from the catalogue, from comments
//! of tests and from the output of a run.
//!
//! ```text
//! catalogue   the cases: id, required behaviour, why it cannot be shown here
//! tests       which test shows which case: lines `Cases: N1, N3.` in the documentation of test functions
//! verdicts    result of each test in a run
//! page        the page, and the verdicts of the existing page
//! ```
//!
//! A verdict stays on the page until a run has another one of that test, so that a run of one test program is enough to
//! update its lines.

mod catalogue;
mod page;
mod tests;
mod verdicts;

use crate::tidy::Tree;
use anyhow::{Context, ensure};
use catalogue::SYSTEMS;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tests::Shown;
use verdicts::Verdicts;

const PAGE: &str = "docs/compatibility.md";

/// Writes the page with the verdicts of the runs, the later ones last; with `check` fails if it is outdated.
///
/// # Errors
/// A case has neither test nor reason, a test names an unknown case, or a run cannot be read.
pub fn run(check: bool, runs: &[PathBuf]) -> anyhow::Result<()> {
    let tree = Tree::load()?;
    let shown = tests::read(&tree);
    let problems = problems(&shown);
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    let before = tree.get(PAGE).unwrap_or_default();
    let mut verdicts = page::verdicts(before);
    for file in runs {
        verdicts.extend(verdicts_of(file)?);
    }
    let text = page::page(&shown, &verdicts);
    ensure!(
        text == before || !check,
        "{PAGE} is not current; run `cargo run -p xtask -- compatibility`"
    );
    if text != before {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
        std::fs::write(&path, &text).with_context(|| format!("writing {PAGE}"))?;
    }
    println!("{PAGE}: {}", page::summary(&shown, &verdicts));
    Ok(())
}

fn verdicts_of(file: &Path) -> anyhow::Result<Verdicts> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
    let read = verdicts::read(&text);
    let read = read.with_context(|| {
        format!("{name} has no line `run of YYYY-MM-DD`, as `./dev test` writes it")
    })?;
    ensure!(!read.is_empty(), "{name} names no test");
    Ok(read)
}

/// Cases without test or reason, and tests of unknown cases.
fn problems(shown: &[Shown]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut ids = BTreeSet::new();
    for case in SYSTEMS.iter().flat_map(|system| system.cases) {
        if !ids.insert(case.id) {
            problems.push(format!("{} is there twice", case.id));
        }
        if case.reason.is_none() && !shown.iter().any(|one| one.case == case.id) {
            problems.push(format!(
                "{} ({}) has neither a test nor a reason: write `Cases: {}.` into the documentation of the test that shows it",
                case.id, case.says, case.id
            ));
        }
    }
    for one in shown.iter().filter(|one| !ids.contains(one.case.as_str())) {
        problems.push(format!(
            "{}: {} shows {}, which is no case",
            one.path, one.test, one.case
        ));
    }
    problems
}

#[cfg(test)]
mod the_page {
    use super::*;

    fn shown(case: &str, test: &str) -> Shown {
        Shown {
            case: case.into(),
            path: "tests/tests/lab/classic.rs".into(),
            test: test.into(),
        }
    }

    #[test]
    fn every_case_has_a_test_or_a_reason_and_every_test_a_case() {
        let found = problems(&tests::read(&Tree::load().unwrap()));
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn a_case_without_test_and_a_test_without_case_are_told() {
        let all = tests::read(&Tree::load().unwrap());
        let mut fewer: Vec<Shown> = all.into_iter().filter(|one| one.case != "E1").collect();
        fewer.push(shown("E99", "nothing"));
        let found = problems(&fewer);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("E1 ("), "{}", found[0]);
        assert!(found[1].contains("nothing shows E99"), "{}", found[1]);
    }
}
