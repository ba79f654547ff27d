//! The chart in tests: its path, helm, and the rights that it grants.

use egret_cluster::Programs;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Folder of everything that is installed.
pub const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
/// The chart.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
/// Namespace of the plain manifests.
pub const NAMESPACE: &str = "egret-system";

/// helm without the plugins, settings and caches of the user who runs the test.
pub fn helm(programs: &Programs, home: &Path) -> Command {
    let mut command = Command::new(programs.kubernetes("helm"));
    for variable in [
        "HELM_CONFIG_HOME",
        "HELM_CACHE_HOME",
        "HELM_DATA_HOME",
        "HOME",
    ] {
        command.env(variable, home);
    }
    command.env("KUBECONFIG", "/dev/null");
    command
}

/// Runs `helm template` of the chart without a cluster; returns its output, or its error message.
///
/// # Errors
/// helm rejects the values.
///
/// # Panics
/// helm is not installed.
pub fn template(arguments: &[&str]) -> Result<String, String> {
    let home = tempfile::tempdir().expect("a folder can be made");
    let programs = Programs::find().expect("Kubernetes is built");
    let mut command = helm(&programs, home.path());
    command.args(["template", "egret", CHART, "--namespace", NAMESPACE]);
    let output = command.args(["--kube-version", "1.37"]).args(arguments);
    let output = output.output().expect("helm can be run");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// `GROUP RESOURCE VERB` of every right in the table after the line `part` of docs/kubernetes.md.
pub fn rights_in_docs(docs: &str, part: &str) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    let lines = docs.lines().skip_while(|line| *line != part).skip(1);
    let rows = lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter(|line| line.contains('`'));
    for row in rows {
        let cells: Vec<Vec<&str>> = row
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.split('`').skip(1).step_by(2).collect())
            .collect();
        let [groups, resources, verbs] = &cells[..] else {
            continue;
        };
        add(&mut rights, groups, resources, verbs);
    }
    rights
}

/// `GROUP RESOURCE VERB` of every right in the roles of this name in manifests.
///
/// # Panics
/// They are not YAML.
pub fn rights_in_manifests(manifests: &str, name: &str) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for text in manifests.split("\n---\n") {
        let object: serde_json::Value =
            serde_saphyr::from_str(text).expect("helm prints good YAML");
        let is_role = ["ClusterRole", "Role"]
            .map(Into::into)
            .contains(&object["kind"]);
        if !is_role || object["metadata"]["name"] != name {
            continue;
        }
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| -> Vec<&str> {
                let list = rule[key].as_array().into_iter().flatten();
                list.filter_map(serde_json::Value::as_str).collect()
            };
            let (groups, resources) = (words("apiGroups"), words("resources"));
            add(&mut rights, &groups, &resources, &words("verbs"));
        }
    }
    rights
}

fn add(rights: &mut BTreeSet<String>, groups: &[&str], resources: &[&str], verbs: &[&str]) {
    for group in groups {
        for resource in resources {
            for verb in verbs {
                let group = group.trim_matches('"');
                rights.insert(format!("{group:?} {resource} {verb}"));
            }
        }
    }
}
