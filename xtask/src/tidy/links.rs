//! Links in Markdown: targets and headings exist, and so do the tests that properties name.

use super::Tree;

const PROPERTIES: &str = "docs/properties.md";
/// Number of the last property; the first is P1.
const PROPERTIES_LAST: usize = 10;

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = targets(tree);
    problems.extend(properties(tree));
    problems
}

struct Link<'a> {
    line: usize,
    text: &'a str,
    target: &'a str,
}

/// Links of the forms `[text](target)`, `[text]: target` and `src="target"`, outside of code blocks.
fn links(markdown: &str) -> Vec<Link<'_>> {
    let mut found = Vec::new();
    let mut block = false;
    for (number, line) in markdown.lines().enumerate() {
        block ^= line.trim_start().starts_with("```");
        if block {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            let text = line[..at].rsplit('[').next().unwrap_or_default();
            if let Some((target, _)) = rest.split_once(')') {
                let line = number + 1;
                found.push(Link { line, text, target });
            }
        }
        if let Some((text, target)) = line.strip_prefix('[').and_then(|l| l.split_once("]: ")) {
            let line = number + 1;
            found.push(Link { line, text, target });
        }
        for (at, quote) in line.match_indices("src=\"") {
            let rest = &line[at + quote.len()..];
            if let Some((target, _)) = rest.split_once('"') {
                let line = number + 1;
                let text = "";
                found.push(Link { line, text, target });
            }
        }
    }
    found
}

/// The path that a link in the file `from` refers to; `None`: outside the repository.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

fn has_anchor(markdown: &str, wanted: &str) -> bool {
    let mut headings = markdown.lines().filter(|line| line.starts_with('#'));
    headings.any(|heading| anchor(heading) == wanted)
}

fn targets(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in tree.with_suffix(&[".md"]) {
        for link in links(text) {
            let (file, wanted) = link.target.split_once('#').unwrap_or((link.target, ""));
            if file.contains(':') {
                continue;
            }
            let place = format!("{path}:{}", link.line);
            let to = match file {
                "" => Some(path.to_owned()),
                file => resolve(path, file).filter(|to| tree.exists(to)),
            };
            let Some(to) = to else {
                problems.push(format!("{place}: {} leads nowhere", link.target));
                continue;
            };
            let checked = !wanted.is_empty() && to.ends_with(".md");
            if checked && !tree.get(&to).is_some_and(|text| has_anchor(text, wanted)) {
                problems.push(format!("{place}: {to} has no heading #{wanted}"));
            }
        }
    }
    problems
}

/// Every property has a section, and each section names tests or states that they are missing.
fn properties(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let text = tree.need(PROPERTIES, &mut problems);
    for link in links(text)
        .iter()
        .filter(|link| link.target.ends_with(".rs"))
    {
        let name = link.text.trim_matches('`');
        let Some(path) = resolve(PROPERTIES, link.target) else {
            continue;
        };
        let source = tree.get(&path);
        if source.is_some_and(|source| !names_test(&path, source, name)) {
            problems.push(format!(
                "{PROPERTIES}:{}: {} has no test {name}",
                link.line, link.target
            ));
        }
    }
    for number in 1..=PROPERTIES_LAST {
        let start = format!("\n## P{number} ");
        let Some((_, rest)) = text.split_once(&start) else {
            problems.push(format!("{PROPERTIES}: P{number} has no section"));
            continue;
        };
        let section = rest
            .split_once("\n## ")
            .map_or(rest, |(section, _)| section);
        let told = section.to_lowercase().contains("not yet");
        if !told
            && !links(section)
                .iter()
                .any(|link| link.target.ends_with(".rs"))
        {
            problems.push(format!("{PROPERTIES}: P{number} names no test"));
        }
    }
    problems
}

/// Programs with a `main` of their own, which lists their tests.
const LAB_TESTS: &str = "tests/tests/";

/// Whether the function is a test of the file: marked as one, or listed by the program's `main`.
fn names_test(path: &str, source: &str, name: &str) -> bool {
    let listed = || source.contains(&format!("fn {name}(")) && source.matches(name).count() > 1;
    is_test(source, name) || (path.starts_with(LAB_TESTS) && listed())
}

/// Whether the function exists and is marked as a test.
fn is_test(source: &str, name: &str) -> bool {
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else {
        return false;
    };
    let mut lines = before.lines().rev().map(str::trim);
    // The rest of the line before `fn`: "", "pub", ...
    let _same_line = before.ends_with('\n') || lines.next().is_some();
    lines
        .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
        .any(|line| line == "#[test]")
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn every_link_leads_somewhere_and_every_property_names_its_tests() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    #[test]
    fn dead_links_are_seen() {
        let tree = |text| {
            Tree::of(&[
                ("docs/a.md", text),
                ("docs/b.md", "# The end\n"),
                ("c/d.rs", ""),
            ])
        };
        let fine = "[b](b.md) [e](b.md#the-end) [d](../c/d.rs) [c](../c) [x](https://x/y) <img src=\"b.md\">";
        assert_none(&targets(&tree(fine)));
        assert_none(&targets(&tree("```\n[b](none.md)\n```\n")));
        assert_one(
            &targets(&tree("\n[b](none.md)")),
            &["docs/a.md:2", "none.md"],
        );
        assert_one(&targets(&tree("[b](../../b.md)")), &["leads nowhere"]);
        assert_one(&targets(&tree("[b]: none.md")), &["none.md"]);
        assert_one(&targets(&tree("[b](b.md#start)")), &["#start"]);
        assert_one(&targets(&tree("<img src=\"x.svg\">")), &["x.svg"]);
    }

    #[test]
    fn missing_tests_of_properties_are_seen() {
        let source = "#[test]\nfn good() {}\nfn plain() {}\nproptest! {\n    /// why\n    #[test]\n    fn random(x in y) {}\n}";
        assert!(is_test(source, "good") && is_test(source, "random"));
        assert!(!is_test(source, "plain") && !is_test(source, "goo") && !is_test(source, "gone"));
        let lab = "fn main() { run(&[(\"a\", a)]) }\nfn a(c: &C) {}\nfn b(c: &C) {}";
        assert!(
            names_test("tests/tests/x.rs", lab, "a") && !names_test("tests/tests/x.rs", lab, "c")
        );
        assert!(!names_test("crates/x/tests/x.rs", lab, "a"));
        let text = |link: &str| {
            let sections = (1..=PROPERTIES_LAST).map(|n| format!("\n## P{n} x\n{link}\n"));
            sections.collect::<String>()
        };
        let tree = |text: &str| Tree::of(&[(PROPERTIES, text), ("t/a.rs", source)]);
        assert_none(&properties(&tree(&text("[`good`](../t/a.rs)"))));
        assert_none(&properties(&tree(&text("Not yet."))));
        assert_eq!(
            properties(&tree(&text("[`plain`](../t/a.rs)"))).len(),
            PROPERTIES_LAST
        );
        assert_eq!(properties(&tree(&text("Surely."))).len(), PROPERTIES_LAST);
        let short = text("Not yet.").replace("## P7 ", "## ");
        assert_one(&properties(&tree(&short)), &["P7"]);
    }
}
