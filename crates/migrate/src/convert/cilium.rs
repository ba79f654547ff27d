//! `CiliumEgressGatewayPolicy` (`cilium.io/v2`).

use super::sheet::Sheet;
use super::{Context, destinations, selector};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// Label of a pod's identity that stands for its namespace.
const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// Prefix of labels of a pod's identity that are labels of its namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// Label that Kubernetes puts on every namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// One `ClusterEgress` for each entry of `selectors`, which are alternatives.
pub(super) fn policy(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let name = sheet.name();
    let mut common = Map::new();
    let places = match sheet.peek("egressGateways").as_array() {
        Some(list) if !list.is_empty() => (0..list.len())
            .map(|index| format!("egressGateways[{index}]"))
            .collect(),
        _ => vec!["egressGateway".to_owned()],
    };
    gateway(sheet, name, &places, &mut common);
    let given = addresses(sheet, name, &places, &mut common);
    let (cidrs, except) = wanted(sheet, &given);
    if cidrs.is_empty() {
        let why = "no destination is left, so nothing is made of it: without destinations ours means everything";
        sheet.lose("spec.destinationCIDRs", &Value::Null, why);
        return;
    }
    common.insert("destinations".to_owned(), destinations(&cidrs, &except));
    let count = sheet.peek("selectors").as_array().map_or(0, Vec::len);
    for index in 0..count {
        let mut spec = common.clone();
        let given = ["podSelector", "namespaceSelector"];
        let given = given.map(|field| sheet.peek(&format!("selectors[{index}].{field}")));
        if given.iter().all(|one| one.is_null()) {
            continue; // Cilium refuses it, and an empty selection of ours is every pod
        }
        pods(sheet, &format!("selectors[{index}]"), &mut spec);
        let name = match count {
            1 => name.to_owned(),
            _ => format!("{name}-{}", index + 1),
        };
        sheet.make("ClusterEgress", None, &name, spec);
    }
}

/// Destinations, and the prefixes excluded from them. Entries with another meaning here are left out and listed as
/// losses.
fn wanted(sheet: &mut Sheet<'_>, addresses: &[String]) -> (Vec<String>, Vec<String>) {
    let parse = |text: &str| text.parse::<IpNet>().ok();
    let mut cidrs = sheet.prefixes("destinationCIDRs");
    let except = sheet.prefixes("excludedCIDRs");
    for hole in &except {
        let Some(net) = parse(hole) else { continue };
        let whole = |cidr: &String| parse(cidr).is_some_and(|cidr| net.contains(&cidr));
        let inside = |cidr: &String| parse(cidr).is_some_and(|cidr| cidr.contains(&net));
        let gone: Vec<String> = cidrs.iter().filter(|cidr| whole(cidr)).cloned().collect();
        for cidr in &gone {
            let why = format!("{hole} excludes all of it, so it is left out");
            sheet.lose("spec.destinationCIDRs", &json!(cidr), why);
        }
        if gone.is_empty() && !cidrs.iter().any(inside) {
            let why = "it is outside every destination and excludes nothing; left out";
            sheet.lose("spec.excludedCIDRs", &json!(hole), why);
        }
        cidrs.retain(|cidr| !whole(cidr));
    }
    let families: Vec<bool> = addresses.iter().map(|text| text.contains(':')).collect();
    if families.is_empty() {
        return (cidrs, except);
    }
    let served = |cidr: &String| families.contains(&cidr.contains(':'));
    for cidr in cidrs.iter().filter(|cidr| !served(cidr)) {
        let why = "no egressIP is of its family, so it is left out: add one to spec.ips, and the destination with it";
        sheet.lose("spec.destinationCIDRs", &json!(cidr), why);
    }
    cidrs.retain(served);
    (cidrs, except)
}

