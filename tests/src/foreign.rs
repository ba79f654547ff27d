//! Objects of earlier systems in the lab: manifests as their users wrote them, and their statuses.

use crate::Cluster;
use crate::cluster::DEADLINE;
use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use serde_json::Value;

/// A `StaticEgressIP` of a group in the namespace `default`, adopted. Rules are `(egressip, service-name, cidr)`.
pub fn static_egress_ip(group: &str, name: &str, rules: &[(&str, &str, &str)]) -> String {
    let rules: String = rules
        .iter()
        .map(|(address, service, cidr)| {
            format!("  - egressip: {address}\n    service-name: {service}\n    cidr: {cidr}\n")
        })
        .collect();
    format!(
        "apiVersion: {group}/v1alpha1\nkind: StaticEgressIP\nmetadata:\n  name: {name}\n  \
         annotations: {{egret.dev/adopt: \"true\"}}\nspec:\n  rules:\n{rules}"
    )
}

/// A Service in the namespace `default` for the pods of an app.
pub fn service(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{app: {app}}}, ports: [{{port: 80}}]}}\n"
    )
}

/// An object of `egress.mapper.com` in the namespace `default`, adopted; `spec` as a flow mapping.
pub fn mapper(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: egress.mapper.com/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: default, \
         annotations: {{egret.dev/adopt: \"true\"}}}}\nspec: {spec}\n"
    )
}

impl Cluster {
    /// Status of an object in the namespace `default`; null if it has none. `kind` is the folder's name.
    pub fn foreign_status(&self, kind: &str, name: &str) -> Value {
        let object = self.object(kind, Some("default"), name).unwrap_or_default();
        object["status"].clone()
    }

    /// Waits until an object's status satisfies the predicate, and returns it.
    ///
    /// # Errors
    /// It does not in time; the error contains the status.
    pub fn wait_foreign(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        good: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let waited = wait_for(what, DEADLINE, || {
            last = self.foreign_status(kind, name);
            good(&last)
        });
        waited.with_context(|| format!("{kind} {name}: {last:#}"))?;
        Ok(last)
    }

    /// Deletes the cluster's `EgressGateway`, as if its user had never written one.
    ///
    /// # Errors
    /// There is none.
    pub fn without_egress_gateway(&self) -> anyhow::Result<()> {
        let folder = self.lab().dir().objects();
        Ok(std::fs::remove_file(
            folder.join("egressgateway.default.yaml"),
        )?)
    }

    /// Reads an object of the lab's own, changes it and writes it again.
    ///
    /// # Errors
    /// There is no such file.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let path = self.lab().dir().objects().join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
        let mut value: Value = serde_saphyr::from_str(&text)?;
        change(&mut value);
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, serde_saphyr::to_string(&value)?)?;
        Ok(std::fs::rename(&temporary, &path)?)
    }
}

/// Status and reason of a condition: `True/Programmed`; empty if it does not exist.
pub fn condition(status: &Value, kind: &str) -> String {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|one| one["type"] == kind);
    found.map_or_else(String::new, |one| {
        format!(
            "{}/{}",
            one["status"].as_str().unwrap_or_default(),
            one["reason"].as_str().unwrap_or_default()
        )
    })
}

/// The message of a condition; empty if it does not exist.
pub fn message(status: &Value, kind: &str) -> String {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|one| one["type"] == kind);
    let text = found.and_then(|one| one["message"].as_str());
    text.unwrap_or_default().to_owned()
}

/// Fails unless a condition has this status and reason; the error contains the actual ones.
///
/// # Errors
/// It has not.
pub fn expect_condition(status: &Value, kind: &str, wanted: &str) -> anyhow::Result<()> {
    let found = condition(status, kind);
    ensure!(
        found == wanted,
        "{kind} is {found}, wanted {wanted}: {status:#}"
    );
    Ok(())
}
