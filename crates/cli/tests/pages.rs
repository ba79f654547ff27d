//! `docs/migrating` is correct: its `egret` commands exist with their flags, and the tests that it names exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/migrating")
}

/// Text of every page, by its name.
fn texts() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(pages()).unwrap().flatten();
    let of = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        let text = std::fs::read_to_string(&path).ok()?;
        name.ends_with(".md").then_some((name, text))
    };
    entries.filter_map(|entry| of(entry.path())).collect()
}

/// Words of each `egret` command: in a block by its line, after a pipe, after `--` or an entry point, or in backquotes.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let parts = line
            .split('`')
            .flat_map(|part| part.split('|'))
            .flat_map(|part| part.split(" -- "));
        for part in parts {
            let part = part.split('#').next().unwrap_or_default().trim();
            let part = part.strip_prefix("/egret ").or(part.strip_prefix("egret "));
            let words: Vec<String> = part
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            if !words.is_empty() {
                found.push(words);
            }
        }
    }
    found
}

/// Fault of a command: the verb does not exist, or has no such flag.
fn fault(words: &[String]) -> Option<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
    let output = command.arg(&words[0]).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Some(format!("{words:?}: no such verb"));
    }
    let flags = words[1..]
        .iter()
        .filter(|word| word.starts_with('-') && word.len() > 1);
    let known = |flag: &&String| {
        let name = flag
            .split('=')
            .next()
            .unwrap_or_default()
            .trim_end_matches(',');
        help.split(|c: char| c.is_whitespace() || c == ',')
            .any(|word| word == name)
    };
    let unknown: Vec<&String> = flags.filter(|flag| !known(flag)).collect();
    (!unknown.is_empty()).then(|| format!("{words:?}: {unknown:?}"))
}

#[test]
fn every_command_of_ours_exists_with_its_flags() {
    let mut seen = 0;
    for (page, text) in texts() {
        for words in commands(&text) {
            seen += 1;
            assert_eq!(fault(&words), None, "{page}");
        }
    }
    assert!(seen > 25, "{seen}");
    let words = |line: &str| commands(line).remove(0);
    assert!(fault(&words("    egret dokter")).is_some());
    assert!(fault(&words("see `egret doctor --clean-all`")).is_some());
    assert_eq!(
        fault(&words("    kubectl get x | egret convert -f - > ours.yaml")),
        None
    );
}

/// Tests that a page names and that do not exist: `` [`name`](path) ``, and `` [`stem`](path) `` for a whole file.
fn missing(text: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for (at, _) in text.match_indices("`](") {
        let name = text[..at].rsplit('`').next().unwrap_or_default();
        let path = text[at + 3..].split(')').next().unwrap_or_default();
        if !path.ends_with(".rs") {
            continue;
        }
        let path = pages().join(path);
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        let is_file = path.file_stem().is_some_and(|stem| stem == name) && !source.is_empty();
        if !is_file && !source.contains(&format!("fn {name}(")) {
            missing.push(name.to_owned());
        }
    }
    missing
}

#[test]
fn every_test_that_is_named_is_there() {
    let mut named = 0;
    for (page, text) in texts() {
        named += text.matches(".rs)").count();
        assert_eq!(missing(&text), [""; 0], "{page}");
    }
    assert!(named > 40, "{named}");
    assert_eq!(
        missing("[`nobody`](../../tests/tests/lab/classic.rs)"),
        ["nobody"]
    );
    assert_eq!(missing("[`doctor`](../../tests/tests/none.rs)"), ["doctor"]);
}

#[test]
fn every_system_of_the_samples_has_a_page_and_the_index_names_all() {
    let texts = texts();
    let index = &texts["README.md"];
    for entry in std::fs::read_dir(pages().join("samples"))
        .unwrap()
        .flatten()
    {
        let name = entry.file_name().into_string().unwrap();
        let system = name.split('.').next().unwrap();
        assert!(texts.contains_key(&format!("{system}.md")), "{system}");
    }
    for page in texts.keys().filter(|page| *page != "README.md") {
        assert!(index.contains(&format!("({page})")), "{page}");
    }
}
