//! `EgressIP` of OVN-Kubernetes and OpenShift (`k8s.ovn.org/v1`).

use super::sheet::Sheet;
use super::{Context, selector};
use serde_json::{Map, json};

/// Label of the gateway nodes; one group for all `EgressIP`s.
const GATEWAY_LABEL: &str = "k8s.ovn.org/egress-assignable";
/// Name of the group.
const GATEWAY: &str = "egress-assignable";

/// To a `ClusterEgress` without destinations: everything outside the cluster, as in OVN-Kubernetes.
pub(super) fn egress_ip(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    let nodes = json!({"matchExpressions": [{"key": GATEWAY_LABEL, "operator": "Exists"}]});
    let gateway = Map::from_iter([("nodeSelector".to_owned(), nodes)]);
    sheet.make("EgressGateway", None, GATEWAY, gateway);
    let addresses = sheet.texts("egressIPs");
    let mut spec = Map::from_iter([
        ("gateway".to_owned(), json!(GATEWAY)),
        ("ips".to_owned(), json!(addresses)),
    ]);
    let pods = selector(sheet.take("podSelector")).unwrap_or_else(|| json!({}));
    spec.insert("podSelector".to_owned(), pods);
    if let Some(namespaces) = selector(sheet.take("namespaceSelector")) {
        spec.insert("namespaceSelector".to_owned(), namespaces);
    }
    let name = sheet.name();
    sheet.make("ClusterEgress", None, name, spec);
}
