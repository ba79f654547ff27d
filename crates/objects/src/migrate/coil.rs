//! `Egress` of coil (`coil.cybozu.com/v2`).

use super::sheet::Sheet;
use super::{Context, destinations, texts};
use serde_json::{Map, json};

/// A `ClusterEgress`: pods of any namespace opted in by an annotation, and must have it as a label here.
pub(super) fn egress(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let (namespace, name) = (sheet.namespace(), sheet.name());
    let label = format!("egress.coil.cybozu.com/{namespace}");
    let why = format!(
        "pods named this object in an annotation; Egret selects by labels: give the pods the label {label}={name}"
    );
    sheet.lose("metadata.name", &json!(name), why);
    let why = format!(
        "the addresses came out of the address pool of the NAT pods: create EgressPool {name} with addresses of your \
         choice"
    );
    sheet.lose("spec.template", &json!(null), why);
    let pods = "Egret runs no NAT pods: gateways are nodes of an EgressGateway";
    for field in [
        "replicas",
        "strategy",
        "template",
        "podDisruptionBudget",
        "fouSourcePortAuto",
    ] {
        sheet.without_equal(field, pods);
    }
    for field in ["sessionAffinity", "sessionAffinityConfig"] {
        sheet.without_equal(field, "a pod keeps its address as long as it lives");
    }
    let cidrs = texts(sheet.take("destinations"));
    let spec = Map::from_iter([
        (
            "podSelector".to_owned(),
            json!({"matchLabels": {label: name}}),
        ),
        ("pool".to_owned(), json!(name)),
        ("destinations".to_owned(), destinations(&cidrs, &[])),
    ]);
    sheet.make("ClusterEgress", None, &format!("{namespace}-{name}"), spec);
}
