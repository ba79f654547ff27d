//! Names, heads, lengths and bans in source files.

use super::Tree;

/// What is pure: `core`, and the decisions about earlier systems and of the driver `classic`.
const PURE: &[&str] = &[
    "crates/core/src/",
    "crates/migrate/src/earlier",
    "crates/classic/src/state.rs",
];
/// Words that pure source must not contain: anything that reads a clock, a file, the environment or the network, or
/// depends on hash order. `clippy.toml` of core bans calls; this bans the words, in its unit tests, too.
const BANNED_IN_CORE: &[&str] = &[
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "unsafe",
];
/// Crates that may start programs: none of them is part of the product.
const MAY_START_PROGRAMS: &[&str] = &["crates/cluster/", "crates/lab/"];
/// File and folder names without meaning.
const NAMELESS: &[&str] = &[
    "utils", "util", "common", "helpers", "helper", "manager", "misc",
];
/// Lines of a source file: above the first limit it is listed, above the second one rejected.
const LINES_LONG: usize = 500;
const LINES_MAX: usize = 700;

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = purity(tree);
    problems.extend(starts_no_program(tree));
    problems.extend(heads(tree));
    problems.extend(names(tree));
    problems.extend(too_long(tree));
    problems.extend(machine_paths(tree));
    problems
}

