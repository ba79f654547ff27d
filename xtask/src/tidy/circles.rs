//! Modules of one folder must not import each other in a circle: otherwise none of them can be read, tested or moved
//! alone.

use super::Tree;
use std::collections::{BTreeMap, BTreeSet};

/// Folders whose modules form no circle.
const FOLDERS: &[&str] = &[
    "crates/agent/src/apply",
    "crates/agent/src/cni",
    "crates/agent/src/main_loop",
    "crates/agent/src/observe",
    "crates/agent/src/report",
    "crates/core/src/check",
    "crates/core/src/machines",
    "crates/core/src/model",
    "crates/core/src/node",
    "crates/core/src/plan",
    "crates/core/src/plan/planner",
    "crates/core/src/resolve",
    "crates/datapath/src/classic",
    "crates/datapath/src/legacy",
    "crates/datapath/src/node",
    "crates/datapath/src/presence/l2",
    "crates/datapath/src/route",
    "crates/datapath/src/uplink",
    "crates/datapath/src/worker",
    "crates/kernel/src",
    "crates/kernel/src/nft",
    "crates/kernel/src/route",
    "crates/objects/src/convert",
    "crates/objects/src/dir",
    "crates/objects/src/front_end",
    "crates/objects/src/kube",
];

/// Modules by name, each with the siblings that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for folder in FOLDERS {
        let imports = imports(tree, folder);
        if imports.is_empty() {
            problems.push(format!("{folder}: missing"));
        }
        if let Some(circle) = circle(&imports) {
            let path = circle.join(" -> ");
            problems.push(format!("{folder}: modules import in a circle: {path}"));
        }
    }
    problems
}

/// Imports between the modules of a folder, without their unit tests. A re-export of the parent counts for the module
/// that it comes from.
fn imports(tree: &Tree, folder: &str) -> Imports {
    let inside = format!("{folder}/");
    let files: Vec<(&str, String)> = tree
        .with_suffix(&[".rs"])
        .filter(|(path, _)| !path.ends_with("/tests.rs"))
        .filter_map(|(path, text)| Some((path.strip_prefix(&inside)?, code(text))))
        .collect();
    let module = |path: &str| {
        let first = path.split('/').next().unwrap_or(path);
        first.trim_end_matches(".rs").to_owned()
    };
    let mut imports: Imports = files
        .iter()
        .map(|(path, _)| (module(path), BTreeSet::new()))
        .collect();
    let parent = code(tree.get(&format!("{folder}.rs")).unwrap_or_default());
    let mut origin: BTreeMap<&str, String> = BTreeMap::new();
    for name in imports.keys() {
        for item in names_after(&parent, &format!("use {name}::")) {
            origin.insert(item, name.clone());
        }
    }
    let absolute = folder.split_once("/src/").map_or("", |(_, path)| path);
    let absolute = format!("crate::{}::", absolute.replace('/', "::"));
    for (path, text) in &files {
        let own = module(path);
        let relative = "super::".repeat(path.split('/').count());
        let named = [&relative, &absolute].map(|prefix| names_after(text, prefix));
        let siblings: Vec<String> = named
            .into_iter()
            .flatten()
            .filter_map(|name| match imports.contains_key(name) {
                true => Some(name.to_owned()),
                false => origin.get(name).cloned(),
            })
            .filter(|sibling| *sibling != own)
            .collect();
        imports.entry(own).or_default().extend(siblings);
    }
    imports
}

/// The text without comments, up to the first unit test.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// First segments of the paths that continue `prefix`, including those in braces.
fn names_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| part(c) || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let ident = |text: &'a str| text.split(|c| !part(c)).next().unwrap_or("");
        let Some(list) = rest.strip_prefix('{') else {
            names.push(ident(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (index, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    names.push(ident(list[start..index].trim_start()));
                    start = index + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// A path of imports that ends at its beginning.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    imports
        .keys()
        .find_map(|start| walk(imports, start, &mut Vec::new(), &mut done))
}

fn walk(
    imports: &Imports,
    module: &str,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(start) = path.iter().position(|known| known == module) {
        let mut circle = path[start..].to_vec();
        circle.push(module.to_owned());
        return Some(circle);
    }
    if done.contains(module) {
        return None;
    }
    path.push(module.to_owned());
    let next = imports.get(module).into_iter().flatten();
    for sibling in next {
        if let Some(circle) = walk(imports, sibling, path, done) {
            return Some(circle);
        }
    }
    path.pop();
    done.insert(module.to_owned());
    None
}

#[cfg(test)]
mod tests {
    use super::super::assert_none;
    use super::*;

    #[test]
    fn modules_form_no_circle() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    fn found(files: &[(&str, &str)]) -> Option<String> {
        let imports = imports(&Tree::of(files), "crates/x/src/a");
        circle(&imports).map(|path| path.join(" -> "))
    }

    #[test]
    fn circles_are_seen_however_they_are_written() {
        let two = |parent, b, c| {
            found(&[
                ("crates/x/src/a.rs", parent),
                ("crates/x/src/a/b.rs", b),
                ("crates/x/src/a/c.rs", c),
            ])
        };
        let circle = Some("b -> c -> b".to_owned());
        assert_eq!(two("", "use super::c::C;", "use super::b;"), circle);
        assert_eq!(
            two("", "use super::{d, c::{C, D}};", "super::b::f()"),
            circle
        );
        assert_eq!(two("", "use super::c;", "use crate::a::b::B;"), circle);
        let exported = "pub use b::{A, B};\npub use c::C;";
        assert_eq!(two(exported, "use super::C;", "use super::{B};"), circle);
        let nested = [
            ("crates/x/src/a/b/d.rs", "use super::super::c::C;"),
            ("crates/x/src/a/c.rs", "use super::b::B;"),
        ];
        assert_eq!(found(&nested), circle);
    }

    #[test]
    fn what_is_no_circle_is_not_one() {
        let two = |b, c| found(&[("crates/x/src/a/b.rs", b), ("crates/x/src/a/c.rs", c)]);
        assert_eq!(two("use super::c;", "use super::d;"), None);
        assert_eq!(two("use super::c;", "// use super::b;"), None);
        let tests = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use super::super::b;\n}";
        assert_eq!(two("use super::c;", tests), None);
        assert_eq!(two("use super::c;", "use super::super::b;"), None);
    }
}
