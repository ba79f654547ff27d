//! Files that a task writes, that are committed, and that `--check` compares.

use anyhow::{Context, ensure};
use std::path::Path;

/// The text of a file of the repository.
pub fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(absolute(path)).with_context(|| format!("reading {path}"))
}

/// Writes the file, or with `check` fails if it differs: `task` is the command that writes it.
pub fn put(path: &str, text: &str, check: bool, task: &str) -> anyhow::Result<()> {
    let current = read(path).is_ok_and(|found| found == text);
    ensure!(
        current || !check,
        "{path} is not current: run `cargo run -p xtask -- {task}` and commit"
    );
    if !current {
        std::fs::write(absolute(path), text).with_context(|| format!("writing {path}"))?;
    }
    Ok(())
}

fn absolute(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
