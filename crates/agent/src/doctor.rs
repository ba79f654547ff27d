//! `egret doctor`: obstacles on this node, leftovers of earlier egress systems, and their removal.
//!
//! `core::obstacle` finds obstacles to our packets, `egret_migrate` what earlier systems left.

mod obstacles;

use crate::report::{CLI_API_VERSION, PathView, Question, ask};
use egret_core::obstacle::Obstacle;
use egret_migrate::Leftovers;
use egret_migrate::earlier::{Finding, Kind, System};
use egret_migrate::legacy::LegacyError;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// `egret doctor -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Doctor {
    #[cfg_attr(feature = "schema", schemars(extend("const" = CLI_API_VERSION)))]
    api_version: &'static str,
    #[cfg_attr(feature = "schema", schemars(extend("const" = "Doctor")))]
    kind: &'static str,
    /// Obstacles to Egret's packets; empty after a removal.
    pub obstacles: Vec<Obstacle>,
    /// Paths of this node's packets, as its agent measured them last.
    pub paths: Vec<PathView>,
    /// Leftovers that were found; after a removal, those that remain.
    pub findings: Vec<LegacyFinding>,
    /// Leftovers that were removed.
    pub removed: Vec<LegacyFinding>,
    /// Leftovers that could not be removed.
    pub failed: Vec<Failure>,
    /// Parts of the node that could not be read, for people.
    pub unseen: Vec<String>,
}

/// One leftover of an earlier system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LegacyFinding {
    /// The system that made it.
    pub system: System,
    /// Kind of the object.
    pub kind: Kind,
    /// The object in the notation of the tool that made it.
    pub object: String,
    /// Packets that it has counted; null for objects without a counter.
    pub packets: Option<u64>,
    /// Further information; may be empty.
    pub note: String,
    /// Instruction for manual removal.
    pub removal: String,
    /// Whether `--clean-legacy` removes it; otherwise it must be removed manually.
    pub removable: bool,
}

/// An object that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "LegacyFailure"))]
pub struct Failure {
    /// First object of the failed step.
    pub object: String,
    /// The error.
    pub why: String,
}

impl LegacyFinding {
    fn of(finding: &Finding) -> Self {
        LegacyFinding {
            system: finding.system,
            kind: finding.kind,
            object: finding.object.clone(),
            packets: finding.packets,
            note: finding.note.clone(),
            removal: finding.removal.clone(),
            removable: finding.is_removable(),
        }
    }
}

impl Doctor {
    /// Whether no leftover of an earlier system was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.failed.is_empty()
    }

    /// Whether an obstacle certainly stops our packets.
    pub fn is_obstructed(&self) -> bool {
        self.obstacles.iter().any(|obstacle| obstacle.certain)
            || self.paths.iter().any(|path| path.broken.is_some())
    }
}

/// Examines this node. `root` is the root of its file system, `socket` that of its agent.
///
/// # Errors
/// The kernel cannot be read.
pub fn look(root: &Path, socket: &Path) -> Result<Doctor, LegacyError> {
    let (found, mut unseen) = Leftovers::open(root)?.find()?;
    let obstacles = obstacles::read(root, &mut unseen);
    let paths = paths(socket, &mut unseen);
    Ok(Doctor {
        obstacles,
        paths,
        ..answer(&found, unseen)
    })
}

/// Paths that this node's agent has measured. Doctor works without an agent, too.
fn paths(socket: &Path, unseen: &mut Vec<String>) -> Vec<PathView> {
    let answer = ask(socket, &Question::Paths).map_err(|error| error.to_string());
    let paths = answer
        .and_then(|json| serde_json::from_str(&json).map_err(|_| format!("the agent says {json}")));
    paths.unwrap_or_else(|why| {
        let socket = socket.display();
        unseen.push(format!(
            "whether packets come back: no agent tells at {socket}: {why}"
        ));
        Vec::new()
    })
}

/// Removes the leftovers of these systems, and examines the node again.
///
/// # Errors
/// The kernel cannot be read. Objects that cannot be removed are no error; the answer lists them.
pub fn clean(root: &Path, systems: &BTreeSet<System>) -> Result<Doctor, LegacyError> {
    let removal = Leftovers::open(root)?.remove(systems)?;
    let failed = removal.failed.into_iter();
    Ok(Doctor {
        removed: removal.removed.iter().map(LegacyFinding::of).collect(),
        failed: failed
            .map(|one| Failure {
                object: one.object,
                why: one.why,
            })
            .collect(),
        ..answer(&removal.left, removal.unseen)
    })
}

fn answer(found: &[Finding], unseen: Vec<String>) -> Doctor {
    Doctor {
        api_version: CLI_API_VERSION,
        kind: "Doctor",
        obstacles: Vec::new(),
        paths: Vec::new(),
        findings: found.iter().map(LegacyFinding::of).collect(),
        removed: Vec::new(),
        failed: Vec::new(),
        unseen,
    }
}
