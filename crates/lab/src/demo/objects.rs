//! Status that controller and agents have written, read from the source directory.

use crate::{Lab, LabError};
use serde_json::Value;
use std::net::IpAddr;

/// The file of an object below `status/`, or `Null` if it does not exist.
fn read(lab: &Lab, kind: &str, name: &str) -> Value {
    let path = lab
        .dir()
        .objects()
        .join(format!("status/{kind}/{name}.yaml"));
    // Files are replaced by rename, so an existing one is complete.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_saphyr::from_str(&text).unwrap_or(Value::Null)
}

/// Names of the files of a kind, without their ending.
pub(super) fn names(lab: &Lab, kind: &str) -> Vec<String> {
    let folder = lab.dir().objects().join(format!("status/{kind}"));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned))
        .filter(|name| !name.starts_with('.'))
        .collect()
}

/// The condition of an object, if it is true.
fn condition(object: &Value, kind: &str) -> Option<Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    let mut ours = conditions.iter().filter(|one| one["type"] == kind);
    ours.next().filter(|one| one["status"] == "True").cloned()
}

/// An `Egress` of the namespace `default`.
pub(super) struct Policy(Value);

impl Policy {
    pub(super) fn read(lab: &Lab, name: &str) -> Self {
        Self(read(lab, "Egress", &format!("default.{name}")))
    }

    /// Whether the policy is in force on every node with exactly these addresses.
    pub(super) fn is_ready(&self, addresses: &[IpAddr]) -> bool {
        let Self(object) = self;
        let wanted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let status = &object["status"];
        let generation = object["metadata"]["generation"].as_i64();
        generation.is_some()
            && status["observedGeneration"].as_i64() == generation
            && condition(object, "Ready")
                .is_some_and(|ready| ready["observedGeneration"].as_i64() == generation)
            && status["addresses"] == serde_json::json!(wanted)
    }

    /// Message of a true condition.
    pub(super) fn says(&self, kind: &str) -> Option<String> {
        let condition = condition(&self.0, kind)?;
        condition["message"].as_str().map(str::to_owned)
    }
}

/// Whether the agents of all these nodes report that their kernel has the planned state.
pub(super) fn are_programmed(lab: &Lab, nodes: &[String]) -> bool {
    nodes
        .iter()
        .all(|node| condition(&read(lab, "EgressNode", node), "Ready").is_some())
}

/// Gateways whose agents report, with the steering version of each.
pub(super) fn live_gateways(lab: &Lab) -> Vec<(String, i64)> {
    let object = read(lab, "EgressGateway", "default");
    let gateways = object["status"]["gateways"].as_array().cloned();
    gateways
        .unwrap_or_default()
        .iter()
        .filter(|gateway| gateway["live"] == true)
        .filter_map(|gateway| {
            let node = gateway["node"].as_str()?.to_owned();
            Some((node, gateway["steeringVersion"].as_i64()?))
        })
        .collect()
}

/// The gateway that announces an address.
pub(super) fn announcer(lab: &Lab, address: IpAddr) -> Option<String> {
    let name = match address {
        IpAddr::V4(address) => format!("v4-{}", address.to_string().replace('.', "-")),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:04x}"));
            format!("v6-{}", groups.join("-"))
        }
    };
    let object = read(lab, "EgressAddress", &name);
    object["status"]["announcer"].as_str().map(str::to_owned)
}

/// Whether the objects contain nothing of any policy: no address, no grant, no programmed pod.
pub(super) fn are_forgotten(lab: &Lab, nodes: &[String]) -> Result<bool, LabError> {
    let is_empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    let node_is_bare = |node: &String| {
        let object = read(lab, "EgressNode", node);
        is_empty(&object["spec"]["grants"]) && is_empty(&object["status"]["programmed"])
    };
    Ok(names(lab, "EgressAddress").is_empty()
        && names(lab, "Egress").is_empty()
        && nodes.iter().all(node_is_bare))
}
