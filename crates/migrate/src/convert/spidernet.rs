//! `EgressGateway`, `EgressPolicy` and `EgressClusterPolicy` of egressgateway (`egressgateway.spidernet.io`).

use super::sheet::Sheet;
use super::{Context, POD_LABEL, destinations, selector};
use serde_json::{Map, Value, json};

/// To a gateway, and a pool of the same name for its addresses.
pub(super) fn gateway(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let name = sheet.name();
    let nodes = selector(sheet.take("nodeSelector.selector")).unwrap_or_else(|| json!({}));
    let mut spec = Map::from_iter([("nodeSelector".to_owned(), nodes)]);
    if *sheet.take("clusterDefault") == true {
        spec.insert("default".to_owned(), json!(true));
    }
    sheet.without_equal(
        "nodeSelector.policy",
        "every node of an EgressGateway serves every address",
    );
    for field in ["ippools.ipv4DefaultEIP", "ippools.ipv6DefaultEIP"] {
        sheet.without_equal(
            field,
            "name the address in the policies that use it: spec.ip",
        );
    }
    sheet.make("EgressGateway", None, name, spec);
    let (mut cidrs, mut ranges) = (Vec::new(), Vec::new());
    for field in ["ippools.ipv4", "ippools.ipv6"] {
        for text in sheet.texts(field) {
            match text.split_once('-') {
                Some((start, end)) => {
                    ranges.push(json!({"start": start.trim(), "end": end.trim()}))
                }
                None => cidrs.extend(sheet.prefixes_of(field, &[text])),
            }
        }
    }
    if cidrs.is_empty() && ranges.is_empty() {
        return;
    }
    let mut spec = Map::from_iter([
        ("gateway".to_owned(), json!(name)),
        ("namespaces".to_owned(), json!({"all": true})),
    ]);
    if !cidrs.is_empty() {
        spec.insert("cidrs".to_owned(), json!(cidrs));
    }
    if !ranges.is_empty() {
        spec.insert("ranges".to_owned(), Value::Array(ranges));
    }
    sheet.make("EgressPool", None, name, spec);
}

/// A policy for pods of one namespace.
pub(super) fn policy(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let Some(spec) = common(sheet) else { return };
    let (namespace, name) = (sheet.namespace(), sheet.name());
    sheet.make("Egress", Some(namespace), name, spec);
}

/// A policy for pods of several namespaces.
pub(super) fn cluster_policy(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let Some(mut spec) = common(sheet) else {
        return;
    };
    if let Some(namespaces) = selector(sheet.take("appliedTo.namespaceSelector")) {
        spec.insert("namespaceSelector".to_owned(), namespaces);
    }
    let name = sheet.name();
    sheet.make("ClusterEgress", None, name, spec);
}

fn common(sheet: &mut Sheet<'_>) -> Option<Map<String, Value>> {
    sheet.without_equal(
        "priority",
        "it has no effect there; priority of an Egress has one",
    );
    let by_label = format!(
        "Egret selects by labels: give the pods {POD_LABEL}={}",
        sheet.name()
    );
    sheet.without_equal("appliedTo.podSubnet", &by_label);
    sheet.without_equal(
        "egressIP.useNodeIP",
        "a node's own address cannot be an egress address: choose another",
    );
    sheet.without_equal(
        "egressIP.allocatorPolicy",
        "a policy keeps the address that it got first",
    );
    let mut spec = Map::new();
    let pods = selector(sheet.take("appliedTo.podSelector"));
    // A missing selector must not become all pods.
    let pods = pods.unwrap_or_else(|| json!({"matchLabels": {POD_LABEL: sheet.name()}}));
    spec.insert("podSelector".to_owned(), pods);
    let gateway = sheet.text("egressGatewayName");
    let given = ["egressIP.ipv4", "egressIP.ipv6"].map(|field| sheet.text(field));
    let given: Vec<&str> = given.into_iter().flatten().collect();
    match (given.is_empty(), gateway) {
        (false, _) => drop(spec.insert("ips".to_owned(), json!(given))),
        (true, Some(gateway)) => drop(spec.insert("pool".to_owned(), json!(gateway))),
        (true, None) => {
            let why =
                "the default gateway gave an address: write spec.pool, the name of its EgressPool";
            sheet.lose("spec.egressGatewayName", &Value::Null, why);
            spec.insert("pool".to_owned(), json!("default"));
        }
    }
    if let Some(gateway) = gateway.filter(|_| !given.is_empty()) {
        spec.insert("gateway".to_owned(), json!(gateway));
    }
    let given = sheet.peek("destSubnet").as_array().map_or(0, Vec::len);
    let cidrs = sheet.prefixes("destSubnet");
    if given > 0 && cidrs.is_empty() {
        let why = "no destination is left, so nothing is made of it: without destinations ours means everything";
        sheet.lose("spec.destSubnet", &Value::Null, why);
        return None;
    }
    if !cidrs.is_empty() {
        spec.insert("destinations".to_owned(), destinations(&cidrs, &[]));
    }
    Some(spec)
}