/// Whether the word occurs separately, and not as part of a longer name.
pub fn mentions(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

fn purity(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let root = tree.need("crates/core/src/lib.rs", &mut problems);
    if !root.contains("#![forbid(unsafe_code)]") {
        problems.push("crates/core/src/lib.rs: #![forbid(unsafe_code)] is missing".into());
    }
    for (path, text) in tree.with_suffix(&[".rs"]) {
        if !PURE.iter().any(|pure| path.starts_with(pure)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for word in BANNED_IN_CORE.iter().filter(|w| mentions(code(line), w)) {
                problems.push(format!("{path}:{}: {word}: this code is pure", number + 1));
            }
        }
    }
    problems
}

fn starts_no_program(tree: &Tree) -> Vec<String> {
    let product = |path: &str| {
        path.starts_with("crates/")
            && path.contains("/src/")
            && !MAY_START_PROGRAMS.iter().any(|lab| path.starts_with(lab))
    };
    let starts = |line: &str| {
        mentions(code(line), "process::Command") || code(line).contains("Command::new")
    };
    let mut problems = Vec::new();
    for (path, text) in tree.with_suffix(&[".rs"]).filter(|(path, _)| product(path)) {
        for (number, _) in text.lines().enumerate().filter(|(_, line)| starts(line)) {
            problems.push(format!(
                "{path}:{}: the product starts no program",
                number + 1
            ));
        }
    }
    problems
}

/// Checks that every crate has a head comment.
fn heads(tree: &Tree) -> Vec<String> {
    let root = |path: &str| {
        let top = path.starts_with("crates/") && path.matches('/').count() == 3;
        let top = top || path.starts_with("tests/src/") || path.starts_with("xtask/src/");
        top && (path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs"))
    };
    tree.with_suffix(&[".rs"])
        .filter(|(path, text)| root(path) && !text.starts_with("//! "))
        .map(|(path, _)| format!("{path}: does not open with `//!` documentation"))
        .collect()
}

fn names(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, _) in tree.with_suffix(&[".rs", ".c", ".h"]) {
        if path.ends_with("/mod.rs") {
            problems.push(format!("{path}: name the file after its module"));
        }
        let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
        if let Some(part) = stem.split('/').find(|part| NAMELESS.contains(part)) {
            problems.push(format!("{path}: {part:?} does not say what is in it"));
        }
    }
    problems
}

fn lengths(tree: &Tree, more_than: usize) -> impl Iterator<Item = (&str, usize)> {
    tree.with_suffix(&[".rs", ".c", ".h"])
        .map(|(path, text)| (path, text.lines().count()))
        .filter(move |(_, lines)| *lines > more_than)
}

/// Files that should be split.
pub fn long_files(tree: &Tree) -> Vec<String> {
    let line = |(path, lines)| format!("{path}: {lines} lines, {LINES_LONG} are enough");
    lengths(tree, LINES_LONG).map(line).collect()
}

fn too_long(tree: &Tree) -> Vec<String> {
    let line = |(path, lines)| format!("{path}: {lines} lines; split it (limit {LINES_MAX})");
    lengths(tree, LINES_MAX).map(line).collect()
}

/// Absolute paths of a developer's machine.
fn machine_paths(tree: &Tree) -> Vec<String> {
    // Concatenated, so that this file does not contain them.
    let banned = [
        ["/work", "/"].concat(),
        ["/root", "/"].concat(),
        ["/home", "/"].concat(),
    ];
    let inside_a_path = |c: char| c.is_alphanumeric() || "}_-.*/".contains(c);
    let mut problems = Vec::new();
    for (path, text) in &tree.files {
        for (number, line) in text.lines().enumerate() {
            let absolute = |word: &&String| {
                line.match_indices(word.as_str())
                    .any(|(at, _)| !line[..at].chars().next_back().is_some_and(inside_a_path))
            };
            if let Some(word) = banned.iter().find(absolute) {
                problems.push(format!(
                    "{path}:{}: {word} is a path of one machine",
                    number + 1
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn sources_obey_the_house_rules() {
        let tree = Tree::load().unwrap();
        for line in long_files(&tree) {
            eprintln!("long: {line}");
        }
        assert_none(&check(&tree));
    }

    const CORE: &str = "//! Core.\n#![forbid(unsafe_code)]\n";

    #[test]
    fn impurity_is_seen() {
        let tree = |text| {
            Tree::of(&[
                ("crates/core/src/lib.rs", CORE),
                ("crates/core/src/a.rs", text),
            ])
        };
        for bad in [
            "use std::collections::HashMap;",
            "let now = std::time::Instant::now();",
            "fn f() -> SystemTime {",
            "std::fs::read(path)",
            "use std::env;",
            "let socket: std::net::UdpSocket;",
        ] {
            assert_one(&purity(&tree(bad)), &["crates/core/src/a.rs:1", "pure"]);
        }
        let of_earlier = Tree::of(&[
            ("crates/core/src/lib.rs", CORE),
            ("crates/migrate/src/earlier/find.rs", "use std::fs;"),
            ("crates/migrate/src/files.rs", "use std::fs;"),
        ]);
        assert_one(&purity(&of_earlier), &["earlier/find.rs:1", "pure"]);
        assert_none(&purity(&tree("// no HashMap here\nstruct InstantNoodles;")));
        let unsafe_allowed = Tree::of(&[("crates/core/src/lib.rs", "//! Core.\n")]);
        assert_one(&purity(&unsafe_allowed), &["forbid"]);
        assert_one(&purity(&Tree::default())[..1], &["missing"]);
    }

    #[test]
    fn started_programs_are_seen() {
        let tree = |path| Tree::of(&[(path, "let c = Command::new(\"nft\");")]);
        assert_one(
            &starts_no_program(&tree("crates/agent/src/a.rs")),
            &["agent"],
        );
        assert_none(&starts_no_program(&tree("crates/lab/src/a.rs")));
        assert_none(&starts_no_program(&tree("crates/datapath/build.rs")));
    }

    #[test]
    fn heads_names_lengths_and_paths_are_seen() {
        let head = Tree::of(&[
            ("crates/x/src/lib.rs", "mod a;"),
            ("crates/x/src/a/lib.rs", ""),
        ]);
        assert_one(&heads(&head), &["crates/x/src/lib.rs"]);
        assert_one(
            &names(&Tree::of(&[("crates/x/src/a/mod.rs", "")])),
            &["mod.rs"],
        );
        assert_one(
            &names(&Tree::of(&[("crates/x/src/utils.rs", "")])),
            &["utils"],
        );
        assert_one(&names(&Tree::of(&[("bpf/common/a.h", "")])), &["common"]);
        let lines = "\n".repeat(LINES_MAX + 1);
        let long = Tree::of(&[("bpf/a.c", &lines), ("a.txt", &lines)]);
        assert_one(&too_long(&long), &["bpf/a.c", "701"]);
        assert_one(&long_files(&long), &["bpf/a.c"]);
        let path = format!("see `{}{}` and /proc/1/root{}", "/wo", "rk/x", "/run");
        assert_one(
            &machine_paths(&Tree::of(&[("README.md", &path)])),
            &["README.md:1"],
        );
    }
}
