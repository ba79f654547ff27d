//! Least privilege, checked in the API server's audit log of all steps before.

use super::Scene;
use anyhow::ensure;
use egret_tests::Outcome;
use egret_tests::chart::{NAMESPACE, rights_in_manifests, template};
use egret_tests::kubernetes::{requests_between, right_of};
use serde_json::Value;
use std::collections::BTreeSet;

/// Requests of one of the chart's accounts.
fn requests(scene: &Scene, account: &str) -> anyhow::Result<Vec<Value>> {
    let mut requests = requests_between(&scene.installed.cluster.audit_log()?, 0)?;
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    requests.retain(|request| request["user"]["username"] == user.as_str());
    ensure!(!requests.is_empty(), "{account} has asked for nothing");
    Ok(requests)
}

/// `kube_source` checks that they use every right they have. Once the uninstallation begins they may outlive their
/// roles.
pub fn no_request_of_controller_and_agents_was_refused(scene: &Scene) -> Outcome {
    for account in ["egret-controller", "egret-agent"] {
        for request in requests(scene, account)? {
            ensure!(request["responseStatus"]["code"] != 403, "{request}");
        }
    }
    Ok(())
}

pub fn the_uninstalling_hook_used_all_that_it_may(scene: &Scene) -> Outcome {
    let mut used = BTreeSet::new();
    for request in requests(scene, "egret-uninstall")? {
        ensure!(request["responseStatus"]["code"] != 403, "{request}");
        // Requests about the server itself, which every client may send, need no right.
        if request["objectRef"]["resource"].is_string() {
            let (group, resource, verb) = right_of(&request);
            used.insert(format!("{group:?} {resource} {verb}"));
        }
    }
    let manifests = template(&[]).map_err(anyhow::Error::msg)?;
    let granted = rights_in_manifests(&manifests, "egret-uninstall");
    ensure!(used == granted, "used {used:?}, granted {granted:?}");
    Ok(())
}
