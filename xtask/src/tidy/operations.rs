//! Files for operators agree with the code: alerts are explained, alerts and dashboard use existing metrics, and the
//! chart has this version.

use super::Tree;
use std::collections::BTreeSet;

const OPERATIONS: &str = "docs/operations.md";
const METRICS: &str = "docs/metrics.md";
const ALERTS: &str = "deploy/alerts.yaml";
const DASHBOARD: &str = "deploy/dashboard.json";
/// Helm reads files of its own folder only.
const COPIES: &[(&str, &str)] = &[
    (ALERTS, "deploy/chart/files/alerts.yaml"),
    (DASHBOARD, "deploy/chart/files/dashboard.json"),
];
const CHART: &str = "deploy/chart/Chart.yaml";
const CARGO: &str = "Cargo.toml";
/// The lab starts agents with the capabilities that the chart grants.
const VALUES: &str = "deploy/chart/values.yaml";
const LAB: &str = "crates/lab/src/host.rs";

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (file, copy) in COPIES {
        if tree.need(file, &mut problems) != tree.need(copy, &mut problems) {
            problems.push(format!("{copy} is no copy of {file}: run ./dev chart"));
        }
    }
    let alerts = tree.need(ALERTS, &mut problems);
    let explained: BTreeSet<&str> = after(tree.need(OPERATIONS, &mut problems), "### Egret")
        .into_iter()
        .collect();
    let fired: BTreeSet<&str> = after(alerts, "  - alert: Egret").into_iter().collect();
    if fired.is_empty() {
        problems.push(format!("{ALERTS}: no alerts: has its form changed?"));
    }
    for name in fired.difference(&explained) {
        problems.push(format!("{OPERATIONS}: no section `### Egret{name}`"));
    }
    for name in explained.difference(&fired) {
        problems.push(format!("{OPERATIONS}: Egret{name} is not in {ALERTS}"));
    }
    let metrics = tree.need(METRICS, &mut problems);
    for (file, text) in [
        (ALERTS, alerts),
        (DASHBOARD, tree.need(DASHBOARD, &mut problems)),
    ] {
        problems.extend(unknown_metrics(file, text, metrics));
    }
    let granted = value(tree.need(VALUES, &mut problems), "  capabilities: [");
    let granted = granted.unwrap_or_default().trim_end_matches(']');
    let granted: Vec<String> = granted
        .split(", ")
        .map(|name| format!(",+{}", name.to_lowercase()))
        .collect();
    let wanted = format!("--bounding-set=-all{}\"", granted.concat());
    if !tree.need(LAB, &mut problems).contains(&wanted) {
        problems.push(format!("{LAB}: agents run without `{wanted}` of {VALUES}"));
    }
    let version = value(tree.need(CARGO, &mut problems), "version = ");
    for key in ["version: ", "appVersion: "] {
        if value(tree.need(CHART, &mut problems), key) != version {
            problems.push(format!("{CHART}: {key}is not the version of {CARGO}"));
        }
    }
    problems
}

/// The rest of every line that begins with `start`.
fn after<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    let lines = text.lines();
    lines.filter_map(|line| line.strip_prefix(start)).collect()
}

/// The value on the first line that begins with `start`.
fn value<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    let first = after(text, start).first().copied();
    first.map(|value| value.trim_matches('"'))
}

/// Metrics of agent and controller that the file names and that have no row in the docs.
fn unknown_metrics(file: &str, text: &str, docs: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<&str> = words
        .filter(|word| word.starts_with("egret_agent_") || word.starts_with("egret_controller_"))
        .collect();
    if named.is_empty() {
        return vec![format!("{file}: no metrics: has its form changed?")];
    }
    let known = |name: &str| docs.contains(&format!("| `{name}` |"));
    // Suffixes of a served histogram.
    let histogram = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|part| name.strip_suffix(part))
            .any(|name| docs.contains(&format!("| `{name}` | histogram |")))
    };
    let unknown = named.iter().filter(|name| !known(name) && !histogram(name));
    unknown
        .map(|name| format!("{file}: {name} is not in {METRICS}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{assert_none, assert_one};

    #[test]
    fn alerts_dashboard_and_chart_fit_the_docs() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    /// A valid tree, with one text replaced in one file and its copy.
    fn tree(file: &str, from: &str, to: &str) -> Tree {
        let alerts = "  - alert: EgretDown\n    expr: egret_agent_live == 0\n";
        let dashboard = "{\"expr\": \"rate(egret_agent_apply_seconds_bucket[5m])\"}";
        let files = [
            (ALERTS, alerts),
            (COPIES[0].1, alerts),
            (DASHBOARD, dashboard),
            (COPIES[1].1, dashboard),
            (
                METRICS,
                "| `egret_agent_live` | gauge | |\n| `egret_agent_apply_seconds` | histogram | |\n",
            ),
            (OPERATIONS, "## Alerts\n\n### EgretDown\nIt is down.\n"),
            (CHART, "version: 0.1.0\nappVersion: 0.1.0\n"),
            (VALUES, "agent:\n  capabilities: [NET_ADMIN, BPF]\n"),
            (LAB, "\"--bounding-set=-all,+net_admin,+bpf\""),
            (CARGO, "[workspace.package]\nversion = \"0.1.0\"\n"),
        ];
        let copy = COPIES.iter().find(|(path, _)| *path == file);
        let files: Vec<(&str, String)> = files
            .iter()
            .map(|(path, text)| {
                let here = *path == file || copy.is_some_and(|(_, copy)| copy == path);
                (
                    *path,
                    if here {
                        text.replace(from, to)
                    } else {
                        (*text).to_owned()
                    },
                )
            })
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (*p, t.as_str())).collect();
        Tree::of(&files)
    }

    #[test]
    fn what_does_not_fit_is_told() {
        assert_none(&check(&tree(ALERTS, "", "")));
        for (file, from, to, words) in [
            (
                OPERATIONS,
                "### EgretDown",
                "### Down",
                &[OPERATIONS, "EgretDown"],
            ),
            (
                OPERATIONS,
                "is down.",
                "is.\n### EgretUp\n",
                &["EgretUp", ALERTS],
            ),
            (ALERTS, "agent_live", "agent_alive", &[ALERTS, "_alive"]),
            (VALUES, "BPF", "BPF, SYS_ADMIN", &[LAB, "+sys_admin"]),
            (
                DASHBOARD,
                "apply_seconds_bucket",
                "live_bucket",
                &[DASHBOARD, "live_bucket"],
            ),
            (
                CHART,
                "\nappVersion: 0.1.0",
                "\nappVersion: 0.2.0",
                &[CHART, "appVersion"],
            ),
        ] {
            assert_one(&check(&tree(file, from, to)), words);
        }
    }

    #[test]
    fn a_copy_that_differs_is_told() {
        let mut other = tree(ALERTS, "", "");
        other.files.insert(COPIES[0].1.into(), String::new());
        assert_one(&check(&other), &["no copy", COPIES[0].1]);
    }
}
