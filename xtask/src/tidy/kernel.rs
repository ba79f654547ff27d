//! Kernel versions and options in `docs/requirements.md` equal those of the data path.

use super::Tree;
use super::tables::section;
use egret_datapath::requirements::{
    BPF_OPTIONS, FLOOR, MAPS_AT_ONCE, OPTIONS, QUOTA_OPTIONS, REINJECT_OPTIONS, TABLE_OWNERS, TCX,
};
use std::collections::BTreeSet;

const REQUIREMENTS: &str = "docs/requirements.md";
const TITLE: &str = "Kernel";

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let docs = section(tree.need(REQUIREMENTS, &mut problems), TITLE);
    let versions = [FLOOR, TCX, TABLE_OWNERS, MAPS_AT_ONCE];
    let versions = versions.map(|(major, minor)| format!("{major}.{minor}"));
    let options = OPTIONS.iter().chain(BPF_OPTIONS).chain(REINJECT_OPTIONS);
    let options = options.chain(QUOTA_OPTIONS);
    let options = options.map(|option| (*option).to_owned());
    problems.extend(compare(versions.into(), rows(docs)));
    problems.extend(compare(options.collect(), spans(docs)));
    problems
}

fn compare(code: BTreeSet<String>, docs: BTreeSet<String>) -> Vec<String> {
    let differ = code.symmetric_difference(&docs).map(|one| {
        let lacks = if docs.contains(one) {
            "the code"
        } else {
            "the page"
        };
        format!("{REQUIREMENTS}, {TITLE}: {one} is missing in {lacks}")
    });
    differ.collect()
}

/// First cells of table rows that begin with a digit.
fn rows(docs: &str) -> BTreeSet<String> {
    let cells = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next());
    let versions = cells.filter(|cell| cell.starts_with(|one: char| one.is_ascii_digit()));
    versions.map(str::to_owned).collect()
}

/// Code spans in capitals.
fn spans(docs: &str) -> BTreeSet<String> {
    let is_option = |span: &&str| {
        let mut letters = span.chars();
        letters.all(|one| one.is_ascii_uppercase() || one.is_ascii_digit() || one == '_')
    };
    let spans = docs.split('`').skip(1).step_by(2);
    spans.filter(is_option).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn the_page_names_the_versions_and_options_of_the_code() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    #[test]
    fn what_is_in_one_of_them_only_is_seen() {
        let docs = "| from | what |\n|---|---|\n| 6.6 | tcx |\n\nOptions: `VXLAN`, `NFT_CT`, at `/sys/fs/bpf`.";
        let set = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
        assert_none(&compare(set(&["6.6"]), rows(docs)));
        assert_one(
            &compare(set(&["6.6", "6.9"]), rows(docs)),
            &["6.9", "the page"],
        );
        assert_none(&compare(set(&["NFT_CT", "VXLAN"]), spans(docs)));
        assert_one(
            &compare(set(&["VXLAN"]), spans(docs)),
            &["NFT_CT", "the code"],
        );
    }
}
