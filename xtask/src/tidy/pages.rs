//! Lengths of pages and of their lines: both must be readable, in a diff, too.

use super::Tree;

const README: &str = "README.md";
const README_WORDS_MAX: usize = 1200;
const LINE_MAX: usize = 300;
/// Pages at the root; everything below `docs` is a page, too.
const PAGES: &[&str] = &[README, "ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let words = tree.need(README, &mut problems).split_whitespace().count();
    if words > README_WORDS_MAX {
        problems.push(format!(
            "{README}: {words} words, {README_WORDS_MAX} are the limit"
        ));
    }
    let is_page = |path: &str| PAGES.contains(&path) || path.starts_with("docs/");
    let pages = tree.with_suffix(&[".md"]);
    for (path, text) in pages.filter(|(path, _)| is_page(path)) {
        for (number, line) in text.lines().enumerate() {
            let length = line.chars().count();
            if length > LINE_MAX {
                problems.push(format!(
                    "{path}:{}: {length} characters, {LINE_MAX} are the limit: wrap it, or make the cell a list",
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
    fn no_page_is_too_long_to_read() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    #[test]
    fn long_lines_and_a_long_readme_are_seen() {
        let long = "x".repeat(LINE_MAX + 1);
        let tree = |readme: &str, page: &str| {
            Tree::of(&[
                (README, readme),
                ("docs/a/b.md", page),
                ("CHANGELOG.md", &long),
            ])
        };
        assert_none(&check(&tree("short", &long[1..])));
        assert_one(&check(&tree("short", &long)), &["docs/a/b.md:1", "301"]);
        let many = "word ".repeat(README_WORDS_MAX + 1);
        let lines = many.replace("word word", "word\nword");
        assert_one(&check(&tree(&lines, "")), &[README, "1201 words"]);
    }
}
