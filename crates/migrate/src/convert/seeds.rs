//! The systems that Egret replaces: `StaticEgressIP`, egress-mapper, and the KEP's own manifest.

use super::sheet::Sheet;
use super::{Context, POD_LABEL, as_prefix, as_prefixes, destinations};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The KEP's `Egress`: the same fields in another group. An object in our group stays unchanged.
pub(super) fn kep(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    sheet.is_same_object();
    let fields = sheet.peek("").as_object().cloned().unwrap_or_default();
    let ours = sheet.api_version() == egret_api::API_VERSION;
    let mut spec = Map::new();
    for (name, value) in fields {
        if ours || ["selector", "ip"].contains(&name.as_str()) {
            sheet.take(&name);
            spec.insert(name, value);
        }
    }
    let (namespace, name) = (sheet.namespace(), sheet.name());
    sheet.make("Egress", Some(namespace), name, spec);
}

/// To one `Egress` for each pair of Service and address.
pub(super) fn static_egress_ip(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let (namespace, name) = (sheet.namespace(), sheet.name());
    let gateway = sheet.text("gateway-label").map(|label| {
        let name = format!("by-{}", label.replace(['/', '_'], "-").to_lowercase());
        let nodes = json!({"matchExpressions": [{"key": label, "operator": "Exists"}]});
        (name, nodes)
    });
    if let Some((name, nodes)) = &gateway {
        let spec = Map::from_iter([("nodeSelector".to_owned(), nodes.clone())]);
        sheet.make("EgressGateway", None, name, spec);
    }
    let count = sheet.peek("rules").as_array().map_or(0, Vec::len);
    let mut pairs: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for index in 0..count {
        let at = |field: &str| format!("rules[{index}].{field}");
        let hop = ["routing-table", "routing-table-id"];
        let is_hop = hop.iter().any(|field| {
            let value = sheet.peek(&at(field));
            !(value.is_null() || *value == 0 || *value == "" || *value == "0")
        });
        if is_hop {
            let rule = sheet.take(&format!("rules[{index}]"));
            let why = "egressip is a next hop here, which Egret's own objects cannot say; the rule is left out: keep it in a StaticEgressIP, which Egret serves";
            sheet.lose(&format!("spec.rules[{index}]"), rule, why);
            continue;
        }
        let mut text = |field: &str| sheet.text(&at(field)).unwrap_or_default().to_owned();
        let key = (text("service-name"), text("egressip"));
        let cidrs = as_prefixes(&text("cidr"));
        let cidrs = sheet.prefixes_of(&at("cidr"), &cidrs);
        if cidrs.is_empty() {
            let why = "the rule names no destination and is left out: without destinations ours means everything";
            sheet.lose(&format!("spec.{}", at("cidr")), &Value::Null, why);
            continue;
        }
        let known = pairs.entry(key).or_default();
        let new: Vec<String> = cidrs
            .into_iter()
            .filter(|cidr| !known.contains(cidr))
            .collect();
        known.extend(new);
    }
    let several = pairs.len() > 1;
    for (number, ((service, address), cidrs)) in (1..).zip(pairs) {
        let mut spec = Map::from_iter([
            ("serviceName".to_owned(), json!(service)),
            ("ip".to_owned(), json!(address)),
            ("destinations".to_owned(), destinations(&cidrs, &[])),
        ]);
        if let Some((name, _)) = &gateway {
            spec.insert("gateway".to_owned(), json!(name));
        }
        let name = match several {
            true => format!("{name}-{number}"),
            false => name.to_owned(),
        };
        sheet.make("Egress", Some(namespace), &name, spec);
    }
}

/// The selector of the workload if the input contains it; otherwise a label that the pods must be given.
pub(super) fn mapper_egress(sheet: &mut Sheet<'_>, context: &Context<'_>) {
    let name = sheet.name();
    let own = sheet.namespace();
    let namespace = sheet.text("namespace").unwrap_or(own);
    let kind = sheet.text("kind").unwrap_or("pod");
    let of = sheet.text("name").unwrap_or_default();
    let long = match kind.to_lowercase().as_str() {
        "deploy" | "deployment" => "Deployment",
        "rs" | "replicaset" => "ReplicaSet",
        "sts" | "statefulset" => "StatefulSet",
        "ds" | "daemonset" => "DaemonSet",
        "rc" | "replicationcontroller" => "ReplicationController",
        "job" => "Job",
        "po" | "pod" | "pods" => "Pod",
        _ => kind,
    };
    let workload = context.find(long, namespace, of);
    let known = workload.map(|found| &found["spec"]["selector"]);
    let known = known.filter(|selector| long != "Pod" && selector.is_object());
    let selector = match known {
        // ReplicationControllers select by a plain map.
        Some(labels) if long == "ReplicationController" => json!({"matchLabels": labels}),
        Some(selector) => selector.clone(),
        None => {
            let why = format!(
                "Egret selects by labels: give {POD_LABEL}={of} to the pods of {long} {namespace}/{of} (in the \
                 workload's template), or convert the workload's manifest together with this one"
            );
            sheet.lose("spec.name", &json!(of), why);
            json!({"matchLabels": {POD_LABEL: of}})
        }
    };
    let address = sheet.take("ip").clone();
    let mut spec = Map::from_iter([
        ("podSelector".to_owned(), selector),
        ("ip".to_owned(), address.clone()),
    ]);
    // The original affects one family only.
    let everywhere = match address.as_str().is_some_and(|text| text.contains(':')) {
        true => "::/0",
        false => "0.0.0.0/0",
    };
    spec.insert("destinations".to_owned(), json!([{"cidr": everywhere}]));
    sheet.make("Egress", Some(namespace), name, spec);
}

/// To a pool of one address, for all namespaces.
pub(super) fn vip(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    sheet.without_equal("routeid", "Egret needs no number for an address; drop it");
    let address = sheet.text("ip").unwrap_or_default();
    let spec = Map::from_iter([
        ("cidrs".to_owned(), json!([as_prefix(address)])),
        ("namespaces".to_owned(), json!({"all": true})),
    ]);
    let name = sheet.name();
    sheet.make("EgressPool", None, name, spec);
}

/// No field has an equivalent.
pub(super) fn mapper(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let network = "a setting of controller and agents: --never-destination";
    for (field, why) in [
        ("PodSubnet", network),
        (
            "ServiceSubnet",
            "a setting of controller and agents: --service-cidr",
        ),
        (
            "InterfaceName",
            "write spec.externalInterface in an EgressGateway",
        ),
        ("UpdateInterval", "changes take effect at once"),
        ("KeepalivedVIPImage", "Egret needs no keepalived"),
        ("KubeEgressImage", "Egret needs no kube-egress"),
        ("NeedMountDev", "Egret needs no keepalived"),
    ] {
        sheet.without_equal(field, why);
    }
    // `InterfaceName` alone would make an EgressGateway without nodes.
    let _: &Value = sheet.peek("InterfaceName");
}
