//! Which crate may depend on which (the arrows in ARCHITECTURE.md), and that every dependency is used.

use super::Tree;
use super::sources::mentions;
use anyhow::Context;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

/// Crates of this workspace, with those that each may depend on. `cli`, `tests` and `xtask` may depend on all.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("core", &[]),
    ("wire", &[]),
    ("objects", &["api", "core"]),
    ("kernel", &[]),
    ("datapath", &["core", "kernel", "wire"]),
    ("controller", &["core", "objects"]),
    (
        "agent",
        &["core", "objects", "wire", "kernel", "datapath", "migrate"],
    ),
    ("migrate", &["api", "core", "kernel", "objects"]),
    ("classic", &["core", "kernel", "datapath"]),
    ("cni", &["wire"]),
    ("lab", &[]),
    ("cluster", &["lab"]),
    ("sim", &["core"]),
];
const MAY_USE_ALL: &[&str] = &["egret-bench", "egret-cli", "egret-tests", "xtask"];

/// Dependencies that `core` may have: no runtime, no client, nothing that reads a clock or a file.
const CORE_MAY_USE: &[&str] = &["ipnet", "serde", "thiserror"];
/// The same behind a feature, which no released program enables.
const CORE_MAY_USE_OPTIONALLY: &[&str] = &["schemars"];

/// The only crate that may use kube's client and runtime.
const KUBE_CLIENT_CRATE: &str = "egret-objects";
const KUBE_DERIVE_CRATE: &str = "egret-api";

/// One dependency of one crate of the workspace.
#[derive(Debug)]
pub struct Edge {
    from: String,
    to: String,
    /// Folder of the depending crate.
    folder: String,
    for_tests: bool,
    optional: bool,
    features: Vec<String>,
    default_features: bool,
}

/// Dependencies of the workspace's own crates, from cargo.
pub fn metadata() -> anyhow::Result<Vec<Edge>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("running cargo metadata")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let all: Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let root = all["workspace_root"].as_str().unwrap_or_default();
    let empty = Vec::new();
    let packages = all["packages"].as_array().unwrap_or(&empty);
    let mut edges = Vec::new();
    for package in packages {
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let folder = manifest.trim_start_matches(root).trim_start_matches('/');
        let folder = folder.trim_end_matches("Cargo.toml");
        for dependency in package["dependencies"].as_array().unwrap_or(&empty) {
            let features = dependency["features"].as_array().unwrap_or(&empty);
            edges.push(Edge {
                from: text(&package["name"]),
                to: text(&dependency["name"]),
                folder: folder.into(),
                for_tests: dependency["kind"] == "dev",
                optional: dependency["optional"] == true,
                features: features.iter().map(text).collect(),
                default_features: dependency["uses_default_features"] == true,
            });
        }
    }
    anyhow::ensure!(!edges.is_empty(), "cargo metadata names no dependency");
    Ok(edges)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

/// Everything that this module checks.
pub fn check(tree: &Tree, edges: &[Edge]) -> Vec<String> {
    let mut problems = arrows(edges);
    problems.extend(kube(edges));
    problems.extend(used(tree, edges));
    problems.extend(workspace_table(tree, edges));
    problems
}

fn allowed(table: &[(&str, &[&str])], from: &str, to: &str) -> bool {
    table
        .iter()
        .any(|(name, list)| *name == from && list.contains(&to))
}

fn arrows(edges: &[Edge]) -> Vec<String> {
    let mut problems = Vec::new();
    for edge in edges {
        if MAY_USE_ALL.contains(&edge.from.as_str()) {
            continue;
        }
        let from = edge.from.trim_start_matches("egret-");
        if !ARROWS.iter().any(|(name, _)| *name == from) {
            problems.push(format!("{}: no arrows are written down for it", edge.from));
            continue;
        }
        if let Some(to) = edge.to.strip_prefix("egret-") {
            if !allowed(ARROWS, from, to) {
                problems.push(format!("{}: must not depend on {}", edge.from, edge.to));
            }
        } else if from == "core" && !edge.for_tests && !core_may_use(edge) {
            problems.push(format!(
                "{}: must not depend on {}: core is pure",
                edge.from, edge.to
            ));
        }
    }
    problems
}

fn core_may_use(edge: &Edge) -> bool {
    let to = edge.to.as_str();
    CORE_MAY_USE.contains(&to) || (edge.optional && CORE_MAY_USE_OPTIONALLY.contains(&to))
}

