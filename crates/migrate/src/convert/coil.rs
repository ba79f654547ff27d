//! `Egress` of coil (`coil.cybozu.com/v2`).

use super::sheet::Sheet;
use super::{Context, destinations};
use serde_json::{Map, json};

/// Longest name of a label after its prefix.
const LABEL_MAX: usize = 63;

/// To a `ClusterEgress`: pods of any namespace opted in by an annotation, and must have a label here. The annotation
/// lists several objects of one namespace; a label has one value, so each object has its own label.
pub(super) fn egress(sheet: &mut Sheet<'_>, context: &Context<'_>) {
    let (namespace, name) = (sheet.namespace(), sheet.name());
    let own = format!("{namespace}.{name}");
    let (label, value) = match own.len() <= LABEL_MAX {
        true => (format!("egress.coil.cybozu.com/{own}"), "true"),
        false => (format!("egress.coil.cybozu.com/{namespace}"), name),
    };
    let annotation = format!("egress.coil.cybozu.com/{namespace}");
    let pods = context.pods_naming(&annotation, name);
    let of = match pods.is_empty() {
        true => String::new(),
        false => format!(" ({})", pods.join(", ")),
    };
    let why = format!(
        "pods named this object in the annotation {annotation}; Egret selects by labels: give the pods{of} the label \
         {label}={value}, in their workload's template"
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
    let cidrs = sheet.prefixes("destinations");
    if cidrs.is_empty() {
        let why = "no destination is left, so nothing is made of it: without destinations ours means everything";
        sheet.lose("spec.destinations", &json!(null), why);
        return;
    }
    let spec = Map::from_iter([
        (
            "podSelector".to_owned(),
            json!({"matchLabels": {label: value}}),
        ),
        ("pool".to_owned(), json!(name)),
        ("destinations".to_owned(), destinations(&cidrs, &[])),
    ]);
    sheet.make("ClusterEgress", None, &format!("{namespace}-{name}"), spec);
}
