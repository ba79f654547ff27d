//! Sentences of the docs that repeat what the code fixes: kernel versions and options, timers, marks of CNIs.

use super::Tree;
use super::tables::{Rows, constants, literals, section};
use std::collections::BTreeSet;

const NUMBERS: &str = "crates/core/src/numbers.rs";
const PERFORMANCE: &str = "docs/performance.md";
const AT_REST: &str = "crates/bench/src/rest.rs";
const REQUIREMENTS: &str = "docs/requirements.md";
const KERNEL: &str = "crates/datapath/src/requirements.rs";
const RULES: &str = "crates/datapath/src/worker/base.rs";
const TOPOLOGY: &str = "crates/lab/src/topology.rs";
const MARKS: &str = "tests/src/matrix/marks.rs";
const PATHS: &str = "crates/core/src/node/path.rs";

/// Kernel versions by their constants, with a word of what each is for.
const VERSIONS: &[(&str, &str)] = &[
    ("FLOOR", "floor"),
    ("TCX", "tcx"),
    ("TABLE_OWNERS", "`owner`"),
    ("MAPS_AT_ONCE", "map of ranges"),
];

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let numbers = constants(tree.need(NUMBERS, &mut problems));
    let rest = tree.need(AT_REST, &mut problems);
    let docs = tree.need(PERFORMANCE, &mut problems);
    problems.extend(performance(docs, &numbers, rest));
    let docs = tree.need(REQUIREMENTS, &mut problems);
    let kernel = tree.need(KERNEL, &mut problems);
    problems.extend(versions(section(docs, "Kernel"), kernel));
    problems.extend(options(section(docs, "Kernel"), kernel));
    let docs = section(docs, "CNI");
    let rules = tree.need(RULES, &mut problems);
    problems.extend(translation(docs, &numbers, rules));
    let topology = tree.need(TOPOLOGY, &mut problems);
    problems.extend(plugins(docs, topology));
    let stand_ins = tree.need(MARKS, &mut problems);
    problems.extend(marks(docs, stand_ins));
    let code = tree.need(PATHS, &mut problems);
    problems.extend(paths(docs, code));
    problems
}

fn value<'a>(rows: &'a Rows, name: &str) -> &'a str {
    rows.get(name).map_or("(not in the code)", |row| &row[0])
}

fn must_say(place: &str, docs: &str, text: &str) -> Option<String> {
    (!docs.contains(text)).then(|| format!("{place} does not say `{text}`, as the code does"))
}

fn performance(docs: &str, numbers: &Rows, rest: &str) -> Vec<String> {
    let interval = value(numbers, "PROBE_INTERVAL_MS");
    let failures = value(numbers, "PROBE_FAILURES");
    let seconds = between(rest, "const WATCHED: Duration = Duration::from_secs(", ")");
    let texts = [
        format!("default timers ({interval} ms, {failures} probes)"),
        format!("the probes of every gateway each {interval} ms"),
        format!("At rest: CPU over {seconds} s"),
    ];
    let texts = texts.iter();
    texts
        .filter_map(|text| must_say(PERFORMANCE, docs, text))
        .collect()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).map(|(_, rest)| rest);
    let found = rest.and_then(|rest| rest.split_once(after));
    found.map_or("(not in the code)", |(found, _)| found)
}

/// First cells of a table that begin with a digit, with their rows.
fn versions(docs: &str, kernel: &str) -> Vec<String> {
    let constants = constants(kernel);
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for (name, word) in VERSIONS {
        let version = value(&constants, name).trim_matches(['(', ')']);
        let version = version.replace(", ", ".");
        let row = docs
            .lines()
            .find(|line| line.starts_with(&format!("| {version} |")));
        if !row.is_some_and(|row| row.contains(word)) {
            problems.push(format!(
                "{REQUIREMENTS}, Kernel: no row of {version} that speaks of {word} ({name})"
            ));
        }
        known.insert(version);
    }
    for line in docs.lines() {
        let cell = line
            .strip_prefix("| ")
            .and_then(|line| line.split(' ').next());
        let version = cell.filter(|cell| cell.starts_with(|one: char| one.is_ascii_digit()));
        if let Some(version) = version.filter(|version| !known.contains(*version)) {
            problems.push(format!(
                "{REQUIREMENTS}, Kernel: {version} is not in the code"
            ));
        }
    }
    problems
}

