//! Tables in the docs that must say what the code says: numbers, metrics, counters.

use super::Tree;
use std::collections::BTreeMap;

const NUMBERS: &str = "crates/core/src/numbers.rs";
const NUMBERS_TABLE: &str = "docs/numbers.md";
const METRICS_TABLE: &str = "docs/metrics.md";
/// Source of metrics, and the section of the docs that lists them.
const METRICS: &[(&str, &str)] = &[
    ("crates/agent/src/report/metrics.rs", "Agent"),
    ("crates/controller/src/metrics.rs", "Controller"),
];
/// The same for counters of packets.
const WORKER: (&str, &str) = ("crates/datapath/src/worker/counters.rs", "Worker reasons");
const GATEWAY: (&str, &str) = (
    "crates/datapath/src/gateway/counters.rs",
    "Gateway outcomes",
);
const UPLINK: (&str, &str) = ("crates/datapath/src/uplink/counters.rs", "Uplink outcomes");

/// What users must open, reckon with and know of, and where it is told.
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
const SYSCTLS: (&str, &str) = ("crates/datapath/src/sysctl.rs", "Sysctls");

pub(super) type Rows = BTreeMap<String, Vec<String>>;

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
    let code = settings(tree.need(SYSCTLS.0, &mut problems));
    let docs = table(section(requirements, SYSCTLS.1));
    problems.extend(compare(
        &format!("{REQUIREMENTS}, {}", SYSCTLS.1),
        &docs,
        &code,
    ));

    let metrics = tree.need(METRICS_TABLE, &mut problems);
    for (path, title) in METRICS {
        let code = registered(tree.need(path, &mut problems));
        let docs = table(section(metrics, title));
        problems.extend(compare(&format!("{METRICS_TABLE}, {title}"), &docs, &code));
    }
    let code = worker_counters(tree.need(WORKER.0, &mut problems));
    let docs = table(section(metrics, WORKER.1));
    problems.extend(compare(
        &format!("{METRICS_TABLE}, {}", WORKER.1),
        &docs,
        &code,
    ));
    for (path, title) in [GATEWAY, UPLINK] {
        let code = gateway_counters(tree.need(path, &mut problems));
        let docs = table(section(metrics, title));
        problems.extend(compare(&format!("{METRICS_TABLE}, {title}"), &docs, &code));
    }
    problems
}

/// Rows that are in only one of the two, or differ in a column that the code knows. Further columns are free.
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

/// Rows of Markdown tables by their first cell, which is a code span.
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

