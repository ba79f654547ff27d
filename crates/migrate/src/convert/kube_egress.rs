//! The two mappings of kube-egress, as the ConfigMaps that its DaemonSet mounts.

use super::sheet::Sheet;
use super::{Context, POD_LABEL, as_prefix};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Parses an address. Keys cannot contain colons: an IPv6 address is written with dashes.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    text.parse()
        .or_else(|_| text.replace('-', ":").parse())
        .ok()
}

/// Entries of a ConfigMap whose keys are all addresses; `None` for other ConfigMaps.
fn entries(object: &Value) -> Option<Vec<(&str, IpAddr, &str)>> {
    let data = object["data"].as_object()?;
    let entries = data.iter().map(|(key, value)| {
        let value = value.as_str()?.trim();
        let known = address(value).is_some() || value.parse::<u8>().is_ok();
        Some((key.as_str(), address(key)?, value)).filter(|_| known)
    });
    let entries: Option<Vec<_>> = entries.collect();
    entries.filter(|entries| !entries.is_empty())
}

/// Whether an object is one of the two mappings.
pub(super) fn is_mapping(object: &Value) -> bool {
    object["kind"] == "ConfigMap" && entries(object).is_some()
}

/// To a pool for each address with a number, and a `ClusterEgress` for each address that pods are mapped to. The input
/// names pods by their addresses, which change: here they are selected by a label that they must be given.
pub(super) fn mapping(sheet: &mut Sheet<'_>, context: &Context<'_>) {
    let mut pods: BTreeMap<IpAddr, Vec<(&str, IpAddr)>> = BTreeMap::new();
    for (key, named, value) in entries(sheet.object()).unwrap_or_default() {
        match address(value) {
            Some(vip) => pods.entry(vip).or_default().push((key, named)),
            None => {
                let why = "Egret needs no number for an address; drop it";
                sheet.lose(&format!("data.{key}"), &json!(value), why);
                let spec = Map::from_iter([
                    ("cidrs".to_owned(), json!([as_prefix(&named.to_string())])),
                    ("namespaces".to_owned(), json!({"all": true})),
                ]);
                sheet.make("EgressPool", None, &name_of(named), spec);
            }
        }
    }
    for (vip, pods) in pods {
        let label = name_of(vip);
        for (key, pod) in pods {
            let whose = match context.pod_with(pod) {
                Some(pod) => format!("pod {pod}"),
                None => format!("the pod that has {pod} (kubectl get pods -A -o wide)"),
            };
            let why = format!(
                "Egret selects by labels: give {POD_LABEL}={label} to {whose}, in its workload's template"
            );
            sheet.lose(&format!("data.{key}"), &json!(vip.to_string()), why);
        }
        let everywhere = if vip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let spec = Map::from_iter([
            (
                "podSelector".to_owned(),
                json!({"matchLabels": {POD_LABEL: label}}),
            ),
            ("ip".to_owned(), json!(vip.to_string())),
            ("destinations".to_owned(), json!([{"cidr": everywhere}])),
        ]);
        sheet.make("ClusterEgress", None, &label, spec);
    }
}

/// The address in a form that is valid as an object's name and as a label's value.
fn name_of(vip: IpAddr) -> String {
    let family = if vip.is_ipv4() { "v4" } else { "v6" };
    format!("{family}-{}-vip", vip.to_string().replace(['.', ':'], "-"))
}