fn options(docs: &str, kernel: &str) -> Vec<String> {
    let code: BTreeSet<&str> = literals(kernel).collect();
    let spans = docs.split('`').skip(1).step_by(2);
    let is_option = |span: &&str| {
        let mut letters = span.chars();
        letters.all(|one| one.is_ascii_uppercase() || one.is_ascii_digit() || one == '_')
    };
    let told: BTreeSet<&str> = spans.filter(is_option).collect();
    let mut problems = Vec::new();
    if code.is_empty() {
        problems.push(format!("{KERNEL}: no options: has the code moved?"));
    }
    for option in code.symmetric_difference(&told) {
        let lacks = if told.contains(option) {
            KERNEL
        } else {
            REQUIREMENTS
        };
        problems.push(format!("{lacks} lacks the kernel option {option}"));
    }
    problems
}

/// Where Egret translates, and its own bits.
fn translation(docs: &str, numbers: &Rows, rules: &str) -> Vec<String> {
    let priority = between(rules, "base(\"nat\", POSTROUTING, ", ",");
    let texts = [
        format!("(priority {priority})"),
        format!("other bits than Egret's {}", value(numbers, "MARK_MASK")),
    ];
    let texts = texts.iter();
    texts
        .filter_map(|text| must_say(REQUIREMENTS, docs, text))
        .collect()
}

/// Variants of a public enum.
fn variants<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let body = between(source, &format!("pub enum {name} {{"), "\n}");
    let lines = body.lines().map(|line| line.trim().trim_end_matches(','));
    lines
        .filter(|line| line.starts_with(|one: char| one.is_ascii_uppercase()))
        .collect()
}

/// Who masquerades in the lab, and so in the tests, is what the first row names.
fn plugins(docs: &str, topology: &str) -> Vec<String> {
    let row = between(docs, "| masquerade by ", " |");
    let told: Vec<&str> = row
        .split(", ")
        .map(|one| one.trim_start_matches("or "))
        .collect();
    let known: Vec<&str> = variants(topology, "Cni")
        .into_iter()
        .map(|variant| match variant {
            "IptablesNft" => "iptables-nft",
            "IptablesLegacy" => "iptables-legacy",
            "Nft" => "nftables",
            "None" => "none",
            other => other,
        })
        .collect();
    let same = told.iter().collect::<BTreeSet<_>>() == known.iter().collect();
    let problem =
        || format!("{REQUIREMENTS}, CNI: masquerade by {told:?}, in the lab by {known:?}");
    (!same).then(problem).into_iter().collect()
}

/// Marks of other components: the numbers of a row together are the mask of its stand-in.
fn marks(docs: &str, stand_ins: &str) -> Vec<String> {
    let masks = [
        (
            "kube-proxy's",
            between(stand_ins, "Marks::KubeProxy => (", ","),
        ),
        ("Cilium's", between(stand_ins, "Marks::Cilium => (", ",")),
        (
            "Calico's",
            between(stand_ins, "CALICO: Bits = Bits {\n    mask: ", ","),
        ),
    ];
    let number = |text: &str| {
        let digits = text.trim_end_matches(',').replace('_', "");
        u32::from_str_radix(digits.strip_prefix("0x")?, 16).ok()
    };
    let mut problems = Vec::new();
    for (name, mask) in masks {
        let row = between(docs, &format!("| {name} marks "), " |");
        let told: Option<u32> = row.split(' ').map(number).sum();
        if told.is_none() || told != number(mask) {
            problems.push(format!(
                "{REQUIREMENTS}, CNI: {name} marks are told as `{row}`, tested as `{mask}`"
            ));
        }
    }
    problems
}