/// What is under a heading, down to the next one.
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
pub(super) fn constants(source: &str) -> Rows {
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

/// Names and values of all public lists of settings.
fn settings(source: &str) -> Rows {
    let mut rows = Rows::new();
    for list in source.split("_SETTINGS: &[(&str, &str)] = &[").skip(1) {
        let list = list.split_once("];").map_or(list, |(list, _)| list);
        let mut words = literals(list);
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            rows.insert(name.into(), vec![value.into()]);
        }
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

/// Every metric with its kind and labels, under the name that is served.
fn registered(source: &str) -> Rows {
    let mut rows = Rows::new();
    let prefix = source.split_once("Registry::with_prefix(\"");
    let prefix = prefix.and_then(|(_, rest)| rest.split_once('"'));
    let Some((prefix, _)) = prefix else {
        return rows;
    };
    let fields = source.split_once("pub struct Metrics {");
    let fields = fields.and_then(|(_, rest)| rest.split_once("\n}"));
    let fields = fields.map_or("", |(fields, _)| fields);
    for call in source.split("r.register(").skip(1) {
        let Some(name) = call
            .trim_start()
            .strip_prefix('"')
            .and_then(|c| c.split_once('"'))
        else {
            continue;
        };
        let name = name.0;
        let field = format!("{name}: ");
        let kind = fields
            .lines()
            .find_map(|line| line.trim().trim_start_matches("pub ").strip_prefix(&field));
        let kind = kind.unwrap_or("not found in the struct");
        let (kind, label) = match kind.strip_prefix("Family<By") {
            None => (kind, String::new()),
            Some(rest) => {
                let (label, kind) = rest.split_once(", ").unwrap_or((rest, ""));
                (kind, label.replace("And", ", ").to_lowercase())
            }
        };
        let kind = kind
            .split(['<', '>', ','])
            .next()
            .unwrap_or_default()
            .to_lowercase();
        // What the client library appends (OpenMetrics).
        let total = if kind == "counter" { "_total" } else { "" };
        rows.insert(format!("{prefix}_{name}{total}"), vec![kind, label]);
    }
    rows
}

/// String literals, without those that span a quote.
pub(super) fn literals(source: &str) -> impl Iterator<Item = &str> {
    source.split('"').skip(1).step_by(2)
}

fn worker_counters(source: &str) -> Rows {
    let (names, list) = source
        .split_once("pub const COUNTERS")
        .unwrap_or((source, ""));
    let mut by_constant = BTreeMap::new();
    for line in names.lines() {
        if let Some((constant, value)) = line.split_once(": &str = \"") {
            let constant = constant.rsplit(' ').next().unwrap_or_default();
            by_constant.insert(constant, value.trim_end_matches("\";"));
        }
    }
    let mut rows = Rows::new();
    for item in list.split("name: ").skip(1) {
        let constant = item.split(',').next().unwrap_or_default();
        let name = by_constant.get(constant).copied().unwrap_or(constant);
        let help = literals(item).next().unwrap_or_default();
        rows.insert(name.into(), vec![help.into()]);
    }
    rows
}

fn gateway_counters(source: &str) -> Rows {
    let list = source
        .split_once("pub const COUNTERS")
        .map_or("", |(_, list)| list);
    let list = list.split_once("];").map_or(list, |(list, _)| list);
    let mut rows = Rows::new();
    let mut literals = literals(list);
    let mut outcomes = list
        .match_indices('(')
        .map(|(at, _)| list[..at].rsplit([' ', '\n']).next());
    while let (Some(name), Some(help)) = (literals.next(), literals.next()) {
        let outcome = outcomes.next().flatten().unwrap_or_default();
        rows.insert(name.into(), vec![outcome.into(), help.into()]);
    }
    rows
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
    fn settings_are_read_from_all_lists() {
        let source = "pub const A_SETTINGS: &[(&str, &str)] = &[\n    (\"a.b\", \"1\"),\n    (\"c\", \"0\"),\n];\n\
            x(\"no\");\npub const B_SETTINGS: &[(&str, &str)] = &[(\"d\", \"2\")];\n";
        let rows = settings(source);
        let told: Vec<_> = rows.iter().map(|(n, v)| format!("{n}={}", v[0])).collect();
        assert_eq!(told, ["a.b=1", "c=0", "d=2"]);
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
    fn metrics_are_read_with_kind_and_label() {
        let source = "pub struct Metrics {\n    pub registry: Registry,\n    /// x\n    pub losses: Counter,\n    \
            live: Family<ByGateway, Gauge<u64, AtomicU64>>,\n    seconds: Histogram,\n    \
            both: Family<ByAddressAndDirection, Counter>,\n}\n\
            Registry::with_prefix(\"p\"); r.register(\n \"losses\", \"x\", m); r.register(\"live\", live, m);\
            r.register(\"seconds\", \"y\", m); r.register(\"both\", both, m);";
        let rows = registered(source);
        assert_eq!(rows["p_losses_total"], ["counter", ""]);
        assert_eq!(rows["p_live"], ["gauge", "gateway"]);
        assert_eq!(rows["p_seconds"], ["histogram", ""]);
        assert_eq!(rows["p_both_total"], ["counter", "address, direction"]);
    }

    #[test]
    fn counters_are_read_with_their_meaning() {
        let worker = "pub(super) const LATE: &str = \"late\";\npub const COUNTERS: &[Counter] = &[\n    Counter {\n\
            name: LATE,\n        help: \"too late\",\n    },\n];";
        assert_eq!(worker_counters(worker)["late"], ["too late"]);
        let gateway = "const fn served(name: x)\npub const COUNTERS: &[Counter] = &[\n    served(\"a\", \"b\"),\n    \
            dropped(\n        \"c\",\n        \"d\",\n    ),\n];\n \"no\"";
        let rows = gateway_counters(gateway);
        assert_eq!(rows["a"], ["served", "b"]);
        assert_eq!(rows["c"], ["dropped", "d"]);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn sections_end_at_the_next_heading() {
        let text = "# A\n| `x` | 1 |\n## B\n| `y` | 2 |\n";
        assert_eq!(table(section(text, "A")).len(), 1);
        assert_eq!(table(section(text, "B"))["y"], ["2"]);
        assert!(section(text, "C").is_empty());
    }
}
