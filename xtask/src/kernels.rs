//! `kernels`: the table of `docs/requirements.md` that shows on which kernels the tests ran, from the output of
//! `./dev kernels` or `./dev test`. The column of a kernel stays until a run has another result of it.

use crate::{generated, test_log};
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/requirements.md";
const TITLE: &str = "Kernels that were tested";
/// Series: module of the test program, and its column.
const SERIES: [(&str, &str); 3] = [
    ("linux_6_1", "6.1"),
    ("linux_6_12", "6.12"),
    ("newest", "newest"),
];
/// Rows above those of the checks.
const RELEASE: &str = "release";
const DAY: &str = "run of";

/// Cells by row and column.
type Cells = BTreeMap<(String, String), String>;

/// Writes the table with the results of the runs, the later ones last; with `check` fails if it is outdated.
///
/// # Errors
/// A run cannot be read, or contains no kernel.
pub fn run(check: bool, runs: &[PathBuf]) -> anyhow::Result<()> {
    let page = generated::read(PAGE)?;
    let (before, table, after) =
        split(&page).with_context(|| format!("{PAGE} has no table under {TITLE}"))?;
    let (mut rows, mut cells) = parse(table);
    for file in runs {
        add(&read(file)?, &mut rows, &mut cells).with_context(|| file.display().to_string())?;
    }
    let text = format!("{before}{}{after}", render(&rows, &cells));
    generated::put(PAGE, &text, check, "kernels --run target/kernels.log")
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// The page before, in and after the table.
fn split(page: &str) -> Option<(&str, &str, &str)> {
    let section = page.find(&format!("\n## {TITLE}\n"))?;
    let start = section + page[section..].find("\n|")? + 1;
    let rows = page[start..].split_inclusive('\n');
    let length: usize = rows
        .take_while(|row| row.starts_with('|'))
        .map(str::len)
        .sum();
    Some((
        &page[..start],
        &page[start..start + length],
        &page[start + length..],
    ))
}

/// Rows in their order, and cells, of the existing table.
fn parse(table: &str) -> (Vec<String>, Cells) {
    let (mut rows, mut cells) = (Vec::new(), Cells::new());
    for line in table.lines().skip(2) {
        let mut fields = line.trim_matches('|').split('|').map(str::trim);
        let Some(row) = fields.next() else { continue };
        rows.push(row.to_owned());
        for ((_, column), cell) in SERIES.iter().zip(fields) {
            cells.insert((row.to_owned(), (*column).to_owned()), cell.to_owned());
        }
    }
    (rows, cells)
}

/// Adds the results of a run.
fn add(text: &str, rows: &mut Vec<String>, cells: &mut Cells) -> anyhow::Result<()> {
    let day = text.lines().find_map(|line| line.strip_prefix("run of "));
    let day = day.and_then(|day| day.split_whitespace().next());
    let day = day.context("no line `run of YYYY-MM-DD`, as `./dev kernels` writes it")?;
    let mut found = false;
    for (module, column) in SERIES {
        // kernel 6.1 6.1.0-57-amd64 (6.1.192-3) up after 9.1s
        let prefix = format!("kernel {column} ");
        let Some(kernel) = text.lines().find_map(|line| line.strip_prefix(&prefix)) else {
            continue;
        };
        found = true;
        let release = kernel.split(" up after").next().unwrap_or(kernel);
        cells.retain(|(_, of), _| of != column);
        let mut put = |row: &str, cell: &str| {
            if !rows.iter().any(|one| one == row) {
                rows.push(row.to_owned());
            }
            cells.insert((row.to_owned(), column.to_owned()), cell.to_owned());
        };
        put(RELEASE, release);
        put(DAY, day);
        for test in test_log::read(text) {
            let check = test.name.strip_prefix(&format!("{module}::emulated::"));
            if let Some(check) = check.filter(|_| test.program.name == "kernels") {
                let result = if test.passed { "passed" } else { "FAILED" };
                put(&check.replace('_', " "), result);
            }
        }
    }
    ensure!(found, "no kernel was booted in this run");
    Ok(())
}

fn render(rows: &[String], cells: &Cells) -> String {
    let columns = SERIES.map(|(_, column)| column);
    let mut text = format!(
        "| check | {} |\n|---|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    for row in rows {
        let cell = |column: &str| cells.get(&(row.clone(), column.to_owned()));
        let line = columns.map(|column| cell(column).map_or("", String::as_str));
        if line.iter().any(|cell| !cell.is_empty()) {
            text += &format!("| {row} | {} |\n", line.join(" | "));
        }
    }
    text
}

#[cfg(test)]
mod the_table {
    use super::*;

    const RUN: &str = "\
run of 2026-12-01 00:10 UTC
     Running tests/kernels/main.rs (target/debug/deps/kernels-63d5f3dc3a0e1f2b)
kernel 6.1 6.1.0-57-amd64 (6.1.192-3) up after 9.1s
test linux_6_1::emulated::the_verifier_accepts_the_programs ... ok (1.8s)
test linux_6_1::emulated::cleanup_leaves_nothing ... FAILED (9.8s)
";

    #[test]
    fn a_run_replaces_the_column_of_its_kernels_and_no_other() {
        let old = "| check | 6.1 | 6.12 | newest |\n|---|---|---|---|\n| release | 6.1.0-1 (6.1.1-1) | 6.12.1 |  |\n\
                   | run of | 2026-11-01 | 2026-11-02 |  |\n| gone now | passed |  |  |\n";
        let (mut rows, mut cells) = parse(old);
        add(RUN, &mut rows, &mut cells).unwrap();
        let table = render(&rows, &cells);
        assert!(
            table.contains("| release | 6.1.0-57-amd64 (6.1.192-3) | 6.12.1 |  |"),
            "{table}"
        );
        assert!(
            table.contains("| run of | 2026-12-01 | 2026-11-02 |  |"),
            "{table}"
        );
        assert!(
            table.contains("| the verifier accepts the programs | passed |  |  |"),
            "{table}"
        );
        assert!(
            table.contains("| cleanup leaves nothing | FAILED |  |  |"),
            "{table}"
        );
        assert!(!table.contains("gone now"), "{table}");
        let (_, mut read) = parse(&table);
        read.retain(|_, cell| !cell.is_empty());
        cells.retain(|_, cell| !cell.is_empty());
        assert_eq!(read, cells);
    }

    #[test]
    fn a_run_without_day_or_kernel_is_refused() {
        for bad in ["kernel 6.1 x up after 9s\n", "run of 2026-12-01\n"] {
            assert!(
                add(bad, &mut Vec::new(), &mut Cells::new()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_page_has_the_table_as_it_would_be_written() {
        run(true, &[]).unwrap();
    }
}