fn paths(docs: &str, code: &str) -> Vec<String> {
    let known: Vec<String> = variants(code, "CniPath")
        .iter()
        .map(|variant| variant.to_lowercase())
        .collect();
    let told = docs.split("`--cni-path ").skip(1);
    let told = told.filter_map(|rest| rest.split_once('`').map(|(path, _)| path));
    let strange = told.filter(|path| !known.iter().any(|known| known == path));
    strange
        .map(|path| format!("{REQUIREMENTS}, CNI: there is no --cni-path {path}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn the_docs_say_what_the_code_fixes() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    #[test]
    fn other_timers_are_seen() {
        let numbers = constants(
            "\npub const PROBE_INTERVAL_MS: u64 = 50;\npub const PROBE_FAILURES: u32 = 3;\n",
        );
        let rest = "const WATCHED: Duration = Duration::from_secs(20);";
        let docs = "default timers (50 ms, 3 probes). the probes of every gateway each 50 ms. At rest: CPU over 20 s";
        assert_none(&performance(docs, &numbers, rest));
        let other = docs.replace("3 probes", "4 probes");
        assert_one(&performance(&other, &numbers, rest), &["50 ms, 3 probes"]);
        let other = rest.replace("20", "30");
        assert_one(&performance(docs, &numbers, &other), &["30 s"]);
    }

    #[test]
    fn other_kernels_and_options_are_seen() {
        let code = "\npub const FLOOR: (u8, u8) = (5, 15);\npub const TCX: (u8, u8) = (6, 6);\n\
            pub const TABLE_OWNERS: (u8, u8) = (6, 9);\npub const MAPS_AT_ONCE: (u8, u8) = (6, 17);\n\
            pub const OPTIONS: &[&str] = &[\"VXLAN\", \"NFT_CT\"];\n";
        let docs = "| from | what |\n|---|---|\n| 5.15 | floor |\n| 6.6 | tcx |\n| 6.9 | `owner` |\n\
            | 6.17 | map of ranges |\n\nOptions: `VXLAN`, `NFT_CT`, at `/sys/fs/bpf`.";
        assert_none(&versions(docs, code));
        assert_none(&options(docs, code));
        let other = docs.replace("| 6.6 | tcx |", "| 6.7 | tcx |");
        assert_eq!(versions(&other, code).len(), 2, "one too few, one too many");
        assert_one(&options(&docs.replace("`NFT_CT`", ""), code), &["NFT_CT"]);
        assert_one(
            &options(&docs.replace("VXLAN`", "VXLAN` `VETH`"), code),
            &["VETH"],
        );
    }

    #[test]
    fn other_plugins_marks_and_paths_are_seen() {
        let topology = "pub enum Cni {\n    /// x\n    #[default]\n    IptablesNft,\n    Nft,\n}\n";
        assert_none(&plugins(
            "| masquerade by iptables-nft, or nftables | yes |",
            topology,
        ));
        assert_one(
            &plugins("| masquerade by iptables-nft | yes |", topology),
            &["nftables"],
        );
        let code = "Marks::KubeProxy => (0xc000, 0x4000),\nMarks::Cilium => (0x0f00, 0x0e00),\n\
            const CALICO: Bits = Bits {\n    mask: 0xffff_0000,\n";
        let docs = "| kube-proxy's marks 0x4000, 0x8000 | yes |\n| Cilium's marks 0x0f00 | yes |\n\
            | Calico's marks 0xffff0000 | yes |\n";
        assert_none(&marks(docs, code));
        assert_one(&marks(&docs.replace(", 0x8000", ""), code), &["kube-proxy"]);
        let code = "pub enum CniPath {\n    Auto,\n    Bpf,\n}\n";
        assert_none(&paths("`--cni-path bpf`", code));
        assert_one(&paths("`--cni-path xdp`", code), &["xdp"]);
        let numbers = constants("\npub const MARK_MASK: u32 = 0x00ff_0000;\n");
        let rules = "base(\"nat\", POSTROUTING, 90, x)";
        let docs = "before it (priority 90); other bits than Egret's 0x00ff0000";
        assert_none(&translation(docs, &numbers, rules));
        assert_one(
            &translation(&docs.replace("90", "91"), &numbers, rules),
            &["90"],
        );
    }
}
