//! `metrics`: the tables of `docs/metrics.md`, from the registries of agent and controller and the counters of the data
//! path. The text around the tables is written by hand.

use crate::generated;
use anyhow::{Context, bail};
use egret_datapath::{gateway, uplink, worker};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::fmt::Write;

const PAGE: &str = "docs/metrics.md";

/// Writes the tables, or with `check` fails if one is outdated.
pub fn run(check: bool) -> anyhow::Result<()> {
    let page = generated::read(PAGE)?;
    let mut text = page;
    for (title, table) in tables()? {
        text = with_table(&text, title, &table)
            .with_context(|| format!("{PAGE}: no table under the heading {title}"))?;
    }
    generated::put(PAGE, &text, check, "metrics")
}

fn tables() -> anyhow::Result<[(&'static str, String); 5]> {
    let agent = egret_agent::Metrics::with_samples();
    let controller = egret_controller::Metrics::with_samples();
    let mut reasons = head(&["reason", "meaning"]);
    for counter in worker::COUNTERS {
        row(&mut reasons, &[&code(counter.name), counter.help]);
    }
    Ok([
        ("Agent", registered(&agent.registry)?),
        ("Controller", registered(&controller.registry)?),
        ("Worker reasons", reasons),
        ("Gateway outcomes", outcomes(gateway::COUNTERS)),
        ("Uplink outcomes", outcomes(uplink::COUNTERS)),
    ])
}

fn outcomes(counters: &[gateway::Counter]) -> String {
    let mut table = head(&["reason", "outcome", "meaning"]);
    for counter in counters {
        let outcome = if counter.dropped { "dropped" } else { "served" };
        row(&mut table, &[&code(counter.name), outcome, counter.help]);
    }
    table
}

/// One row per metric, in the order of registration.
fn registered(registry: &Registry) -> anyhow::Result<String> {
    let mut text = String::new();
    encode(&mut text, registry).context("encoding the registry")?;
    let mut table = head(&["name", "kind", "labels", "meaning"]);
    for metric in text.split("# HELP ").skip(1) {
        let metric = Metric::read(metric)?;
        let labels: Vec<String> = metric.labels.into_iter().map(code).collect();
        let cells = [
            &code(&metric.name),
            metric.kind,
            &labels.join(", "),
            metric.help,
        ];
        row(&mut table, &cells);
    }
    Ok(table)
}

/// Description of one metric in the OpenMetrics text.
#[derive(Debug, PartialEq, Eq)]
struct Metric<'a> {
    /// The served name: counters end in `_total`.
    name: String,
    kind: &'a str,
    labels: Vec<&'a str>,
    help: &'a str,
}

impl<'a> Metric<'a> {
    /// `NAME HELP.`, `# TYPE NAME KIND`, samples.
    fn read(text: &'a str) -> anyhow::Result<Self> {
        let mut lines = text.lines();
        let first = lines.next().and_then(|line| line.split_once(' '));
        let kind = lines.next().and_then(|line| line.rsplit_once(' '));
        let (Some((name, help)), Some((_, kind)), Some(sample)) = (first, kind, lines.next())
        else {
            bail!("no metric: {text}");
        };
        let total = if kind == "counter" { "_total" } else { "" };
        let labels = sample
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'));
        let labels = labels.map_or("", |(labels, _)| labels);
        let names = labels
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.0));
        Ok(Metric {
            name: format!("{name}{total}"),
            kind,
            // Buckets of a histogram.
            labels: names.filter(|name| *name != "le").collect(),
            help: help.trim_end_matches('.'),
        })
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn head(titles: &[&str]) -> String {
    let mut table = String::new();
    row(&mut table, titles);
    let _ = writeln!(table, "|{}", "---|".repeat(titles.len()));
    table
}

fn row(table: &mut String, cells: &[&str]) {
    let _ = writeln!(table, "| {} |", cells.join(" | "));
}

/// The page with another table under this heading; `None` if it has no such table.
fn with_table(page: &str, title: &str, table: &str) -> Option<String> {
    let (before, section) = page.split_once(&format!("\n## {title}\n"))?;
    let end = section.find("\n## ").unwrap_or(section.len());
    let start = section[..end].find("\n|")? + 1;
    let rows = section[start..end].split_inclusive('\n');
    let length: usize = rows
        .take_while(|row| row.starts_with('|'))
        .map(str::len)
        .sum();
    let (above, below) = (&section[..start], &section[start + length..]);
    Some(format!("{before}\n## {title}\n{above}{table}{below}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_read_with_kind_and_labels() {
        let read = |text| Metric::read(text).unwrap();
        let gauge = read("p_live Whether it lives.\n# TYPE p_live gauge\np_live{gateway=\"\"} 0\n");
        assert_eq!(
            (gauge.name.as_str(), gauge.kind, gauge.help),
            ("p_live", "gauge", "Whether it lives")
        );
        assert_eq!(gauge.labels, ["gateway"]);
        let counter =
            read("p_sent Sent.\n# TYPE p_sent counter\np_sent_total{policy=\"\",address=\"\"} 0\n");
        assert_eq!(counter.name, "p_sent_total");
        assert_eq!(counter.labels, ["policy", "address"]);
        let histogram = read("p_s S.\n# TYPE p_s histogram\np_s_sum 0\np_s_bucket{le=\"0.1\"} 0\n");
        assert_eq!(histogram.labels, [""; 0]);
        assert!(Metric::read("p_s S.\n").is_err());
    }

    #[test]
    fn only_the_table_of_its_section_is_replaced() {
        let page = "# Page\n\n## A\n\n| x |\n|---|\n| 1 |\n\nText.\n\n## B\n\n| y |\n|---|\n";
        let new = with_table(page, "A", "| z |\n|---|\n").unwrap();
        assert_eq!(new, page.replace("| x |\n|---|\n| 1 |", "| z |\n|---|"));
        assert_eq!(with_table(page, "C", ""), None);
        assert_eq!(with_table("\n## A\nText\n## B\n| y |\n", "A", ""), None);
    }
}