fn gateway(sheet: &mut Sheet<'_>, name: &str, places: &[String], common: &mut Map<String, Value>) {
    let first = sheet.take(&format!("{}.nodeSelector", places[0]));
    let mut spec = Map::from_iter([(
        "nodeSelector".to_owned(),
        selector(first).unwrap_or_else(|| json!({})),
    )]);
    if let Some(device) = sheet.text(&format!("{}.interface", places[0])) {
        spec.insert("externalInterface".to_owned(), json!(device));
    }
    for place in &places[1..] {
        if sheet.peek(&format!("{place}.nodeSelector")) == first {
            sheet.take(&format!("{place}.nodeSelector"));
        }
    }
    sheet.without_equal(
        "egressGateways.nodeSelector",
        "a policy has one EgressGateway, and all its nodes serve all its addresses: widen its nodeSelector",
    );
    sheet.make("EgressGateway", None, name, spec);
    common.insert("gateway".to_owned(), json!(name));
}

fn addresses(
    sheet: &mut Sheet<'_>,
    name: &str,
    places: &[String],
    common: &mut Map<String, Value>,
) -> Vec<String> {
    let mut given = Vec::new();
    let mut without = Vec::new();
    for place in places {
        match sheet.text(&format!("{place}.egressIP")) {
            Some(text) if given.iter().any(|known| known == text) => {}
            Some(text) => given.push(text.to_owned()),
            None => without.push(format!("spec.{place}.egressIP")),
        }
    }
    for field in without.iter().filter(|_| !given.is_empty()) {
        let why = "the address was the first of that gateway's interface, and a node's own address cannot be one: add \
                   one of your choice to spec.ips";
        sheet.lose(field, &Value::Null, why);
    }
    match given.as_slice() {
        [] => {
            let why = format!(
                "the address was the first of the gateway's interface; create EgressPool {name} with an address of \
                 your choice, since a node's own address cannot be one"
            );
            sheet.lose("spec.egressGateway.egressIP", &Value::Null, why);
            common.insert("pool".to_owned(), json!(name));
        }
        [one] => drop(common.insert("ip".to_owned(), json!(one))),
        several => drop(common.insert("ips".to_owned(), json!(several))),
    }
    given
}

/// Selectors for the pods of one entry. Labels of a Cilium identity may stand for the namespace or its labels.
fn pods(sheet: &mut Sheet<'_>, place: &str, spec: &mut Map<String, Value>) {
    let pods = sheet.take(&format!("{place}.podSelector"));
    let mut namespaces =
        selector(sheet.take(&format!("{place}.namespaceSelector"))).unwrap_or_else(|| json!({}));
    let mut labels = Map::new();
    for (key, value) in pods["matchLabels"].as_object().into_iter().flatten() {
        let key = plain(key);
        match of_namespace(&key) {
            Some(of_namespace) => namespaces["matchLabels"][of_namespace] = value.clone(),
            None => drop(labels.insert(key, value.clone())),
        }
    }
    let mut expressions = Vec::new();
    for expression in pods["matchExpressions"].as_array().into_iter().flatten() {
        let key = plain(expression["key"].as_str().unwrap_or_default());
        let mut expression = expression.clone();
        match of_namespace(&key) {
            Some(of_namespace) => {
                expression["key"] = json!(of_namespace);
                let list = &mut namespaces["matchExpressions"];
                match list {
                    Value::Array(list) => list.push(expression),
                    _ => *list = json!([expression]),
                }
            }
            None => {
                expression["key"] = json!(key);
                expressions.push(expression);
            }
        }
    }
    let mut wanted = Map::new();
    if !labels.is_empty() {
        wanted.insert("matchLabels".to_owned(), Value::Object(labels));
    }
    if !expressions.is_empty() {
        wanted.insert("matchExpressions".to_owned(), Value::Array(expressions));
    }
    spec.insert("podSelector".to_owned(), Value::Object(wanted));
    if let Some(namespaces) = selector(&namespaces) {
        spec.insert("namespaceSelector".to_owned(), namespaces);
    }
    if let Some(nodes) = selector(sheet.take(&format!("{place}.nodeSelector"))) {
        spec.insert("nodeSelector".to_owned(), nodes);
    }
}

/// A label key without Cilium's source prefix.
fn plain(key: &str) -> String {
    let key = key.strip_prefix("k8s:").unwrap_or(key);
    key.strip_prefix("any:").unwrap_or(key).to_owned()
}

fn of_namespace(key: &str) -> Option<String> {
    if key == NAMESPACE_LABEL {
        return Some(NAME_LABEL.to_owned());
    }
    key.strip_prefix(NAMESPACE_LABELS).map(str::to_owned)
}
