//! The generated definitions keep the promises of the API.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

fn definition(kind: &str) -> CustomResourceDefinition {
    let mut all = egret_api::crds();
    all.retain(|crd| crd.spec.names.kind == kind);
    all.pop()
        .unwrap_or_else(|| panic!("no definition of {kind}"))
}

fn schema(kind: &str) -> Value {
    let crd = definition(kind);
    serde_json::to_value(
        crd.spec.versions[0]
            .schema
            .clone()
            .unwrap()
            .open_api_v3_schema,
    )
    .unwrap()
}

/// Every schema node with its path.
fn walk(path: &str, node: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, node);
    if let Some(properties) = node.get("properties").and_then(Value::as_object) {
        for (name, child) in properties {
            walk(&format!("{path}.{name}"), child, visit);
        }
    }
    if let Some(items) = node.get("items") {
        walk(&format!("{path}[]"), items, visit);
    }
}

#[test]
fn the_six_kinds_have_their_names_scopes_and_status() {
    let expected = [
        ("Egress", "egr", "Namespaced"),
        ("ClusterEgress", "cegr", "Cluster"),
        ("EgressGateway", "egrgw", "Cluster"),
        ("EgressPool", "egrpool", "Cluster"),
        ("EgressAddress", "egraddr", "Cluster"),
        ("EgressNode", "egrnode", "Cluster"),
    ];
    assert_eq!(egret_api::crds().len(), expected.len());
    for (kind, short, scope) in expected {
        let crd = definition(kind);
        assert_eq!(crd.spec.group, egret_api::GROUP);
        assert_eq!(crd.spec.scope, scope, "{kind}");
        assert_eq!(crd.spec.names.short_names, Some(vec![short.to_owned()]));
        let version = &crd.spec.versions[0];
        assert_eq!(
            format!("{}/{}", crd.spec.group, version.name),
            egret_api::API_VERSION
        );
        assert!(
            version.subresources.as_ref().unwrap().status.is_some(),
            "{kind} has no status"
        );
        assert!(
            version.additional_printer_columns.as_ref().unwrap().len() >= 5,
            "{kind}"
        );
    }
}

#[test]
fn every_field_is_explained_and_no_format_is_unknown_to_kubernetes() {
    for crd in egret_api::crds() {
        let kind = crd.spec.names.kind;
        walk(&kind, &schema(&kind), &mut |path, node| {
            let own = path.contains('.') && !path.ends_with("[]");
            assert!(
                !own || node.get("description").is_some(),
                "{path} has no description"
            );
            if let Some(format) = node.get("format").and_then(Value::as_str) {
                assert!(
                    ["int32", "int64", "date-time"].contains(&format),
                    "{path}: {format}"
                );
            }
            assert!(
                node.get("oneOf").is_none() && node.get("anyOf").is_none(),
                "{path} not plain"
            );
        });
    }
}

#[test]
fn every_rule_has_a_message_that_a_person_understands() {
    let mut rules = 0;
    for crd in egret_api::crds() {
        let kind = crd.spec.names.kind;
        walk(&kind, &schema(&kind), &mut |path, node| {
            let found = node
                .get("x-kubernetes-validations")
                .and_then(Value::as_array);
            for rule in found.into_iter().flatten() {
                rules += 1;
                assert!(
                    rule["message"].as_str().is_some_and(|m| m.len() > 20),
                    "{path}: {rule}"
                );
            }
        });
    }
    assert!(rules >= 12, "only {rules} rules");
}

#[test]
fn conditions_are_a_map_by_type_so_that_two_writers_can_share_them() {
    for crd in egret_api::crds() {
        let schema = schema(&crd.spec.names.kind);
        let conditions = &schema["properties"]["status"]["properties"]["conditions"];
        assert_eq!(
            conditions["x-kubernetes-list-type"], "map",
            "{}",
            crd.spec.names.kind
        );
        assert_eq!(
            conditions["x-kubernetes-list-map-keys"],
            serde_json::json!(["type"])
        );
    }
}

#[test]
fn defaults_are_written_down() {
    let egress = schema("Egress");
    let spec = &egress["properties"]["spec"]["properties"];
    assert_eq!(spec["priority"]["default"], 0);
    assert_eq!(spec["whenUnavailable"]["default"], "Drop");
    assert_eq!(
        spec["whenUnavailable"]["enum"],
        serde_json::json!(["Drop", "NodeAddress"])
    );
    let gateway = schema("EgressGateway");
    let spec = &gateway["properties"]["spec"]["properties"];
    assert_eq!(spec["externalInterface"]["default"], "auto");
    assert_eq!(
        spec["probe"]["default"],
        serde_json::json!({"intervalMs": 50, "failures": 3})
    );
    assert_eq!(spec["outbound"]["default"], "AnyGateway");
    assert_eq!(spec["transport"]["properties"]["type"]["default"], "VXLAN");
}

#[test]
fn address_objects_are_named_after_their_address() {
    let name = |text: &str| egret_api::address_object_name(text.parse().unwrap());
    assert_eq!(name("192.168.122.222"), "v4-192-168-122-222");
    assert_eq!(
        name("fd00:122::de"),
        "v6-fd00-0122-0000-0000-0000-0000-0000-00de"
    );
}
