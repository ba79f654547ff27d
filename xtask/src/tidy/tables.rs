//! Tables in the docs whose names and values equal those of the code: numbers, ports, sysctls. Further columns are
//! written by hand.

use super::Tree;
use egret_kernel::sysctl::{HASH_SETTINGS, NODE_SETTINGS};
use std::collections::BTreeMap;

const NUMBERS: &str = "crates/core/src/numbers.rs";
const NUMBERS_TABLE: &str = "docs/numbers.md";
/// Page with the ports, limits and other facts that users must know.
const REQUIREMENTS: &str = "docs/requirements.md";
const REQUIRED: &[(&str, &[&str])] = &[
    (
        "Ports",
        &[
            "TUNNEL_PORT",
            "PROBE_PORT",
            "AGENT_HTTP_PORT",
            "CONTROLLER_HTTP_PORT",
        ],
    ),
    (
        "MTU",
        &["TUNNEL_OVERHEAD_V4_BYTES", "TUNNEL_OVERHEAD_V6_BYTES"],
    ),
];
const SYSCTLS: &str = "Sysctls";

type Rows = BTreeMap<String, Vec<String>>;

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let docs = table(tree.need(NUMBERS_TABLE, &mut problems));
    let code = constants(tree.need(NUMBERS, &mut problems));
    problems.extend(compare(NUMBERS_TABLE, &docs, &code));

    let requirements = tree.need(REQUIREMENTS, &mut problems);
    for (title, names) in REQUIRED {
        let mut code = code.clone();
        code.retain(|name, _| names.contains(&name.as_str()));
        let docs = table(section(requirements, title));
        problems.extend(compare(&format!("{REQUIREMENTS}, {title}"), &docs, &code));
    }
    let settings = NODE_SETTINGS.iter().chain(HASH_SETTINGS);
    let code = settings.map(|(name, value)| ((*name).into(), vec![(*value).into()]));
    let docs = table(section(requirements, SYSCTLS));
    let place = format!("{REQUIREMENTS}, {SYSCTLS}");
    problems.extend(compare(&place, &docs, &code.collect()));
    problems
}

/// Rows that are in only one of the two, or differ in a column that the code has. Further columns are free.
fn compare(place: &str, docs: &Rows, code: &Rows) -> Vec<String> {
    let mut problems = Vec::new();
    if code.is_empty() {
        problems.push(format!(
            "{place}: nothing to compare with: has the code moved?"
        ));
    }
    for (name, columns) in code {
        match docs.get(name) {
            None => problems.push(format!(
                "{place}: {name} is missing ({})",
                columns.join(" | ")
            )),
            Some(told) if told.len() < columns.len() || told[..columns.len()] != columns[..] => {
                let (told, columns) = (told.join(" | "), columns.join(" | "));
                problems.push(format!(
                    "{place}: {name} says `{told}`, the code says `{columns}`"
                ));
            }
            Some(_) => {}
        }
    }
    for name in docs.keys().filter(|name| !code.contains_key(*name)) {
        problems.push(format!("{place}: {name} is not in the code"));
    }
    problems
}

/// Rows of Markdown tables by their first cell, a code span.
fn table(markdown: &str) -> Rows {
    let mut rows = Rows::new();
    for line in markdown.lines() {
        let Some(line) = line.strip_prefix("| `").and_then(|l| l.strip_suffix('|')) else {
            continue;
        };
        let mut cells = line.split('|').map(|cell| cell.trim().replace('`', ""));
        if let Some(name) = cells.next() {
            rows.insert(name, cells.collect());
        }
    }
    rows
}

/// Text under a heading, up to the next one.
pub(super) fn section<'a>(markdown: &'a str, title: &str) -> &'a str {
    let heading =
        |line: &str| line.starts_with('#') && line.trim_start_matches('#').trim() == title;
    let Some(line) = markdown.lines().find(|line| heading(line)) else {
        return "";
    };
    let start = line.as_ptr() as usize - markdown.as_ptr() as usize + line.len();
    let rest = &markdown[start..];
    rest.split_once("\n#").map_or(rest, |(section, _)| section)
}

/// Public constants with their values as people write them.
fn constants(source: &str) -> Rows {
    let mut rows = Rows::new();
    for item in source.split("\npub const ").skip(1) {
        let (Some((name, _)), Some((_, value))) = (item.split_once(':'), item.split_once(" = "))
        else {
            continue;
        };
        let value = value.split_once(';').map_or(value, |(value, _)| value);
        rows.insert(name.into(), vec![plain(value)]);
    }
    rows
}

/// `0x00ff_0000` as `0x00ff0000`, `"a"` as `a`, `Ipv4Addr::new(1, 2, 3, 4)` as `1.2.3.4`, `[1, 2]` as `1, 2`.
fn plain(value: &str) -> String {
    let value = value.trim();
    if let Some(text) = value.strip_prefix('"') {
        return text.trim_end_matches('"').into();
    }
    if let Some((_, groups)) = value.split_once("Ipv6Addr::new(") {
        let groups = groups.trim_end_matches(')').split(", ");
        let number = |group: &str| {
            let hex = group
                .strip_prefix("0x")
                .map(|hex| u16::from_str_radix(hex, 16));
            hex.unwrap_or_else(|| group.parse())
        };
        let groups: Result<Vec<u16>, _> = groups.map(number).collect();
        let groups: Option<[u16; 8]> = groups.ok().and_then(|groups| groups.try_into().ok());
        return groups.map_or(value.into(), |groups| {
            std::net::Ipv6Addr::from(groups).to_string()
        });
    }
    if let Some((_, address)) = value.split_once("Ipv4Addr::new(") {
        return address.trim_end_matches(')').replace(", ", ".");
    }
    value.trim_matches(['[', ']']).replace('_', "")
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn the_tables_of_the_docs_say_what_the_code_says() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    #[test]
    fn numbers_are_read_from_the_code() {
        let source = "//! x\n/// a\npub const A_B: u32 = 0x00ff_0000;\npub const C: &str = \"egret0\";\n\
            pub const D: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 77, 1);\n\
            pub const E: [u64; 2] = [0, 1_000];\n";
        let rows = constants(source);
        let values: Vec<&str> = rows.values().map(|v| v[0].as_str()).collect();
        assert_eq!(values, ["0x00ff0000", "egret0", "169.254.77.1", "0, 1000"]);
    }

    #[test]
    fn differences_are_seen_both_ways() {
        let code = constants("\npub const A: u8 = 1;\npub const B: u8 = 2;");
        let docs = |text| table(text);
        assert_none(&compare(
            "x",
            &docs("| `A` | 1 | one |\n| `B` | 2 | two |"),
            &code,
        ));
        assert_one(
            &compare("x", &docs("| `A` | 1 | one |"), &code),
            &["B", "missing"],
        );
        assert_one(
            &compare("x", &docs("| `A` | 1 | |\n| `B` | 3 | two |"), &code),
            &["B", "3", "2"],
        );
        let stranger = docs("| `A` | 1 | x |\n| `B` | 2 | x |\n| `C` | 2 | x |");
        assert_one(&compare("x", &stranger, &code), &["C", "not in the code"]);
        assert_one(&compare("x", &Rows::new(), &Rows::new()), &["nothing"]);
    }

    #[test]
    fn sections_end_at_the_next_heading() {
        let text = "# A\n| `x` | 1 |\n## B\n| `y` | 2 |\n";
        assert_eq!(table(section(text, "A")).len(), 1);
        assert_eq!(table(section(text, "B"))["y"], ["2"]);
        assert!(section(text, "C").is_empty());
    }
}