fn kube(edges: &[Edge]) -> Vec<String> {
    let mut problems = Vec::new();
    for edge in edges.iter().filter(|edge| edge.from != KUBE_CLIENT_CRATE) {
        let derive = edge.from == KUBE_DERIVE_CRATE
            && !edge.default_features
            && edge.features.iter().all(|feature| feature == "derive");
        let client = match edge.to.as_str() {
            "kube" => !derive,
            "k8s-openapi" => edge.from != KUBE_DERIVE_CRATE,
            "kube-client" | "kube-runtime" => true,
            _ => false,
        };
        if client {
            problems.push(format!(
                "{}: must not depend on {}: Kubernetes' client is {KUBE_CLIENT_CRATE}'s business",
                edge.from, edge.to
            ));
        }
    }
    problems
}

/// Checks that every dependency's name occurs in the source of the depending crate.
fn used(tree: &Tree, edges: &[Edge]) -> Vec<String> {
    let mut problems = Vec::new();
    // The lab tests use only parts of their crate's dependencies.
    for edge in edges.iter().filter(|edge| edge.from != "egret-tests") {
        let name = edge.to.replace('-', "_");
        let mut files = tree.with_suffix(&[".rs"]);
        if !files.any(|(path, text)| path.starts_with(&edge.folder) && mentions(text, &name)) {
            problems.push(format!(
                "{}: depends on {} and does not use it",
                edge.from, edge.to
            ));
        }
    }
    problems
}

/// Checks that every line of `[workspace.dependencies]` is used by a crate.
fn workspace_table(tree: &Tree, edges: &[Edge]) -> Vec<String> {
    let mut problems = Vec::new();
    let manifest = tree.need("Cargo.toml", &mut problems);
    let asked: BTreeSet<&str> = edges.iter().map(|edge| edge.to.as_str()).collect();
    let lines = manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    for line in lines {
        let Some((name, _)) = line.split_once(" = ") else {
            continue;
        };
        if !name.starts_with('#') && !asked.contains(name) {
            problems.push(format!("Cargo.toml: nobody uses {name}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn every_arrow_is_allowed_and_every_dependency_is_used() {
        let tree = Tree::load().unwrap();
        assert_none(&check(&tree, &metadata().unwrap()));
    }

    fn edge(from: &str, to: &str) -> Edge {
        Edge {
            from: from.into(),
            to: to.into(),
            folder: "crates/x/".into(),
            for_tests: false,
            optional: false,
            features: Vec::new(),
            default_features: false,
        }
    }

    #[test]
    fn wrong_arrows_are_seen() {
        assert_one(&arrows(&[edge("egret-core", "egret-api")]), &["egret-api"]);
        assert_one(&arrows(&[edge("egret-core", "tokio")]), &["pure"]);
        assert_one(&arrows(&[edge("egret-core", "schemars")]), &["pure"]);
        let optional = Edge {
            optional: true,
            ..edge("egret-core", "schemars")
        };
        assert_none(&arrows(&[optional]));
        assert_one(&arrows(&[edge("egret-lab", "egret-core")]), &["egret-lab"]);
        assert_one(&arrows(&[edge("egret-objects", "egret-wire")]), &["wire"]);
        assert_one(&arrows(&[edge("egret-kernel", "egret-core")]), &["kernel"]);
        assert_one(&arrows(&[edge("egret-new", "libc")]), &["no arrows"]);
        assert_none(&arrows(&[edge("egret-agent", "egret-wire")]));
        assert_none(&arrows(&[edge("egret-cli", "egret-lab")]));
        assert_none(&arrows(&[edge("egret-datapath", "egret-wire")]));
    }

    #[test]
    fn kubernetes_clients_are_seen() {
        assert_one(&kube(&[edge("egret-agent", "kube")]), &["egret-agent"]);
        assert_one(&kube(&[edge("egret-cli", "kube-runtime")]), &["runtime"]);
        assert_one(&kube(&[edge("egret-cli", "k8s-openapi")]), &["k8s-openapi"]);
        assert_none(&kube(&[
            edge("egret-objects", "kube"),
            edge("egret-api", "kube"),
        ]));
        let client = Edge {
            features: vec!["derive".into(), "client".into()],
            ..edge("egret-api", "kube")
        };
        assert_one(&kube(&[client]), &["egret-api"]);
        let default = Edge {
            default_features: true,
            ..edge("egret-api", "kube")
        };
        assert_one(&kube(&[default]), &["egret-api"]);
    }

    #[test]
    fn unused_dependencies_are_seen() {
        let tree = Tree::of(&[
            ("crates/x/src/lib.rs", "use serde_json::Value;"),
            ("crates/y/src/lib.rs", "use libc::c_int;"),
            (
                "Cargo.toml",
                "[workspace.dependencies]\nlibc = \"0.2\"\naya = \"0\"\n[profile]\n",
            ),
        ]);
        assert_none(&used(&tree, &[edge("egret-x", "serde-json")]));
        assert_one(&used(&tree, &[edge("egret-x", "libc")]), &["libc"]);
        assert_one(
            &workspace_table(&tree, &[edge("egret-x", "libc")]),
            &["aya"],
        );
    }
}
