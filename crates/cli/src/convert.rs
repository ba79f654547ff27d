//! `egret convert`: reads files, prints converted objects, reports losses.

use crate::args::{ConvertArguments, EXIT_NOT_GOOD};
use anyhow::{Context, anyhow};
use egret_migrate::convert::convert;
use std::io::Write;
use std::process::ExitCode;

/// All files are one input: a workload in one file provides the selector of a policy in another.
pub fn run(arguments: &ConvertArguments) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    for path in &arguments.file {
        let read = match path.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()),
            false => std::fs::read_to_string(path),
        };
        let read = read.with_context(|| format!("reading {}", path.display()))?;
        // Each file is also checked alone, so that the line in a message is the file's.
        let checked = convert(&read);
        checked.map_err(|why| anyhow!("{} {why}", path.display()))?;
        text.push_str(&documents_of(&read)?);
    }
    let output = convert(&text).map_err(|why| anyhow!(why))?;
    std::io::stdout().write_all(output.text.as_bytes())?;
    for object in &output.passed_over {
        eprintln!("passed over: {object}: it belongs to no system that convert knows");
    }
    for loss in &output.losses {
        eprintln!("lost: {loss}");
    }
    Ok(match output.losses.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_NOT_GOOD),
    })
}

/// A file's text as YAML documents that may be concatenated with others: JSON is YAML, too.
fn documents_of(text: &str) -> anyhow::Result<String> {
    if !text.trim_start().starts_with('{') {
        return Ok(format!("---\n{text}\n"));
    }
    let value: serde_json::Value = serde_json::from_str(text)?;
    Ok(format!("---\n{}\n", serde_saphyr::to_string(&value)?))
}
