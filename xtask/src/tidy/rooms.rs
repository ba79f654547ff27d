//! Which module of a crate may import which: arrows inside the crates, like those of `manifests` between crates.
//!
//! A room is a module at the root of its crate: a file, and the folder of the same name. `use` lines and paths count, in
//! tests too; comments do not.

use super::Tree;

/// A crate, the rooms in its root, and the rooms that each may import. The root itself may import all.
type Rooms = (
    &'static str,
    &'static [(&'static str, &'static [&'static str])],
);

const ROOMS: &[Rooms] = &[(
    "crates/agent/src/",
    &[
        ("clock", &[]),
        ("error", &[]),
        ("unix_socket", &[]),
        ("threads", &["error"]),
        ("observe", &["clock", "error", "threads"]),
        ("cni", &["error", "threads", "unix_socket"]),
        ("apply", &["clock", "observe"]),
        (
            "report",
            &["clock", "error", "observe", "threads", "unix_socket"],
        ),
        ("doctor", &["error", "report"]),
        ("config", &["cni"]),
        (
            "main_loop",
            &[
                "apply", "cni", "config", "error", "observe", "report", "threads",
            ],
        ),
    ],
)];

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let rooms = ROOMS.iter();
    rooms
        .flat_map(|(source, arrows)| crossings(tree, source, arrows))
        .collect()
}

fn crossings(tree: &Tree, source: &str, arrows: &[(&str, &[&str])]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut found = 0;
    for (path, text) in tree.with_suffix(&[".rs"]) {
        let Some(inside) = path.strip_prefix(source) else {
            continue;
        };
        let inside = inside.trim_end_matches(".rs");
        let (room, depth) = match inside.split_once('/') {
            Some((room, rest)) => (room, rest.split('/').count() + 1),
            None => (inside, 1),
        };
        if matches!(room, "lib" | "main") {
            continue;
        }
        found += 1;
        let Some((_, allowed)) = arrows.iter().find(|(name, _)| *name == room) else {
            problems.push(format!("{path}: no arrows are written down for {room}"));
            continue;
        };
        for import in imports(text, depth) {
            // Names that the root re-exports hide their module.
            let known = arrows.iter().any(|(name, _)| *name == import);
            if import != room && !allowed.contains(&import.as_str()) {
                let why = if known { "" } else { ": name the room" };
                problems.push(format!("{path}: {room} must not import {import}{why}"));
            }
        }
    }
    if found == 0 {
        problems.push(format!("{source}: no rooms: has the code moved?"));
    }
    problems
}

/// First names of all paths from the crate's root, by `crate` or by as many `super` as the file is deep.
fn imports(text: &str, depth: usize) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        code.trim()
    });
    let code: Vec<&str> = lines.collect();
    let code = code.join(" ");
    let up = "super::".repeat(depth);
    let mut names = Vec::new();
    for start in ["crate::", up.as_str()] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            names.extend(first_names(&code[at + start.len()..]));
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The next name of a path, or those of a group in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let part = |c: &char| c.is_alphanumeric() || *c == '_';
        text.trim_start().chars().take_while(part).collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return Some(name(rest))
            .filter(|name| !name.is_empty())
            .into_iter()
            .collect();
    };
    let (mut depth, mut names) = (0, vec![name(group)]);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn no_room_imports_what_is_above_it() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    #[test]
    fn arrows_lead_down_only() {
        for (source, arrows) in ROOMS {
            for (number, (room, allowed)) in arrows.iter().enumerate() {
                let below = |name: &&str| arrows[..number].iter().any(|(one, _)| one == name);
                let upwards: Vec<&&str> = allowed.iter().filter(|name| !below(name)).collect();
                assert!(upwards.is_empty(), "{source}{room}: {upwards:?}");
            }
        }
    }

    const ARROWS: &[(&str, &[&str])] = &[("low", &[]), ("mid", &["low"]), ("top", &["low", "mid"])];

    fn problems(path: &str, text: &str) -> Vec<String> {
        crossings(&Tree::of(&[(path, text)]), "crates/x/src/", ARROWS)
    }

    #[test]
    fn imports_upwards_are_seen() {
        let bad = [
            ("crates/x/src/low.rs", "use crate::top::Loop;"),
            ("crates/x/src/low/part.rs", "fn f() -> crate::top::Loop {"),
            ("crates/x/src/low.rs", "use super::top::Loop;"),
            ("crates/x/src/low/part.rs", "use super::super::top;"),
            (
                "crates/x/src/low.rs",
                "use crate::{low::a,\n    top::{b, c}};",
            ),
        ];
        for (path, text) in bad {
            assert_one(&problems(path, text), &[path, "low must not import top"]);
        }
        let hidden = problems("crates/x/src/mid.rs", "use crate::{Config, low::{a, top}};");
        assert_one(&hidden, &["mid must not import Config: name the room"]);
        assert_one(&problems("crates/x/src/new.rs", ""), &["new", "no arrows"]);
        assert_one(
            &crossings(&Tree::default(), "crates/x/src/", ARROWS),
            &["moved"],
        );
    }

    #[test]
    fn everything_else_is_left_alone() {
        for (path, text) in [
            ("crates/x/src/mid.rs", "use crate::low::{a, top};"),
            ("crates/x/src/mid/part.rs", "use super::top;"),
            (
                "crates/x/src/low.rs",
                "// crate::top knows\nuse other_crate::top;",
            ),
            ("crates/x/src/top.rs", "use crate::{low, mid::a};"),
        ] {
            assert_none(&problems(path, text));
        }
    }
}
