//! `egret doctor`: prints obstacles, leftovers and removed objects.

use crate::args::{DoctorArguments, EXIT_NOT_GOOD, EXIT_UNREACHABLE, LegacySystem, Output};
use crate::show::{paths, table};
use egret_agent::doctor::{self, Doctor, LegacyFinding};
use egret_core::obstacle::Obstacle;
use egret_migrate::earlier::System;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::ExitCode;

/// Exit code 0: no leftover of the requested systems remains, and no obstacle certainly stops our packets.
pub fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("egret: only root can see all that a node's kernel has");
        return Ok(ExitCode::from(EXIT_UNREACHABLE));
    }
    let systems: BTreeSet<System> = arguments.clean_legacy.iter().flat_map(meant).collect();
    let mut answer = match arguments.yes {
        true => doctor::clean(&arguments.root, &systems)?,
        false => doctor::look(&arguments.root, &arguments.socket)?,
    };
    if !systems.is_empty() {
        answer
            .findings
            .retain(|finding| systems.contains(&finding.system));
    }
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Text => print(&answer, !systems.is_empty(), arguments.yes)?,
    }
    // A leftover that must be removed manually, such as a setting, does not fail a removal.
    let left = |finding: &LegacyFinding| !arguments.yes || finding.removable;
    let good =
        answer.failed.is_empty() && !answer.findings.iter().any(left) && !answer.is_obstructed();
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_GOOD)
    })
}

fn meant(named: &LegacySystem) -> Vec<System> {
    match named {
        LegacySystem::StaticEgressIp => vec![System::StaticEgressIp],
        LegacySystem::KubeEgress => vec![System::KubeEgress],
        LegacySystem::KeepalivedVip => vec![System::KeepalivedVip],
        LegacySystem::EgressMapper => vec![System::KubeEgress, System::KeepalivedVip],
        LegacySystem::KubeEgressGateway => vec![System::KubeEgressGateway],
    }
}

fn print(answer: &Doctor, asked: bool, yes: bool) -> anyhow::Result<()> {
    obstacles(&answer.obstacles);
    paths(&serde_json::to_value(&answer.paths)?);
    rows("REMOVED", &answer.removed, |finding| &finding.object)?;
    match (asked, yes) {
        (true, false) => {
            let (would, stays): (Vec<_>, Vec<_>) = answer
                .findings
                .iter()
                .cloned()
                .partition(|finding| finding.removable);
            rows("WOULD BE REMOVED BY --yes, AS", &would, |finding| {
                &finding.removal
            })?;
            rows("STAYS", &stays, |finding| &finding.object)?;
        }
        (_, true) => rows("STILL THERE", &answer.findings, |finding| &finding.object)?,
        (false, false) => rows("LEFT BY AN EARLIER SYSTEM", &answer.findings, |f| &f.object)?,
    }
    for failure in &answer.failed {
        eprintln!("egret: not removed: {}: {}", failure.object, failure.why);
    }
    for unseen in &answer.unseen {
        eprintln!("egret: not seen: {unseen}");
    }
    if answer.findings.is_empty() && answer.removed.is_empty() {
        println!("Nothing of these systems is here.");
        if !asked && answer.obstacles.is_empty() && !answer.is_obstructed() {
            println!("Nothing is known to stand in Egret's way.");
        }
    }
    Ok(())
}

fn obstacles(found: &[Obstacle]) {
    for obstacle in found {
        let sure = if obstacle.certain {
            "IN THE WAY"
        } else {
            "MAY BE IN THE WAY"
        };
        println!("{sure}: {}", obstacle.place);
        println!("  {}", obstacle.text);
        println!("  to do: {}", obstacle.remedy);
    }
}

fn rows(
    title: &str,
    findings: &[LegacyFinding],
    what: impl Fn(&LegacyFinding) -> &String,
) -> anyhow::Result<()> {
    let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = Vec::new();
    for finding in findings {
        let note = match finding.note.as_str() {
            "" => String::new(),
            note => format!(" ({note})"),
        };
        let packets = finding
            .packets
            .map_or_else(String::new, |count| count.to_string());
        lines.push(vec![
            finding.system.name().to_owned(),
            word(serde_json::to_value(finding.kind)?),
            packets,
            format!("{}{note}", what(finding)),
        ]);
    }
    table(&["SYSTEM", "KIND", "PACKETS", title], lines);
    Ok(())
}
