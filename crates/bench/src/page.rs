//! The page, its data and its chart.

use crate::figure::{Figure, Report};
use crate::traffic::{CLASSIC, PLAIN};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- figures: written by ./dev bench --write -->";
const END: &str = "<!-- end of figures -->";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Tables of all parts, as Markdown.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    let mut parts: Vec<(&str, &str)> = Vec::new();
    for figure in &report.figures {
        if !parts.iter().any(|(part, _)| *part == figure.part) {
            parts.push((&figure.part, &figure.taken));
        }
    }
    for (part, taken) in parts {
        let _ = write!(
            text,
            "\n### {part}\n\n{taken}.\n\n| what | by | median | lowest | highest | runs | against plain | against classic | load |\n\
             |---|---|---|---|---|---|---|---|---|\n"
        );
        for figure in report.figures.iter().filter(|figure| figure.part == part) {
            let _ = writeln!(text, "{}", row(report, figure));
        }
    }
    text
}

fn row(report: &Report, figure: &Figure) -> String {
    let against = |baseline: &str| {
        let ratio = (figure.variant != baseline).then(|| report.ratio(figure, baseline));
        ratio
            .flatten()
            .map_or(String::new(), |ratio| format!("{ratio:.2}"))
    };
    let (plain, classic) = (against(PLAIN), against(CLASSIC));
    format!(
        "| {} | {} | {} {} | {} | {} | {} | {plain} | {classic} | {:.1} |",
        figure.name,
        figure.variant,
        number(figure.median()),
        figure.unit,
        number(figure.quantile(0.0)),
        number(figure.quantile(1.0)),
        figure.values.len(),
        figure.load
    )
}

/// Formats a number with three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Writes data, page and chart; parts that were not measured now stay from the last time.
pub fn write(mut report: Report) -> Result<()> {
    let data = docs().join("performance.json");
    if let Ok(text) = std::fs::read_to_string(&data) {
        report.keep(serde_json::from_str(&text).context("docs/performance.json")?);
    }
    std::fs::write(&data, serde_json::to_string_pretty(&report)? + "\n")?;
    render()
}

/// Writes page and chart from the data.
pub fn render() -> Result<()> {
    let text = std::fs::read_to_string(docs().join("performance.json"))?;
    let report: Report = serde_json::from_str(&text).context("docs/performance.json")?;
    std::fs::write(docs().join("performance.svg"), chart(&report))?;
    let page = docs().join("performance.md");
    let text = std::fs::read_to_string(&page).context("docs/performance.md")?;
    let (head, rest) = text
        .split_once(BEGIN)
        .context("the beginning of the figures")?;
    let (_, tail) = rest.split_once(END).context("the end of the figures")?;
    let text = format!("{head}{BEGIN}\n{}\n{END}{tail}", tables(&report));
    std::fs::write(&page, text)?;
    Ok(())
}

/// Bars of every variant against plain routing.
fn chart(report: &Report) -> String {
    const ROW: usize = 18;
    const LEFT: f64 = 330.0;
    const SCALE: f64 = 200.0;
    let mut body = String::new();
    let mut y = 40;
    let mut last = "";
    for figure in report
        .figures
        .iter()
        .filter(|figure| figure.variant != PLAIN)
    {
        let Some(ratio) = report.ratio(figure, PLAIN) else {
            continue;
        };
        if figure.name != last {
            y += ROW / 2;
            last = &figure.name;
        }
        let width = (ratio * SCALE).clamp(1.0, 2.2 * SCALE);
        let colour = if figure.variant.starts_with("ours") {
            "#2a7f62"
        } else {
            "#9aa5b1"
        };
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{}\" text-anchor=\"end\">{}, {}</text>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{ratio:.2}</text>",
            LEFT - 8.0,
            y + 13,
            figure.name,
            figure.variant,
            y + 3,
            ROW - 5,
            LEFT + width + 6.0,
            y + 13,
        );
        y += ROW;
    }
    let height = y + 20;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"860\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\">Each way against plain routing through the same kind of tunnel \
         (round trip: less is better; the rest: more)</text>\n\
         <line x1=\"{x}\" x2=\"{x}\" y1=\"36\" y2=\"{}\" stroke=\"#c33\" stroke-dasharray=\"4 3\"/>\n{body}</svg>\n",
        y + 6,
        x = LEFT + SCALE,
    )
}
