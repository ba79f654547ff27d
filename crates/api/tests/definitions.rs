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

/// What only Egret writes is refused by the API server where it is not even of the right shape: what was stored must be
/// read again.
#[test]
fn records_take_nothing_that_is_not_of_the_shape_that_egret_writes() {
    let at = |kind: &str, path: &str| {
        let mut found = Value::Null;
        walk("", &schema(kind), &mut |here, node| {
            if here == path {
                found = node["pattern"].clone();
            }
        });
        found.as_str().unwrap_or_default().to_owned()
    };
    for path in [
        ".spec.grants[].address",
        ".status.underlayAddresses[]",
        ".status.nextHops[]",
        ".status.announcing[]",
        ".status.demand[].address",
    ] {
        assert_eq!(at("EgressNode", path), "^[0-9a-fA-F:.]+$", "{path}");
    }
    assert!(!at("EgressNode", ".status.externalAddresses[]").is_empty());
    assert!(!at("EgressNode", ".spec.grants[].ranges[]").is_empty());
    assert!(!at("EgressAddress", ".spec.address").is_empty());
    assert!(!at("EgressAddress", ".spec.leases[].ranges[]").is_empty());
}

#[test]
fn an_address_and_the_name_of_its_object_are_one_another() {
    for text in [
        "192.168.122.222",
        "0.0.0.1",
        "fd00:122::222",
        "::",
        "2001:db8::1",
    ] {
        let address = text.parse().unwrap();
        let name = egret_api::address_object_name(address);
        assert_eq!(egret_api::address_of_object_name(&name), Some(address));
    }
    for name in [
        "v4-1-2-3",
        "v4-01-2-3-4",
        "v6-1",
        "v4-1-2-3-4-5",
        "x",
        "v6-fd00-0-0-0-0-0-0-1",
    ] {
        assert_eq!(egret_api::address_of_object_name(name), None, "{name}");
    }
}
